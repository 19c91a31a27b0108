"""The folder of a training: one writes there at a time, after what earlier ones have left."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import remove_parts, write_whole

from .checkpoint import BEST, earlier_in, saved_in, write_earlier

logger = logging.getLogger(__name__)

LOCK = ".training.lock"
METRICS = "metrics.json"
BEGUN = ".begun_by"
"""File with the launch of torchrun that has begun the last training in a folder."""
_held: dict[str, IO[str]] = {}


def claim(folder: str | Path) -> None:
    """Keep other processes from training in a folder, until `release` or the end of this one,
    whatever ends it. Processes that it starts don't hold it.

    Args:
        folder: made if it is missing.

    Raises:
        ConfigurationError: another process trains there.
        OSError: it can't be made or written to.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(os.path.realpath(folder), LOCK)
    if path in _held:
        return
    file = open(path, "a+")  # noqa: SIM115  it is closed when the folder is released
    try:
        # One of the process, unlike flock's, which data workers would inherit.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise ConfigurationError(
            f"OUTPUT_DIR {folder}: {holder} trains there; wait for it, end it, or choose another "
            "OUTPUT_DIR"
        ) from error
    except OSError as error:
        logger.warning(
            "%s knows no locks (%s): start one training there at a time", folder, error.strerror
        )
    _held[path] = file
    # Only for the message above; on a full disk something of more weight will fail.
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    remove_parts(folder)


def release(folder: str | Path) -> None:
    """Let others train in a folder that was claimed."""
    file = _held.pop(os.path.join(os.path.realpath(folder), LOCK), None)
    if file is not None:
        file.close()


@contextlib.contextmanager
def beginning(folder: str | Path, launch: str = "") -> Iterator[None]:
    """Around what begins a training: the checkpoints in its folder are of earlier ones, unless it
    is refused.

    Args:
        folder: of the training.
        launch: see `crbp_d2.place.launch_by_torchrun`.
    """
    before, begun = earlier_in(folder), begun_by(folder)
    write_earlier(folder, {path.name for path in saved_in(folder)})
    _write_begun(folder, launch)
    try:
        yield
    except ConfigurationError:
        write_earlier(folder, before)
        _write_begun(folder, begun)
        raise


def begun_by(folder: str | Path) -> str:
    """The launch of torchrun that has begun the last training in a folder; empty if none has."""
    note = Path(folder, BEGUN)
    try:
        return note.read_text("utf-8") if note.is_file() else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _write_begun(folder: str | Path, launch: str) -> None:
    note = Path(folder, BEGUN)
    if launch:
        write_whole(note, launch.encode())
    else:
        note.unlink(missing_ok=True)


def begin_anew(folder: str | Path) -> None:
    """Tell of the checkpoints that an earlier training has left, and set what it logged, and its
    best model, aside."""
    left = saved_in(folder)
    if left:
        logger.warning(
            "%s holds %s of an earlier training, the newest %s: this one starts from zero, and "
            "writes over those of the same name. To keep the earlier one choose another OUTPUT_DIR",
            folder,
            "a checkpoint" if len(left) == 1 else f"{len(left)} checkpoints",
            left[0].name,
        )
    metrics = Path(folder) / METRICS
    if metrics.is_file() and metrics.stat().st_size:
        aside = _aside(metrics)
        # The trainer may have opened it already.
        write_whole(aside, metrics.read_bytes())
        os.truncate(metrics, 0)
        logger.warning("what an earlier training logged to %s is now in %s", metrics, aside.name)
    best = Path(folder) / f"{BEST}.pth"
    if best.is_file():
        # Its score would be taken for one of this training when that is resumed.
        aside = best.rename(_aside(best))
        logger.warning("the best model of an earlier training, %s, is now %s", best, aside.name)


def _aside(path: Path) -> Path:
    """A free name beside a file's own."""
    number = 1
    while (aside := path.with_suffix(f".{number}{path.suffix}")).exists():
        number += 1
    return aside


def end_cut_line(folder: str | Path) -> None:
    """Let the log of a training that was killed go on in a line of its own."""
    path = Path(folder) / METRICS
    if not path.is_file() or not path.stat().st_size:
        return
    with open(path, "rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
