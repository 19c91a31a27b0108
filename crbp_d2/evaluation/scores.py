"""Names of the scores that an evaluation will give, as the event storage calls them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from crbp_d2.data.validate import read_json

from .build import PATHFINDER, tasks_of

_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_QUALITIES = ("PQ", "SQ", "RQ")
_OF_CONTOURS = ("F1", "precision", "recall", "IoU", "balanced_accuracy")


def scores_of(cfg: CfgNode) -> dict[str, str]:
    """The scores of a config's test sets.

    Args:
        cfg: with its `DATASETS.TEST` registered and prepared.

    Returns:
        Name -> its form, in which a class is `<class>`: `segm/AP-dog` -> `segm/AP-<class>`. Of
        several test sets both follow the name of one and a slash. All are better the higher they
        are. The boundary IoU that some versions of Detectron2 give besides is left out.
    """
    several = len(cfg.DATASETS.TEST) > 1
    return {
        f"{data_set}/{name}" if several else name: f"{data_set}/{form}" if several else form
        for data_set in cfg.DATASETS.TEST
        for name, form in _of_data_set(cfg, data_set).items()
    }


def _of_data_set(cfg: CfgNode, data_set: str) -> dict[str, str]:
    metadata = MetadataCatalog.get(data_set)
    found: dict[str, str] = {}
    for task in tasks_of(cfg, data_set):
        if task == PATHFINDER:
            prefixes = ("", "image_", "batch_")
            found |= _named(task, (f"{one}{name}" for one in prefixes for name in _OF_CONTOURS))
        elif task == "sem_seg":
            found |= _named(
                task, ("mIoU", "fwIoU", "mACC", "pACC"), ("IoU", "ACC"), metadata.stuff_classes
            )
        elif task == "panoptic_seg":
            overall = (f"{name}{kind}" for kind in ("", "_th", "_st") for name in _QUALITIES)
            # COCO's file has other names than Detectron2's list: "tree-merged" for "tree".
            categories = read_json(Path(metadata.panoptic_json))["categories"]
            names = [category["name"] for category in categories]
            found |= _named(task, overall, _QUALITIES, names)
        else:
            found |= _named(task, _AP, ("AP",), metadata.get("thing_classes") or ())
    return found


def _named(
    task: str, overall: Iterable[str], of_classes: Iterable[str] = (), classes: Iterable[str] = ()
) -> dict[str, str]:
    found = {f"{task}/{name}": f"{task}/{name}" for name in overall}
    for name, category in itertools.product(of_classes, classes):
        found[f"{task}/{name}-{category}"] = f"{task}/{name}-<class>"
    return found
