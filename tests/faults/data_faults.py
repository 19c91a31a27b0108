"""Tools that prepare data, called in a process that can be killed."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from crbp_d2.launch import run_alone
from tests.data.test_tools import tool

_DEADLINE = 60.0
"""Seconds after which what is waited for counts as failed."""


@dataclass
class Call:
    """A call of a tool in another process, and the file of what it says."""

    process: ForkProcess
    said: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def workers(self) -> list[int]:
        """The processes that the call has started and that run."""
        try:
            listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in listed.split()]

    def end(self) -> str:
        """Waits for it; what it said."""
        self.process.join(_DEADLINE)
        assert self.process.exitcode is not None, "still at work"
        return self.said.read_text()

    def kill(self, number: signal.Signals) -> str:
        """Sends it a signal, and waits for it and its workers; what it said."""
        workers = self.workers()
        if self.process.is_alive():
            os.kill(self.pid, number)
        said = self.end()
        wait_for(lambda: not any(map(is_alive, workers)))
        return said


def start(name: str, arguments: Sequence[str], said: Path) -> Call:
    """Calls `datasets/NAME.py ARGUMENTS`.

    Forked: a process that imports PyTorch takes seconds to start.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_call, args=(name, arguments, said)
    )
    process.start()
    return Call(process, said)


def _call(name: str, arguments: Sequence[str], said: Path) -> None:
    sys.stdout = sys.stderr = said.open("w", buffering=1)
    # The handlers write to where pytest reads.
    for logger in (logging.getLogger(), logging.getLogger("crbp_d2")):
        logger.handlers.clear()
    setup_logger.cache_clear()
    # The one of tqdm is shared with the process that this one is forked from, where it would stay
    # locked if this one is killed meanwhile.
    tqdm.set_lock(threading.RLock())
    sys.argv = [f"datasets/{name}.py", *arguments]
    run_alone(functools.partial(tool(name), arguments), {})


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet asked for does not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], object], seconds: float = _DEADLINE) -> None:
    """Waits until a condition holds, and fails if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
