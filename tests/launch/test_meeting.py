"""Processes of a run whose others do not come, and a signal meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from tests.distributed import ROOT, python_path

# The limits are those of a test; everything else is what every run does.
PROGRAM = """
import functools, sys, time
from detectron2.utils import comm
from crbp_d2 import launch
from crbp_d2.place import Place

rank, url, notice, limit = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
run = sys.argv[5]
launch.meeting = functools.partial(launch.meeting, notice=notice, limit=limit)
with launch.ending_with_message():
    launch.join(Place(rank, 2, rank, 2, url, launch=run), gpu=False)
    if rank:
        time.sleep(limit + 1)
    comm.synchronize()
    print("both are there")
"""


def free_url() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{found.getsockname()[1]}"


@contextmanager
def started(
    rank: int, url: str, notice: float, limit: float, run: str = ""
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, (rank, url, notice, limit, run))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_process_to_which_nobody_comes_says_so_and_ends():
    url = free_url()
    with started(0, url, 0.5, 2) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    first, last = errors.strip().split("\n\n")
    assert first == f"rank 0 of 2 waits at {url} for the others, at most 2 s"
    assert f"rank 0 of 2 has waited 2 s at {url}" in last and "Are all 2 started" in last


@pytest.mark.parametrize("sent", [None, signal.SIGINT, signal.SIGTERM])
def test_nor_does_it_wait_for_one_that_has_come_and_does_not_answer(sent):
    url = free_url()
    with started(0, url, 1.5, 60 if sent else 4) as process:
        host, port = url.removeprefix("tcp://").split(":")
        # From here on it waits in gloo, for the address of the other.
        store = TCPStore(host, int(port), 2, False, timedelta(seconds=60))
        assert store.num_keys() > 0 and process.stderr is not None
        assert "waits at" in process.stderr.readline()
        if sent:
            process.send_signal(sent)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == (128 + sent if sent else 1)
    assert ("Interrupted by" in errors) == bool(sent) and "Traceback" not in errors


def test_processes_of_different_runs_do_not_train_together():
    url = free_url()
    with started(0, url, 30, 60, "a") as first, started(1, url, 30, 60, "b") as second:
        for rank, process in enumerate((first, second)):
            _, errors = process.communicate(timeout=90)
            assert process.returncode == 1
            line = f"rank {rank} of 2: processes of different runs have met at {url}; give each"
            assert line in errors and "Traceback" not in errors


@pytest.mark.slow
def test_the_limit_ends_with_the_meeting():
    url = free_url()
    with started(0, url, 12, 12) as first, started(1, url, 12, 12) as second:
        (said, errors), (_, others) = (one.communicate(timeout=90) for one in (first, second))
    assert first.returncode == second.returncode == 0, errors + others
    assert said == "both are there\n" and errors == others == ""
