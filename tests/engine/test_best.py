"""The model of the best score: which it is, what a resume makes of it, and names that are wrong."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crbp_d2.core import ConfigurationError
from crbp_d2.engine import Trainer, argument_parser, main, setup
from crbp_d2.engine.folder import begin_anew, release
from tests.data.mixed_data import registered, write_mixed
from tests.engine.runs import arguments, train
from tests.modeling.conftest import CONFIGS

DATA = ("DATASETS.TEST", "('pathfinder_tiny_val',)", "TEST.BEST_METRIC", "pathfinder/F1")
NAME = "test_best"


class Scored(Trainer):
    """A training whose evaluations have given scores, one after the other."""

    scores: list[float]

    @classmethod
    def test(cls, cfg: Any, model: Any, evaluators: Any = None) -> Any:
        return {"pathfinder": {"F1": cls.scores.pop(0)}}


def run(output: Path, scores: list[float], *overrides: object, resume: bool = False) -> None:
    """A training with an evaluation after every iteration."""
    options = (*DATA, "TEST.EVAL_PERIOD", 1, *overrides)
    Scored.scores = list(scores)
    trainer = Scored(setup(arguments(output, *options)))
    trainer.resume_or_load(resume=resume)
    if not resume:
        begin_anew(output)
    trainer.train()
    release(output)


def best(output: Path) -> dict[str, Any]:
    return torch.load(output / "model_best.pth", weights_only=True)


def weights_equal(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())


def test_the_model_of_the_best_evaluation_is_kept(tmp_path):
    run(tmp_path, [math.nan, 0.5, 0.3, 0.4], "SOLVER.MAX_ITER", 4)
    kept = best(tmp_path)
    assert kept["score"] == {"pathfinder/F1": 0.5} and kept["iteration"] == 1
    assert weights_equal(kept, torch.load(tmp_path / "model_0000001.pth"))
    assert not weights_equal(kept, torch.load(tmp_path / "model_final.pth"))
    # Nobody resumes from it unasked.
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(("later", "expected"), [([0.45, 0.5], 0.5), ([0.45, 0.6], 0.6)])
def test_a_resumed_training_knows_the_best_score(later, expected, tmp_path):
    run(tmp_path, [0.2, 0.5], "SOLVER.MAX_ITER", 2)
    before = (tmp_path / "model_best.pth").read_bytes()
    run(tmp_path, later, "SOLVER.MAX_ITER", 4, resume=True)
    assert best(tmp_path)["score"] == {"pathfinder/F1": expected}
    assert ((tmp_path / "model_best.pth").read_bytes() == before) == (expected == 0.5)


def test_a_training_killed_after_its_best_evaluation_knows_it(tmp_path):
    # The checkpoint before an evaluation can't hold its score.
    run(tmp_path, [0.2, 0.5], "SOLVER.MAX_ITER", 2)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "model_final.pth").unlink()
    run(tmp_path, [0.4], "SOLVER.MAX_ITER", 3, resume=True)
    assert best(tmp_path)["score"] == {"pathfinder/F1": 0.5}


@pytest.mark.parametrize("damage", ["cut", "other metric"])
def test_what_is_no_best_model_of_this_metric_is_replaced(damage, tmp_path):
    run(tmp_path, [0.2, 0.5], "SOLVER.MAX_ITER", 2)
    path = tmp_path / "model_best.pth"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        torch.save({**best(tmp_path), "score": {"pathfinder/IoU": 0.9}}, path)
    run(tmp_path, [0.1], "SOLVER.MAX_ITER", 3, resume=True)
    assert best(tmp_path)["score"] == {"pathfinder/F1": 0.1}
    log = (tmp_path / "log.txt").read_text()
    assert f"--resume: {path}" in log and "the next evaluation replaces it" in log


def test_a_new_training_sets_the_best_model_of_an_earlier_one_aside(tmp_path):
    run(tmp_path, [0.9], "SOLVER.MAX_ITER", 1)
    earlier = (tmp_path / "model_best.pth").read_bytes()
    run(tmp_path, [0.1], "SOLVER.MAX_ITER", 1)
    assert best(tmp_path)["score"] == {"pathfinder/F1": 0.1}
    assert (tmp_path / "model_best.1.pth").read_bytes() == earlier
    log = (tmp_path / "log.txt").read_text()
    assert "the best model of an earlier training" in log and "is now model_best.1.pth" in log


def test_without_a_metric_none_is_kept(tmp_path):
    run(tmp_path, [0.9], "SOLVER.MAX_ITER", 1, "TEST.BEST_METRIC", "")
    assert not (tmp_path / "model_best.pth").exists()


def test_a_full_disk_leaves_the_best_model_as_it_was(tmp_path):
    run(tmp_path, [0.2], "SOLVER.MAX_ITER", 1)
    before = (tmp_path / "model_best.pth").read_bytes()
    Scored.scores = [0.5]
    trainer = Scored(setup(arguments(tmp_path, *DATA, "SOLVER.MAX_ITER", 2)))
    trainer.resume_or_load(resume=True)
    (tmp_path / ".model_best.pth.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*model_best\.pth"):
        trainer.train()
    release(tmp_path)
    assert (tmp_path / "model_best.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("pathfinder/f1", "no score of DATASETS.TEST; choose from .*pathfinder/F1.*did you mean "),
        ("segm/AP", "choose from pathfinder/F1, pathfinder/IoU, "),
        ("pathfinder/images", "choose from"),
    ],
)
def test_a_metric_that_is_not_there_is_refused_before_anything_is_trained(
    metric, message, tmp_path
):
    with pytest.raises(ConfigurationError, match=rf"^TEST\.BEST_METRIC is '{metric}': .*{message}"):
        train(tmp_path, *DATA[:2], "TEST.BEST_METRIC", metric)
    assert not list(tmp_path.glob("*.pth"))


def test_a_metric_without_test_data_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nothing is scored, as DATASETS\.TEST is empty"):
        train(tmp_path, *DATA[2:])


def test_a_metric_that_is_seen_once_is_warned_of(tmp_path):
    run(tmp_path, [0.2], "TEST.EVAL_PERIOD", 0)
    assert "set TEST.EVAL_PERIOD to fewer iterations" in (tmp_path / "log.txt").read_text()
    assert best(tmp_path)["score"] == {"pathfinder/F1": 0.2}


@pytest.mark.slow
def test_classes_and_pictures_are_in_tensorboard_and_a_metric_of_a_class_chooses(tmp_path):
    """And the log tells of classes that are rare."""
    with registered(NAME, write_mixed(tmp_path / "data", ((96, 61), (57, 140))).arguments()):
        words = [
            *("--config-file", CONFIGS / "quick" / "shapes_crbp.yaml", "OUTPUT_DIR"),
            *(tmp_path / "run", "DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)"),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "MODEL.DEVICE", "cpu"),
            *("SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 2, "CRBP.SOLVER.STEPS", 2),
            *("TEST.EVAL_PERIOD", 1, "TEST.BEST_METRIC", "panoptic_seg/PQ-sky"),
        ]
        results = main(argument_parser().parse_args(list(map(str, words))))
    classes = {f"AP-{name}" for name in ("dog", "cup")}
    assert classes <= results["segm"].keys() and classes <= results["bbox"].keys()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    scalars = {f"{task}/{name}" for task in ("bbox", "segm") for name in classes}
    assert scalars <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"predictions/0", "predictions/1"}
    first, last = events.Images("predictions/1")
    assert (first.step, last.step) == (0, 2) and last.width == 1536 > last.height
    assert {path.name for path in (tmp_path / "run/predictions").iterdir()} == {"0.png", "1.png"}
    assert best(tmp_path / "run")["score"].keys() == {"panoptic_seg/PQ-sky"}
    told = re.findall(r"few objects says little: (.*); add", (tmp_path / "run/log.txt").read_text())
    assert len(told) == 2 and "dog (2 in training, 2 in test)" in told[-1]
