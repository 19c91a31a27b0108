"""Comparisons that are killed: their trainings end with them, and what failed has been told."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from crbp_d2.analysis.processes import in_processes
from crbp_d2.interruption import handling
from tests.engine.runs import QUICK, TINY

from .data_faults import is_alive, wait_for

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="looks for the processes of a comparison in /proc"
)

LABELS = ("one", "another")


def _trains(begun: Path) -> None:
    begun.write_text(str(os.getpid()))
    begun.rename(begun.with_suffix(".pid"))
    time.sleep(600)


def _compare(folder: Path) -> None:
    tasks = {label: functools.partial(_trains, folder / label) for label in LABELS}
    with handling():
        list(in_processes(tasks, len(tasks)))


@pytest.mark.faults
@pytest.mark.parametrize("number", ["KILL", "HUP", "TERM", "INT"])
def test_the_trainings_of_a_comparison_end_with_it_however_it_ends(
    number: str, tmp_path: Path
) -> None:
    process = multiprocessing.get_context("fork").Process(target=_compare, args=(tmp_path,))
    process.start()
    assert process.pid is not None
    pids = [tmp_path / f"{label}.pid" for label in LABELS]
    wait_for(lambda: all(path.exists() for path in pids))
    trainings = [int(path.read_text()) for path in pids]
    assert all(map(is_alive, trainings))
    sent = signal.Signals[f"SIG{number}"]
    os.kill(process.pid, sent)
    wait_for(lambda: not any(map(is_alive, trainings)), seconds=10)
    process.join(10)
    assert process.exitcode == (-sent if number in ("KILL", "HUP") else 128 + sent)


def _deaf(begun: Path) -> None:
    # As one that writes a checkpoint when it is told to end.
    signal.signal(signal.SIGTERM, lambda number, frame: time.sleep(1.5) or os._exit(0))
    _trains(begun)


@pytest.mark.faults
def test_all_trainings_are_told_to_end_before_one_is_waited_for(tmp_path: Path) -> None:
    begun = [tmp_path / label for label in ("one", "another", "third")]
    tasks = {path.name: functools.partial(_deaf, path) for path in begun}
    found = in_processes({**tasks, "last": functools.partial(_after, begun)}, 4)
    assert next(found) == "all have begun"
    left = time.monotonic()
    found.close()
    assert 1 < time.monotonic() - left < 3


def _after(begun: list[Path]) -> str:
    wait_for(lambda: all(path.with_suffix(".pid").exists() for path in begun))
    return "all have begun"


@pytest.mark.faults
def test_a_failed_arm_is_told_while_the_others_train_on(tmp_path: Path) -> None:
    usual = dict(zip(TINY[::2], TINY[1::2], strict=True))
    one = {"config": str(QUICK), "set": {**usual, "SOLVER.MAX_ITER": 200_000}}
    content = {"data": "pathfinder_tiny_val", "score": "F1", "arms": {"bad": one, "long": one}}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(content))
    damaged = tmp_path / "out" / "bad_1" / "outcome.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{}")
    (damaged.parent / "log.txt").touch()
    tool = QUICK.parents[2] / "tools" / "compare.py"
    words = [tool, tmp_path / "arms.yaml", "--seeds", "1", "--output", tmp_path / "out"]
    said = tmp_path / "said"
    with said.open("w") as errors:
        call = subprocess.Popen([sys.executable, *map(str, words)], stderr=errors)
    wait_for(lambda: "failed: " in said.read_text() or call.poll() is not None, seconds=300)
    (line,) = [line for line in said.read_text().splitlines() if "failed: " in line]
    assert f"failed: bad, seed 1: {damaged}: not the outcome of this arm" in line
    assert line.endswith(f"the arm is scored again; see {damaged.parent / 'log.txt'}")
    wait_for((tmp_path / "out" / "long_1" / "metrics.json").exists, seconds=300)
    call.terminate()
    assert call.wait(60) == 143
    assert "Interrupted by SIGTERM" in said.read_text().splitlines()[-1]
