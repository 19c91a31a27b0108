"""The recurrent head in models without a semantic one, on instance data alone, and in configs of
Detectron2's model zoo."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads

from crbp_d2.engine import Trainer, argument_parser, main
from crbp_d2.modeling import RecurrentMaskHead
from tests.data.panoptic_data import instances_of, write_panoptic
from tests.distributed import python_path
from tests.modeling.conftest import CONFIGS

pytestmark = pytest.mark.slow

ROOT = CONFIGS.parent
SECTION = (ROOT / "docs" / "training.md").read_text().partition("## In your own Detectron2")[2]
PYTHON = re.findall(r"```python\n(.*?)```", SECTION, re.S)
(COMMANDS,) = re.findall(r"```bash\n(.*?)```", SECTION, re.S)
NAME = "test_instance_models"
# Small enough for ten iterations on images of 40 x 60 pixels.
SMALL: list[object] = [
    *["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 0],
    *["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64],
    *["MODEL.RESNETS.NORM", "BN", "MODEL.FPN.OUT_CHANNELS", 16],
    *["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"],
    *["MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16],
    *["MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20],
    *["MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "CRBP.CELL.CHANNELS", 8],
    *["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0],
    *["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 10, "SOLVER.WARMUP_ITERS", 0],
    *["SOLVER.STEPS", "()", "SOLVER.BASE_LR", 0.001, "SOLVER.CHECKPOINT_PERIOD", 5],
    *["DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)", "TEST.PICTURES", 0],
]


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """Three images with two classes of things, as Detectron2 itself registers them."""
    written = write_panoptic(tmp_path_factory.mktemp("instances") / "data")
    path = written.folder / "instances.json"
    path.write_text(json.dumps(instances_of(written)))
    register_coco_instances(NAME, {}, str(path), str(written.images))
    yield path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def last_losses(output: Path) -> dict[str, float]:
    lines = (output / "metrics.json").read_text().splitlines()
    *_, last = (line for line in map(json.loads, lines) if "total_loss" in line)
    return {key: value for key, value in last.items() if key.startswith("loss_")}


@pytest.mark.parametrize(
    ("config", "roi_heads", "boxes"),
    [
        ("R50_mask_rcnn_settling_1x.yaml", StandardROIHeads, {"loss_box_reg"}),
        (
            "R50_cascade_settling_1x.yaml",
            CascadeROIHeads,
            {f"loss_box_reg_stage{stage}" for stage in range(3)},
        ),
    ],
)
def test_ten_iterations_on_instances_alone_are_scored_by_detectron2(
    config, roi_heads, boxes, load_config, tmp_path
):
    arguments = ["--config-file", CONFIGS / config, *SMALL, "OUTPUT_DIR", tmp_path]
    results = main(argument_parser().parse_args(list(map(str, arguments))))
    assert set(results) == {"bbox", "segm"}
    # Of both classes, by their names.
    assert {"AP", "AP50", "AP-dog", "AP-cup"} <= set(results["segm"])
    losses = last_losses(tmp_path)
    assert {"loss_mask", "loss_rpn_cls", *boxes} <= set(losses)
    assert not any("sem_seg" in name for name in losses)
    model = Trainer.build_model(load_config(config, *SMALL, "MODEL.ROI_HEADS.NUM_CLASSES", 2))
    assert type(model.roi_heads) is roi_heads
    assert isinstance(model.roi_heads.mask_head, RecurrentMaskHead)


def test_a_config_of_the_model_zoo_takes_the_head_as_the_docs_have_it(tmp_path):
    names: dict[str, Any] = {}
    exec(PYTHON[1], names)
    cfg: CfgNode = names["cfg"]
    cfg.merge_from_list([*SMALL, "OUTPUT_DIR", str(tmp_path), "MODEL.ROI_HEADS.NUM_CLASSES", 2])
    trainer = Trainer(cfg)
    assert type(trainer.model.roi_heads) is CascadeROIHeads
    assert trainer.model.roi_heads.mask_head.recurrence.steps == 10
    trainer.train()
    assert {"loss_mask", "loss_lcp"} <= set(last_losses(tmp_path))


def test_a_config_of_the_model_zoo_is_a_base_as_the_docs_have_it(tmp_path, data):
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    # The data are registered in this process alone: their module is one of parts.
    (tmp_path / "my_data.py").write_text(
        "from detectron2.data.datasets import register_coco_instances\n"
        f"register_coco_instances({NAME!r}, {{}}, {str(data)!r}, {str(data.parent / 'images')!r})\n"
    )
    overrides = shlex.join(map(str, SMALL))
    done = subprocess.run(
        ["bash", "-e", "-c", COMMANDS.rstrip() + f" {overrides}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(tmp_path), python_path()]),
            "CRBP_D2_PARTS": "my_data",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "outputs" / "mine" / "results.json").read_text())
    assert set(found) >= {"bbox", "segm"}
    assert {"loss_mask", "loss_lcp"} <= set(last_losses(tmp_path / "outputs" / "mine"))
