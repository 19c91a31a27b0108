"""Where derived files live, and how they get there: under a lock, all or nothing."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import json
import logging
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import portalocker

from crbp_d2.interruption import at_once, deferring

from .files import absolute, naming
from .processes import orderly_end

logger = logging.getLogger(__name__)

# Of a process that waits for another one, in seconds: between tries, until it first tells for whom
# it waits, and until it tells so again.
_TRY_EVERY, _TELL_AFTER, _TELL_EVERY = 0.25, 2.0, 60.0
_HELD: set[IO[str]] = set()


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/crbp_d2`, by default `~/.cache/crbp_d2`."""
    return absolute(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "crbp_d2"


def is_writable(folder: Path) -> bool:
    """Whether `folder`, or the nearest existing folder above it, accepts new files.

    A folder without any write permission counts as read-only even for root, who could write there:
    somebody protected it on purpose.
    """
    folder = folder.absolute()
    while not os.path.exists(folder):
        folder = folder.parent
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def writable_or_cached(preferred: Path, name: str) -> Path:
    """`preferred` if it exists or can be made, else the folder `name` in the user's cache."""
    if os.path.exists(preferred) or is_writable(preferred):
        return preferred
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


@contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """Yields a file that takes the place of `path` if the block succeeds; it is on the disk before
    it does.

    Args:
        path: in a folder that exists.

    Raises:
        OSError: it can't be written; names `path`, which is as it was before.
    """
    part = part_of(path)
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        failure = _of_system(error)
        if failure is None:
            raise
        raise OSError(failure.errno, failure.strerror, str(path)) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, see `writing_whole`."""
    with writing_whole(path) as file:
        file.write(content)


def part_of(path: Path) -> Path:
    """What `writing_whole` writes first, which a process that is killed leaves behind."""
    return path.with_name(f".{path.name}.part")


def remove_parts(folder: str | Path) -> None:
    """Remove what a process that was killed had begun to write in a folder; only where no other
    one writes."""
    for part in Path(folder).glob(part_of(Path("*")).name):
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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all; numbers of other libraries become floats."""
    write_whole(path, (json.dumps(content, indent=2, default=float) + "\n").encode())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds an exclusive lock on `folder` (which need not exist) against other processes.

    Whoever waits for it tells for which process. It ends with this process, whatever this one has
    started. In the block SIGTERM is an error, see `orderly_end`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = _acquire(folder)
    _HELD.add(file)
    try:
        holder = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": shlex.join(sys.argv),
        }
        with naming(Path(file.name)):
            file.truncate(0)
            file.write(json.dumps(holder))
            file.flush()
        with orderly_end():
            yield
    finally:
        _HELD.discard(file)
        file.close()


def _acquire(folder: Path) -> IO[str]:
    path = folder.parent / f".{folder.name}.lock"
    tell_at = time.monotonic() + _TELL_AFTER
    while True:
        file = path.open("a", encoding="utf-8")
        try:
            portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
            # Deleted while it was waited for, with the cache: others lock a new file of that name.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except portalocker.AlreadyLocked:
            if time.monotonic() > tell_at:
                logger.warning("%s: waiting for %s", folder, _holder(path))
                tell_at = time.monotonic() + _TELL_EVERY
        except portalocker.LockException as error:
            file.close()
            raise OSError(errno.ENOLCK, "can't be locked there", str(path)) from error
        file.close()
        time.sleep(_TRY_EVERY)


def _holder(path: Path) -> str:
    """Who holds a lock, and how that is ended."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return (
            f"process {held['process']} on {held['host']}, which works on it since "
            f"{held['since']} ({held['command']}); to stop that one: kill {held['process']}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return f"another process, which holds {path}"


def _let_go() -> None:
    # A lock is held as long as any process has its file open, and those forked from this one
    # inherit it.
    for file in _HELD:
        file.close()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def replacing(folder: Path, beside: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` if the block succeeds.

    If it fails nothing is left behind and `folder` is as before. Where the new one is there, so
    are the contents of its files, also if the machine fails. Use it inside `locked(folder)`.

    Args:
        beside: a file that goes with the folder, in the same one. The block writes it beside the
            yielded folder, under its own name; it gets its place while there is no `folder`, so
            that the new one never stands beside an old one.
    """
    prefix = f".{folder.name}.making-"
    # A signal ends the block, and nothing before or after it half-way.
    with deferring():
        _remove_all(folder.parent, prefix)
        making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
        try:
            fresh = making / "new"
            fresh.mkdir()
            with at_once():
                yield fresh
            _sync(making)
            if folder.exists():
                os.rename(folder, making / "old")
            if beside is not None:
                os.rename(making / beside.name, beside)
            os.rename(fresh, folder)
        finally:
            # Workers of a killed process may have gone on writing for a moment after the first.
            _remove_all(folder.parent, prefix)


def _remove_all(parent: Path, prefix: str) -> None:
    """Removes what is being made, or was left by a process that was killed: nobody else can be at
    work, for we hold the lock."""
    for stale in parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(stale, ignore_errors=True)


def _sync(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with naming(path), path.open("r+b") as file:
                os.fsync(file.fileno())
