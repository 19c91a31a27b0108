"""Scores of every class, and their names: known before an evaluation, and those that it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import Boxes, Instances

from crbp_d2.data import ensure_prepared
from crbp_d2.data.pathfinder.images import EVALUATOR_TYPE
from crbp_d2.evaluation import build_evaluator
from crbp_d2.evaluation.build import tasks_of
from crbp_d2.evaluation.scores import scores_of
from tests.data.mixed_data import registered
from tests.data.panoptic_data import Written, write_panoptic
from tests.modeling.conftest import load_config  # noqa: F401  a fixture

from .models import annotations_as_predictions, tiny_config

NAME = "test_scores"


def write_one_class(folder: Path) -> Written:
    """All things are dogs."""
    data = write_panoptic(folder)
    content = data.read()
    content["categories"] = [one for one in content["categories"] if one["name"] != "cup"]
    for entry in content["annotations"]:
        for segment in entry["segments_info"]:
            segment["category_id"] = {3: 1}.get(segment["category_id"], segment["category_id"])
    data.write(content)
    return data


def evaluate(cfg: Any, change: Any = lambda output: None) -> dict[str, float]:
    """Scores of the annotations of the first test set, changed."""
    (name,) = cfg.DATASETS.TEST
    evaluators = build_evaluator(cfg, name)
    evaluators.reset()
    for record, output in annotations_as_predictions(name):
        change(output)
        evaluators.process([record], [output])
    return flatten_results_dict(evaluators.evaluate())


def find_nothing(output: dict) -> None:
    size = output["instances"].image_size
    nothing = Instances(size)
    nothing.pred_boxes = Boxes(torch.zeros(0, 4))
    nothing.scores = torch.zeros(0)
    nothing.pred_classes = torch.zeros(0, dtype=torch.int64)
    nothing.pred_masks = torch.zeros(0, *size, dtype=torch.bool)
    output.update(instances=nothing, panoptic_seg=(torch.zeros(size, dtype=torch.int32), []))


def find_no_dog(output: dict) -> None:
    found = output["instances"]
    output["instances"] = found[found.pred_classes != 0]


def without_boundaries(scores: dict[str, float]) -> set[str]:
    """Names but those of the boundary IoU, which not every version of Detectron2 gives."""
    return {name for name in scores if "Boundary" not in name and "B-Iou" not in name}


@pytest.mark.parametrize(
    ("write", "kinds"),
    [(write_panoptic, {}), (write_panoptic, {"things": False}), (write_panoptic, {"stuff": False}),
     (write_one_class, {})],
)  # fmt: skip
@pytest.mark.parametrize("change", [lambda output: None, find_nothing])
def test_the_names_are_those_of_the_results(write, kinds, change, tmp_path):
    with registered(NAME, write(tmp_path / "data", **kinds).arguments()):
        ensure_prepared(NAME)
        cfg = tiny_config(NAME)
        assert set(scores_of(cfg)) == without_boundaries(evaluate(cfg, change))
        cfg.MODEL.MASK_ON = False
        assert not any(name.startswith("segm/") for name in scores_of(cfg))


@pytest.mark.parametrize("kind", ["coco", "sem_seg"])
def test_the_names_are_those_of_data_that_are_not_panoptic(kind, tmp_path):
    with registered(NAME, write_panoptic(tmp_path / "data").arguments()):
        ensure_prepared(NAME)
        alike = f"{NAME}_{kind}"
        DatasetCatalog.register(alike, lambda: DatasetCatalog.get(NAME))
        metadata = {**MetadataCatalog.get(NAME).as_dict(), "name": alike, "evaluator_type": kind}
        MetadataCatalog.get(alike).set(**metadata)
        cfg = tiny_config(alike)
        assert set(scores_of(cfg)) == without_boundaries(evaluate(cfg))
        DatasetCatalog.remove(alike)
        MetadataCatalog.remove(alike)


def test_classes_have_scores_of_their_own(tmp_path):
    with registered(NAME, write_panoptic(tmp_path / "data").arguments()):
        scores = evaluate(tiny_config(NAME), find_no_dog)
        for task in ("bbox", "segm"):
            assert scores[f"{task}/AP-dog"] == 0
            assert scores[f"{task}/AP-cup"] == pytest.approx(100, abs=0.01)
            assert scores[f"{task}/AP"] == pytest.approx(50, abs=0.01)


def test_a_single_class_has_its_score_too(tmp_path):
    with registered(NAME, write_one_class(tmp_path / "data").arguments()):
        scores = evaluate(tiny_config(NAME))
        for task in ("bbox", "segm"):
            assert scores[f"{task}/AP-dog"] == scores[f"{task}/AP"]
            assert scores[f"{task}/AP-dog"] == pytest.approx(100, abs=0.01)
        nothing = evaluate(tiny_config(NAME), find_nothing)
        assert np.isnan(nothing["segm/AP-dog"])


def test_of_several_test_sets_names_begin_with_that_of_one(tmp_path):
    other = f"{NAME}_other"
    with (
        registered(NAME, write_panoptic(tmp_path / "a").arguments()),
        registered(other, write_panoptic(tmp_path / "b", stuff=False).arguments()),
    ):
        ensure_prepared(NAME)
        ensure_prepared(other)
        cfg = tiny_config(NAME)
        cfg.DATASETS.TEST = (NAME, other)
        scores = scores_of(cfg)
    assert scores[f"{other}/segm/AP-cup"] == f"{other}/segm/AP-<class>"
    assert f"{NAME}/sem_seg/mIoU" in scores and f"{other}/sem_seg/mIoU" not in scores


def test_contour_models_have_theirs(load_config):  # noqa: F811
    cfg = load_config("quick/pathfinder_crbp.yaml")
    (name,) = cfg.DATASETS.TEST
    assert MetadataCatalog.get(name).evaluator_type == EVALUATOR_TYPE
    assert tasks_of(cfg, name) == ["pathfinder"]
    truth = torch.tensor([[0, 1], [1, 1], [0, 0]])
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    logits = torch.nn.functional.one_hot(truth, 2).permute(2, 0, 1).float()
    evaluator.process([{"sem_seg": truth}], [{"sem_seg": logits}])
    scores = flatten_results_dict(evaluator.evaluate())
    # The number of images is none to choose a model by.
    assert set(scores) == {*scores_of(cfg), "pathfinder/images"}
