"""Panoptic quality with a bounded number of processes."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from panopticapi.evaluation import PQStat, pq_compute_single_core
from tabulate import tabulate

from crbp_d2.data.parallel import ordered_map

logger = logging.getLogger(__name__)

Json = dict[str, Any]
# Key of the result -> which categories: all, things, stuff.
_GROUPS = {"": None, "_th": True, "_st": False}
_CHUNK = 50


class PanopticEvaluator(COCOPanopticEvaluator):
    """Detectron2's panoptic evaluator, where panopticapi would fork a process for every core.

    The measure is panopticapi's. Differences: a bounded number of processes; the quality of every
    class is told, too, as `PQ-<class>`, `SQ-<class>` and `RQ-<class>`; things or stuff may
    be absent (their quality is then NaN); predictions of the thing class that stands in where data
    have no things are discarded; images of the same name in different folders don't meet; what it
    is given stays as it was.

    Contains synchronisation, so every process of a distributed run has to call it.

    Args:
        dataset_name: registered, with `evaluator_type` coco_panoptic_seg.
        output_dir: `predictions.json` is written there, if given.
        partial: score the images that were processed, which need not be all.
        workers: number of processes; see `crbp_d2.data.parallel.ordered_map`.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        partial: bool = False,
        workers: int | None = None,
    ) -> None:
        super().__init__(dataset_name, output_dir)
        self._partial = partial
        self._workers = workers
        self.reset()

    def process(self, inputs: list[Json], outputs: list[Json]) -> None:
        """Takes model inputs with `image_id` and `file_name`, outputs with `panoptic_seg`."""
        without_things = not self._metadata.thing_dataset_id_to_contiguous_id
        own = []
        for output in outputs:
            panoptic, segments = output["panoptic_seg"]
            # Detectron2 renames the classes within the segments it gets.
            segments = [dict(segment) for segment in segments]
            if without_things:
                panoptic, segments = _without_things(panoptic, segments)
            own.append({"panoptic_seg": (panoptic, segments)})
        super().process(inputs, own)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """PQ, SQ and RQ in percent of all classes, things (`_th`), stuff (`_st`) and each class
        (`-<name>`; NaN of one that is neither in the data nor predicted).

        None in all processes but the main one, and where nothing was predicted.

        Raises:
            ValueError: images of the data set have no prediction, and that was not said to be so.
        """
        comm.synchronize()
        predictions = list(itertools.chain(*comm.gather(self._predictions)))
        if not comm.is_main_process():
            return None
        if not predictions:
            logger.warning("No image was processed: no panoptic quality")
            return None
        truth = json.loads(Path(self._metadata.panoptic_json).read_text(encoding="utf-8"))
        pngs = [prediction.pop("png_string") for prediction in predictions]
        if self._output_dir is not None:
            content = json.dumps({**truth, "annotations": predictions})
            Path(self._output_dir, "predictions.json").write_text(content, encoding="utf-8")
        categories = {category["id"]: category for category in truth["categories"]}
        with tempfile.TemporaryDirectory(prefix="panoptic_eval") as folder:
            for number, (prediction, png) in enumerate(zip(predictions, pngs, strict=True)):
                prediction["file_name"] = f"{number}.png"
                Path(folder, prediction["file_name"]).write_bytes(png)
            statistics = self._statistics(truth["annotations"], predictions, folder, categories)
        results: dict[str, float] = {}
        for suffix, isthing in _GROUPS.items():
            results.update(averages(statistics, categories, isthing, suffix))
        _log_table(results)
        for identity, category in categories.items():
            suffix = f"-{category['name']}"
            results.update(averages(statistics, {identity: category}, suffix=suffix))
        _log_classes(results, [category["name"] for category in categories.values()])
        return OrderedDict(panoptic_seg=results)

    def _statistics(
        self, truth: list[Json], predictions: list[Json], folder: str, categories: dict[int, Json]
    ) -> PQStat:
        by_image = {prediction["image_id"]: prediction for prediction in predictions}
        missing = [entry["image_id"] for entry in truth if entry["image_id"] not in by_image]
        if missing and not self._partial:
            raise ValueError(f"no prediction for {len(missing)} images, as id {missing[0]!r}")
        pairs = [
            (entry, by_image[entry["image_id"]]) for entry in truth if entry["image_id"] in by_image
        ]
        chunks = [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)]
        compare = functools.partial(
            compare_segments,
            truth_folder=self._metadata.panoptic_root,
            prediction_folder=folder,
            categories=categories,
        )
        statistics = PQStat()
        for part in ordered_map(compare, chunks, workers=self._workers):
            statistics += part
        return statistics


def compare_segments(
    pairs: list[tuple[Json, Json]],
    *,
    truth_folder: str,
    prediction_folder: str,
    categories: Mapping[int, Json],
) -> PQStat:
    """panopticapi's counts of pairs of annotations, true and predicted.

    Args:
        pairs: entries of panoptic JSONs, with `file_name` and `segments_info`.
        truth_folder, prediction_folder: of their PNGs.
        categories: of the panoptic JSON, by id.
    """
    # panopticapi reports its progress on the standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        return pq_compute_single_core(0, pairs, truth_folder, prediction_folder, categories)


def averages(
    statistics: PQStat,
    categories: Mapping[int, Json],
    isthing: bool | None = None,
    suffix: str = "",
) -> dict[str, float]:
    """PQ, SQ and RQ in percent; NaN if no category of the group occurs, as in instance AP.

    Args:
        statistics: of `compare_segments`.
        categories: of the panoptic JSON, by id; all, or those that are averaged.
        isthing: of things alone, of stuff alone, or of all.
        suffix: of the keys.
    """
    counts = [
        statistics[key]
        for key, category in categories.items()
        if isthing is None or isthing == bool(category["isthing"])
    ]
    if any(count.tp + count.fp + count.fn for count in counts):
        average, _ = statistics.pq_average(categories, isthing)
    else:
        average = dict.fromkeys(("pq", "sq", "rq"), float("nan"))
    return {f"{key.upper()}{suffix}": 100 * average[key] for key in ("pq", "sq", "rq")}


def _log_table(results: dict[str, float]) -> None:
    rows = [
        [name, *(results[f"{key}{suffix}"] for key in ("PQ", "SQ", "RQ"))]
        for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
    ]
    table = tabulate(rows, headers=["", "PQ", "SQ", "RQ"], tablefmt="pipe", floatfmt=".3f")
    logger.info("Panoptic quality:\n%s", table)


def _log_classes(results: dict[str, float], names: Sequence[str]) -> None:
    """Three classes a line, as Detectron2 shows its AP."""
    cells = [cell for name in names for cell in (name, results[f"PQ-{name}"])]
    rows = [cells[start : start + 6] for start in range(0, len(cells), 6)]
    headers = ["category", "PQ"] * min(len(names), 3)
    table = tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".3f")
    logger.info("Panoptic quality by class:\n%s", table)


def _without_things(
    panoptic: torch.Tensor, segments: list[Json]
) -> tuple[torch.Tensor, list[Json]]:
    """The (height, width) segment ids with those of things set to 0, and the other segments."""
    stuff = [segment for segment in segments if not segment["isthing"]]
    ids = torch.tensor([segment["id"] for segment in stuff]).to(panoptic)
    return torch.where(torch.isin(panoptic, ids), panoptic, 0), stuff
