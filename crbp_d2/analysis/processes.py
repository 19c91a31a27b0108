"""Tasks in processes of their own, some at a time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any


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

    Left early, it ends those that still run.

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
                process.start()
                # So that the end of the process is the end of the pipe.
                sending.close()
                running[receiving] = label, process
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
        for _, process in running.values():
            process.terminate()
            process.join()


def _work(work: Callable[[], Any], sending: Connection) -> None:
    try:
        result = True, work()
    except Exception as error:
        result = False, f"{type(error).__name__}: {error}"
    sending.send(result)
