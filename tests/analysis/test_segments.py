"""Predicted segments as files: read again by this package, and by panopticapi."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import pq_compute
from panopticapi.utils import rgb2id
from PIL import Image

from crbp_d2.analysis.images import find_images, model_input
from crbp_d2.analysis.predictions import panoptic_picture
from crbp_d2.analysis.runs import load_run
from crbp_d2.core import ConfigurationError
from crbp_d2.data import ensure_prepared
from crbp_d2.data.validate import read_panoptic_json
from crbp_d2.evaluation.pictures import answer_as_drawn
from crbp_d2.evaluation.segments import categories_of, root_of, writing_segments
from tests.analysis.page_runs import write_run
from tests.data.mixed_data import registered
from tests.data.panoptic_data import CATEGORIES, HEIGHT, WIDTH, write_panoptic
from tests.evaluation.models import annotations_as_predictions

NAME, AGAIN = "test_segments_panoptic", "test_segments_again"
SMALL = [
    *["CRBP.CELL.CHANNELS", 8, "CRBP.SOLVER.STEPS", 2, "INPUT.MIN_SIZE_TEST", 64],
    *["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,)],
    *["MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3],
    *["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RPN.POST_NMS_TOPK_TEST", 5],
    *["MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0],
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    written = write_panoptic(tmp_path_factory.mktemp("segments") / "data")
    with registered(NAME, written.arguments()):
        ensure_prepared(NAME)
        yield written


@pytest.fixture
def run_of(data, tmp_path):
    return write_run(tmp_path / "tiny", "quick/shapes_crbp.yaml", *SMALL)


def read(folder: Path) -> dict:
    return json.loads((folder / "panoptic.json").read_text())


def ids_of(folder: Path, annotation: dict) -> np.ndarray:
    return rgb2id(np.array(Image.open(folder / "panoptic" / annotation["file_name"])))


def test_right_segments_come_back_from_the_reader_and_from_panopticapi(data, tmp_path, capsys):
    metadata, folder = MetadataCatalog.get(NAME), tmp_path / "new" / "segments"
    pairs = list(annotations_as_predictions(NAME))
    paths = [Path(record["file_name"]) for record, _ in pairs]
    with writing_segments(folder, paths, metadata) as keep:
        for path, (_, output) in zip(paths, pairs, strict=True):
            segments, infos = output["panoptic_seg"]
            keep(path, (HEIGHT, WIDTH), segments.numpy(), infos)
    content = read(folder)
    assert content["categories"] == sorted(CATEGORIES, key=lambda category: category["id"])
    # By panopticapi: every segment that counts is found, with its class.
    truth = tmp_path / "truth.json"
    given = data.read()
    for image in given["images"]:
        image["id"] -= 9
    for annotation in given["annotations"]:
        annotation["image_id"] -= 9
        ids = rgb2id(np.array(Image.open(data.pngs / annotation["file_name"])))
        for segment in annotation["segments_info"]:
            segment["area"] = int((ids == segment["id"]).sum())
    truth.write_text(json.dumps(given))
    found = pq_compute(
        str(truth), str(folder / "panoptic.json"), str(data.pngs), str(folder / "panoptic")
    )
    assert found["All"]["pq"] == found["All"]["sq"] == 1.0
    # By this package.
    assert read_panoptic_json(folder / "panoptic.json")["images"] == content["images"]
    again = {
        "images": root_of(paths),
        "panoptic_json": folder / "panoptic.json",
        "panoptic_pngs": folder / "panoptic",
        "cache": tmp_path / "cache",
    }
    with registered(AGAIN, again):
        ensure_prepared(AGAIN)
        records = DatasetCatalog.get(AGAIN)
        assert [record["file_name"] for record in records] == list(map(str, paths))
        assert sum(len(record["annotations"]) for record in records) == 9


def test_the_tool_writes_what_the_model_answers(data, run_of, tmp_path, demo, capsys):
    images = tmp_path / "images"
    for name in ("a/0.jpg", "a/0.png", "b/deep/1.jpg"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data.images / f"{Path(name).stem}.jpg", images / name)
    output, folder = images / "pictures", tmp_path / "segments"
    demo(run_of, "--input", images, "--output", output, "--segments", folder)
    assert f"{folder}: segments of the images in {images}\n" in capsys.readouterr().out
    content = read(folder)
    names = [image["file_name"] for image in content["images"]]
    assert names == ["a/0.jpg", "a/0.png", "b/deep/1.jpg"]
    pngs = [annotation["file_name"] for annotation in content["annotations"]]
    assert pngs == ["a/0.jpg.png", "a/0.png.png", "b/deep/1.png"]
    run = load_run(str(run_of))
    with torch.no_grad():
        (answer,) = run.model([model_input(images / "b/deep/1.jpg", run.cfg)])
    segments, infos = answer["panoptic_seg"]
    assert len(infos) > 1
    assert (ids_of(folder, content["annotations"][2]) == segments.numpy()).all()
    listed = content["annotations"][2]["segments_info"]
    assert [one["id"] for one in listed] == [info["id"] for info in infos]
    assert sum(one["area"] for one in listed) == int((segments > 0).sum())
    # A second call takes no picture of the first for an image.
    demo(run_of, "--input", images, "--output", output, "--segments", tmp_path / "again")
    assert read(tmp_path / "again") == content


def test_a_large_image_is_asked_for_as_the_model_sees_it_and_written_at_its_size(
    data, run_of, tmp_path
):
    large = tmp_path / "large.png"
    Image.open(data.images / "0.jpg").resize((1500, 1000)).save(large)
    run, metadata = load_run(str(run_of)), MetadataCatalog.get(NAME)
    record = model_input(large, run.cfg)
    assert answer_as_drawn(run.model, record)["sem_seg"].shape[1:] == (683, 1024)
    assert answer_as_drawn(run.model, record, 1200)["sem_seg"].shape[1:] == (800, 1200)
    with writing_segments(tmp_path / "out", [large], metadata) as keep:
        panoptic_picture(large, [run], metadata, keep=keep)
    (annotation,) = read(tmp_path / "out")["annotations"]
    assert ids_of(tmp_path / "out", annotation).shape == (1000, 1500)


def test_classes_that_the_data_lack_are_no_segments(tmp_path):
    written = write_panoptic(tmp_path / "data", things=False)
    with registered(AGAIN, written.arguments()):
        metadata = MetadataCatalog.get(AGAIN)
        assert [one["name"] for one in categories_of(metadata)] == ["road", "sky"]
        infos = [
            {"id": 1, "isthing": True, "category_id": 0},
            {"id": 2, "isthing": False, "category_id": 1},
            {"id": 3, "isthing": False, "category_id": 2},
        ]
        segments = np.array([[1, 1], [2, 0]], np.int32)
        with writing_segments(tmp_path / "out", [tmp_path / "x.png"], metadata) as keep:
            keep(tmp_path / "x.png", (2, 4), segments, infos)
    (annotation,) = read(tmp_path / "out")["annotations"]
    assert ids_of(tmp_path / "out", annotation).tolist() == [[0, 0, 0, 0], [2, 2, 0, 0]]
    (listed,) = annotation["segments_info"]
    assert listed == {"id": 2, "category_id": 7, "iscrowd": 0, "area": 2, "bbox": [0, 1, 2, 1]}


def test_nothing_half_written_is_left(data, tmp_path):
    metadata, folder = MetadataCatalog.get(NAME), tmp_path / "segments"
    with (
        pytest.raises(ZeroDivisionError),
        writing_segments(folder, [tmp_path / "0.png"], metadata) as keep,
    ):
        keep(tmp_path / "0.png", (2, 2), np.zeros((2, 2), np.int32), [])
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    (folder / "note").touch()
    with (
        pytest.raises(ConfigurationError, match="--segments .*segments: holds something"),
        writing_segments(folder, [tmp_path / "0.png"], metadata),
    ):
        pass


def test_segments_of_several_models_are_refused(run_of, tmp_path, demo, capsys):
    common = ("--count", 1, "--output", tmp_path / "out", "--segments", tmp_path / "segments")
    other = shutil.copytree(run_of, tmp_path / "other")
    contour = "crbp://pathfinder_tiny_bptt"
    for runs, message in (
        ((run_of, other), "--segments are those of a single RUN"),
        ((contour,), "--segments are those of a panoptic model"),
    ):
        with pytest.raises(SystemExit):
            demo(*runs, *common)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "segments").exists()


def test_folders_are_walked_but_for_hidden_ones_and_what_was_written(tmp_path):
    for name in (
        "b/1.PNG",
        "a/2.jpg",
        "0.png",
        ".hidden/3.png",
        "a/.4.png",
        "out/5.png",
        "a/t.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([str(tmp_path)], [tmp_path / "b" / ".." / "out"])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["0.png", "a/2.jpg", "b/1.PNG"]
