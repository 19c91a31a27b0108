"""A limit for processes that wait to meet each other, and an ear for signals meanwhile.

The limit of `torch.distributed.init_process_group` is that of all that the processes do together
afterwards, too, where hours of evaluation by one of them are in order.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from crbp_d2.interruption import SIGNALS, Interrupted
from crbp_d2.place import Place

NOTICE = 10.0
"""Seconds until a process says for whom it waits."""
LIMIT = 900.0
"""Seconds that machines may come one after the other, started by hand or by a scheduler."""
LIMIT_OF_TORCHRUN = 180.0
"""Seconds: torchrun has started all at once, and starts them again where they fail to meet."""
_OVER = 0
"""What is sent to the watching thread at the end; signals send their numbers."""
_GRACE = 1.0
"""Seconds that the main thread has to take a signal by itself."""


@contextmanager
def meeting(place: Place, *, notice: float = NOTICE, limit: float | None = None) -> Iterator[None]:
    """Says who waits while the block brings processes together; ends this process after a while,
    or at a signal.

    An error could not be raised, nor does Python handle a signal: the block waits in C++, as gloo's
    `connectFullMesh` does, in which two processes that torchrun had started again have waited for
    each other for ever. To be called in the main thread.

    Args:
        place: of this process.
        notice: seconds until it says that it waits.
        limit: seconds until it ends, with exit code 1. By default `LIMIT` or `LIMIT_OF_TORCHRUN`.
    """
    if limit is None:
        limit = LIMIT_OF_TORCHRUN if place.starter == "torchrun" else LIMIT
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno())
    watch = threading.Thread(target=_watch, args=(heard, place, notice, limit), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.send(bytes([_OVER]))
        watch.join()
        heard.close()
        told.close()


def _watch(heard: socket.socket, place: Place, notice: float, limit: float) -> None:
    who, where = f"rank {place.rank} of {place.world_size}", _address(place)
    if _is_over(heard, place, min(notice, limit)):
        return
    sys.stderr.write(f"{who} waits at {where} for the others, at most {limit:g} s\n")
    if _is_over(heard, place, limit - notice):
        return
    sys.stderr.write(
        f"\n{who} has waited {limit:g} s at {where} for the others, and ends. Are all "
        f"{place.world_size} started, with the same address (--dist-url, or MASTER_ADDR and "
        "MASTER_PORT), and can their machines reach each other?\n"
    )
    _end(1)


def _is_over(heard: socket.socket, place: Place, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while select.select([heard], [], [], max(end - time.monotonic(), 0))[0]:
        number = heard.recv(1)[0]
        if number == _OVER:
            return True
        if number in SIGNALS:
            if select.select([heard], [], [], _GRACE)[0]:
                continue
            if place.rank == 0:
                sys.stderr.write(f"\n{Interrupted(number).line}\n")
            _end(128 + number)
    return False


def _end(code: int) -> None:
    sys.stderr.flush()
    os._exit(code)


def _address(place: Place) -> str:
    if place.url != "env://":
        return place.url
    return ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
