"""Signals to a training, to one in several processes, and the restart by torchrun."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crbp_d2.core import ConfigurationError, NonFiniteError
from crbp_d2.interruption import Interrupted, asked, at_once, deferring, handling
from crbp_d2.launch import ending_with_message
from tests.distributed import ROOT, python_path
from tests.engine.runs import QUICK, TINY
from tests.launch.test_runs import TORCHRUN, TRAIN


def test_a_signal_waits_for_what_is_deferred_and_ends_the_rest_at_once():
    done = []
    with pytest.raises(Interrupted) as end, handling(), deferring():
        os.kill(os.getpid(), signal.SIGTERM)
        # The same, sent to the group as well.
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(asked())
    assert done == [signal.SIGTERM] and end.value.code == 143
    with pytest.raises(Interrupted) as end, handling():
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("must not go on")
    assert end.value.code == 130 and "SIGINT" in end.value.line
    with pytest.raises(Interrupted), handling(), deferring(), at_once():
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("must not go on")


def test_a_second_signal_ends_a_process_at_once():
    program = (
        "import os, signal, time\n"
        "from crbp_d2.interruption import deferring, handling\n"
        "with handling(), deferring():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(1.1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": python_path()}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, timeout=50, check=False
    )
    assert ended.returncode == -signal.SIGTERM


def test_a_second_signal_ends_also_a_process_that_waits_outside_of_python():
    program = (
        "import ctypes\n"
        "from crbp_d2.interruption import deferring, handling\n"
        "library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)\n"
        "with handling(), deferring():\n"
        "    library.pthread_mutex_lock(lock)\n"
        "    print('waits', flush=True)\n"
        "    library.pthread_mutex_lock(lock)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": python_path()},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_a_forked_process_leaves_the_signals_of_its_parent_to_it():
    with handling(), deferring():
        child = os.fork()
        if not child:
            # Inherited, it would tell the parent's thread of signals to this process.
            os._exit(signal.set_wakeup_fd(-1) != -1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (ConfigurationError("a: cure"), "a: cure"),
        (NonFiniteError("the state\nis not finite"), "the state is not finite"),
        (OSError(28, "No space left on device", "/a"), "/a: No space left on device; make room"),
        (OSError(40, "Too many levels", "/a"), "/a: Too many levels; links lead in a circle"),
        (ValueError("embedded null byte"), "A path holds the character NUL"),
        (RecursionError("maximum depth"), "nested too deep"),
    ],
)
def test_what_a_user_can_mend_is_one_line(failure, line):
    with pytest.raises(SystemExit) as end, ending_with_message():
        raise failure
    told = str(end.value.code).strip()
    assert line in told and "\n" not in told


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ValueError, match="a fault"), ending_with_message():
        raise ValueError("a fault")


def start(folder: Path, *command: object, iterations: int) -> subprocess.Popen[str]:
    words = [*command, "--config-file", QUICK, *TINY, "DATASETS.TEST", "()", "OUTPUT_DIR", folder]
    words += ["SOLVER.CHECKPOINT_PERIOD", 5, "DATALOADER.NUM_WORKERS", 0]
    words += ["SOLVER.MAX_ITER", iterations]
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + 200
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.05)


@pytest.mark.faults
def test_two_processes_stop_after_the_same_iteration_and_go_on(tmp_path):
    run, options = tmp_path / "run", ("--num-gpus", 2, "--dist-url", "auto")
    process = start(run, TRAIN, *options, iterations=9_000)
    wait_for(run / "model_0000004.pth")
    # To the one alone that has started them.
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    last = (run / "last_checkpoint").read_text()
    stopped = int(re.findall(r"\d+", last)[0]) + 1
    process = start(run, TRAIN, "--resume", *options, iterations=stopped + 1)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert f"Starting training from iteration {stopped}" in (run / "log.txt").read_text()


def started_by(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


@pytest.mark.faults
@pytest.mark.parametrize("later", [0.0, 2.0])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_processes_that_are_still_starting_end_in_order(sent, later, tmp_path):
    options = ("--num-gpus", 2, "--dist-url", "auto")
    process = start(tmp_path / "run", TRAIN, *options, iterations=9_000)
    # Python's own tracker of what processes share is the third.
    while len(started_by(process.pid)) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(later)
    # As a terminal does it.
    for number in (process.pid, *started_by(process.pid)):
        os.kill(number, sent)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 128 + sent, errors
    assert "Traceback" not in errors and f"Interrupted by {sent.name}" in errors


@pytest.mark.faults
def test_a_process_that_stops_is_told_of_and_the_others_can_be_ended(tmp_path):
    run, options = tmp_path / "run", ("--num-gpus", 2)
    process = start(run, TRAIN, *options, iterations=9_000)
    wait_for(run / "model_0000004.pth")
    *_, first, second = sorted(started_by(process.pid))
    os.kill(second, signal.SIGSTOP)
    assert process.stderr is not None
    line = next(line for line in process.stderr if "has taken" in line)
    assert re.match(r"rank 0 of 2: iteration \d+ has taken \d+ s, the longest before", line)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
    process.wait(timeout=30)
    end = time.monotonic() + 30
    while Path(f"/proc/{first}").exists():
        assert time.monotonic() < end, "it waits for the other"
        time.sleep(0.1)
    os.kill(second, signal.SIGKILL)
    process.communicate()
    stopped = int(re.findall(r"\d+", (run / "last_checkpoint").read_text())[0]) + 1
    process = start(run, TRAIN, "--resume", *options, iterations=stopped + 1)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors


@pytest.mark.faults
def test_processes_whose_starter_was_killed_before_they_began_end_by_themselves(tmp_path):
    process = start(tmp_path / "run", TRAIN, "--num-gpus", 2, iterations=9_000)
    while len(started := started_by(process.pid)) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    end = time.monotonic() + 150
    while any(Path(f"/proc/{number}").exists() for number in started):
        assert time.monotonic() < end, "they train on"
        time.sleep(0.5)
    assert not (tmp_path / "run" / "last_checkpoint").exists()


@pytest.mark.faults
def test_torchrun_restarts_a_run_whose_process_was_killed_where_it_was(tmp_path):
    run = tmp_path / "run"
    process = start(run, *TORCHRUN, "--max-restarts", 3, TRAIN, iterations=300)
    wait_for(run / "model_0000004.pth")
    listed = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(listed.stdout.split()[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    starts = re.findall(r"Starting training from iteration (\d+)", (run / "log.txt").read_text())
    # On a busy machine a restart can fail to bring its processes together, and is made again.
    assert len(starts) >= 2 and int(starts[0]) == 0 and int(starts[-1]) >= 5
