"""Trainings that are killed at a moment of choice, in processes that start in no time."""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import torch

from crbp_d2.weights import read_checkpoint
from tests.engine.runs import QUICK, TINY
from tests.modeling.conftest import CONFIGS

TRAIN = CONFIGS.parent / "tools" / "train_net.py"
ITERATIONS = 4
WAIT = 240.0
"""Seconds for a training of a second, on a machine that does much else."""


class Aim(NamedTuple):
    """When a training is killed.

    Attributes:
        name: of the file, or a part of it, that is opened or gets its name at that moment.
        event: of Python's audit hooks: `open`, or `os.rename`.
        nth: time that this happens, from 1.
        delay: seconds after it.
        half: while the file is written, of which this many bytes get to the disk.
    """

    name: str
    event: str = "open"
    nth: int = 1
    delay: float = 0.0
    half: int = 0


def train(
    output: Path, *options: object, aim: Aim | None = None, number: int = signal.SIGKILL
) -> tuple[int, str]:
    """Run the training program, and send it a signal where an aim is given.

    Returns:
        Its exit code, negative for the number of a signal that ended it, and what it wrote to the
        standard error.
    """
    context = multiprocessing.get_context("forkserver")
    # What they import is imported once.
    context.set_forkserver_preload(["crbp_d2.engine", "tests.faults.run_faults"])
    words = [
        *("--config-file", QUICK, "OUTPUT_DIR", output, *TINY, "DATASETS.TEST", "()"),
        *("SOLVER.MAX_ITER", ITERATIONS, *options),
    ]
    said = output.with_suffix(".err")
    process = context.Process(target=_run, args=(list(map(str, words)), str(said), aim, number))
    process.start()
    process.join(WAIT)
    assert process.exitcode is not None, f"{output}: still running after {WAIT} s"
    return process.exitcode, said.read_text()


def _run(words: list[str], said: str, aim: Aim | None, number: int) -> None:
    with open(said, "w") as errors, open(os.devnull, "w") as nowhere:
        # Of the process, so that it holds for what ends it, too.
        os.dup2(errors.fileno(), 2)
        os.dup2(nowhere.fileno(), 1)
    torch.set_num_threads(1)
    sys.argv = [str(TRAIN), *words]
    late: list[threading.Timer] = []
    if aim is not None:
        _take_aim(aim, number, late)
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    finally:
        # A moment after the training is none of it: a signal then ends Python itself.
        for timer in late:
            timer.cancel()


def _take_aim(aim: Aim, number: int, late: list[threading.Timer]) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event != aim.event:
            return
        path = str(arguments[1] if event == "os.rename" else arguments[0])
        if aim.name not in path:
            return
        seen += 1
        if seen != aim.nth:
            return
        if aim.half:
            # The kernel then ends the process in the middle of the file.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (aim.half, resource.RLIM_INFINITY))
        elif aim.delay:
            late.append(threading.Timer(aim.delay, os.kill, (os.getpid(), number)))
            late[-1].start()
        else:
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Of the trained model."""
    stored = read_checkpoint(str(output / "model_final.pth"))
    assert stored["iteration"] == ITERATIONS - 1
    return dict(stored["model"])


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether weights are the same bit by bit."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )
