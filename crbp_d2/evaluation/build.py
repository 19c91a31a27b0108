"""The evaluators that belong to a data set."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.utils.file_io import PathManager
from PIL import Image

from crbp_d2.data import ensure_prepared
from crbp_d2.data.pathfinder.images import EVALUATOR_TYPE

from .average_precision import AveragePrecisionEvaluator
from .panoptic import PanopticEvaluator
from .pathfinder import PathfinderEvaluator

PATHFINDER = "pathfinder"
"""Key of the results of contour models."""
_EVALUATOR_TYPES = ("coco_panoptic_seg", "coco", "sem_seg", EVALUATOR_TYPE)


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluators:
    """Evaluators of a registered data set, by the `evaluator_type` in its metadata.

    `coco_panoptic_seg` gives panoptic quality, instance AP (boxes, and masks if `MODEL.MASK_ON`)
    and semantic IoU; `coco` the second, `sem_seg` the third; `pathfinder` F1 and its companions.
    Panoptic data without things get no instance AP, such without stuff no semantic IoU.

    Args:
        output_folder: for predictions and results, none are written if None.

    Raises:
        ValueError: the data set has another `evaluator_type`.
        DatasetError: its data can't be used.
    """
    ensure_prepared(dataset_name)
    tasks = tasks_of(cfg, dataset_name)
    evaluators: list[DatasetEvaluator] = []
    if PATHFINDER in tasks:
        evaluators.append(PathfinderEvaluator())
    if "sem_seg" in tasks:
        loading: dict[str, Any] = {"sem_seg_loading_fn": load_label_map}
        if not loading.keys() <= inspect.signature(SemSegEvaluator).parameters.keys():
            # As old as Detectron2 0.6, whose own loader does well.
            loading = {}
        evaluators.append(SemSegEvaluator(dataset_name, output_dir=output_folder, **loading))
    instances = tuple(task for task in tasks if task in ("bbox", "segm"))
    if instances:
        evaluators.append(AveragePrecisionEvaluator(dataset_name, instances, output_folder))
    if "panoptic_seg" in tasks:
        evaluators.append(PanopticEvaluator(dataset_name, output_folder))
    return DatasetEvaluators(evaluators)


def tasks_of(cfg: CfgNode, dataset_name: str) -> list[str]:
    """What a registered data set is scored in, by the keys of the results: `sem_seg`, `bbox`,
    `segm`, `panoptic_seg` or `pathfinder`.

    Raises:
        ValueError: the data set has another `evaluator_type`.
    """
    metadata = MetadataCatalog.get(dataset_name)
    evaluator_type = metadata.get("evaluator_type")
    if evaluator_type not in _EVALUATOR_TYPES:
        raise ValueError(
            f"data set {dataset_name!r} has the evaluator_type {evaluator_type!r} in its metadata; "
            f"allowed are {', '.join(_EVALUATOR_TYPES)}"
        )
    if evaluator_type == EVALUATOR_TYPE:
        return [PATHFINDER]
    is_panoptic = evaluator_type == "coco_panoptic_seg"
    tasks = []
    if evaluator_type != "coco" and (not is_panoptic or len(metadata.stuff_classes) > 1):
        tasks.append("sem_seg")
    has_things = not is_panoptic or bool(metadata.thing_dataset_id_to_contiguous_id)
    if evaluator_type != "sem_seg" and has_things:
        tasks += ["bbox", "segm"] if cfg.MODEL.MASK_ON else ["bbox"]
    return [*tasks, "panoptic_seg"] if is_panoptic else tasks


def load_label_map(filename: str, copy: bool = False, dtype: Any = None) -> np.ndarray:
    """(height, width) labels from an image file, with the signature SemSegEvaluator expects.

    Its own loader passes `copy=False` to `np.array`, which numpy 2 refuses.

    Args:
        copy: without effect, the result is always a new array.
    """
    with PathManager.open(filename, "rb") as file:
        return np.array(Image.open(file), dtype=dtype)
