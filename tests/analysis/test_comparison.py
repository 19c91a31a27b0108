"""Arms of a comparison: their file, their trainings, and the table."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

import crbp_d2.analysis.comparison as comparison_module
from crbp_d2.analysis.arms import Arm, distinct_seeds
from crbp_d2.analysis.comparison import (
    PANOPTIC_SCORES,
    Comparison,
    Outcome,
    read_comparison,
    train_all,
    train_one,
)
from crbp_d2.analysis.comparison_table import markdown
from crbp_d2.analysis.processes import Failed, in_processes
from crbp_d2.core import ConfigurationError
from crbp_d2.data import DatasetError
from crbp_d2.data.storage import write_json
from tests.analysis.page_runs import SMALLER
from tests.data.panoptic_data import write_panoptic
from tests.modeling.conftest import CONFIGS

QUICK = CONFIGS / "quick"
SHORT = {
    **dict(zip(SMALLER[::2], SMALLER[1::2], strict=True)),
    **{"SOLVER.MAX_ITER": 2, "SOLVER.STEPS": (1,), "SOLVER.IMS_PER_BATCH": 2},
    **{"DATALOADER.NUM_WORKERS": 0, "CRBP.SOLVER.STEPS": 2},
}


def write(path: Path, arms: dict, **others: object) -> Path:
    content = {"data": "pathfinder_tiny_val", "score": "F1", "arms": arms, **others}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def arm(config: str, **more: object) -> dict:
    settings = {key: list(v) if isinstance(v, tuple) else v for key, v in {**SHORT, **more}.items()}
    return {"config": str(QUICK / config), "set": settings}


def test_the_comparison_of_the_documentation_is_whole():
    found = read_comparison(CONFIGS.parent / "benchmarks" / "pathfinder_tiny.yaml")
    assert (found.data, found.score, len(found.arms)) == ("pathfinder_tiny_val", "F1", 16)
    assert found.arms["rbp"].opts == ["CRBP.ALGORITHM", "rbp"]
    assert [one.label for one in found.chosen(["rbp", "bptt"])] == ["bptt", "rbp"]
    assert len(found.chosen(None)) == 16
    heads = read_comparison(CONFIGS.parent / "benchmarks" / "nuclei.yaml")
    assert heads.score in PANOPTIC_SCORES and len(heads.also) == 5
    with pytest.raises(ConfigurationError, match=r"no arm 'bpt'; choose from 'bptt', "):
        found.chosen(["bptt", "bpt"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": "F1"}, "unknown key 'scores'; did you mean score"),
        ({"score": "AP"}, "score 'AP' is none of F1, "),
        ({"arms": {}}, "arms is empty"),
        ({"arms": {1: {"config": "c.yaml"}}}, "arm 1: a label must be a string"),
        (
            {"arms": {"a b": {"config": "c.yaml"}, "a_b": {"config": "c.yaml"}}},
            "arm 'a_b': would be trained in the folder of 'a b'",
        ),
        ({"arms": {"a": {"config": "c.yaml", "set": {"SEED": 3}}}}, "SEED is set for all arms"),
        ({"arms": ["a"]}, "arms is .* must be a mapping"),
        ({"also": ["AP"]}, "score 'AP' is none of F1, "),
        ({"also": "F1"}, "also is 'F1', must be a list"),
        ({"radius_samples": 0}, "radius_samples is 0, must be at least 1"),
        ({"set": {"CRBP.STEP": 3}}, "arm 'a': .*CRBP.STEP"),
        ({"arms": {"a": {}}}, "arm 'a': lacks the key 'config'"),
        ({"arms": {"a": {"config": "absent.yaml"}}}, "arm 'a': .*absent.yaml"),
        ({"arms": {"a": {"config": "c.yaml", "sets": {}}}}, "'sets'; did you mean set"),
        (
            {"arms": {"a": arm("pathfinder_crbp.yaml", **{"CRBP.SOLVER.STEP": 3})}},
            "arm 'a': .*CRBP.SOLVER.STEP.*did you mean",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named_before_anything_is_trained(change, message, tmp_path):
    (tmp_path / "c.yaml").write_text(f"_BASE_: {QUICK / 'pathfinder_crbp.yaml'}\n")
    file = write(tmp_path / "arms.yaml", **{"arms": {"a": {"config": "c.yaml"}}, **change})
    with pytest.raises(ConfigurationError, match=message) as found:
        read_comparison(file)
    assert str(file) in str(found.value)


def test_what_is_no_comparison_is_named(tmp_path):
    for content in ("[1]", "a: [", "data: x\n", "data: x\ndata: y\n"):
        (tmp_path / "arms.yaml").write_text(content)
        with pytest.raises(ConfigurationError, match=r"arms\.yaml: "):
            read_comparison(tmp_path / "arms.yaml")
    with pytest.raises(ConfigurationError, match=r"absent\.yaml: no such file"):
        read_comparison(tmp_path / "absent.yaml")


def outcome(seed: int, f1: list[float], **more: object) -> Outcome:
    usual = {"change": [0.1, 0.01], "radius": [0.9, 1.0, 1.1], "settings": {}, "minutes": 2.0}
    scores = {"F1": f1, "IoU": [value / 2 for value in f1]}
    return Outcome(label="a", seed=seed, parameters=1234, scores=scores, **{**usual, **more})


def test_the_table_has_medians_and_the_range_at_t():
    comparison = Comparison("d", "F1", {"a": None, "b": None})
    runs = [
        outcome(2, [0.5, 0.9, 0.8, 0.7]),
        outcome(1, [0.6, 0.7, 0.9, 0.1]),
        outcome(3, [0.1, 0.8, 0.7, 0.4], radius=[0.8, 1.2, 1.3]),
    ]
    head, rule, line = markdown(comparison, runs)
    assert head.startswith("| arm | F1 at T/2 | F1 at T (min-max) |")
    assert rule.count("|") == head.count("|") == line.count("|")
    assert line == (
        "| a | 0.500 | 0.800 (0.700-0.900) | 0.800 | 0.400 | 0.1000 | 0.01000 | 0.90, 1.00, 1.10 "
        "| 1,234 | 2.0 | 1, 2, 3 |"
    )
    _, _, line = markdown(comparison, [outcome(1, [0.5] * 4, change=None, radius=None)])
    assert "| - | - | -, -, - |" in line
    head, rule, line = markdown(replace(comparison, also=("IoU",)), runs)
    assert "| 4T | IoU | change" in head and "| 0.400 | 0.400 (0.350-0.450) | 0.1000 |" in line
    assert rule.count("|") == head.count("|") == line.count("|")


def test_scores_that_are_none_leave_the_median_to_the_others_in_any_order():
    comparison = Comparison("d", "F1", {"a": None})
    runs = [outcome(seed, [value] * 4) for seed, value in ((1, 0.5), (2, math.nan), (3, 0.7))]
    tables = {tuple(markdown(comparison, order)) for order in itertools.permutations(runs)}
    assert len(tables) == 1
    ((*_, line),) = tables
    assert "| 0.600 | 0.600 (0.500-0.700) |" in line and line.endswith("| 1, 2, 3 |")
    *_, line = markdown(comparison, [outcome(1, [math.nan] * 4)])
    assert line.startswith("| a | - | - | - | - |")


@pytest.mark.parametrize("seeds", [[5, 5], [-1], [1, 2, 1]])
def test_seeds_are_different_numbers_from_zero(seeds):
    with pytest.raises(ConfigurationError, match="--seeds .*different numbers from 0"):
        distinct_seeds(seeds)


def test_a_config_that_says_something_else_is_another_arm(tmp_path):
    config = tmp_path / "c.yaml"
    digests = []
    for steps in (2, 3):
        own = f"CRBP: {{SOLVER: {{STEPS: {steps}, SPREAD: 0}}}}"
        config.write_text(f"_BASE_: {QUICK}/pathfinder_crbp.yaml\n{own}\n")
        digests.append(Arm("a", config).settings()["digest"])
    assert digests[0] != digests[1]


def test_data_without_the_score_are_refused_before_training(tmp_path):
    one = Arm("a", QUICK / "pathfinder_crbp.yaml", SHORT)
    for data, score, message in (
        ("pathfinder_tiny_val", "PQ", "score PQ: pathfinder_tiny_val is scored by F1"),
        ("pathfinder_tini_val", "F1", "no data set is registered .*did you mean"),
    ):
        comparison = Comparison(data, score, {})
        with pytest.raises((ConfigurationError, DatasetError), match=message):
            train_one(comparison, one, 1, tmp_path / "out")
    assert not (tmp_path / "out" / "model_final.pth").exists()


def kept_outcome(tmp_path: Path) -> tuple[Comparison, Arm, dict]:
    """A comparison, its arm, and what its training with the seed 1 has left."""
    one = Arm("a", QUICK / "pathfinder_crbp.yaml", SHORT)
    comparison = Comparison("pathfinder_tiny_val", "F1", {}, also=("IoU",), radius_samples=3)
    settings = {**one.settings(), "data": comparison.data, "radius_samples": 3}
    return comparison, one, asdict(outcome(1, [0.1, 0.2, math.nan, 1], settings=settings))


def test_a_kept_outcome_is_taken_as_it_is_under_the_label_of_today(tmp_path):
    comparison, one, kept = kept_outcome(tmp_path)
    write_json(tmp_path / "outcome.json", {**kept, "change": None, "radius": None, "label": "b"})
    found = train_one(comparison, one, 1, tmp_path)
    assert (found.label, found.seed, found.change, found.minutes) == ("a", 1, None, 2.0)
    assert found.scores["F1"][:2] == [0.1, 0.2] and math.isnan(found.scores["F1"][2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"scores": {}}, "scores lacks F1"),
        ({"scores": {"F1": [0.1] * 4}}, "scores lacks IoU"),
        ({"scores": None}, "scores is None"),
        ({"scores": {"F1": [0.1], "IoU": [0.1] * 4}}, "scores is {"),
        ({"scores": {"F1": ["a"] * 4, "IoU": [0.1] * 4}}, "scores is {"),
        ({"minutes": "x"}, "minutes is 'x'"),
        ({"minutes": True}, "minutes is True"),
        ({"parameters": None}, "parameters is None"),
        ({"parameters": 1.5}, "parameters is 1.5"),
        ({"parameters": 10**400}, "parameters is 1000"),
        ({"change": [1]}, r"change is \[1\]"),
        ({"radius": "abc"}, "radius is 'abc'"),
        ({"settings": 3}, "settings is 3"),
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": 7}, "of the seed 7, not 1"),
        ({"more": 1}, "must have the keys label, seed, "),
        ([1], "must have the keys label, seed, "),
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_damaged_outcome_is_told_with_its_file_and_the_cure(damage, message, tmp_path):
    comparison, one, kept = kept_outcome(tmp_path)
    path = tmp_path / "outcome.json"
    if isinstance(damage, str):
        path.write_text(damage)
    else:
        write_json(path, {**kept, **damage} if isinstance(damage, dict) else damage)
    cure = "remove it, and the arm is scored again"
    with pytest.raises(ConfigurationError, match=rf"^{path}: .*{message}.*; {cure}$"):
        train_one(comparison, one, 1, tmp_path)


def _ends() -> None:
    os._exit(9)


def _fails() -> None:
    raise ValueError("too few")


def _works() -> int:
    return 3


@pytest.mark.slow
def test_tasks_that_fail_or_are_killed_are_named_and_the_others_go_on():
    tasks = {"killed": _ends, "wrong": _fails, "right": _works}
    found = list(in_processes(tasks, 1))
    assert found == [
        Failed("killed", "its process ended with 9"), Failed("wrong", "ValueError: too few"), 3,
    ]  # fmt: skip


@pytest.mark.slow
def test_arms_are_trained_once_and_an_interrupted_call_goes_on(tmp_path):
    arms = {
        "C-RBP, few": arm("pathfinder_crbp.yaml"),
        "feed-forward": arm("pathfinder_feedforward.yaml"),
    }
    file, output = write(tmp_path / "arms.yaml", arms), tmp_path / "out"
    comparison = read_comparison(file)
    (first,) = train_all(comparison, comparison.chosen(["feed-forward"]), [7], output, jobs=1)
    assert first.change is None and len(set(first.scores["F1"])) == 1
    first_overrides = comparison.arms["feed-forward"].overrides
    kept = output / "feed_forward_7" / "outcome.json"
    written = kept.stat().st_mtime_ns
    tool = [sys.executable, CONFIGS.parent / "tools" / "compare.py", file, "--output", output]
    command = [*map(str, tool), "--seeds", "7", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert kept.stat().st_mtime_ns == written and (output / "C_RBP__few_7" / "log.txt").is_file()
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and lines[2].startswith("| C-RBP, few | 0.")
    assert lines[2].endswith("| 7 |") and lines[3].startswith("| feed-forward | 0.")
    other = replace(
        comparison.arms["feed-forward"], overrides={**first_overrides, "CRBP.CELL.CHANNELS": 3}
    )
    with pytest.raises(ConfigurationError, match=r"was trained with .*name another --output"):
        train_one(comparison, other, 7, output / "feed_forward_7")


@pytest.mark.slow
def test_a_training_that_is_cut_off_goes_on_to_the_same_outcome(tmp_path, monkeypatch):
    longer = {"SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2}
    one = Arm("a", QUICK / "pathfinder_crbp.yaml", {**SHORT, **longer})
    comparison = Comparison("pathfinder_tiny_val", "F1", {}, radius_samples=3)
    whole = train_one(comparison, one, 7, tmp_path / "whole")
    taken = []

    def cut(self) -> None:
        taken.append(self.trainer.iter)
        if self.trainer.iter == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison_module._Spent, "before_step", cut)
        patch.setattr(comparison_module._Spent, "after_step", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            train_one(comparison, one, 7, tmp_path / "cut")
    assert taken == [0, 1, 2]
    assert not (tmp_path / "cut" / "outcome.json").exists()
    other = replace(one, overrides={**one.overrides, "CRBP.SOLVER.STEPS": 3})
    with pytest.raises(ConfigurationError, match=r"arm\.json: was trained with"):
        train_one(comparison, other, 7, tmp_path / "cut")
    again = train_one(comparison, one, 7, tmp_path / "cut")
    assert (again.scores, again.change, again.radius) == (whole.scores, whole.change, whole.radius)
    log = (tmp_path / "cut" / "log.txt").read_text()
    assert "Starting training from iteration 2" in log


@pytest.mark.slow
def test_an_arm_that_is_trained_anew_takes_nothing_of_what_it_was(tmp_path, monkeypatch):
    one = Arm("a", QUICK / "pathfinder_crbp.yaml", {**SHORT, "SOLVER.MAX_ITER": 2})
    comparison, folder = Comparison("pathfinder_tiny_val", "F1", {}, radius_samples=3), tmp_path
    train_one(comparison, one, 7, folder / "a")
    other = replace(one, overrides={**one.overrides, "SOLVER.BASE_LR": 0.05})
    expected = train_one(comparison, other, 7, folder / "b")
    with pytest.raises(ConfigurationError, match=rf"remove {folder / 'a'}, or name"):
        train_one(comparison, other, 7, folder / "a")
    for name in ("outcome.json", "arm.json"):
        (folder / "a" / name).unlink()

    def cut(self) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparison_module._Spent, "before_step", cut)
        with pytest.raises(KeyboardInterrupt):
            train_one(comparison, other, 7, folder / "a")
    again = train_one(comparison, other, 7, folder / "a")
    assert (again.scores, again.radius) == (expected.scores, expected.radius)


def test_what_is_set_for_all_arms_and_on_the_command_line_is_in_each(tmp_path):
    arms = {"a": arm("pathfinder_crbp.yaml"), "b": arm("pathfinder_crbp.yaml")}
    arms["b"]["set"]["SOLVER.BASE_LR"] = 0.2
    common = {"SOLVER.BASE_LR": 0.1, "CRBP.SOLVER.TEST_STEPS": 3}
    file = write(tmp_path / "arms.yaml", arms, set=common)
    found = read_comparison(file, ["SOLVER.MAX_ITER", "9"])
    rates = [one.overrides["SOLVER.BASE_LR"] for one in found.arms.values()]
    assert rates == [0.1, 0.2]
    for one in found.arms.values():
        assert (one.overrides["CRBP.SOLVER.TEST_STEPS"], one.overrides["SOLVER.MAX_ITER"]) == (
            3,
            "9",
        )
    with pytest.raises(ConfigurationError, match="--opts SOLVER.MAX_ITER: give pairs"):
        read_comparison(file, ["SOLVER.MAX_ITER"])


@pytest.mark.slow
def test_panoptic_models_are_compared_by_their_scores(tmp_path, monkeypatch):
    written = write_panoptic(tmp_path / "data")
    entry = {key: str(value) for key, value in written.arguments().items()}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump([{"name": "compared", **entry}]))
    settings = {
        **{"DATASETS.FILE": str(tmp_path / "data.yaml"), "DATASETS.TRAIN": ["compared"]},
        **{"SOLVER.MAX_ITER": 1, "SOLVER.STEPS": [], "SOLVER.IMS_PER_BATCH": 1},
        **{"DATALOADER.NUM_WORKERS": 0, "CRBP.CELL.CHANNELS": 8, "CRBP.SOLVER.STEPS": 2},
        **{"INPUT.MIN_SIZE_TRAIN": [64], "INPUT.MIN_SIZE_TEST": 64, "MODEL.DEVICE": "cpu"},
    }
    arms = {"head": {"config": str(QUICK / "shapes_crbp.yaml"), "set": settings}}
    also = ["mask_AP_true_boxes", "box_AP", "PQ_th"]
    comparison = read_comparison(
        write(tmp_path / "arms.yaml", arms, data="compared", score="mask_AP", also=also)
    )
    found = train_one(comparison, comparison.arms["head"], 1, tmp_path / "out")
    assert set(found.scores) == set(PANOPTIC_SCORES) and found.settings["data"] == "compared"
    assert all(len(values) == 4 for values in found.scores.values())
    assert found.radius is not None and len(found.radius) == 3
    assert all(value > 0 or math.isnan(value) for value in found.radius)
    again = json.loads((tmp_path / "out" / "outcome.json").read_text())
    assert again["seed"] == 1 and again["settings"]["set"]["CRBP.SOLVER.STEPS"] == 2
    assert list(markdown(comparison, [found]))[2].startswith("| head | ")
