"""Files that a kill or a power loss leaves whole: as they were before, or as they should become."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_PART = ".part"


@contextmanager
def writing_whole(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a file that takes the place of `path` if the block succeeds; it is on the disk before
    it does.

    Args:
        path: in a folder that exists.

    Raises:
        OSError: it can't be written; names `path`, which is as it was before.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}{_PART}")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        _sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        failure = _of_system(error)
        if failure is None:
            raise
        raise OSError(failure.errno, failure.strerror, str(target)) from error


def write_synced(path: str | Path, content: bytes) -> None:
    """Write a file, see `writing_whole`."""
    with writing_whole(path) as file:
        file.write(content)


def remove_parts(folder: str | Path) -> None:
    """Remove what a process that was killed had begun to write in a folder; only where no other
    one writes."""
    for part in Path(folder).glob(f".*{_PART}"):
        with contextlib.suppress(OSError):
            part.unlink()


def _of_system(error: BaseException) -> OSError | None:
    """The operating system's error, which PyTorch's writer hides behind one of its own."""
    while not isinstance(error, OSError):
        before = error.__cause__ or error.__context__
        if before is None or not isinstance(error, RuntimeError):
            return None
        error = before
    return error


def _sync_folder(folder: Path) -> None:
    # Without it a power loss may take the new name back. Not all file systems know it.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
