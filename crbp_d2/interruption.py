"""Ctrl-C and SIGTERM: what was begun ends in order, at the second signal at once."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from crbp_d2.output import remark

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what schedulers send to a job that has to give way."""
_SAME = 1.0
"""Seconds in which further signals are the first one: launchers send it to a process and to its
group."""
_GRACE = 1.0
"""Seconds in which Python should have handled a signal that has to end the process at once."""
_OVER = 0
"""What tells the listening thread to end; signals tell it their numbers."""


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
        deaf: nothing handles it, as the main thread waits outside of Python.
        speaks: a process that is ended while it is deaf says so.
    """

    def __init__(self) -> None:
        self.number = 0
        self.since = 0.0
        self.handled = False
        self.deferred = False
        self.deaf = False
        self.speaks = False


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
        with _listening():
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
def deaf(*, speaks: bool) -> Iterator[None]:
    """Lets a signal end the process within a second or so, where signals are handled, although the
    block waits outside of Python, as for other processes, and has nothing to save.

    Args:
        speaks: the line of `Interrupted` is written then.
    """
    _state.deaf, _state.speaks = True, speaks
    try:
        yield
    finally:
        _state.deaf = False


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


@contextmanager
def _listening() -> Iterator[None]:
    """Lets a thread hear of signals that the main thread can't handle, as it is not in Python."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(heard,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.send(bytes([_OVER]))
        thread.join()
        heard.close()
        told.close()


def _listen(heard: socket.socket) -> None:
    """Ends the process at a second signal, or the first while it is deaf, unless it ends itself."""
    first = 0.0
    while number := heard.recv(1)[0]:
        if number not in SIGNALS:
            continue
        now = time.monotonic()
        second = bool(first) and now - first >= _SAME
        first = first or now
        if not (second or _state.deaf):
            continue
        end = now + _GRACE
        while select.select([heard], [], [], max(end - time.monotonic(), 0))[0]:
            if heard.recv(1)[0] == _OVER:
                return
        if second or _state.deaf:
            if _state.deaf and _state.speaks:
                remark(f"\n{Interrupted(number).line}\n")
            os._exit(128 + number)


def _leave_to_parent() -> None:
    """In a forked process, whose signals are not the parent's."""
    if _state.handled:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_to_parent)


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
