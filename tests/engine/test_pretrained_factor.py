"""A smaller learning rate for weights that were loaded, with exact values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crbp_d2.core import ConfigurationError
from tests.data.shapes_data import registered_shapes
from tests.engine.runs import change_weights, train, trainer_of
from tests.modeling.conftest import CONFIGS

FRESH = "sem_seg_head.readout.predictor.weight"
SHAPES = "test_pretrained_shapes"
# A power of 2, of which products are exact.
RATE = 2**-6
# Plain steps, of which the size is the rate times the gradient.
PLAIN = (
    *("SOLVER.OPTIMIZER", "sgd", "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0),
    *("SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.BASE_LR", RATE, "SOLVER.WARMUP_ITERS", 0),
    *("SOLVER.STEPS", "()", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights for all of a contour model but its predictor's."""
    folder = tmp_path_factory.mktemp("pretrained")
    train(folder, *PLAIN)
    lacking = folder / "weights.pth"
    return change_weights(folder / "model_final.pth", lambda w: w.pop(FRESH), lacking)


def rates_of(trainer) -> dict[str, float]:
    """The learning rate of every weight."""
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    return {
        names[id(weight)]: group["lr"]
        for group in trainer.optimizer.param_groups
        for weight in group["params"]
    }


def test_loaded_weights_have_the_factor_and_the_others_the_whole_rate(weights, tmp_path):
    given = ("MODEL.WEIGHTS", weights, "SOLVER.PRETRAINED_FACTOR", 0.25)
    trainer = trainer_of(tmp_path, *PLAIN, *given, "SOLVER.BIAS_LR_FACTOR", 2.0)
    trainer.resume_or_load(resume=False)
    rates = rates_of(trainer)
    assert rates.pop(FRESH) == RATE
    assert {r for name, r in rates.items() if name.endswith("bias")} == {RATE / 2}
    assert {r for name, r in rates.items() if not name.endswith("bias")} == {RATE / 4}
    text = (tmp_path / "log.txt").read_text()
    assert f"PRETRAINED_FACTOR 0.25: for {len(rates)} of {len(rates) + 1} trained" in text


def test_the_schedule_is_that_of_all_rates(weights, tmp_path):
    given = ("MODEL.WEIGHTS", weights, "SOLVER.PRETRAINED_FACTOR", 0.25)
    schedule = ("SOLVER.STEPS", "(2, 3)", "SOLVER.GAMMA", 0.5, "SOLVER.MAX_ITER", 4)
    trainer = trainer_of(tmp_path, *PLAIN, *given, *schedule)
    trainer.resume_or_load(resume=False)
    found = []
    for _ in range(4):
        rates = rates_of(trainer)
        found.append([rate / RATE for rate in (rates.pop(FRESH), *set(rates.values()))])
        trainer.optimizer.step()
        trainer.scheduler.step()
    assert found == [[1, 1 / 4], [1, 1 / 4], [1 / 2, 1 / 8], [1 / 4, 1 / 16]]


def moved(folder: Path, weights: Path, *overrides: object) -> dict[str, torch.Tensor]:
    """How far one iteration moved each weight."""
    train(folder, *PLAIN, "MODEL.WEIGHTS", weights, "SOLVER.MAX_ITER", 1, *overrides)
    before = torch.load(weights, weights_only=True)["model"]
    after = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return {name: after[name] - before[name] for name in before if "num_batches" not in name}


@pytest.mark.slow
def test_a_loaded_weight_moves_by_the_factor_less(weights, tmp_path):
    whole = moved(tmp_path / "whole", weights)
    slower = moved(tmp_path / "slower", weights, "SOLVER.PRETRAINED_FACTOR", 0.25)
    trained = [name for name in whole if not name.endswith(("running_mean", "running_var"))]
    assert sum(bool(whole[name].abs().max() > 1e-5) for name in trained) > 5
    for name in trained:
        torch.testing.assert_close(slower[name], 0.25 * whole[name], rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_a_resumed_training_keeps_its_rates_without_the_file(weights, tmp_path):
    copied = tmp_path / "weights.pth"
    copied.write_bytes(weights.read_bytes())
    keys = (*PLAIN, "MODEL.WEIGHTS", copied, "SOLVER.PRETRAINED_FACTOR", 0.25)
    train(tmp_path / "whole", *keys, "SOLVER.MAX_ITER", 3)
    train(tmp_path / "run", *keys, "SOLVER.MAX_ITER", 2)
    copied.unlink()
    train(tmp_path / "run", *keys, "SOLVER.MAX_ITER", 3, flags=("--resume",))
    whole, resumed = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("whole", "run")
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert "of its checkpoint" not in (tmp_path / "run" / "log.txt").read_text()
    with pytest.raises(ConfigurationError, match="other groups of weights: .*PRETRAINED_FACTOR"):
        train(tmp_path / "run", *PLAIN, "SOLVER.MAX_ITER", 4, flags=("--resume",))


@pytest.mark.slow
def test_timms_weights_are_pretrained_and_the_fpn_is_not(tmp_path):
    timm = pytest.importorskip("timm", reason="timm (the extra pretrained) is not installed")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    keys = (
        *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet18"),
        *("MODEL.TIMM.WEIGHTS", tmp_path / "resnet18.pth", "MODEL.TIMM.NORM", "BN"),
        *("SOLVER.PRETRAINED_FACTOR", 0.25),
        *("DATASETS.TRAIN", f"('{SHAPES}',)", "--config-file", CONFIGS / "quick/shapes_crbp.yaml"),
    )
    with registered_shapes(tmp_path / "shapes", SHAPES, scenes=2, seed=1):
        trainer = trainer_of(tmp_path / "run", *PLAIN, *keys)
        trainer.resume_or_load(resume=False)
    rates = rates_of(trainer)
    body = {name for name in rates if name.startswith("backbone.bottom_up.net.")}
    assert len(body) == 20 + 2 * 20 and len(rates) - len(body) > 20
    assert {rates[name] for name in body} == {RATE / 4}
    assert {rates[name] for name in rates.keys() - body} == {RATE}


def test_without_weights_the_factor_is_said_to_have_no_effect(tmp_path):
    trainer_of(tmp_path, *PLAIN, "SOLVER.PRETRAINED_FACTOR", 0.5)
    assert (
        "PRETRAINED_FACTOR 0.5 has no effect: no weights are" in (tmp_path / "log.txt").read_text()
    )


@pytest.mark.parametrize("factor", [0.0, -1.0, "1e999"])
def test_what_is_no_factor_is_refused(factor, tmp_path):
    with pytest.raises(ConfigurationError, match=r"PRETRAINED_FACTOR is .*: must be above 0"):
        trainer_of(tmp_path, "SOLVER.PRETRAINED_FACTOR", factor)
