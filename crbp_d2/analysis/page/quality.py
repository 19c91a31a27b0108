"""Panoptic quality of a single image."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

Json = dict[str, Any]


def image_quality(
    segments: npt.NDArray[np.integer[Any]],
    infos: list[Json],
    truth: Json,
    *,
    metadata: Any,
    categories: Mapping[int, Json],
) -> float:
    """PQ of one image in percent, by panopticapi: the mean over the categories that it or its
    prediction has.

    Args:
        segments: `(H, W)` predicted segment ids, 0 where there is none.
        infos: per segment `id`, `isthing` and contiguous `category_id`; segments of classes that
            the data set does not have count as none.
        truth: annotation of the panoptic JSON.
        metadata: of the data set.
        categories: of the panoptic JSON, by id.

    Returns:
        0..100; NaN where neither has a category.
    """
    known = {
        True: _inverse(metadata.thing_dataset_id_to_contiguous_id),
        False: _inverse(metadata.stuff_dataset_id_to_contiguous_id),
    }
    predicted = [
        {"id": info["id"], "category_id": known[bool(info["isthing"])][info["category_id"]]}
        for info in infos
        if info["category_id"] in known[bool(info["isthing"])]
    ]
    shown = np.where(np.isin(segments, [info["id"] for info in predicted]), segments, 0)
    with tempfile.TemporaryDirectory(prefix="panoptic_image") as folder:
        Image.fromarray(id2rgb(shown)).save(Path(folder, "prediction.png"))
        pair = (truth, {"file_name": "prediction.png", "segments_info": predicted})
        # panopticapi reports its progress on the standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            counts = pq_compute_single_core(0, [pair], metadata.panoptic_root, folder, categories)
    if not any(counts[key].tp + counts[key].fp + counts[key].fn for key in categories):
        return float("nan")
    average, _ = counts.pq_average(categories, None)
    return 100 * float(average["pq"])


def _inverse(mapping: Mapping[int, int]) -> dict[int, int]:
    return {value: key for key, value in mapping.items()}
