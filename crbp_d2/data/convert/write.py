"""The writer: annotated images of any format become a data set in COCO's panoptic format."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from panopticapi.utils import id2rgb
from PIL import Image

from crbp_d2.progress import tqdm

from ..elsewhere import require_any
from ..fields import Json, relative_path, text
from ..files import naming, png_names, save_image
from ..parallel import ordered_map
from ..storage import locked, replacing
from ..validate import (
    CONVERTED,
    DatasetError,
    Problems,
    check_images,
    converted_by,
    read_json,
)
from . import listing
from .classes import Choices, settle
from .files import measured, require_size, upright_size
from .paint import Tally, paint
from .scene import Annotated, Entry, Shape, Size
from .summary import Summary


@dataclass(frozen=True)
class _Job:
    """What the workers need besides an entry and the name of its PNG."""

    images: Path
    read: Callable[[Any, Size], list[Shape]]
    pngs: Path
    categories: dict[str, Json]
    choices: Choices


@dataclass(frozen=True)
class _Done:
    """What a worker tells of an image whose PNG is written; or what is wrong with it."""

    image: Json
    annotation: Json
    tally: Tally | None = None
    problem: str | None = None


def convert(
    annotated: Annotated,
    *,
    out: Path,
    name: str,
    call: Json,
    choices: Choices | None = None,
    workers: int | None = None,
) -> Summary:
    """Writes `out/panoptic_<name>.json`, `out/panoptic_<name>/*.png`, and the entry `name` of
    `out/datasets.yaml`, the file for the config key `DATASETS.FILE`.

    Nothing of a data set is there before all of it is. Another data set of the file, as of another
    split, sets the classes.

    Args:
        call: what the data are made of and how. Output of the same call is made anew; that of
            another one is never touched.
        choices: about the classes.
        workers: number of processes; see `ordered_map`.

    Returns:
        What was found and painted.

    Raises:
        DatasetError: something is wrong with the data or the choices, or other output is in the
            way. Nothing is written then.
    """
    choices = choices or Choices()
    _check_name(name)
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out}: is a file; choose a folder for --out")
    entry = listing.entry(name, annotated.images, out)
    with locked(out):
        _require_free(out, entry, call)
        listing.require_free(out, entry)
        other = listing.other(out, name)
        _check_entries(annotated)
        categories = settle(annotated.categories, choices, other, annotated.named)
        out.mkdir(parents=True, exist_ok=True)
        path = out / entry["panoptic_json"]
        with replacing(out / entry["panoptic_pngs"], beside=path) as pngs:
            by_name = {category["name"]: category for category in categories}
            job = _Job(annotated.images, annotated.read, pngs, by_name, choices)
            content, summary = _write_pngs(job, annotated.entries, name, workers)
            content = {"info": {CONVERTED: call}, **content, "categories": categories}
            made = pngs.with_name(path.name)
            with naming(made):
                made.write_text(json.dumps(content), encoding="utf-8")
        listing.add(out, entry)
    return summary


def _check_name(name: str) -> None:
    try:
        if "/" not in relative_path(name) and name.strip(" ."):
            return
    except ValueError:
        pass
    raise DatasetError(f"--name {name!r}: must be a name for a file; choose another")


def _require_free(out: Path, entry: Json, call: Json) -> None:
    """Refuse to replace what another call, or somebody else, has written."""
    path, pngs = out / entry["panoptic_json"], out / entry["panoptic_pngs"]
    cure = f"remove it and {pngs}, or choose another --name"
    if path.exists():
        found = converted_by(read_json(path))
        if found is None:
            raise DatasetError(f"{path}: was not written by this tool; {cure}")
        for key in sorted({*found, *call}):
            if found.get(key) != call.get(key):
                raise DatasetError(
                    f"{path}: was made with {key} {found.get(key)!r}, not {call.get(key)!r}; {cure}"
                )
    elif pngs.exists():
        raise DatasetError(
            f"{pngs}: is there without {path.name}, so it was not written by this tool; choose "
            "another --name, or remove it"
        )


def _check_entries(annotated: Annotated) -> None:
    if not annotated.images.is_dir():
        raise DatasetError(f"{annotated.images}: no such folder; check the path")
    if not annotated.entries:
        raise DatasetError(
            f"{annotated.images}: there is no image with annotations; check the path"
        )
    problems = Problems(str(annotated.images))
    for entry in annotated.entries:
        try:
            text(entry.file_name)
        except ValueError:
            problems.add(f"{entry.file_name!r}: a name with line breaks or the like; rename it")
    images = [{"id": entry.id, "file_name": entry.file_name} for entry in annotated.entries]
    check_images(images, problems)
    problems.raise_if_any()
    told_by = annotated.entries[0].told_by
    if told_by is not None:
        names = [entry.file_name for entry in annotated.entries]
        require_any(annotated.images, names, told_by)


def _write_pngs(
    job: _Job, entries: Sequence[Entry], name: str, workers: int | None
) -> tuple[Json, Summary]:
    """Writes the PNGs. Returns images and annotations of the JSON, and what was found.

    Raises:
        DatasetError: with all images that can't be converted.
    """
    pairs = list(zip(entries, png_names([entry.file_name for entry in entries]), strict=True))
    results = ordered_map(functools.partial(_write_png, job), pairs, workers=workers)
    # disable=None: no bar where the output isn't a terminal.
    bar: Iterator[_Done] = tqdm(results, name, len(pairs), unit="image", disable=None)
    content: Json = {"images": [], "annotations": []}
    summary = Summary(list(job.categories.values()))
    problems = []
    for done in bar:
        if done.tally is None:
            problems.append(str(done.problem))
            continue
        content["images"].append(done.image)
        content["annotations"].append(done.annotation)
        summary.add(done.tally)
    _raise_if_any(problems, job.images)
    if not any(summary.objects.values()):
        raise DatasetError(f"{job.images}: no image has an object or stuff; check the annotations")
    return content, summary


def _raise_if_any(problems: Sequence[str], images: Path) -> None:
    if len(problems) == 1:
        raise DatasetError(problems[0])
    collected = Problems(str(images))
    collected.add(*problems)
    collected.raise_if_any()


def _write_png(job: _Job, pair: tuple[Entry, str]) -> _Done:
    entry, png = pair
    image: Json = {"id": entry.id, "file_name": entry.file_name}
    annotation: Json = {"image_id": entry.id, "file_name": png}
    try:
        ids, tally = _painted(job, entry)
    except DatasetError as error:
        return _Done(image, annotation, problem=str(error))
    path = job.pngs / png
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(Image.fromarray(id2rgb(ids)), path, "PNG")
    image["height"], image["width"] = ids.shape
    return _Done(image, {**annotation, "segments_info": tally.segments}, tally)


def _painted(job: _Job, entry: Entry) -> tuple[npt.NDArray[np.int32], Tally]:
    """The segments of an image, upright as the reader of the data has the image."""
    path, choices = job.images / entry.file_name, job.choices
    size, orientation = measured(path)
    if not choices.as_stored:
        size, orientation = upright_size(size, orientation), 1
    if entry.size is not None:
        try:
            require_size(entry.size, size)
        except DatasetError as error:
            raise DatasetError(f"{entry.told_by}: {entry.file_name} {error}") from error
    shapes = job.read(entry.annotation, size)
    shapes = [shape for shape in shapes if shape.category not in choices.leave_out]
    for shape in shapes:
        _check_class(path, shape, job.categories)
    return paint(
        shapes,
        size,
        job.categories,
        order=choices.order,
        fill=choices.fill,
        orientation=orientation,
    )


def _check_class(path: Path, shape: Shape, categories: dict[str, Json]) -> None:
    if shape.category not in categories:
        listed = ", ".join(map(repr, categories))
        raise DatasetError(
            f"{shape.place}, on {path.name}: unknown class {shape.category!r}, there is {listed}; "
            "correct it, or give it to --classes or --leave-out"
        )
