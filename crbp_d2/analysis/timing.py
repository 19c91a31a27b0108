"""Wall time that waits for a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds_of(run: Callable[[], object]) -> float:
    """How long `run` takes, all that it starts on a GPU included."""
    _finish()
    begin = time.perf_counter()
    run()
    _finish()
    return time.perf_counter() - begin


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
