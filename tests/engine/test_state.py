"""Checkpoints that are whole, but whose state of the training is none: found when it is loaded."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from crbp_d2.weights import UnreadableError
from tests.engine.runs import train
from tests.engine.test_damaged_checkpoints import LAST, run, trained, weights  # noqa: F401  fixtures

GROUP = ("_trainer", "optimizer", "param_groups", 0)
WEIGHT = ("_trainer", "optimizer", "state", 0)
SCHEDULE = ("hooks", "LRScheduler")
GONE = "left out"
DAMAGE = [
    ((*WEIGHT, "exp_avg"), torch.ones(3)),
    ((*WEIGHT, "exp_avg"), []),
    ((*WEIGHT, "exp_avg"), None),
    ((*WEIGHT, "exp_avg"), GONE),
    ((*WEIGHT, "exp_avg_sq"), torch.zeros(0)),
    ((*WEIGHT, "exp_avg_sq"), torch.ones(2, 2).to_sparse()),
    ((*WEIGHT, "exp_avg_sq"), math.nan),
    ((*WEIGHT, "step"), torch.ones(3)),
    ((*WEIGHT, "step"), -1),
    ((*WEIGHT, "step"), "x"),
    (WEIGHT, []),
    ((*GROUP, "betas"), []),
    ((*GROUP, "betas"), True),
    ((*GROUP, "betas"), (0.9, 1.5)),
    ((*GROUP, "betas"), torch.ones(2, dtype=torch.cfloat)),
    ((*GROUP, "lr"), {}),
    ((*GROUP, "lr"), torch.empty(2, device="meta")),
    ((*GROUP, "lr"), math.nan),
    ((*GROUP, "eps"), 10**30),
    ((*GROUP, "eps"), GONE),
    ((*GROUP, "weight_decay"), True),
    ((*GROUP, "amsgrad"), math.nan),
    ((*GROUP, "amsgrad"), True),
    ((*GROUP, "capturable"), [[]]),
    ((*GROUP, "foreach"), torch.zeros(0)),
    ((*GROUP, "maximize"), torch.ones(2)),
    (("hooks",), GONE),
    ((*SCHEDULE, "last_epoch"), None),
    ((*SCHEDULE, "last_epoch"), 1.5),
    ((*SCHEDULE, "base_lrs"), "x"),
    ((*SCHEDULE, "base_lrs"), []),
    ((*SCHEDULE, "base_lrs", 0), None),
    (("iteration",), 10**30),
    (("iteration",), -1),
]


def damage(path: Path, place: tuple[object, ...], value: object) -> None:
    stored = torch.load(path, weights_only=True)
    node = stored["trainer"]
    for name in place[:-1]:
        node = node[name]
    if value is GONE:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    times = path.stat().st_atime, path.stat().st_mtime
    torch.save(stored, path)
    os.utime(path, times)


@pytest.mark.parametrize(("place", "value"), DAMAGE, ids=lambda one: str(one)[:60].split("\n")[0])
def test_a_training_goes_on_from_the_checkpoint_before(place, value, run):  # noqa: F811
    damage(run / LAST, place, value)
    train(run, "SOLVER.MAX_ITER", 3, flags=("--resume",))
    log = (run / "log.txt").read_text()
    assert f"{LAST}: holds no state of such a training (" in log
    assert f"goes on from {run}/model_0000001.pth in its place" in log


def test_the_fallback_is_as_if_the_damaged_one_had_never_been(run, trained):  # noqa: F811
    damage(run / LAST, (*WEIGHT, "exp_avg"), torch.ones(3))
    train(run, "SOLVER.MAX_ITER", 3, flags=("--resume",))
    found = weights(run)
    assert all(torch.equal(value, found[name]) for name, value in weights(trained).items())


def test_without_another_one_the_file_and_the_value_are_named(run):  # noqa: F811
    for path in run.glob("model_*.pth"):
        damage(path, (*SCHEDULE, "last_epoch"), None)
    message = (
        rf"^the last checkpoint, {run}/{LAST}: holds no state of such a training \(trainer\.hooks\."
        r"LRScheduler\.last_epoch must be a whole number.*No other checkpoint"
    )
    with pytest.raises(UnreadableError, match=message) as raised:
        train(run, flags=("--resume",))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_state_of_every_optimizer_is_taken_over(optimizer, momentum, tmp_path):
    settings = ("SOLVER.OPTIMIZER", optimizer, "SOLVER.MOMENTUM", momentum)
    train(tmp_path / "whole", *settings, "SOLVER.MAX_ITER", 3)
    train(tmp_path / "halves", *settings, "SOLVER.MAX_ITER", 3)
    (tmp_path / "halves" / "last_checkpoint").write_text("model_0000000.pth")
    train(tmp_path / "halves", *settings, "SOLVER.MAX_ITER", 3, flags=("--resume",))
    assert f"goes on from {tmp_path}" not in (tmp_path / "halves" / "log.txt").read_text()
    found = weights(tmp_path / "halves")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, found[name])


def test_what_older_versions_of_pytorch_do_not_save_is_not_missed(run):  # noqa: F811
    for name in ("foreach", "fused", "capturable", "differentiable"):
        damage(run / LAST, (*GROUP, name), GONE)
    train(run, "SOLVER.MAX_ITER", 3, flags=("--resume",))
    assert f"goes on from {run}" not in (run / "log.txt").read_text()
