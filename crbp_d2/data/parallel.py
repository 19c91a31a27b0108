"""A bounded, ordered map over worker processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

import cv2

Item = TypeVar("Item")
Result = TypeVar("Result")

# More than this rarely helps: the work is bound by the disc, and every worker costs memory.
MAX_WORKERS = 8
# Results waiting for their turn, per worker: the reason why memory doesn't grow with the data set.
_WINDOW_PER_WORKER = 8


def default_workers() -> int:
    """The CPU cores this process may use, at most `MAX_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MAX_WORKERS)


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None
) -> Iterator[Result]:
    """Yields `function(item)` in the order of `items`, computed by `workers` processes.

    Args:
        function: a picklable function.
        items: read lazily, never more than a few per worker ahead of the results.
        workers: number of processes, `default_workers()` if None; 1 works in this process.

    Raises:
        ValueError: `workers` is below 1.
        concurrent.futures.process.BrokenProcessPool: a worker died (out of memory, killed).
    """
    workers = default_workers() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers={workers}: at least one is needed")
    if workers == 1:
        yield from map(function, items)
        return
    # Forked workers need no __main__ guard in the caller's script and don't import torch again.
    # macOS and Windows can't fork safely.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_single_threaded)
    try:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= _WINDOW_PER_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _single_threaded() -> None:
    # OpenCV's thread pool doesn't survive a fork, and one thread per worker is what was asked for.
    cv2.setNumThreads(0)
