"""Runs with random weights and the page about them, for tests."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from crbp_d2.analysis.outputs import find_recurrence
from crbp_d2.analysis.page import load_recurrent_runs, write_page
from crbp_d2.config import read_config
from crbp_d2.data import set_num_classes
from tests.modeling.conftest import CONFIGS

LABEL = "<script>&" + "-of-a-long-name" * 4
DATA = "pathfinder_tiny_val"
SHAPES = "test_page_shapes"
SMALLER = [
    "CRBP.CELL.CHANNELS", 4, "CRBP.CELL.KERNEL_SIZE", 3, "MODEL.SEM_SEG_HEAD.PRIOR", 0.5,
    "MODEL.SEM_SEG_HEAD.OUTPUT_NORM", "IN", "CRBP.SOLVER.SPREAD", 0,
]  # fmt: skip


def write_run(folder: Path, config: str, *overrides: object, seed: int = 0) -> Path:
    """What a training leaves, of a model with random weights."""
    folder.mkdir(parents=True)
    cfg = read_config(str(CONFIGS / config), ["MODEL.DEVICE", "cpu", *overrides])
    if SHAPES in cfg.DATASETS.TEST:
        set_num_classes(cfg, SHAPES)
    torch.manual_seed(seed)
    model = build_model(cfg)
    if config.startswith("quick/pathfinder"):
        # Strong enough that answers differ from step to step.
        readout = model.sem_seg_head.readout
        torch.nn.init.normal_(readout.predictor.weight, std=3.0)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two contour models, trained for 2 and 3 steps as their configs have it."""
    folder = tmp_path_factory.mktemp("runs")
    crbp = write_run(
        folder / "crbp", "quick/pathfinder_crbp.yaml", *SMALLER, "CRBP.SOLVER.STEPS", 3
    )
    bptt = ["CRBP.SOLVER.STEPS", 2, "CRBP.CELL.RECTIFY_STATE", False]
    other = write_run(folder / "b", "quick/pathfinder_bptt.yaml", *SMALLER, *bptt, seed=2)
    Image.new("RGB", (3000, 600), "white").save(other / "curves.png")
    return [crbp, other]


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory) -> Path:
    runs = load_recurrent_runs([str(folders[0]), f"{LABEL}={folders[1]}"])
    output = tmp_path_factory.mktemp("page") / "deep" / "report.html"
    write_page(runs, DATA, range(1, 7), images=3, megabytes=20, output=output)
    return output


def numbers_of(page: Path) -> dict:
    return json.loads(page.with_suffix(".json").read_text())


def data_of(page: Path) -> dict:
    pattern = '<script type="application/json" id="data">(.*?)</script>'
    return json.loads(re.search(pattern, page.read_text(), re.DOTALL)[1])


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def run_to(run, record: dict, step: int) -> tuple[dict, float]:
    """The answer of a model that is told to take so many steps, and the residual it reports."""
    recurrence, seen = find_recurrence(run.model), []
    handle = recurrence.register_forward_hook(lambda *call: seen.append(call[2].diagnostics))
    recurrence.test_steps = step
    with torch.no_grad():
        output = run.model([record])[0]
    handle.remove()
    return output, float(seen[0].residual.mean())
