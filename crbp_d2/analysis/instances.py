"""Detectron2's scores of boxes and masks, for part of the data or all of it, without a report."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator

INSTANCE_SCORES = ("mask_AP", "mask_AP75", "box_AP")
_SOURCES = (("segm", "AP"), ("segm", "AP75"), ("bbox", "AP"))


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's evaluator, without pycocotools' report on the standard output.

    Args:
        dataset_name: registered.
        tasks: of `segm` and `bbox`.
        partial: score the images that are processed, which need not be all.
    """

    def __init__(
        self, dataset_name: str, *, tasks: Sequence[str] = ("segm",), partial: bool = False
    ) -> None:
        super().__init__(dataset_name, tuple(tasks), distributed=False, use_fast_impl=False)
        self._partial = partial

    def evaluate(self) -> Any:
        of_these = [prediction["image_id"] for prediction in self._predictions]
        with contextlib.redirect_stdout(io.StringIO()):
            return super().evaluate(of_these if self._partial else None)


def instance_scores(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`INSTANCE_SCORES`, in percent, from the results of an evaluation; NaN for what they lack."""
    return {
        name: float(results.get(task, {}).get(key, math.nan))
        for name, (task, key) in zip(INSTANCE_SCORES, _SOURCES, strict=True)
    }
