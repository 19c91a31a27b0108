"""Where derived files live, and how they get there: under a lock, all or nothing."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import portalocker

logger = logging.getLogger(__name__)

# Waiting for another process that prepares the same data, in seconds.
_LOCK_TIMEOUT = 24 * 3600


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/crbp_d2`, by default `~/.cache/crbp_d2`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crbp_d2"


def is_writable(folder: Path) -> bool:
    """Whether `folder`, or the nearest existing folder above it, accepts new files.

    A folder without any write permission counts as read-only even for root, who could write there:
    somebody protected it on purpose.
    """
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def writable_or_cached(preferred: Path, name: str) -> Path:
    """`preferred` if it exists or can be made, else the folder `name` in the user's cache."""
    try:
        if preferred.exists() or is_writable(preferred):
            return preferred
    except PermissionError:  # a folder above it may not be entered
        pass
    fallback = user_cache() / name
    logger.info("%s is read-only: using %s", preferred.parent, fallback)
    return fallback


def spelled_alike(path: Path) -> str | None:
    """The name of a file beside a missing one that differs from it in capitals or in the encoding
    of accents only."""
    if not os.path.isdir(path.parent):
        return None
    names = _names_by_spelling(path.parent, path.parent.stat().st_mtime_ns)
    return names.get(_spelling(path.name))


@functools.lru_cache(maxsize=4)
def _names_by_spelling(folder: Path, changed: int) -> dict[str, str]:
    return {_spelling(name): name for name in os.listdir(folder)}


def _spelling(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all; numbers of other libraries become floats."""
    write_whole(path, (json.dumps(content, indent=2, default=float) + "\n").encode())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on `folder` (which need not exist) against other processes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with portalocker.Lock(folder.parent / f".{folder.name}.lock", timeout=_LOCK_TIMEOUT):
        yield


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` if the block succeeds.

    If it fails nothing is left behind and `folder` is as before. Use it inside `locked(folder)`.
    """
    prefix = f".{folder.name}.making-"
    # Left by a process that was killed: nobody else can be at work, for we hold the lock.
    for stale in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        fresh = making / "new"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            os.rename(folder, making / "old")
        os.rename(fresh, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
