"""Panoptic quality of a single image."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from panopticapi.utils import id2rgb
from PIL import Image

from crbp_d2.evaluation.panoptic import averages, compare_segments
from crbp_d2.evaluation.segments import in_categories

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
    predicted = in_categories(infos, metadata)
    shown = np.where(np.isin(segments, [info["id"] for info in predicted]), segments, 0)
    with tempfile.TemporaryDirectory(prefix="panoptic_image") as folder:
        Image.fromarray(id2rgb(shown)).save(Path(folder, "prediction.png"))
        pair = (truth, {"file_name": "prediction.png", "segments_info": predicted})
        counts = compare_segments(
            [pair],
            truth_folder=metadata.panoptic_root,
            prediction_folder=folder,
            categories=categories,
        )
    return float(averages(counts, categories)["PQ"])
