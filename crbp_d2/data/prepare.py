"""The cache of what is derived from a panoptic data set: made once, renewed when sources change."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crbp_d2.progress import tqdm

from .categories import stuff_class_ids, thing_class_ids
from .derive import Derivation, DerivedImage, derive_image
from .elsewhere import require_any
from .fields import Json
from .files import explained, naming
from .instances import read_instances_json
from .parallel import ordered_map
from .record import all_whole, read_record, sizes_below, write_record
from .source import PanopticSource
from .storage import locked, replacing
from .validate import DatasetError, Problems, read_panoptic_json

logger = logging.getLogger(__name__)

# To be raised whenever other files are derived, so that existing caches are renewed.
_FORMAT = 3
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
        converted: ids of the images that were converted to eight bits.
        sizes: bytes of each other file of the cache.
    """

    format: int
    jsons: list[list[int]]
    fingerprint: str
    categories: list[Json]
    files: list[list[Any]]
    segments: dict[str, int]
    left_out: int
    converted: list[int | str]
    sizes: dict[str, int]


def prepare(source: PanopticSource, *, workers: int | None = None) -> Manifest:
    """Makes the derived files unless they are there, whole and up to date.

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
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise DatasetError(
            f"{source.derived}: can't be written ({explained(error)} with 'cache')"
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


def read_counts(source: PanopticSource) -> list[tuple[Json, int]] | None:
    """The categories, each with the number of its segments, from the cache; None if that is missing
    or doesn't fit the JSON."""
    try:
        manifest = _read_manifest(source)
    except OSError:
        return None
    if manifest is None:
        return None
    return [(one, manifest.segments.get(str(one["id"]), 0)) for one in manifest.categories]


def _read_manifest(source: PanopticSource) -> Manifest | None:
    """The manifest, unless missing, damaged, made from other JSON files or by another version."""
    content = read_record(source.derived / _MANIFEST)
    current = {"format": _FORMAT, "jsons": _json_stats(source)}
    if content is None or any(content.get(key) != value for key, value in current.items()):
        return None
    return Manifest(**content)


def _current_manifest(source: PanopticSource) -> Manifest | None:
    """The manifest, unless something has changed since it was written, or is not there any more."""
    manifest = _read_manifest(source)
    if manifest is None or _fingerprint(source, manifest.files) != manifest.fingerprint:
        return None
    return manifest if all_whole(source.derived, manifest.sizes) else None


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
            except OSError:
                state = "missing"
            digest.update(f"{path} {state}\n".encode())
    return digest.hexdigest()


def _make(source: PanopticSource, target: PanopticSource, workers: int | None) -> Manifest:
    """Fills the folder of `target`, which is `source` with another folder of derived files."""
    jsons = _json_stats(source)
    content = read_panoptic_json(source.panoptic_json)
    categories = content["categories"]
    given = None
    if source.instances_json is not None:
        given = read_instances_json(source.instances_json, content)
    image_of = {image["id"]: image for image in content["images"]}
    names = [image["file_name"] for image in content["images"]]
    require_any(source.images, names, source.panoptic_json)
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
        converted_images=target.converted_images,
        intensity_range=source.intensity_range,
        thing_ids=frozenset(thing_class_ids(categories)),
        stuff_classes=stuff_class_ids(categories),
        with_instances=given is None,
    )
    target.stuff_maps.mkdir()
    results = ordered_map(functools.partial(derive_image, derivation), pairs, workers=workers)
    # disable=None: no bar where the output isn't a terminal.
    bar = tqdm(results, source.panoptic_json.stem, len(pairs), unit="image", disable=None)
    head = {"info": {}, "images": [image for image, _ in usable]}
    segments, converted = _write_annotations(bar, target, head, categories, given)
    left_out = len(pairs) - len(usable)
    if left_out:
        logger.warning(
            "%s: %d images have no segment and are left out", source.panoptic_json, left_out
        )
    if source.intensity_range is not None and not converted:
        logger.warning(
            "%s: no image has more than 8 bits, so intensity_range is without effect", source.images
        )
    manifest = Manifest(
        format=_FORMAT,
        jsons=jsons,
        fingerprint=fingerprint,
        categories=categories,
        files=files,
        segments=segments,
        left_out=left_out,
        converted=converted,
        sizes=sizes_below(target.derived),
    )
    write_record(target.derived / _MANIFEST, asdict(manifest))
    return manifest


def _write_annotations(
    results: Iterable[DerivedImage],
    target: PanopticSource,
    head: Json,
    categories: list[Json],
    given: list[Json] | None,
) -> tuple[dict[str, int], list[int | str]]:
    """Writes both JSON files while the results arrive.

    Args:
        head: what both begin with.
        given: instances, in the place of derived ones.

    Returns:
        The segments of each category, and the ids of converted images.
    """
    problems = Problems(str(target.panoptic_json))
    segments = {str(category["id"]): 0 for category in categories}
    converted = []
    things = [category for category in categories if category["isthing"]]
    instance_ids = itertools.count(1)  # pycocotools takes 0 for "unmatched"
    with (
        _streamed(target.measured_json, {**head, "categories": categories}) as write_annotation,
        _streamed(target.used_instances_json, {**head, "categories": things}) as write_instance,
    ):
        used = {image["id"] for image in head["images"]}
        for instance in given or ():
            if instance["image_id"] in used:
                write_instance({"id": next(instance_ids), **instance})
        for result in results:
            problems.add(*result.problems)
            if result.problems or not result.segments:
                continue
            write_annotation({**result.annotation, "segments_info": result.segments})
            for segment in result.segments:
                segments[str(segment["category_id"])] += 1
            for instance in result.instances:
                write_instance({"id": next(instance_ids), **instance})
            if result.converted:
                converted.append(result.annotation["image_id"])
    problems.raise_if_any()
    return segments, converted


@contextmanager
def _streamed(path: Path, head: Json) -> Iterator[Callable[[Json], None]]:
    """Writes a JSON object of `head` and "annotations", which are passed to the yielded function.

    Annotations of a large data set don't fit in memory comfortably.
    """
    with naming(path), path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head, allow_nan=False)[:-1] + ', "annotations": [')
        separator = "\n"

        def write(annotation: Json) -> None:
            nonlocal separator
            file.write(separator + json.dumps(annotation, allow_nan=False))
            separator = ",\n"

        yield write
        file.write("\n]}\n")
