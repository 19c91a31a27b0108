"""The lines of prediction in the README, and of exported files in the docs, run as printed."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from crbp_d2.analysis.images import model_input
from crbp_d2.analysis.runs import load_run
from crbp_d2.config import read_config
from crbp_d2.data import ensure_prepared, register_panoptic
from tests.analysis.page_runs import write_run
from tests.data.panoptic_data import HEIGHT, WIDTH, write_panoptic

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
ROOT = Path(__file__).parents[2]
NAME = "test_docs_predictions"
SMALL = [
    *["CRBP.CELL.CHANNELS", 8, "CRBP.SOLVER.STEPS", 4, "INPUT.MIN_SIZE_TEST", 64],
    *["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,)],
    *["MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3],
    *["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RPN.POST_NMS_TOPK_TEST", 5],
]


def blocks(page: str, title: str) -> list[str]:
    section = (ROOT / page).read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a photograph and what a training leaves in outputs/shapes_settling."""
    written = write_panoptic(tmp_path / "data")
    register_panoptic(NAME, **written.arguments())
    ensure_prepared(NAME)
    write_run(tmp_path / "outputs" / "shapes_settling", "quick/shapes_settling.yaml", *SMALL)
    shutil.copy(written.images / "1.jpg", tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_a_prediction_takes_the_lines_of_the_readme(folder):
    names: dict[str, Any] = {}
    (block,) = blocks("README.md", "Predictions")
    exec(block, names)
    assert names["segments"].shape == (HEIGHT, WIDTH)
    assert {info["id"] for info in names["infos"]} == set(names["segments"].unique().tolist()) - {0}
    assert {"instances", "sem_seg"} < set(names["answer"])


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_an_exported_file_is_used_as_the_docs_have_it(form, folder, monkeypatch):
    if form == "onnx":
        for package in ("onnx", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} (the extra onnx) is not installed")
    ending = {"torchscript": "pt", "onnx": "onnx"}[form]
    arguments = ["outputs/shapes_settling", "--format", form, "--output", f"shapes.{ending}"]
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    runpy.run_path(str(ROOT / "tools" / "export.py"), run_name="__main__")
    run = load_run("outputs/shapes_settling")
    names: dict[str, Any] = {}
    make, read, paste, read_onnx = blocks("docs/export.md", "Using a file")
    exec(make, names)
    exec(read_onnx if form == "onnx" else read, names)
    for name in ("masks", "boxes", "sem_seg"):
        names[name] = torch.as_tensor(names[name])
    exec(paste, names)
    with torch.no_grad():
        (answer,) = run.model([model_input(Path("street.jpg"), run.cfg)])
    for found, expected in (
        (names["pasted"], answer["instances"].pred_masks),
        (names["labels"], answer["sem_seg"].argmax(dim=0)),
    ):
        assert found.shape == expected.shape and found.shape[-2:] == (HEIGHT, WIDTH)
        assert (found != expected).float().mean() < 1e-3


PICTURES = {
    "wide": ("RGB", (31, 90), "JPEG"),
    "high": ("RGB", (61, 40), "JPEG"),
    "longer than is allowed": ("RGB", (20, 300), "PNG"),
    "grey": ("L", (40, 50), "JPEG"),
    "palette": ("P", (35, 33), "PNG"),
}


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", PICTURES)
def test_an_image_is_made_as_the_docs_have_it(kind, turned, channels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mode, shape, form = PICTURES[kind]
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.fromarray(pixels).convert(mode).save("street.jpg", form, exif=exif)
    cfg = read_config(
        str(ROOT / "configs" / "quick" / "shapes_settling.yaml"),
        ["INPUT.FORMAT", channels, "INPUT.MIN_SIZE_TEST", 57, "INPUT.MAX_SIZE_TEST", 123],
    )
    folder = tmp_path / "outputs" / "shapes_settling"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    names: dict[str, Any] = {}
    exec(blocks("docs/export.md", "Using a file")[0], names)
    expected = model_input(Path("street.jpg"), cfg)["image"]
    assert names["image"].dtype == expected.dtype and torch.equal(names["image"], expected)
