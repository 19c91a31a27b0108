"""The recurrent mask head: losses, inference, edge cases, precision and logged dynamics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from crbp_d2.core import ConfigurationError, build_recurrence
from crbp_d2.modeling import RecurrentMaskHead
from crbp_d2.modeling.phases import Phases

CLASSES, SIDE = 3, 6


@pytest.fixture
def build_head(load_config):
    def build(*overrides, channels: int = 32) -> RecurrentMaskHead:
        torch.manual_seed(0)
        cfg = load_config(
            "quick/shapes_crbp.yaml",
            "MODEL.ROI_HEADS.NUM_CLASSES",
            CLASSES,
            "CRBP.SOLVER.STEPS",
            4,
            *overrides,
        )
        return build_mask_head(cfg, ShapeSpec(channels=channels, height=SIDE, width=SIDE))

    return build


def proposals(*counts: int) -> list[Instances]:
    """Foreground proposals with ground truth, `counts` of them for each image."""
    images = []
    for count in counts:
        instances = Instances((32, 32))
        corners = torch.rand(count, 2) * 16
        instances.proposal_boxes = Boxes(torch.cat([corners, corners + 12], dim=1))
        instances.gt_classes = torch.randint(CLASSES, (count,))
        instances.gt_masks = BitMasks(torch.rand(count, 32, 32) > 0.5)
        images.append(instances)
    return images


def features(count: int, channels: int = 32) -> torch.Tensor:
    return torch.rand(count, channels, SIDE, SIDE, requires_grad=True)


def train_step(head, count_per_image=(2, 3), channels=32):
    x = features(sum(count_per_image), channels)
    with EventStorage() as storage:
        losses = head(x, proposals(*count_per_image))
    sum(losses.values()).backward()
    return x, losses, storage


def test_losses_reach_every_parameter_and_the_features(build_head):
    head = build_head()
    x, losses, _ = train_step(head)
    assert set(losses) == {"loss_mask", "loss_lcp"}
    assert all(loss.dim() == 0 and torch.isfinite(loss) for loss in losses.values())
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize(
    "algorithm", ["bptt", "bptt+lcp", "tbptt", "rbp", "jfb", "phantom", "implicit", "deq", "crbp"]
)
@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_images_without_regions_keep_every_parameter_in_the_graph(algorithm, counts, build_head):
    head = build_head("CRBP.ALGORITHM", algorithm)
    _, losses, _ = train_step(head, counts)
    assert all(torch.isfinite(loss) for loss in losses.values())
    missing = [name for name, p in head.named_parameters() if p.grad is None]
    assert not missing


@pytest.mark.parametrize("size", [1, 2, 9])
def test_chunks_of_regions_change_nothing(size, build_head):
    found = []
    for chunk in (0, size):
        head = build_head("CRBP.CHUNK_SAMPLES", chunk, "CRBP.PENALTY.LCP.BOUND", 0.0)
        torch.manual_seed(1)
        x, losses, _ = train_step(head)
        gradients = [x.grad, *(p.grad for p in head.parameters())]
        found.append((losses, gradients))
    (whole, expected), (cut, near) = found
    assert whole.keys() == cut.keys()
    for name, loss in whole.items():
        torch.testing.assert_close(cut[name], loss, rtol=1e-5, atol=0)
    for a, b in zip(near, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_further_penalties_are_losses_of_their_own(build_head):
    head = build_head("CRBP.PENALTY.FROBENIUS.WEIGHT", 0.5, "CRBP.PENALTY.SPECTRAL.WEIGHT", 0.5)
    _, losses, _ = train_step(head)
    assert set(losses) == {"loss_mask", "loss_lcp", "loss_frobenius", "loss_spectral"}


def test_a_loss_on_every_step_is_the_mean_of_their_losses(build_head):
    head = build_head("CRBP.ALGORITHM", "bptt", "CRBP.LOSS.EVERY_STEP", True)
    x, instances = features(3), proposals(3)
    with EventStorage():
        together = head(x, instances)["loss_mask"]
        alone = []
        for steps in range(1, 5):
            run = build_recurrence("bptt", head.recurrence.cell, steps=steps)
            head.phases = Phases((), replace(head.recipe, recurrence=run, every_step=False))
            alone.append(head(x, instances)["loss_mask"])
    assert torch.allclose(together, torch.stack(alone).mean(), rtol=1e-5)


def test_an_early_loss_is_one_of_its_own_and_leaves_the_metrics_to_the_last_state(build_head):
    head = build_head("CRBP.LOSS.EARLY_WEIGHT", 0.5)
    x, instances = features(3), proposals(3)
    with EventStorage() as storage:
        losses = head(x, instances)
        assert set(losses) == {"loss_mask", "loss_lcp", "loss_early"}
        assert len(storage.history("mask_rcnn/accuracy").values()) == 1
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_a_penalty_schedule_follows_the_iteration(build_head):
    head = build_head(
        *("CRBP.PENALTY.SCHEDULE", ((10, 0.0), (20, 1.0)), "CRBP.PENALTY.LCP.BOUND", 0.0),
        *("CRBP.PENALTY.SPECTRAL.WEIGHT", 3.0, "CRBP.PENALTY.SPECTRAL.MARGIN", 0.0),
    )
    for iteration, factor in ((0, 0.0), (15, 0.5), (30, 1.0)):
        with EventStorage(iteration):
            losses = head(features(2), proposals(2))
        raw = head.dynamics.previous.penalties
        assert torch.allclose(losses["loss_lcp"], 0.001 * raw["lcp"]) and raw["lcp"] > 0
        assert ("loss_spectral" in losses) == (factor > 0)
        if factor:
            assert torch.allclose(losses["loss_spectral"], factor * 3.0 * raw["spectral"])


@pytest.mark.parametrize("agnostic", [False, True])
def test_inference_gives_a_mask_for_every_box(agnostic, build_head):
    head = build_head("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic).eval()
    predicted = []
    for count in (2, 0):
        instances = Instances((32, 32))
        instances.pred_classes = torch.randint(CLASSES, (count,))
        predicted.append(instances)
    with torch.no_grad():
        first, second = head(features(2), predicted)
    assert first.pred_masks.shape == (2, 1, 2 * SIDE, 2 * SIDE)
    assert ((first.pred_masks >= 0) & (first.pred_masks <= 1)).all()
    assert second.pred_masks.shape == (0, 1, 2 * SIDE, 2 * SIDE)


def test_inference_without_any_box(build_head):
    instances = Instances((32, 32))
    instances.pred_classes = torch.zeros(0, dtype=torch.long)
    with torch.no_grad():
        (result,) = build_head().eval()(features(0), [instances])
    assert result.pred_masks.shape == (0, 1, 2 * SIDE, 2 * SIDE)


def test_features_of_another_width_pass_a_convolution(build_head):
    head = build_head(channels=48)
    assert tuple(head.entry.weight.shape) == (32, 48, 1, 1)
    train_step(head, channels=48)
    assert head.entry.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("count", "norm", "width"), [(1, "", 48), (2, "GN", 32)])
def test_convolutions_before_the_circuit_are_its_drive(build_head, count, norm, width):
    key = "MODEL.ROI_MASK_HEAD."
    head = build_head(key + "ENTRY_CONVS", count, key + "NORM", norm, channels=width)
    x = features(3, channels=width)
    expected = x
    for layer in head.entry:
        assert tuple(layer.weight.shape[2:]) == (3, 3) and (layer.norm is None) == (not norm)
        expected = nn.functional.conv2d(expected, layer.weight, layer.bias, padding=1)
        expected = nn.functional.relu(expected if layer.norm is None else layer.norm(expected))
    assert len(head.entry) == count and torch.equal(head.entry(x), expected)
    head.eval()
    with torch.no_grad():
        state = head.recurrence(expected).state
        torch.testing.assert_close(head.layers(x), head.read_out(state))
    train_step(head.train(), channels=width)
    assert all(layer.weight.grad.abs().sum() > 0 for layer in head.entry)
    # Without any region all parameters have a gradient, too.
    head.zero_grad()
    train_step(head, (0, 0), channels=width)
    assert all(p.grad is not None for p in head.entry.parameters())


def test_a_negative_number_of_convolutions_is_refused(build_head):
    with pytest.raises(ConfigurationError, match="ENTRY_CONVS must be at least 0, got -1"):
        build_head("MODEL.ROI_MASK_HEAD.ENTRY_CONVS", -1)


def test_steps_in_testing(build_head):
    head = build_head("CRBP.SOLVER.TEST_STEPS", 9).eval()
    x = features(2)
    with torch.no_grad():
        state = torch.zeros_like(x)
        for _ in range(9):
            state = head.recurrence.cell(x, state)
        assert torch.allclose(head.layers(x), head.read_out(state), atol=1e-6)


def test_dynamics_of_the_last_iteration_are_logged(build_head):
    head = build_head("CRBP.ALGORITHM", "crbp")
    x, instances = features(3), proposals(3)
    with EventStorage() as storage:
        sum(head(x, instances).values()).backward()
        assert not any(name.startswith("recurrence/") for name in storage.latest())
        expected = head.dynamics.previous.scalars()
        storage.step()
        head(x, instances)
        logged = {k: v[0] for k, v in storage.latest().items() if k.startswith("recurrence/")}
    assert {k.removeprefix("recurrence/") for k in logged} == {
        "steps",
        "residual",
        "lcp",
        "neumann_terms",
        "contraction_ratio",
        "diverged",
    }
    assert all(logged[f"recurrence/{name}"] == value for name, value in expected.items())


def test_bfloat16_autocast(build_head):
    head, instances = build_head(), proposals(4)
    x = features(4).detach()

    def gradients(enabled: bool) -> torch.Tensor:
        head.zero_grad()
        with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = head(x, instances)
        assert losses["loss_mask"].dtype == torch.float32
        sum(losses.values()).backward()
        return torch.cat([p.grad.reshape(-1) for p in head.recurrence.parameters()])

    exact, half = gradients(False), gradients(True)
    assert torch.isfinite(half).all()
    assert float(torch.cosine_similarity(exact, half, dim=0)) > 0.9
