"""Annotations fed back as predictions are perfect, whatever the data set."""

import json
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.coco_panoptic import register_coco_panoptic_separated

from crbp_d2.data import register_panoptic
from crbp_d2.data.shapes import register_shapes
from crbp_d2.evaluation import PanopticEvaluator, build_evaluator
from tests.data.mixed_data import registered
from tests.data.panoptic_data import write_panoptic
from tests.data.real_data import needs_real_data, real_arguments

from .models import annotations_as_predictions, tiny_config

SHARED = Path(__file__).parents[3] / "shared" / "data" / "coco"


def evaluate(name: str, folder: Path) -> dict:
    evaluators = build_evaluator(tiny_config(name), name, str(folder))
    evaluators.reset()
    for record, output in annotations_as_predictions(name):
        evaluators.process([record], [output])
    return evaluators.evaluate()


def assert_perfect(results: dict) -> None:
    for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        assert results["panoptic_seg"][key] == pytest.approx(100, abs=1e-9), key
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    # pycocotools interpolates precision, so a perfect AP is a little off in the last digits.
    assert results["bbox"]["AP"] == pytest.approx(100, abs=0.01)
    assert results["segm"]["AP"] == pytest.approx(100, abs=0.01)


def test_own_data_with_wrong_areas(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.name
    register_panoptic(name, **write_panoptic(tmp_path / "data").arguments())
    assert_perfect(evaluate(name, tmp_path / "output"))
    saved = json.loads((tmp_path / "output" / "predictions.json").read_text())
    assert [entry["file_name"] for entry in saved["annotations"]] == ["0.png", "1.png", "2.png"]


def test_shapes(tmp_path: Path) -> None:
    register_shapes(tmp_path, {"perfect": (12, 1)})
    assert_perfect(evaluate("shapes_perfect", tmp_path / "output"))


@needs_real_data
def test_microscope_images(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.name
    with registered(name, real_arguments("nuclei", tmp_path / "data", images=20)):
        assert_perfect(evaluate(name, tmp_path / "output"))


needs_coco = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no COCO images in {SHARED}")
COCO = {
    "panoptic_root": str(SHARED / "panoptic_val2017"),
    "panoptic_json": str(SHARED / "annotations" / "panoptic_val2017.json"),
}


@needs_coco
def test_coco_as_detectron2_registers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The shared folder can't be written.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    register_coco_panoptic_separated(
        "coco_for_test",
        _get_builtin_metadata("coco_panoptic_separated"),
        image_root=str(SHARED / "val2017"),
        sem_seg_root=str(SHARED / "panoptic_stuff_val2017"),
        instances_json=str(SHARED / "annotations" / "instances_val2017.json"),
        **COCO,
    )
    assert_perfect(evaluate("coco_for_test_separated", tmp_path / "output"))


@needs_coco
def test_coco_with_instances_derived(tmp_path: Path) -> None:
    register_panoptic(
        "coco derived",
        images=SHARED / "val2017",
        panoptic_json=COCO["panoptic_json"],
        panoptic_pngs=COCO["panoptic_root"],
        cache=tmp_path / "cache",
    )
    evaluator = PanopticEvaluator("coco derived")
    for record, output in annotations_as_predictions("coco derived"):
        evaluator.process([record], [output])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100, abs=1e-9)
    measured = json.loads(Path(MetadataCatalog.get("coco derived").panoptic_json).read_text())
    original = json.loads(Path(COCO["panoptic_json"]).read_text())
    assert measured["annotations"] == original["annotations"]
