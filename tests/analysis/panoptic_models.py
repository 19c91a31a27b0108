"""A small Panoptic FPN with a recurrent mask head, untrained, that finds something everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from panopticapi.utils import id2rgb
from PIL import Image

import crbp_d2.modeling  # noqa: F401  registers the head
from crbp_d2.config import read_config
from crbp_d2.data import build_test_loader, set_num_classes
from tests.data.panoptic_data import Written
from tests.modeling.conftest import CONFIGS

TINY = [
    "MODEL.DEVICE", "cpu", "CRBP.CELL.CHANNELS", 8, "CRBP.SOLVER.STEPS", 2, "CRBP.ADJOINT.TERMS", 2,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 6,
    "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [24], [32], [48], [64]],
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 16, "DATALOADER.NUM_WORKERS", 0,
]  # fmt: skip


def tiny_model(name: str, *overrides: object) -> tuple[CfgNode, Any]:
    """Its config and the model, in evaluation mode, for a registered data set.

    Its masks have holes and edges of their own, and differ from step to step.
    """
    changed = [*TINY, "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), *overrides]
    cfg = read_config(str(CONFIGS / "quick" / "shapes_crbp.yaml"), changed)
    set_num_classes(cfg, name)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.roi_heads.mask_head.predictor.weight.normal_(std=0.5)
        model.roi_heads.box_predictor.cls_score.weight.normal_(std=0.5)
    return cfg, model


def write_run(folder: Path, cfg: CfgNode, model: Any) -> Path:
    """What a training leaves."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return folder


def write_own_answers(folder: Path, name: str, cfg: CfgNode, model: Any) -> Written:
    """The images of a data set, with what the model itself answers as the truth."""
    written = Written(folder)
    written.pngs.mkdir(parents=True)
    metadata = MetadataCatalog.get(name)
    written.images.symlink_to(Path(metadata.image_root))
    of_kind = {
        True: {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()},
        False: {v: k for k, v in metadata.stuff_dataset_id_to_contiguous_id.items()},
    }
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for isthing, names in ((True, metadata.thing_classes), (False, metadata.stuff_classes[1:])):
        for number, one in enumerate(names, start=0 if isthing else 1):
            category = {"id": of_kind[isthing][number], "name": one, "isthing": int(isthing)}
            content["categories"].append(category)
    records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
    for batch in build_test_loader(cfg, name, num_workers=0):
        with torch.no_grad():
            segments, infos = model(batch)[0]["panoptic_seg"]
        record = records[batch[0]["image_id"]]
        image = Path(record["file_name"]).relative_to(metadata.image_root)
        png = f"{len(content['images'])}.png"
        Image.fromarray(id2rgb(segments.numpy().astype(np.int64))).save(written.pngs / png)
        content["images"].append(
            {
                "id": record["image_id"],
                "file_name": str(image),
                "height": record["height"],
                "width": record["width"],
            }
        )
        found = [
            {"id": info["id"], "category_id": of_kind[info["isthing"]][info["category_id"]]}
            for info in infos
        ]
        content["annotations"].append(
            {
                "image_id": record["image_id"],
                "file_name": png,
                "segments_info": [{**info, "iscrowd": 0} for info in found],
            }
        )
    written.write(content)
    return written
