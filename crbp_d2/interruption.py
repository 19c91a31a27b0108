"""Ctrl-C and SIGTERM: what was begun ends in order, at the second signal at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers send to a job that has to give way."""
_SAME = 1.0
"""Seconds in which further signals are the first one: launchers send it to a process and to its
group."""


class Interrupted(SystemExit):
    """A signal asked the program to end; as an exit code shells give it for one, 130 or 143.

    Attributes:
        number: of the signal.
        line: what a user should know.
    """

    def __init__(self, number: int, line: str = "") -> None:
        super().__init__(128 + number)
        self.number = number
        usual = "the same command, of a training with --resume, does what is left"
        self.line = f"Interrupted by {signal.Signals(number).name}: {line or usual}"


class _State:
    """Of this process.

    Attributes:
        number: of the first signal; 0 before it.
        since: when it came, in seconds.
        handled: signals are those of `handling`.
        deferred: the first is only remembered.
    """

    def __init__(self) -> None:
        self.number = 0
        self.since = 0.0
        self.handled = False
        self.deferred = False


_state = _State()


def asked() -> int:
    """The signal that has asked this process to end, or 0."""
    return _state.number


@contextmanager
def handling(signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Lets one of the signals raise `Interrupted`, and a second one end the process; inside another
    such block, or a thread, as outside of it."""
    if _state.handled or not _in_main_thread():
        yield
        return
    before = {number: signal.signal(number, _take) for number in signals}
    _state.handled, _state.number = True, 0
    try:
        yield
    finally:
        _state.handled, _state.number = False, 0
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferring() -> Iterator[None]:
    """Only remembers a signal, see `asked`, to the end of the block, which raises `Interrupted`; in
    the main thread, where signals are handled."""
    if not _in_main_thread():
        yield
        return
    before, _state.deferred = _state.deferred, True
    try:
        yield
    finally:
        _state.deferred = before
    if _state.number and not before:
        raise Interrupted(_state.number)


@contextmanager
def at_once() -> Iterator[None]:
    """Inside `deferring`, lets a signal raise `Interrupted` nevertheless, also one that came."""
    if not _in_main_thread():
        yield
        return
    before, _state.deferred = _state.deferred, False
    try:
        if _state.number:
            raise Interrupted(_state.number)
        yield
    finally:
        _state.deferred = before


@contextmanager
def held_back() -> Iterator[None]:
    """Lets signals wait to the end of the block; in processes that it starts to `let_through`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """Take the signals that were held back for this process since it was started."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _take(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.number:
        if now - _state.since >= _SAME:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    _state.number, _state.since = number, now
    if not _state.deferred:
        raise Interrupted(number)
