"""Classes whose scores say nothing, as there are few objects of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from crbp_d2.data.panoptic import counted_categories

logger = logging.getLogger(__name__)

FEW = 10
"""Of a class with fewer objects or regions, in training or in test, a score of 0 is told."""
_SHOWN = 8


def tell_of_rare_classes(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Log, in one line a test set, the classes whose AP or PQ is 0 or NaN and of which there are
    fewer than `FEW` objects in training or in test, as the preparation of the data has counted
    them.

    Args:
        cfg: of the model; of training data that are not prepared nothing is said, and of test data
            that are not panoptic neither.
        results: of `Trainer.test`.
    """
    trained = _in_training(cfg.DATASETS.TRAIN)
    for data_set in cfg.DATASETS.TEST:
        scores = results.get(data_set, {}) if len(cfg.DATASETS.TEST) > 1 else results
        rare = list(_rare(data_set, scores or {}, trained))
        if rare:
            more = f" and {len(rare) - _SHOWN} more" if len(rare) > _SHOWN else ""
            logger.warning(
                "%s: an AP or PQ of 0 or nan of classes with few objects says little: %s%s; add "
                "images that have some, or leave these classes out",
                data_set,
                ", ".join(rare[:_SHOWN]),
                more,
            )


def _in_training(names: Sequence[str]) -> Counter[int] | None:
    """Category id -> objects of all training data, if those of all are known."""
    total: Counter[int] = Counter()
    for name in names:
        counted = counted_categories(name)
        if counted is None:
            return None
        total.update({category["id"]: number for category, number in counted})
    return total if names else None


def _rare(data_set: str, scores: Mapping[str, Any], trained: Counter[int] | None) -> Iterator[str]:
    """The rare classes without a score, each with its numbers."""
    metadata = MetadataCatalog.get(data_set)
    for category, number in counted_categories(data_set) or ():
        identity = category["id"]
        own = [scores.get("panoptic_seg", {}).get(f"PQ-{category['name']}")]
        thing = (metadata.get("thing_dataset_id_to_contiguous_id") or {}).get(identity)
        if thing is not None:
            name = f"AP-{metadata.thing_classes[thing]}"
            own += [scores.get(task, {}).get(name) for task in ("bbox", "segm")]
        numbers = [number] if trained is None else [trained[identity], number]
        # NaN is not above 0 either.
        if min(numbers) < FEW and any(score is not None and not score > 0 for score in own):
            learned = "" if trained is None else f"{trained[identity]} in training, "
            yield f"{category['name']} ({learned}{number} in test)"
