"""Scores of a two-class segmentation, pooled over pixels, and averaged over images or batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from crbp_d2.core.options import integer
from crbp_d2.data.pathfinder.images import IGNORE_LABEL
from crbp_d2.data.pathfinder.mapper import load_sample

logger = logging.getLogger(__name__)

BATCH_IMAGES = 128
"""Of the batches over which the authors' logs average."""
Floats = npt.NDArray[np.float64]


def scores(counts: npt.ArrayLike) -> dict[str, Floats]:
    """Scores, each in 0..1, from counts of pixels.

    Args:
        counts: `(..., 4)`: true positives, false positives, false negatives, true negatives.

    Returns:
        `F1`, `precision`, `recall`, `IoU` and `balanced_accuracy`, each of the leading shape.

        A ratio 0/0 is 1 where truth and prediction are both without a positive pixel (there was
        nothing to find and nothing was claimed), and 0 otherwise. Balanced accuracy is the mean of
        the recalls of those classes that the truth has.
    """
    table = np.asarray(counts, dtype=np.float64)
    hit, false_alarm, miss, rejection = np.moveaxis(table, -1, 0)
    empty = (hit + false_alarm + miss == 0).astype(np.float64)

    def ratio(part: Floats, whole: Floats) -> Floats:
        return np.where(whole > 0, part / np.maximum(whole, 1), empty)

    positives, negatives = hit + miss, rejection + false_alarm
    recalls = np.stack([ratio(hit, positives), ratio(rejection, negatives)])
    present = np.stack([positives > 0, negatives > 0])
    return {
        "F1": ratio(2 * hit, 2 * hit + false_alarm + miss),
        "precision": ratio(hit, hit + false_alarm),
        "recall": recalls[0],
        "IoU": ratio(hit, hit + false_alarm + miss),
        "balanced_accuracy": (recalls * present).sum(axis=0) / np.maximum(present.sum(axis=0), 1),
    }


def count_pixels(
    logits: torch.Tensor, truth: torch.Tensor, ignore_label: int = IGNORE_LABEL
) -> list[int]:
    """True positives, false positives, false negatives and true negatives of one image.

    Args:
        logits: `(2, H, W)`, background and contour; the larger one is the prediction.
        truth: `(H, W)`, 0 or 1, or `ignore_label` for pixels that do not count.

    Raises:
        ValueError: the shapes do not fit together.
    """
    if logits.shape != (2, *truth.shape):
        raise ValueError(
            f"sem_seg has the shape {tuple(logits.shape)}, the truth {tuple(truth.shape)}: "
            "expected logits of two classes of the same height and width"
        )
    truth = truth.to(logits.device)
    # An odd code for a true contour, from 2 on for a predicted one, 4 for pixels that do not count.
    code = 2 * (logits[1] > logits[0]) + (truth == 1)
    code = code.masked_fill(truth == ignore_label, 4)
    rejection, miss, false_alarm, hit = torch.bincount(code.flatten(), minlength=5).tolist()[:4]
    return [hit, false_alarm, miss, rejection]


class PathfinderEvaluator(DatasetEvaluator):
    """F1, balanced accuracy, precision, recall and IoU of the contour class, all in 0..1.

    Each is given over the pixels of all images together; with the prefix `image_` as the mean over
    images; and with the prefix `batch_` as the mean over batches, of the pixels of each together,
    as in the authors' logs. See `scores` for images without a positive pixel.

    Args:
        distributed: collect the counts of all processes; the main one then has the result.
        batch_images: of these batches, in the order of the data set whatever the model was given at
            a time; the last may have fewer, and counts as one.
    """

    def __init__(self, *, distributed: bool = True, batch_images: int = BATCH_IMAGES) -> None:
        self._distributed = distributed
        self._batch_images = integer("batch_images", batch_images, 1)
        self.reset()

    def reset(self) -> None:
        self._counts: list[list[int]] = []
        self._not_finite = 0

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: Pathfinder records. The truth is their `sem_seg` `(H, W)` if they are mapped;
                otherwise it is drawn or read again.
            outputs: with the logits `sem_seg` `(2, H, W)` of a Detectron2 SemanticSegmentor.

        Raises:
            ValueError: the shapes do not fit together.
        """
        for record, output in zip(inputs, outputs, strict=True):
            truth = record.get("sem_seg")
            if truth is None:
                truth = torch.from_numpy(load_sample(record)[1])
            self._not_finite += int(not torch.isfinite(output["sem_seg"]).all())
            self._counts.append(count_pixels(output["sem_seg"], truth))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The scores under the key `pathfinder`, with the number of `images`; None off rank 0.

        Raises:
            ValueError: no image was processed.
        """
        counts = np.array(self._counts, dtype=np.int64).reshape(-1, 4)
        not_finite = self._not_finite
        if self._distributed:
            gathered = comm.gather((counts, not_finite))
            if not comm.is_main_process():
                return None
            counts = np.concatenate([part for part, _ in gathered])
            not_finite = sum(number for _, number in gathered)
        if not len(counts):
            raise ValueError("no image was processed: the data set is empty")
        if not_finite:
            logger.warning(
                "%d of %d predictions hold NaN or infinity: the model has diverged",
                not_finite,
                len(counts),
            )
        pooled = {name: float(value) for name, value in scores(counts.sum(axis=0)).items()}
        batches = np.add.reduceat(counts, np.arange(0, len(counts), self._batch_images))
        means = {
            f"{prefix}{name}": float(value.mean())
            for prefix, some in (("image_", counts), ("batch_", batches))
            for name, value in scores(some).items()
        }
        return {"pathfinder": {**pooled, **means, "images": float(len(counts))}}
