"""Images that lie elsewhere, or are called otherwise, than annotations have it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from .reading import image_endings
from .validate import DatasetError

MOST_FILES = 100_000
"""That are looked at: a folder given by mistake may have any number of them below it."""


def require_any(folder: Path, names: Sequence[str], told_by: Path) -> None:
    """Refuse a folder without a single one of the images, where files look as if they were meant:
    of the same name but for the ending, or in folders below.

    Where none looks so nothing is done, as each missing image is told later.

    Args:
        folder: of the images.
        names: of these, from the folder, separated by `/`.
        told_by: the file that names them.

    Raises:
        DatasetError: naming one image and the file in its place.
    """
    if not names or any(os.path.isfile(folder / name) for name in names):
        return
    meant = {PurePosixPath(name).stem: name for name in reversed(names)}
    endings = image_endings()
    for path in islice(_below(folder), MOST_FILES):
        if path.suffix.lower() in endings and path.stem in meant:
            name, found = meant[path.stem], path.relative_to(folder).as_posix()
            raise DatasetError(
                f"{folder}: has none of the images of {told_by}, for {name!r} there "
                f"is {found!r}; {_cure(folder, name, found, told_by)}"
            )


def _below(folder: Path) -> Iterator[Path]:
    """The files in a folder, then those in folders below, in an order that is always the same."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place, file) for file in sorted(files))


def _cure(folder: Path, name: str, found: str, told_by: Path) -> str:
    if found.endswith(f"/{name}"):
        return f"give the folder {folder / found.removesuffix(f'/{name}')}"
    return f"correct the names in {told_by.name}, or move or rename the images"
