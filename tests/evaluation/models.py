"""A Panoptic FPN small enough for tests, and annotations in the place of its predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from panopticapi.utils import rgb2id
from PIL import Image

from crbp_d2.data import set_num_classes

Json = dict[str, Any]


def tiny_config(name: str) -> CfgNode:
    """Detectron2's Panoptic FPN with a narrow ResNet-18, for a registered data set, on the CPU."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # An untrained model finds nothing with more confidence.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.0
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 10
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 8
    cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATASETS.TEST = (name,)
    set_num_classes(cfg, name)
    return cfg


def annotations_as_predictions(name: str) -> Iterator[tuple[Json, Json]]:
    """Model inputs and the outputs of a model that is always right, image by image."""
    metadata = MetadataCatalog.get(name)
    records = DatasetCatalog.get(name)
    content = json.loads(Path(metadata.panoptic_json).read_text())
    annotation_of = {entry["image_id"]: entry for entry in content["annotations"]}
    for record in records:
        entry = annotation_of[record["image_id"]]
        output = {
            "panoptic_seg": _panoptic(entry, metadata),
            "instances": _instances(record),
            "sem_seg": _label_scores(record, len(metadata.stuff_classes)),
        }
        yield record, output


def _panoptic(entry: Json, metadata: Any) -> tuple[torch.Tensor, list[Json]]:
    pixels = np.array(Image.open(Path(metadata.panoptic_root) / entry["file_name"]))
    things = metadata.thing_dataset_id_to_contiguous_id
    stuff = metadata.stuff_dataset_id_to_contiguous_id
    segments = []
    for segment in entry["segments_info"]:
        category = segment["category_id"]
        isthing = category in things
        number = things[category] if isthing else stuff[category]
        segments.append({"id": segment["id"], "isthing": isthing, "category_id": number})
    return torch.from_numpy(rgb2id(pixels).astype(np.int32)), segments


def _instances(record: Json) -> Instances:
    height, width = record["height"], record["width"]
    annotations = [entry for entry in record["annotations"] if not entry["iscrowd"]]
    boxes = [
        BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS)
        for entry in annotations
    ]
    masks = [
        mask_util.decode(
            mask_util.merge(mask_util.frPyObjects(entry["segmentation"], height, width))
        )
        for entry in annotations
    ]
    result = Instances((height, width))
    result.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    result.pred_classes = torch.tensor([entry["category_id"] for entry in annotations]).long()
    result.scores = torch.ones(len(annotations))
    stacked = np.array(masks, dtype=bool).reshape(-1, height, width)
    result.pred_masks = torch.from_numpy(stacked)
    return result


def _label_scores(record: Json, classes: int) -> torch.Tensor:
    labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
    # What is said of unlabelled pixels doesn't count.
    labels[labels == 255] = 0
    scores = torch.zeros(classes, *labels.shape, dtype=torch.uint8)
    return scores.scatter_(0, labels[None], 1)
