"""A word about an iteration of several processes that does not end, as one of them has stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.utils import comm

from crbp_d2.output import remark

LEAST = 60.0
"""Seconds that an iteration may take without a word."""
TIMES = 5
"""Such as often as the longest so far, if that is more."""


class Stall:
    """Tells of iterations that take far longer than those before.

    Each process says so of itself, on standard error: it is not known which of them has stopped.

    Args:
        least: seconds, as `LEAST`.
    """

    def __init__(self, least: float = LEAST) -> None:
        self._least = least
        self._longest = 0.0

    @contextmanager
    def told(self, iteration: int) -> Iterator[None]:
        """Around what waits for other processes; nothing is told of one that is alone.

        Args:
            iteration: from 0.
        """
        if comm.get_world_size() == 1:
            yield
            return
        limit, begin = max(self._least, TIMES * self._longest), time.monotonic()
        timer = threading.Timer(limit, self._tell, (iteration, limit))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._longest = max(self._longest, time.monotonic() - begin)

    def _tell(self, iteration: int, seconds: float) -> None:
        before = f", the longest before {self._longest:.1f} s" if self._longest else ""
        remark(
            f"rank {comm.get_rank()} of {comm.get_world_size()}: iteration {iteration} has taken "
            f"{seconds:.0f} s{before}; it may wait for another process that has stopped. Ctrl-C, "
            "once more after a second, ends it; --resume then goes on\n"
        )
