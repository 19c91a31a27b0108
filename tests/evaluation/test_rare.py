"""Classes of few objects are told when their scores are zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crbp_d2.data import ensure_prepared
from crbp_d2.evaluation import build_evaluator, rare
from crbp_d2.evaluation.rare import tell_of_rare_classes
from tests.data.mixed_data import registered
from tests.data.panoptic_data import Written, write_panoptic

from .models import annotations_as_predictions, tiny_config

TRAIN, TEST = "test_rare_train", "test_rare_test"


def without_cups(data: Written) -> Written:
    """All cups are dogs, and cups a class without an object."""
    content = data.read()
    for segment in (one for entry in content["annotations"] for one in entry["segments_info"]):
        segment["category_id"] = {3: 1}.get(segment["category_id"], segment["category_id"])
    data.write(content)
    return data


def evaluated(cfg: Any, lost: int = -1) -> dict[str, Any]:
    """Scores of the annotations of the test set, without the things of one number."""
    (name,) = cfg.DATASETS.TEST
    evaluators = build_evaluator(cfg, name)
    evaluators.reset()
    for record, output in annotations_as_predictions(name):
        found = output["instances"]
        output["instances"] = found[found.pred_classes != lost]
        evaluators.process([record], [output])
    results: dict[str, Any] = evaluators.evaluate()
    return results


@pytest.fixture
def cfg(tmp_path: Path) -> Any:
    train, test = write_panoptic(tmp_path / "train"), write_panoptic(tmp_path / "test")
    with (
        registered(TRAIN, without_cups(train).arguments()),
        registered(TEST, test.arguments()),
    ):
        ensure_prepared(TEST)
        found = tiny_config(TEST)
        found.DATASETS.TRAIN = (TRAIN,)
        yield found


def test_a_class_without_a_score_is_told_with_its_numbers(cfg: Any, caplog: Any) -> None:
    ensure_prepared(TRAIN)
    tell_of_rare_classes(cfg, evaluated(cfg, lost=1))
    (line,) = caplog.messages
    assert line.startswith(f"{TEST}: an AP or PQ of 0 or nan of classes with few objects")
    # The crowds are counted with the cups.
    assert ": cup (0 in training, 6 in test); add images" in line


def test_of_training_data_that_are_not_prepared_nothing_is_said(cfg: Any, caplog: Any) -> None:
    results = evaluated(cfg, lost=0)
    tell_of_rare_classes(cfg, results)
    assert "little: dog (3 in test); add" in caplog.text
    caplog.clear()
    cfg.DATASETS.TRAIN = ("absent",)
    tell_of_rare_classes(cfg, results)
    assert "little: dog (3 in test); add" in caplog.text


@pytest.mark.parametrize("few", [3, 4])
def test_a_class_of_many_objects_is_not_told(
    cfg: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(rare, "FEW", few)
    tell_of_rare_classes(cfg, evaluated(cfg, lost=0))
    assert ("dog (3 in test)" in caplog.text) == (few > 3)


def test_scores_above_zero_are_not_commented(cfg: Any, caplog: Any) -> None:
    tell_of_rare_classes(cfg, evaluated(cfg))
    assert not caplog.messages


def test_each_of_several_test_sets_has_its_line(cfg: Any, caplog: Any) -> None:
    results = {TRAIN: {}, TEST: evaluated(cfg, lost=0)}
    cfg.DATASETS.TEST = (TRAIN, TEST)
    tell_of_rare_classes(cfg, results)
    (line,) = caplog.messages
    assert line.startswith(f"{TEST}: ")


def test_many_classes_are_told_in_a_line(
    cfg: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rare, "_SHOWN", 1)
    results = {"panoptic_seg": dict.fromkeys(("PQ-sky", "PQ-road", "PQ-cup"), float("nan"))}
    tell_of_rare_classes(cfg, results)
    assert ": cup (6 in test) and 2 more; add" in caplog.text
