"""Data without things, and data without stuff, train and are scored like others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from crbp_d2.data import register_panoptic
from crbp_d2.evaluation import build_evaluator
from tests.data.panoptic_data import write_panoptic

from .models import annotations_as_predictions, tiny_config


@pytest.fixture(params=["things", "stuff"])
def absent(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def name(tmp_path: Path, absent: str) -> str:
    kinds = {"things": absent != "things", "stuff": absent != "stuff"}
    name = f"no {absent} {tmp_path.name}"
    register_panoptic(name, **write_panoptic(tmp_path / "data", **kinds).arguments())
    return name


def test_train_infer_and_evaluate(name: str, absent: str) -> None:
    torch.manual_seed(0)
    cfg = tiny_config(name)
    classes = (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    assert classes == ((1, 3) if absent == "things" else (2, 1))
    model = build_model(cfg)
    batch = next(iter(build_detection_train_loader(cfg)))
    assert len(batch) == 2
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert (losses["loss_sem_seg"] > 0) == (absent == "things")
    assert (losses["loss_mask"] > 0) == (absent == "stuff")

    evaluators = build_evaluator(cfg, name)
    results = inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluators)
    quality = results["panoptic_seg"]
    assert 0 <= quality["PQ"] <= 100
    assert np.isnan(quality["PQ_th"]) == (absent == "things")
    assert np.isnan(quality["PQ_st"]) == (absent == "stuff")
    expected = {"panoptic_seg"} | ({"sem_seg"} if absent == "things" else {"bbox", "segm"})
    assert results.keys() == expected


def test_annotations_score_full_quality(name: str, absent: str) -> None:
    evaluators = build_evaluator(tiny_config(name), name)
    evaluators.reset()
    for record, output in annotations_as_predictions(name):
        if absent == "things":
            # As an untrained model might: the first class of things, of which there is none.
            ids, segments = output["panoptic_seg"]
            ids = torch.where(ids == 0, 3, ids)
            extra = {"id": 3, "isthing": True, "category_id": 0}
            output["panoptic_seg"] = (ids, [*segments, extra])
        evaluators.process([record], [output])
    results = evaluators.evaluate()
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert MetadataCatalog.get(name).evaluator_type == "coco_panoptic_seg"
