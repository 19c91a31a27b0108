"""The panoptic evaluator against panopticapi itself, and at the edges."""

import contextlib
import copy
import functools
import io
import json
import multiprocessing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from panopticapi.evaluation import pq_compute
from panopticapi.utils import id2rgb
from PIL import Image

from crbp_d2.data import register_panoptic
from crbp_d2.evaluation import PanopticEvaluator, build_evaluator, load_label_map
from tests.data.panoptic_data import Written, write_panoptic
from tests.distributed import run_processes

from .models import annotations_as_predictions, tiny_config


@pytest.fixture
def data(tmp_path: Path) -> Written:
    return write_panoptic(tmp_path / "data")


@pytest.fixture
def name(data: Written, request: pytest.FixtureRequest) -> str:
    register_panoptic(request.node.name, **data.arguments())
    return request.node.name


def damaged(pairs: list) -> list:
    """Predictions with a missed, a shrunk and a confused segment."""
    for number, (_, output) in enumerate(pairs):
        ids, segments = output["panoptic_seg"]
        missed = segments[number]["id"]
        ids[ids == missed] = 0
        ids[:, :4] = 0
        kept = [segment for segment in segments if (ids == segment["id"]).any()]
        kept[0]["category_id"] = kept[0]["category_id"] % 2 + (not kept[0]["isthing"])
        output["panoptic_seg"] = (ids, kept)
    return pairs


def test_equals_panopticapi(name: str, tmp_path: Path) -> None:
    evaluator = PanopticEvaluator(name, str(tmp_path / "output"), workers=2)
    metadata = MetadataCatalog.get(name)
    pairs = damaged(list(annotations_as_predictions(name)))
    folder = tmp_path / "pngs"
    folder.mkdir()
    for record, output in pairs:
        ids = output["panoptic_seg"][0].numpy()
        path = folder / Path(record["file_name"]).with_suffix(".png").name
        Image.fromarray(id2rgb(ids)).save(path)
        evaluator.process([record], [output])
    ours = evaluator.evaluate()["panoptic_seg"]
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = pq_compute(
            metadata.panoptic_json,
            str(tmp_path / "output" / "predictions.json"),
            gt_folder=metadata.panoptic_root,
            pred_folder=str(folder),
        )
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for key in ("pq", "sq", "rq"):
            assert ours[f"{key.upper()}{suffix}"] == pytest.approx(100 * theirs[group][key])
    assert 0 < ours["PQ"] < 100
    seen = set()
    for category in json.loads(Path(metadata.panoptic_json).read_text())["categories"]:
        of_class = theirs["per_class"][category["id"]]
        for key in ("pq", "sq", "rq"):
            own = ours[f"{key.upper()}-{category['name']}"]
            # panopticapi says 0 of a class that is nowhere.
            assert own == pytest.approx(100 * of_class[key]) or np.isnan(own)
            seen.add(own)
    assert len(seen) > 3


def test_areas_of_the_json_would_give_more_than_100(name: str, data: Written) -> None:
    evaluator = PanopticEvaluator(name, workers=1)
    evaluator.process(*map(list, zip(*annotations_as_predictions(name), strict=True)))
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100)
    # The same against the JSON as it was given, whose areas are wrong.
    wrong = PanopticEvaluator(name, workers=1)
    wrong._metadata = MetadataCatalog.get(f"{name} as given").set(
        **{**MetadataCatalog.get(name).as_dict(), "name": f"{name} as given"}
        | {"panoptic_json": str(data.json)}
    )
    wrong.process(*map(list, zip(*annotations_as_predictions(name), strict=True)))
    assert wrong.evaluate()["panoptic_seg"]["PQ"] > 100


def test_workers_are_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations = list(zip(*annotations_as_predictions(name), strict=True))
    started: list[object] = []
    process = multiprocessing.get_context("fork").Process
    start = process.start
    monkeypatch.setattr(process, "start", lambda self: (started.append(self), start(self))[1])
    for workers in (1, 2):
        started.clear()
        evaluator = PanopticEvaluator(name, workers=workers)
        evaluator.process(*copy.deepcopy(annotations))
        evaluator.evaluate()
        assert len(started) <= (0 if workers == 1 else workers)


def test_model_that_finds_nothing(name: str, tmp_path: Path) -> None:
    evaluators = build_evaluator(tiny_config(name), name, str(tmp_path / "output"))
    evaluators.reset()
    for record, output in annotations_as_predictions(name):
        nothing = Instances((record["height"], record["width"]))
        nothing.pred_boxes = Boxes(torch.zeros(0, 4))
        nothing.scores = torch.zeros(0)
        nothing.pred_classes = torch.zeros(0, dtype=torch.int64)
        nothing.pred_masks = torch.zeros(0, record["height"], record["width"], dtype=torch.bool)
        void = torch.zeros(record["height"], record["width"], dtype=torch.int32)
        output.update(instances=nothing, panoptic_seg=(void, []))
        evaluators.process([record], [output])
    results = evaluators.evaluate()
    assert results["panoptic_seg"]["PQ"] == 0
    assert np.isnan(results["segm"]["AP"]) and np.isnan(results["bbox"]["AP"])


def test_no_image_processed(name: str) -> None:
    evaluator = PanopticEvaluator(name)
    assert evaluator.evaluate() is None


def test_missing_predictions_are_an_error(name: str) -> None:
    evaluator = PanopticEvaluator(name)
    record, output = next(annotations_as_predictions(name))
    evaluator.process([record], [output])
    with pytest.raises(ValueError, match="no prediction for 2 images, as id 11"):
        evaluator.evaluate()


def test_images_of_the_same_name_in_different_folders(tmp_path: Path) -> None:
    data = write_panoptic(tmp_path / "data")
    content = data.read()
    for number in range(3):
        for folder, kind, ending in (
            (data.images, "images", "jpg"),
            (data.pngs, "annotations", "png"),
        ):
            (folder / str(number)).mkdir()
            (folder / f"{number}.{ending}").rename(folder / str(number) / f"same.{ending}")
            content[kind][number]["file_name"] = f"{number}/same.{ending}"
    data.write(content)
    register_panoptic("same names", **data.arguments())
    evaluator = PanopticEvaluator("same names")
    evaluator.process(*map(list, zip(*annotations_as_predictions("same names"), strict=True)))
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100)


def test_other_kinds_of_evaluation() -> None:
    MetadataCatalog.get("lvis-like").evaluator_type = "lvis"
    with pytest.raises(ValueError, match="evaluator_type 'lvis'.*allowed are coco_panoptic_seg"):
        build_evaluator(tiny_config("coco_2017_val_panoptic_separated"), "lvis-like")


def test_label_maps_are_new_arrays(tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    loaded = load_label_map(str(tmp_path / "labels.png"), dtype=int)
    loaded[0, 0] = 255
    np.testing.assert_array_equal(loaded.reshape(-1)[1:], labels.reshape(-1)[1:])
    assert loaded.dtype == np.array(0).dtype


def _evaluate_part(folder: Path, rank: int, world: int) -> torch.Tensor:
    register_panoptic("in processes", **Written(folder).arguments())
    evaluators = build_evaluator(tiny_config("in processes"), "in processes")
    evaluators.reset()
    for record, output in islice(annotations_as_predictions("in processes"), rank, None, world):
        evaluators.process([record], [output])
    results = evaluators.evaluate()
    return torch.tensor(results["panoptic_seg"]["PQ"] if rank == 0 else len(results))


def test_distributed(data: Written) -> None:
    quality, of_second = run_processes(functools.partial(_evaluate_part, data.folder), world=2)
    assert float(quality) == pytest.approx(100)
    assert of_second == 0
