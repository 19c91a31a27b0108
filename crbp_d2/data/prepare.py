"""The cache of what is derived from a panoptic data set: made once, renewed when sources change."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .categories import stuff_class_ids, thing_class_ids
from .derive import Derivation, DerivedImage, derive_image
from .parallel import ordered_map
from .source import PanopticSource
from .storage import locked, replacing
from .validate import (
    DatasetError,
    Json,
    Problems,
    check_instances_json,
    read_json,
    read_panoptic_json,
)

logger = logging.getLogger(__name__)

# To be raised whenever other files are derived, so that existing caches are renewed.
_FORMAT = 1
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a cache was made from, and what it holds. Written last.

    Args:
        format: version of the derived files.
        jsons: size and time of change of the JSON files.
        fingerprint: digest of the same of all images and PNGs.
        categories: those of the panoptic JSON.
        files: for each usable image its id, image file and PNG.
        segments: category id (as a string) -> number of segments.
        left_out: number of images without any segment, which can neither train nor be scored.
    """

    format: int
    jsons: list[list[int]]
    fingerprint: str
    categories: list[Json]
    files: list[list[Any]]
    segments: dict[str, int]
    left_out: int


def prepare(source: PanopticSource, *, workers: int | None = None) -> Manifest:
    """Makes the derived files unless they are there and up to date.

    Safe to be called by several processes at once: one works, the others wait.

    Args:
        workers: number of processes; see `ordered_map`.

    Raises:
        DatasetError: the data can't be used; no derived file is written.
    """
    source.check_exists()
    manifest = _current_manifest(source)
    if manifest is not None:
        return manifest
    try:
        with locked(source.derived):
            manifest = _current_manifest(source)
            if manifest is not None:
                return manifest
            logger.info("Deriving from %s into %s", source.panoptic_json, source.derived)
            with replacing(source.derived) as folder:
                return _make(source, replace(source, derived=folder), workers)
    except PermissionError as error:
        raise DatasetError(
            f"{source.derived}: can't be written ({error}); choose another place with 'cache'"
        ) from error


def read_categories(source: PanopticSource) -> list[Json]:
    """The categories, from the cache if it fits the JSON, which may be large.

    Raises:
        DatasetError: a file or folder is missing, or the JSON can't be used.
    """
    source.check_exists()
    manifest = _read_manifest(source)
    if manifest is not None:
        return manifest.categories
    return read_panoptic_json(source.panoptic_json)["categories"]


def _read_manifest(source: PanopticSource) -> Manifest | None:
    """The manifest, unless missing or made from other JSON files or by another version."""
    path = source.derived / _MANIFEST
    if not path.is_file():
        return None
    content = read_json(path)
    current = {"format": _FORMAT, "jsons": _json_stats(source)}
    if any(content.get(key) != value for key, value in current.items()):
        return None
    return Manifest(**content)


def _current_manifest(source: PanopticSource) -> Manifest | None:
    """The manifest, unless something has changed since it was written."""
    manifest = _read_manifest(source)
    if manifest is None or _fingerprint(source, manifest.files) != manifest.fingerprint:
        return None
    return manifest


def _json_stats(source: PanopticSource) -> list[list[int]]:
    return [
        [path.stat().st_size, path.stat().st_mtime_ns]
        for path in (source.panoptic_json, source.instances_json)
        if path is not None
    ]


def _fingerprint(source: PanopticSource, files: list[list[Any]]) -> str:
    digest = hashlib.sha256()
    for _, image, png in files:
        for path in (source.images / image, source.panoptic_pngs / png):
            try:
                status = path.stat()
                state = f"{status.st_size} {status.st_mtime_ns}"
            except FileNotFoundError:
                state = "missing"
            digest.update(f"{path} {state}\n".encode())
    return digest.hexdigest()


def _make(source: PanopticSource, target: PanopticSource, workers: int | None) -> Manifest:
    """Fills the folder of `target`, which is `source` with another folder of derived files."""
    jsons = _json_stats(source)
    content = read_panoptic_json(source.panoptic_json)
    categories = content["categories"]
    if source.instances_json is not None:
        check_instances_json(source.instances_json, content)
    image_of = {image["id"]: image for image in content["images"]}
    pairs = [(image_of[entry["image_id"]], entry) for entry in content["annotations"]]
    usable = [(image, entry) for image, entry in pairs if entry["segments_info"]]
    if not usable:
        raise DatasetError(f"{source.panoptic_json}: no image has a segment: nothing to train on")
    files = [[image["id"], image["file_name"], entry["file_name"]] for image, entry in usable]
    # Taken before the files are read, so that a change meanwhile renews the cache next time.
    fingerprint = _fingerprint(source, files)

    derivation = Derivation(
        images=source.images,
        panoptic_pngs=source.panoptic_pngs,
        stuff_maps=target.stuff_maps,
        thing_ids=frozenset(thing_class_ids(categories)),
        stuff_classes=stuff_class_ids(categories),
        with_instances=source.instances_json is None,
    )
    target.stuff_maps.mkdir()
    results = ordered_map(functools.partial(derive_image, derivation), pairs, workers=workers)
    # disable=None: no bar where the output isn't a terminal.
    bar = tqdm(results, source.panoptic_json.stem, len(pairs), unit="image", disable=None)
    head: Json = {key: content[key] for key in ("info", "licenses") if key in content}
    head["images"] = [image for image, _ in usable]
    segments = _write_annotations(bar, target, head, categories)
    left_out = len(pairs) - len(usable)
    if left_out:
        logger.warning(
            "%s: %d images have no segment and are left out", source.panoptic_json, left_out
        )
    manifest = Manifest(_FORMAT, jsons, fingerprint, categories, files, segments, left_out)
    (target.derived / _MANIFEST).write_text(json.dumps(asdict(manifest)), encoding="utf-8")
    return manifest


def _write_annotations(
    results: Iterable[DerivedImage], target: PanopticSource, head: Json, categories: list[Json]
) -> dict[str, int]:
    """Writes both JSON files while the results arrive; returns the segments of each category."""
    problems = Problems(str(target.panoptic_json))
    segments = {str(category["id"]): 0 for category in categories}
    instance_ids = itertools.count(1)  # pycocotools takes 0 for "unmatched"
    with ExitStack() as files:
        panoptic_head = {**head, "categories": categories}
        write_annotation = files.enter_context(_streamed(target.measured_json, panoptic_head))
        if target.instances_json is None:
            things = [category for category in categories if category["isthing"]]
            instances_head = {**head, "categories": things}
            write_instance = files.enter_context(
                _streamed(target.used_instances_json, instances_head)
            )
        for result in results:
            problems.add(*result.problems)
            if result.problems or not result.segments:
                continue
            write_annotation({**result.annotation, "segments_info": result.segments})
            for segment in result.segments:
                segments[str(segment["category_id"])] += 1
            for instance in result.instances:
                write_instance({"id": next(instance_ids), **instance})
    problems.raise_if_any()
    return segments


@contextmanager
def _streamed(path: Path, head: Json) -> Iterator[Callable[[Json], None]]:
    """Writes a JSON object of `head` and "annotations", which are passed to the yielded function.

    Annotations of a large data set don't fit in memory comfortably.
    """
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        separator = "\n"

        def write(annotation: Json) -> None:
            nonlocal separator
            file.write(separator + json.dumps(annotation))
            separator = ",\n"

        yield write
        file.write("\n]}\n")
