"""Logs and metrics that can't be written, as on a full disk: the first failure is told, alone."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, TrainerBase
from detectron2.utils.events import EventWriter

from crbp_d2.core import ConfigurationError
from crbp_d2.mistakes import told

from .checkpoint import EARLIER, IS_PIPE, TAG
from .folder import LOCK, METRICS

_GOES_ON = (EARLIER, LOCK, METRICS, TAG)


@contextlib.contextmanager
def failing_once() -> Iterator[None]:
    """Around a training: a failure that a line tells is not told by Detectron2's loop, too, nor by
    the thread that writes TensorBoard's events, which hands it to the training."""
    loop, before = logging.getLogger(TrainerBase.__module__), threading.excepthook

    def tell(failure: Any) -> None:
        of_events = type(failure.thread).__module__.startswith("tensorboard.")
        if not (of_events and isinstance(failure.exc_value, OSError)):
            before(failure)

    loop.addFilter(_without_traceback)
    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before
        loop.removeFilter(_without_traceback)


def end_after_failure(hooks: Iterable[HookBase], writers: Iterable[EventWriter]) -> None:
    """What hooks do after a training that has failed, and the end of what writes its metrics.

    None of it hides the failure: what could not be written before fails once more.
    """
    for hook in hooks:
        with contextlib.suppress(Exception):
            hook.after_train()
    for writer in writers:
        with contextlib.suppress(Exception):
            writer.close()


def require_no_pipes(folder: str | Path) -> None:
    """Refuse pipes in the place of what a run reads or goes on with in its folder: each would be
    waited for without a word.

    Raises:
        ConfigurationError: naming the first.
    """
    for path in (*Path(folder).glob("log.txt*"), *(Path(folder) / name for name in _GOES_ON)):
        if path.is_fifo():
            raise ConfigurationError(f"{path}: {IS_PIPE}")


def close_failed_logs() -> None:
    """End the logs in files that can't be written: what is left of them would fail once more when
    the program ends."""
    for name in list(logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and _is_in_a_file(handler):
                try:
                    handler.flush()
                except (OSError, ValueError):
                    with contextlib.suppress(OSError):
                        handler.stream.close()


def _is_in_a_file(handler: logging.StreamHandler[Any]) -> bool:
    # The name of a standard stream is in angle brackets.
    return os.path.isabs(str(getattr(handler.stream, "name", "")))


def _without_traceback(record: logging.LogRecord) -> bool:
    """Leaves failures that a line tells to the end of the program, which says it."""
    failure = record.exc_info[1] if record.exc_info else None
    return failure is None or not told(failure)
