"""The semantic-only contour models: stem, heads, loss, and training by every algorithm."""

from __future__ import annotations

import csv
import math
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fvcore.nn import sigmoid_focal_loss

from crbp_d2.analysis.comparison import read_comparison
from crbp_d2.analysis.outputs import find_recurrence
from crbp_d2.analysis.stability import radius_after
from crbp_d2.analysis.steps import CONTOUR, evaluate_steps, parse_steps, step_evaluators
from crbp_d2.core import ConfigurationError
from crbp_d2.data.pathfinder import PathfinderImages, PathfinderMapper
from crbp_d2.evaluation.pathfinder import PathfinderEvaluator
from crbp_d2.modeling import GaborStem
from crbp_d2.modeling.sem_seg_head import focal_loss
from crbp_d2.modeling.stem import gabor_bank
from tests.analysis.page_runs import write_run
from tests.modeling.conftest import CONFIGS

COMPARED = read_comparison(CONFIGS.parent / "benchmarks" / "pathfinder_tiny.yaml")
SMALLER = ("CRBP.CELL.CHANNELS", 4, "CRBP.CELL.KERNEL_SIZE", 3)


@pytest.fixture
def build(load_config):
    def make(*overrides: object, config: str = "quick/pathfinder_crbp.yaml"):
        torch.manual_seed(0)
        return build_model(load_config(config, *SMALLER, "CRBP.SOLVER.STEPS", 6, *overrides))

    return make


def records(count: int, seed: int = 1) -> list[dict]:
    images = PathfinderImages("tiny", seed=seed, size=count)
    return [PathfinderMapper(is_train=False)(record) for record in images]


def step(model, batch) -> dict[str, torch.Tensor]:
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_equals_the_sigmoid_form_for_two_classes(gamma):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 5, 5)
    targets = torch.randint(2, (2, 5, 5))
    expected = sigmoid_focal_loss(
        logits[:, 1] - logits[:, 0], targets.float(), alpha=-1, gamma=gamma, reduction="mean"
    )
    found = focal_loss(logits, targets, gamma=gamma, ignore_value=255)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_focal_loss_leaves_out_unlabelled_pixels():
    torch.manual_seed(0)
    logits, targets = torch.randn(1, 2, 4, 4), torch.randint(2, (1, 4, 4))
    upper = focal_loss(logits[:, :, :2], targets[:, :2], gamma=2.0, ignore_value=255)
    targets[:, 2:] = 255
    assert torch.allclose(focal_loss(logits, targets, gamma=2.0, ignore_value=255), upper)
    assert focal_loss(logits, torch.full_like(targets, 255), gamma=2.0, ignore_value=255) == 0


def test_the_stem_starts_as_gabor_filters_and_squares():
    bank = gabor_bank(12, 7)
    assert bank.shape == (12, 1, 7, 7)
    assert torch.allclose(bank.flatten(1).norm(dim=1), torch.ones(12))
    assert torch.allclose(bank.mean(dim=(1, 2, 3)), torch.zeros(12), atol=1e-6)
    overlaps = (bank.flatten(1) @ bank.flatten(1).T).fill_diagonal_(0).abs()
    assert overlaps.max() < 0.9
    stem = GaborStem(in_channels=1, channels=12)
    # A vertical bar excites the filters of that orientation most.
    bar = torch.zeros(1, 1, 15, 15)
    bar[..., 6:9] = 1
    response = stem(bar)["stem"][0, :, 7, 7]
    assert (response >= 0).all() and response.argmax() == 0
    assert all(p.requires_grad for p in stem.parameters())


@pytest.mark.parametrize("label", COMPARED.arms)
def test_quick_configs_step_with_every_algorithm(label, load_config):
    arm = COMPARED.arms[label]
    config, overrides = arm.config.relative_to(arm.config.parents[1]), arm.opts
    torch.manual_seed(0)
    # Without a schedule, as with one the penalties begin later.
    cfg = load_config(config, *SMALLER, *overrides, "CRBP.PENALTY.SCHEDULE", ())
    model = build_model(cfg)
    losses = step(model, records(2))
    assert all(torch.isfinite(loss) for loss in losses.values())
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    expected = {"loss_sem_seg"}
    if label != "feed-forward":
        penalised = cfg.CRBP.ALGORITHM == "crbp" or cfg.CRBP.ALGORITHM.endswith("+lcp")
        expected |= {"loss_lcp"} if penalised else set()
        expected |= {"loss_early"} if cfg.CRBP.LOSS.EARLY_WEIGHT else set()
        expected |= {"loss_spectral"} if cfg.CRBP.PENALTY.SPECTRAL.WEIGHT else set()
    assert set(losses) == expected


def test_the_contracting_recipe_learns_first_and_contracts_afterwards(load_config):
    cfg = load_config("quick/pathfinder_contracting.yaml", *SMALLER)
    (begin, nothing), (end, all_of_it) = cfg.CRBP.PENALTY.SCHEDULE
    assert (nothing, all_of_it) == (0, 1) and 0 < begin < end < cfg.SOLVER.MAX_ITER
    model = build_model(cfg).train()
    for iteration, penalised in ((0, False), (end, True)):
        with EventStorage(iteration):
            losses = model(records(2))
        assert ("loss_spectral" in losses) == penalised


@pytest.mark.parametrize(("steps", "slowest"), [(None, 16), (8, 8), (2, 2)])
def test_no_gate_starts_slower_than_asked_for(steps, slowest, load_config):
    torch.manual_seed(0)
    # Many channels, so that the slowest comes near the limit; None is the fewest steps of training.
    more = ("CRBP.CELL.CHANNELS", 256, "CRBP.CELL.KERNEL_SIZE", 1, "CRBP.CELL.CHRONO_STEPS", steps)
    cell = build_model(
        load_config("quick/pathfinder_crbp.yaml", *more)
    ).sem_seg_head.recurrence.cell
    opening = torch.sigmoid(cell.recurrent_gate.bias).min()
    assert 1 / slowest <= opening * (1 + 1e-6) and opening < 1.05 / slowest


def test_conv_lstm_reads_out_its_hidden_state(build):
    model = build("CRBP.CELL.NAME", "conv_lstm")
    assert {"loss_sem_seg", "loss_lcp", "loss_early"} == set(step(model, records(2)))
    outputs = model.eval()(records(2))
    assert outputs[0]["sem_seg"].shape == (2, 40, 40)


def test_before_training_contours_have_their_prior(build):
    model = build("MODEL.SEM_SEG_HEAD.PRIOR", 0.01).eval()
    with torch.no_grad():
        probability = model(records(1))[0]["sem_seg"].softmax(dim=0)[1]
    assert 0.005 < float(probability.median()) < 0.02


@pytest.mark.parametrize("norm", ["IN", "BN", "GN"])
@pytest.mark.parametrize("config", ["quick/pathfinder_crbp.yaml", "quick/pathfinder_bptt.yaml"])
def test_predictions_do_not_depend_on_the_batch(norm, config, build):
    model = build("CRBP.CELL.NORM", norm, config=config)
    step(model, records(4))
    model.eval()
    batch = records(4, seed=2)
    with torch.no_grad():
        together = [output["sem_seg"] for output in model(batch)]
        alone = [model([record])[0]["sem_seg"] for record in batch]
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_impossible_values_are_refused_by_their_key(build):
    for key, value, message in (
        ("CRBP.CELL.NAME", "lstm", "CRBP.CELL.NAME.*conv_lstm, hgru, mask_hgru"),
        ("MODEL.BACKBONE.KERNEL_SIZE", 4, "MODEL.BACKBONE.KERNEL_SIZE.*odd"),
        ("MODEL.SEM_SEG_HEAD.PRIOR", 0.0, "MODEL.SEM_SEG_HEAD.PRIOR"),
        ("MODEL.SEM_SEG_HEAD.FOCAL_GAMMA", -1.0, "MODEL.SEM_SEG_HEAD.FOCAL_GAMMA"),
        ("CRBP.LOSS.EARLY_FROM", 1.5, r"CRBP.LOSS.EARLY_FROM.*\[0, 1\)"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            build("CRBP.LOSS.EARLY_WEIGHT", 1.0, key, value)
    with pytest.raises(ConfigurationError, match="MODEL.SEM_SEG_HEAD.LAYERS"):
        build("MODEL.SEM_SEG_HEAD.LAYERS", 0, config="quick/pathfinder_feedforward.yaml")


def evaluators():
    return step_evaluators("pathfinder_tiny_val")


def test_scores_at_every_step_equal_runs_of_that_length(build):
    model = build().eval()
    batch = records(3, seed=2)
    found = evaluate_steps(model, [batch[:2], batch[2:]], [6, 1, 3], evaluators())
    assert [one.step for one in found] == [1, 3, 6]
    recurrence = find_recurrence(model)
    for one in found:
        recurrence.test_steps = one.step
        evaluator = PathfinderEvaluator(distributed=False)
        with torch.no_grad():
            evaluator.process(batch, model(batch))
        scores = evaluator.evaluate()["pathfinder"]
        assert {key: scores[key] for key in CONTOUR} == one.scores
    assert found[0].change == pytest.approx(1)  # from a start at zero


def test_steps_and_models_that_cannot_be_evaluated_are_refused(build):
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_steps(build().eval(), [records(1)], [0, 3], evaluators())
    with pytest.raises(ValueError, match="no image"):
        evaluate_steps(build().eval(), [], [3], evaluators())
    with pytest.raises(ValueError, match="0 recurrent circuits"):
        find_recurrence(build(config="quick/pathfinder_feedforward.yaml"))


def test_the_radius_of_a_model_is_that_of_its_circuit(build):
    model = build("CRBP.CELL.NAME", "conv_lstm").eval()
    cell = find_recurrence(model).cell
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        # Without weights the memory decays by the forget gate alone: sigmoid(b).
        cell.from_drive.bias[4:8] = 1.5
    radius = radius_after(model, records(2), steps=3)
    assert torch.allclose(radius, torch.full((2,), 1 / (1 + math.exp(-1.5))), rtol=1e-4)


def test_a_short_training_beats_a_threshold(build):
    model = build(
        "CRBP.CELL.CHANNELS", 8, "CRBP.CELL.KERNEL_SIZE", 5, config="quick/pathfinder_bptt.yaml"
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for start in range(25):
        optimizer.zero_grad()
        losses.append(float(step(model, records(4, seed=start + 10))["loss_sem_seg"].detach()))
        optimizer.step()
    (last,) = evaluate_steps(model.eval(), [records(16, seed=2)], [6], evaluators())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert last.scores["F1"] > 0.3


@pytest.mark.parametrize(
    ("text", "steps"),
    [("1-4", [1, 2, 3, 4]), ("N,2N,4N", [20, 40, 80]), ("N/2, 3,N", [3, 10, 20]), ("7", [7])],
)
def test_steps_are_numbers_ranges_and_multiples(text, steps):
    assert parse_steps(text, 20) == steps


@pytest.mark.parametrize("text", ["", "a", "0-3", "N/40", "N/0", "-2", "1;2"])
def test_other_steps_are_refused(text):
    with pytest.raises(ValueError, match="--steps"):
        parse_steps(text, 20)


@pytest.mark.slow
def test_one_command_evaluates_steps_and_data_sets(tmp_path):
    overrides = (*SMALLER, "CRBP.SOLVER.STEPS", 2, "CRBP.SOLVER.SPREAD", 0)
    run = write_run(tmp_path / "run", "quick/pathfinder_crbp.yaml", *overrides)
    names = ("pathfinder_tiny_val", "pathfinder_small_val")
    command = [
        sys.executable, CONFIGS.parent / "tools" / "analyze.py", "steps", run,
        "--steps", "N,2N", "--dataset", *names,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = list(csv.DictReader((run / "steps.csv").open()))
    assert [(line["data set"], line["step"]) for line in lines] == [
        (name, step) for name in names for step in "24"
    ]
    assert all(0 <= float(line["F1"]) <= 1 for line in lines)
