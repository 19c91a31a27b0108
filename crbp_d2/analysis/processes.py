"""Tasks in processes of their own, some at a time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from crbp_d2.data.processes import live_with_parent
from crbp_d2.interruption import deferring
from crbp_d2.mistakes import told


@dataclass(frozen=True)
class Failed:
    """A task that gave nothing.

    Attributes:
        label: of the task.
        reason: its error, or that its process was ended.
    """

    label: str
    reason: str


def in_processes(tasks: Mapping[str, Callable[[], Any]], jobs: int) -> Iterator[Any]:
    """What the tasks return, as it comes, or `Failed`; each has a process of its own, which may
    start others.

    Left early, it ends those that still run; they also end with this process, whatever ended that.

    Args:
        tasks: by label; picklable.
        jobs: how many at a time, at least 1.
    """
    context = multiprocessing.get_context("spawn")
    waiting = iter(tasks.items())
    running: dict[Connection, tuple[str, Any]] = {}
    try:
        while True:
            while len(running) < jobs:
                task = next(waiting, None)
                if task is None:
                    break
                label, work = task
                receiving, sending = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(work, sending))
                # A signal in between would leave a process that nobody ends.
                with deferring():
                    process.start()
                    running[receiving] = label, process
                # So that the end of the process is the end of the pipe.
                sending.close()
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                label, process = running.pop(ready)
                try:
                    succeeded, result = ready.recv()
                except EOFError:
                    process.join()
                    succeeded, result = False, f"its process ended with {process.exitcode}"
                process.join()
                yield result if succeeded else Failed(label, result)
    finally:
        with deferring():
            # All are told before one is waited for.
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.join()


def _work(work: Callable[[], Any], sending: Connection) -> None:
    live_with_parent()
    try:
        result = True, work()
    except Exception as error:
        usual = " ".join(f"{type(error).__name__}: {error}".split())
        result = False, told(error) or usual
    sending.send(result)
