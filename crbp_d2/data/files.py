"""Files as users name them, and what the operating system says of them, in one line."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from .validate import DatasetError, duplicates

_PERMISSION = "ask for the permission, or choose another place"
_ROOM = "make room there, or choose another place"
_IN_THE_WAY = (
    "a file, or a link that leads nowhere, is where a folder should be: move it away, or choose "
    "another place"
)
_CURES = {
    errno.ENOENT: "check the path, of which a folder may have been deleted meanwhile",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "choose another place",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "choose a place for larger files",
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: "a folder is where a file should be: move it away, or choose another place",
    errno.ENAMETOOLONG: "shorten the name",
    errno.ELOOP: "links lead in a circle: mend them",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer workers",
    errno.ENOMEM: "use fewer workers",
    errno.EIO: "look after the disc",
}
"""What can be done about an error, where that is known."""


def explained(error: OSError) -> str:
    """An error of the operating system in one line: the file, what is wrong, and the cure."""
    if error.strerror is None:
        return str(error)
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    cure = _CURES.get(error.errno or 0)
    return f"{where}{error.strerror}{f'; {cure}' if cure else ''}"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file in an error of the block, where the operating system does not: a full disc
    shows when something is written, not when the file is opened."""
    try:
        yield
    except OSError as error:
        # Without a number it isn't one of the operating system.
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def save_image(image: Image.Image, path: Path, kind: str, **options: Any) -> None:
    """Writes an image file, which Pillow by itself leaves cut without a word on a full disc.

    Args:
        kind: "PNG", "JPEG", ...
        options: of Pillow's `save`.

    Raises:
        OSError: naming the file.
    """
    content = io.BytesIO()
    image.save(content, kind, **options)
    with naming(path):
        path.write_bytes(content.getvalue())


def absolute(path: str | Path) -> Path:
    """A path that a user gave, from the root and without `~`.

    Raises:
        DatasetError: no file can be called so, or not in every place that it is written to.
    """
    given = ascii(str(path))
    try:
        # Logs, JSON files and terminals take nothing else.
        str(path).encode()
        if "\0" in str(path):
            raise DatasetError(f"{given}: a name can't hold the character NUL; correct it")
        return Path(path).expanduser().absolute()
    except UnicodeEncodeError:
        raise DatasetError(f"{given}: the name isn't UTF-8; rename the file or folder") from None
    except RuntimeError:
        raise DatasetError(
            f"{given}: no home folder is known for this; write the folder in full (with ./ before "
            "the ~ if it is called so)"
        ) from None
    except FileNotFoundError:
        raise DatasetError(
            f"{given}: the working directory has been deleted; change to another one"
        ) from None


def resolved(path: str | Path) -> Path:
    """One spelling of a path: the folder it lies in without "..", links and repeated slashes.

    What itself is a link stays one: files beside it are meant to lie there.

    Raises:
        DatasetError: see `absolute`; or links lead in a circle.
    """
    whole = absolute(path)
    try:
        if whole.name in ("", ".."):
            return whole.resolve()
        return whole.parent.resolve() / whole.name
    except RuntimeError:
        raise DatasetError(f"{whole}: links lead in a circle; mend them") from None


def png_names(images: Sequence[str]) -> list[str]:
    """Images' names with another ending; behind the whole name if two would be alike."""
    names = [str(PurePosixPath(image).with_suffix(".png")) for image in images]
    alike = set(duplicates(name.casefold() for name in names))
    return [
        f"{image}.png" if name.casefold() in alike else name
        for image, name in zip(images, names, strict=True)
    ]
