"""A bounded, ordered map over worker processes."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

from crbp_d2.interruption import deferring

from .processes import live_with_parent

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


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    """Declares `--workers` of a tool, for `ordered_map`: a whole number of at least 1, or None."""
    parser.add_argument(
        "--workers",
        type=_count,
        help=f"processes (default: CPU cores, at most {MAX_WORKERS})",
    )


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count}: at least one is needed")
    return count


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
        ChildProcessError: a worker was killed, as when memory runs out.
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
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        pending: deque[Future[Result]] = deque()
        for item in items:
            # The first one starts the workers and the thread that ends them: a signal in between
            # would leave workers that nobody ends.
            with deferring():
                pending.append(pool.submit(function, item))
            if len(pending) >= _WINDOW_PER_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {workers} worker processes was killed from outside, as happens when memory "
            "runs out; try again with fewer workers (1 works in the calling process)"
        ) from error
    finally:
        with deferring():
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    live_with_parent()
    # OpenCV's thread pool doesn't survive a fork, and one thread per worker is what was asked for.
    cv2.setNumThreads(0)
