"""Images and masks found by patterns of their names, as `img/{id}.png` and `msk/{id}_*.png`."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from ..reading import image_endings
from ..validate import DatasetError

logger = logging.getLogger(__name__)

_PARTS = {"{id}": ".+", "{class}": "[^/]+", "*": "[^/]*", "?": "[^/]"}


def image_files(folder: Path) -> list[str]:
    """Paths of the images in a folder and the folders below, separated by `/`, in order.

    What is hidden or has another ending than images does not count.

    Raises:
        DatasetError: there is no such folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; check the path")
    endings = image_endings()
    paths = [path.relative_to(folder) for path in folder.rglob("*")]
    return sorted(
        path.as_posix()
        for path in paths
        if path.suffix.lower() in endings and not any(part[0] == "." for part in path.parts)
    )


def find_annotated(
    images: Path, image_pattern: str, folder: Path, pattern: str
) -> tuple[dict[str, str], list[tuple[str, str, str | None]]]:
    """Images, and those that belong to them, which may lie in the same folder.

    Args:
        images, image_pattern: see `find_images`.
        folder, pattern: see `find_belonging`.

    Returns:
        As these functions do. What belongs to an image is no image itself. Images in the folder
        that are neither are told in a warning.
    """
    found = find_images(images, image_pattern)
    belonging = find_belonging(folder, pattern, found)
    others = {file for file, _, _ in belonging} if images.resolve() == folder.resolve() else set()
    left_out = sorted(set(image_files(images)) - set(found.values()) - others)
    if left_out:
        logger.warning(
            "%s: left out what fits no pattern: %d images, as %r",
            images,
            len(left_out),
            left_out[0],
        )
    return {name: file for name, file in found.items() if file not in others}, belonging


def find_images(folder: Path, pattern: str) -> dict[str, str]:
    """Images in a folder by what stands for `{id}` in their names, taken as long as possible.

    Args:
        pattern: of the path in the folder: `{id}` is the same wherever it stands again, `*` and `?`
            are as in a shell.

    Returns:
        Id -> path, its folders separated by `/`.

    Raises:
        DatasetError: the folder or `{id}` is missing, or two images have the same id.
    """
    form = _compiled(pattern, None)
    found: dict[str, str] = {}
    for file in image_files(folder):
        match = form.fullmatch(file)
        if match is None:
            continue
        other = found.setdefault(match["id"], file)
        if other != file:
            raise DatasetError(
                f"{folder / file}: by {pattern!r} the image {match['id']!r}, as {other} is; remove "
                "one of them, or mend the pattern"
            )
    return found


def find_belonging(
    folder: Path, pattern: str, known: Collection[str]
) -> list[tuple[str, str, str | None]]:
    """Images in a folder that belong to others, as masks do.

    Args:
        pattern: see `find_images`; `{class}` may stand for the name of a class.
        known: what `{id}` may be.

    Returns:
        Path, id and class (None without `{class}`) of each.

    Raises:
        DatasetError: the folder or `{id}` is missing, or a file belongs to none or to several.
    """
    files = image_files(folder)
    anything = _compiled(pattern, None)
    forms = [_compiled(pattern, length) for length in sorted({len(name) for name in known})]
    found = []
    for file in files:
        if anything.fullmatch(file) is None:
            continue
        matches = [match for form in forms if (match := form.fullmatch(file))]
        matches = [match for match in matches if match["id"] in known]
        if len(matches) != 1:
            raise DatasetError(f"{folder / file}: {_belonging(matches, pattern)}")
        found.append((file, matches[0]["id"], matches[0].groupdict().get("class")))
    return found


def _belonging(matches: list[re.Match[str]], pattern: str) -> str:
    if matches:
        names = " or ".join(repr(match["id"]) for match in matches)
        return (
            f"may belong to the image {names}; write {pattern!r} so that it is one, as with ? for *"
        )
    return f"belongs to no image by {pattern!r}; add the image, remove the file or mend the pattern"


@lru_cache
def _compiled(pattern: str, length: int | None) -> re.Pattern[str]:
    """The pattern as a regular expression in which the id has a length."""
    if "{id}" not in pattern:
        raise DatasetError(
            f"the pattern {pattern!r} lacks {{id}}, which stands for the name of an image; add it, "
            "as in 'img/{id}.png'"
        )
    seen = set()
    expression = ""
    for part in re.split(r"(\{id\}|\{class\}|[*?])", pattern):
        if part in ("{id}", "{class}"):
            group = part[1:-1]
            inside = f".{{{length}}}" if length and group == "id" else _PARTS[part]
            expression += f"(?P={group})" if group in seen else f"(?P<{group}>{inside})"
            seen.add(group)
        else:
            expression += _PARTS.get(part) or re.escape(part)
    # Names may hold line breaks, which are refused where it is known whose they are.
    return re.compile(expression, re.DOTALL)
