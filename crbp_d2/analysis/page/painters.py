"""What the page shows of a model's output, and the score it gives it, for each kind of data.

Shape shorthand: a picture is `(H, W)` grey or `(H, W, 3)` RGB, uint8, at most 320 pixels wide and
high.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image

from crbp_d2.analysis.page.encode import (
    LONGEST_SIDE,
    Picture,
    fitted,
    grey_png,
    jpeg,
    overlay_png,
)
from crbp_d2.analysis.page.quality import image_quality
from crbp_d2.core import ConfigurationError
from crbp_d2.data.loaders import is_pathfinder
from crbp_d2.evaluation.colours import ObjectColours
from crbp_d2.evaluation.drawing import draw_segments, scaled
from crbp_d2.evaluation.pathfinder import count_pixels, scores
from crbp_d2.evaluation.pictures import ground_truth

Record = dict[str, Any]


class Scene(Protocol):
    """One image, and what is made of answers to it.

    Attributes:
        image: the picture of it.
        truth: of its ground truth.
    """

    image: Picture
    truth: Picture

    def key(self, output: Record) -> bytes:
        """Outputs with the same key have the same picture and score."""

    def answer(self, output: Record) -> tuple[Picture, float]:
        """The picture of an output, and its score."""


class Painter(Protocol):
    """Pictures and scores of one kind of data.

    Attributes:
        score: name of the score.
        maximum: its largest value; the smallest is 0.
        overlays: answers are drawn over the image, not in its place.
        explanation: of picture and score, for the reader of the page.
    """

    score: str
    maximum: float
    overlays: bool
    explanation: str

    def scene(self, record: Record) -> Scene:
        """What belongs to one mapped record."""

    def encode_image(self, picture: Picture) -> str:
        """The data URI of an image."""

    def encode_answers(self, picture: Picture) -> str:
        """The data URI of answers or of a ground truth."""


def painter_of(data_set: str) -> Painter:
    """The painter for a registered data set.

    Raises:
        ConfigurationError: the data set is neither of Pathfinder nor a panoptic one.
    """
    if is_pathfinder(data_set):
        return ContourPainter()
    metadata = MetadataCatalog.get(data_set)
    if metadata.get("evaluator_type") == "coco_panoptic_seg":
        return PanopticPainter(metadata)
    raise ConfigurationError(
        f"DATASETS.TEST: {data_set} is neither a Pathfinder nor a panoptic data set; name another "
        "one with --dataset"
    )


class ContourPainter:
    """Probability of a contour over the image, and F1."""

    score, maximum, overlays = "F1", 1.0, True
    explanation = (
        "The more probable a pixel of the contour, the more opaque its colour. F1 is that of the "
        "one image, where pixels with a probability above 1/2 are predicted to be contour."
    )

    def scene(self, record: Record) -> Scene:
        return _Contour(record)

    def encode_image(self, picture: Picture) -> str:
        return grey_png(picture)

    def encode_answers(self, picture: Picture) -> str:
        return overlay_png(picture)


class _Contour:
    """See `Scene`."""

    def __init__(self, record: Record) -> None:
        truth = (record["sem_seg"].numpy() == 1).astype(np.uint8) * np.uint8(255)
        self.image, self.truth = fitted(record["image"][0].numpy()), fitted(truth)
        self._true = record["sem_seg"]

    def key(self, output: Record) -> bytes:
        return hashlib.sha256(output["sem_seg"].cpu().numpy().tobytes()).digest()

    def answer(self, output: Record) -> tuple[Picture, float]:
        probability = output["sem_seg"].softmax(dim=0)[1].cpu().numpy()
        f1 = scores(count_pixels(output["sem_seg"], self._true))["F1"]
        return fitted(np.round(255 * probability).astype(np.uint8)), float(f1)


class PanopticPainter:
    """Segments over the image, and panoptic quality.

    Args:
        metadata: of a panoptic data set.
    """

    score, maximum, overlays = "PQ", 100.0, False
    explanation = (
        "A class of stuff has one colour. An object has one as well, in all pictures of its image "
        "in which it overlaps with itself by more than one half. PQ is panopticapi's panoptic "
        "quality of the one image, in percent: the mean over the categories that occur in its "
        "truth or in its prediction. It jumps where a segment crosses an overlap of one half, and "
        "its mean over images is not the PQ of the data set."
    )

    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata
        content = json.loads(Path(metadata.panoptic_json).read_text(encoding="utf-8"))
        self._categories = {category["id"]: category for category in content["categories"]}
        self._truths = {entry["image_id"]: entry for entry in content["annotations"]}

    def scene(self, record: Record) -> Scene:
        truth = self._truths[record["image_id"]]
        return _Photograph(record, truth, self._metadata, self._categories)

    def encode_image(self, picture: Picture) -> str:
        return jpeg(picture)

    def encode_answers(self, picture: Picture) -> str:
        return jpeg(picture)


class _Photograph:
    """See `Scene`."""

    def __init__(
        self, record: Record, truth: Record, metadata: Any, categories: Mapping[int, Record]
    ) -> None:
        self._truth, self._metadata, self._categories = truth, metadata, categories
        self._colours = ObjectColours(metadata)
        self.image = scaled(read_image(record["file_name"], "RGB"), LONGEST_SIDE)
        self.truth = self._draw(*ground_truth(truth, metadata))

    def key(self, output: Record) -> bytes:
        segments, infos = _panoptic(output)
        return hashlib.sha256(segments.tobytes() + repr(infos).encode()).digest()

    def answer(self, output: Record) -> tuple[Picture, float]:
        segments, infos = _panoptic(output)
        quality = image_quality(
            segments, infos, self._truth, metadata=self._metadata, categories=self._categories
        )
        return self._draw(segments, infos), quality

    def _draw(self, segments: Any, infos: list[Record]) -> Picture:
        return draw_segments(
            self.image, segments, infos, self._metadata, self._colours, LONGEST_SIDE
        )


def _panoptic(output: Record) -> tuple[Any, list[Record]]:
    if "panoptic_seg" not in output:
        raise ConfigurationError(
            "the data set is a panoptic one, but a model has no panoptic segments: give runs of "
            "PanopticFPN"
        )
    segments, infos = output["panoptic_seg"]
    return segments.cpu().numpy(), infos
