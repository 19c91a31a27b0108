"""A limit for processes that wait to meet each other, and a word about it.

The limit of `torch.distributed.init_process_group` is that of all that the processes do together
afterwards, too, where hours of evaluation by one of them are in order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from crbp_d2.interruption import deaf
from crbp_d2.output import remark
from crbp_d2.place import Place

NOTICE = 10.0
"""Seconds until a process says for whom it waits."""
LIMIT = 900.0
"""Seconds that machines may come one after the other, started by hand or by a scheduler."""
LIMIT_OF_TORCHRUN = 180.0
"""Seconds: torchrun has started all at once, and starts them again where they fail to meet."""


@contextmanager
def meeting(place: Place, *, notice: float = NOTICE, limit: float | None = None) -> Iterator[None]:
    """Says who waits while the block brings processes together; ends this one after a while, or at
    a signal.

    An error could not be raised: the block waits in C++, as gloo's `connectFullMesh` does, in which
    two processes that torchrun had started again have waited for each other for ever.

    Args:
        place: of this process.
        notice: seconds until it says that it waits.
        limit: seconds until it ends, with exit code 1. By default `LIMIT` or `LIMIT_OF_TORCHRUN`.
    """
    if limit is None:
        limit = LIMIT_OF_TORCHRUN if place.starter == "torchrun" else LIMIT
    met = threading.Event()
    watch = threading.Thread(target=_watch, args=(met, place, notice, limit), daemon=True)
    watch.start()
    try:
        with deaf(speaks=place.rank == 0):
            yield
    finally:
        met.set()


def _watch(met: threading.Event, place: Place, notice: float, limit: float) -> None:
    who, where = f"rank {place.rank} of {place.world_size}", _address(place)
    if met.wait(min(notice, limit)):
        return
    remark(f"{who} waits at {where} for the others, at most {limit:g} s\n")
    if met.wait(limit - notice):
        return
    remark(
        f"\n{who} has waited {limit:g} s at {where} for the others, and ends. Are all "
        f"{place.world_size} started, with the same address (--dist-url, or MASTER_ADDR and "
        "MASTER_PORT), and can their machines reach each other?\n"
    )
    os._exit(1)


def _address(place: Place) -> str:
    if place.url != "env://":
        return place.url
    return ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
