"""What the page shows of a model's output, and the score it gives it, for each kind of data.

Shape shorthand: a picture is `(H, W)` grey or `(H, W, 3)` RGB, uint8, at most 320 pixels wide and
high.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image

from crbp_d2.analysis.page.encode import Picture, fitted, grey_png, jpeg, overlay_png
from crbp_d2.analysis.page.quality import image_quality
from crbp_d2.core import ConfigurationError
from crbp_d2.data.loaders import is_pathfinder
from crbp_d2.evaluation.pathfinder import count_pixels, scores
from crbp_d2.evaluation.pictures import draw_panoptic, enlarged, ground_truth

Record = dict[str, Any]


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

    def scene(self, record: Record) -> tuple[Picture, Picture]:
        """The image and its ground truth."""

    def key(self, output: Record) -> bytes:
        """Outputs of one image with the same key have the same picture and score."""

    def answer(self, record: Record, output: Record) -> tuple[Picture, float]:
        """The picture of an output, and its score."""

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

    def scene(self, record: Record) -> tuple[Picture, Picture]:
        truth = (record["sem_seg"].numpy() == 1).astype(np.uint8) * np.uint8(255)
        return fitted(record["image"][0].numpy()), fitted(truth)

    def key(self, output: Record) -> bytes:
        return hashlib.sha256(output["sem_seg"].cpu().numpy().tobytes()).digest()

    def answer(self, record: Record, output: Record) -> tuple[Picture, float]:
        probability = output["sem_seg"].softmax(dim=0)[1].cpu().numpy()
        f1 = scores(count_pixels(output["sem_seg"], record["sem_seg"]))["F1"]
        return fitted(np.round(255 * probability).astype(np.uint8)), float(f1)

    def encode_image(self, picture: Picture) -> str:
        return grey_png(picture)

    def encode_answers(self, picture: Picture) -> str:
        return overlay_png(picture)


class PanopticPainter:
    """Segments over the image, and panoptic quality.

    Args:
        metadata: of a panoptic data set.
    """

    score, maximum, overlays = "PQ", 100.0, False
    explanation = (
        "PQ is panopticapi's panoptic quality of the one image, in percent: the mean over the "
        "categories that occur in its truth or in its prediction. It jumps where a segment crosses "
        "an overlap of one half, and its mean over images is not the PQ of the data set."
    )

    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata
        content = json.loads(Path(metadata.panoptic_json).read_text(encoding="utf-8"))
        self._categories = {category["id"]: category for category in content["categories"]}
        self._truths = {entry["image_id"]: entry for entry in content["annotations"]}

    def scene(self, record: Record) -> tuple[Picture, Picture]:
        image = read_image(record["file_name"], "RGB")
        truth = ground_truth(self._truths[record["image_id"]], self._metadata)
        return fitted(enlarged(image)), self._draw(image, *truth)

    def key(self, output: Record) -> bytes:
        segments, infos = _panoptic(output)
        return hashlib.sha256(segments.tobytes() + repr(infos).encode()).digest()

    def answer(self, record: Record, output: Record) -> tuple[Picture, float]:
        segments, infos = _panoptic(output)
        quality = image_quality(
            segments,
            infos,
            self._truths[record["image_id"]],
            metadata=self._metadata,
            categories=self._categories,
        )
        return self._draw(read_image(record["file_name"], "RGB"), segments, infos), quality

    def encode_image(self, picture: Picture) -> str:
        return jpeg(picture)

    def encode_answers(self, picture: Picture) -> str:
        return jpeg(picture)

    def _draw(self, image: Picture, segments: Any, infos: list[Record]) -> Picture:
        # Detectron2 varies the colours of instances at random: from step to step they shall stay.
        with _numpy_seed(0):
            return fitted(draw_panoptic(image, segments, infos, self._metadata))


def _panoptic(output: Record) -> tuple[Any, list[Record]]:
    if "panoptic_seg" not in output:
        raise ConfigurationError(
            "the data set is a panoptic one, but a model has no panoptic segments: give runs of "
            "PanopticFPN"
        )
    segments, infos = output["panoptic_seg"]
    return segments.cpu().numpy(), infos


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
