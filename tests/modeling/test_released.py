"""Options that give the released code's models and losses."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.utils.events import EventStorage

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.core import ConfigurationError, LipschitzCoefficientPenalty, Neumann, Unroll
from crbp_d2.data import build_test_loader
from crbp_d2.data.pathfinder import PathfinderImages, PathfinderMapper
from crbp_d2.evaluation.pictures import write_pictures
from crbp_d2.modeling.build import output_norm, recurrence
from crbp_d2.modeling.sem_seg_head import focal_loss

BPTT = ("CRBP.ALGORITHM", "bptt+lcp", "CRBP.SOLVER.STEPS", 6)


@pytest.mark.parametrize(
    ("overrides", "adjoint"), [((), Neumann(blocks="first")), (BPTT, Unroll())]
)
def test_the_papers_conv_lstm_is_trained_through_blocks(overrides, adjoint, load_config):
    found = recurrence(load_config("pathfinder/conv_lstm_14.yaml", *overrides).CRBP)
    assert found.adjoint == adjoint
    assert found.penalties == (LipschitzCoefficientPenalty(blocks="diagonal"),)


RIVAL = (
    *("MODEL.BACKBONE.FILTERS", "random", "MODEL.BACKBONE.BIAS", "none"),
    *("MODEL.BACKBONE.NORM", "BN", "MODEL.BACKBONE.SQUARED", False),
    *("MODEL.SEM_SEG_HEAD.LAYER_NORM", "BN", "MODEL.SEM_SEG_HEAD.LAYER_BIAS", True),
    *("MODEL.SEM_SEG_HEAD.OUTPUT_NORM", ""),
)
HGRU = ("CRBP.CELL.OWN_GAMMA", True, "CRBP.CELL.NORM", "BN")


def trainable(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("config", "overrides", "parameters"),
    [
        # The released 284,227 are 100 more, as many as two further norms have: no part of the
        # published equations.
        ("hgru_14.yaml", HGRU, 284_227 - 100),
        ("conv_lstm_14.yaml", (), 1_126_452),
        ("feedforward_14.yaml", (), 845_402),
        ("feedforward_14.yaml", RIVAL, 845_527),
    ],
)
def test_contour_models_have_the_released_numbers_of_parameters(
    config, overrides, parameters, load_config
):
    assert trainable(build_model(load_config(f"pathfinder/{config}", *overrides))) == parameters


BATCH_STATISTICS = (
    *("CRBP.CELL.NORM", "BatchBN", "CRBP.CELL.NORM_EPS", 1e-3),
    *("MODEL.SEM_SEG_HEAD.OUTPUT_NORM", "BatchBN", "MODEL.SEM_SEG_HEAD.OUTPUT_NORM_EPS", 1e-3),
)


def tiny_model(load_config, *overrides, config: str = "quick/pathfinder_crbp.yaml"):
    torch.manual_seed(0)
    small = ("CRBP.CELL.CHANNELS", 4, "CRBP.CELL.KERNEL_SIZE", 3, "CRBP.SOLVER.STEPS", 3)
    return build_model(load_config(config, *small, "CRBP.SOLVER.SPREAD", 0, *overrides))


def records(count: int, seed: int = 1) -> list[dict]:
    images = PathfinderImages("tiny", seed=seed, size=count)
    return [PathfinderMapper(is_train=False)(record) for record in images]


def test_batch_statistics_make_a_prediction_depend_on_its_batch(load_config):
    model = tiny_model(load_config, *BATCH_STATISTICS).eval()
    norms = [one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    assert [one.eps for one in norms] == [1e-3] * 3
    batch = records(4)
    with torch.no_grad():
        together, alone = model(batch)[0]["sem_seg"], model(batch[:1])[0]["sem_seg"]
        assert (together - alone).abs().max() > 1e-4
        # In training the same statistics hold.
        drive = model.backbone(torch.stack([one["image"] for one in batch]) / 255.0)
        head = model.sem_seg_head
        logits = head.train().read_out(head.recurrence(drive["stem"]).state)
    torch.testing.assert_close(logits[0], together)


@pytest.mark.parametrize(("given", "training", "tool"), [(0, 1, 16), (6, 6, 6)])
def test_test_images_come_in_batches_of_the_key(given, training, tool, load_config):
    cfg = load_config("quick/pathfinder_crbp.yaml", "TEST.IMS_PER_BATCH", given)
    name = "pathfinder_tiny_val"
    assert build_test_loader(cfg, name, num_workers=0).batch_sampler.batch_size == training
    assert scoring_batches(cfg, name, num_workers=0).batch_sampler.batch_size == tool
    assert scoring_batches(cfg, name, 3, num_workers=0).batch_sampler.batch_size == 3


def test_pictures_are_drawn_one_by_one_whatever_the_batches(load_config, tmp_path):
    keys = ("TEST.IMS_PER_BATCH", 4, "TEST.PICTURES", 3)
    cfg = load_config("quick/pathfinder_crbp.yaml", *keys)
    model = tiny_model(load_config, *BATCH_STATISTICS)
    assert len(write_pictures(cfg, model, "pathfinder_tiny_val", tmp_path)) == 3


@pytest.mark.parametrize("kind", ["BN", "GN", "IN", "LN", "SyncBN", "FrozenBN", "BatchBN", ""])
def test_the_eps_of_a_readouts_norm_is_set_for_every_kind(kind):
    norm, usual = output_norm(kind, 4, eps=1e-3), output_norm(kind, 4)
    if kind:
        assert norm.eps == 1e-3 and usual.eps == (1e-6 if kind == "LN" else 1e-5)
    with pytest.raises(ConfigurationError, match="OUTPUT_NORM_EPS must be at least 0"):
        output_norm(kind, 4, eps=-1.0)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_detached_focal_factor_leaves_the_value_and_weighs_the_cross_entropy(gamma):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(3, (2, 4, 5))
    targets[0, 0] = 255
    options = {"gamma": gamma, "ignore_value": 255}
    whole, detached = (
        focal_loss(logits, targets, **options, detached=detached) for detached in (False, True)
    )
    assert torch.equal(whole, detached)
    (found,) = torch.autograd.grad(detached, logits)
    # -(1 - p)^gamma log p with a constant factor: its gradient is (1 - p)^gamma (softmax - truth).
    odds = logits.detach().softmax(dim=1)
    truth = torch.nn.functional.one_hot(targets % 255, 3).permute(0, 3, 1, 2)
    factor = (1 - (odds * truth).sum(dim=1)) ** gamma * (targets != 255)
    expected = factor[:, None] * (odds - truth) / (targets != 255).sum()
    torch.testing.assert_close(found, expected)
    (full,) = torch.autograd.grad(whole, logits)
    ratio = full.norm() / found.norm()
    assert 1 < ratio < 1 + gamma


def test_the_released_readout_starts_undecided_and_wide(load_config):
    keys = (
        *("MODEL.SEM_SEG_HEAD.PRIOR", 0.5, "MODEL.SEM_SEG_HEAD.READOUT_STD", 0.272),
        *("MODEL.SEM_SEG_HEAD.FOCAL_DETACHED", True, "CRBP.CELL.CHANNELS", 256),
        *("CRBP.CELL.KERNEL_SIZE", 1),
    )
    head = tiny_model(load_config, *keys).sem_seg_head
    assert not head.readout.predictor.bias.any() and head.focal_detached
    assert float(head.readout.predictor.weight.detach().std()) == pytest.approx(0.272, rel=0.1)
    with pytest.raises(ConfigurationError, match=r"READOUT_STD must be at least 0, got -1.0"):
        tiny_model(load_config, "MODEL.SEM_SEG_HEAD.READOUT_STD", -1.0)


@pytest.mark.parametrize("config", ["pathfinder_crbp.yaml", "pathfinder_feedforward.yaml"])
def test_both_heads_take_the_detached_factor(config, load_config):
    found = []
    for detached in (False, True):
        keys = ("MODEL.SEM_SEG_HEAD.FOCAL_DETACHED", detached)
        model = tiny_model(load_config, *keys, config=f"quick/{config}").train()
        torch.manual_seed(0)
        with EventStorage():
            loss = model(records(2))["loss_sem_seg"]
        bias = model.sem_seg_head.readout.predictor.bias
        found.append((loss.detach(), *torch.autograd.grad(loss, bias)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].norm() > 1.01 * found[1][1].norm()


@pytest.mark.parametrize("size", [3, 5])
def test_mask_heads_have_the_released_numbers_of_parameters(size, load_config):
    keys = ("CRBP.CELL.KERNEL_SIZE", size, "CRBP.CELL.GATE_KERNEL_SIZE", size)
    cfg = load_config("R50_FPN_crbp_1x.yaml", *keys)
    head = build_mask_head(cfg, ShapeSpec(channels=256, height=14, width=14))
    assert trainable(head.recurrence.cell) == {3: 1_576_256, 5: 4_199_744}[size]
    if size == 3:
        assert trainable(head) == 1_859_728


def test_the_released_rival_has_norms_and_biases_in_its_layers_alone(load_config):
    model = tiny_model(load_config, *RIVAL, config="quick/pathfinder_feedforward.yaml")
    head = model.sem_seg_head
    assert all(isinstance(layer.norm, torch.nn.BatchNorm2d) for layer in head.layers)
    assert all(layer.bias is not None for layer in head.layers)
    assert not list(head.readout.norm.parameters())
    with EventStorage():
        model.train()(records(2))["loss_sem_seg"].backward()
    assert all(p.grad is not None for p in model.parameters())
    # Without the keys, the layers have the readout's norm, and no biases beside it.
    usual = tiny_model(load_config, config="quick/pathfinder_feedforward.yaml").sem_seg_head
    assert all(layer.bias is None for layer in usual.layers)
    assert {type(layer.norm) for layer in usual.layers} == {type(usual.readout.norm)}


ALL_OF_IT = (
    *HGRU,
    *BATCH_STATISTICS,
    *("CRBP.CELL.NORM_SCALE", 0.1, "CRBP.CELL.RECTIFY_STATE", True),
    *("CRBP.CELL.GATE_BIAS", "released", "CRBP.CELL.CHRONO_STEPS", 8),
    *("MODEL.SEM_SEG_HEAD.PRIOR", 0.5, "MODEL.SEM_SEG_HEAD.READOUT_STD", 0.272),
    *("MODEL.SEM_SEG_HEAD.FOCAL_DETACHED", True, "MODEL.BACKBONE.BIAS", "uniform"),
)
SERIES = ("CRBP.ADJOINT.STOPPING", "released", "CRBP.ADJOINT.NORM_CAP", 1.0)


@pytest.mark.parametrize("algorithm", [SERIES, ("CRBP.ALGORITHM", "bptt")])
def test_a_model_with_every_released_option_learns(algorithm, load_config):
    model = tiny_model(load_config, *ALL_OF_IT, *algorithm).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        with EventStorage():
            total = sum(model(records(3)).values())
        optimizer.zero_grad()
        total.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.9 * losses[0]
