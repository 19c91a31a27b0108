"""Standard error that is closed or full, as under cron: work goes on without its bars."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crbp_d2.output import remark
from crbp_d2.progress import tqdm
from tests.distributed import ROOT

from .sources import sources

WORK = (
    "from crbp_d2.progress import tqdm; print(sum(tqdm(range(5), 'bar', mininterval=0)));"
    "tqdm.tell('seen')"
)
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def run(ending: str) -> subprocess.CompletedProcess[str]:
    line = f'{sys.executable} -c "{WORK}" {ending}'
    return subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_bar_is_shown_on_standard_error():
    done = run("")
    assert (done.returncode, done.stdout) == (0, "10\n")
    assert "bar: 100%" in done.stderr and done.stderr.endswith("seen\n")


@pytest.mark.parametrize("ending", ["2>&-", pytest.param("2>/dev/full", marks=needs_full)])
def test_work_goes_on_where_its_bar_can_not_be_shown(ending):
    done = run(ending)
    assert (done.returncode, done.stdout) == (0, "10\n")


def test_a_remark_that_can_not_be_shown_is_left_out(monkeypatch, capsys):
    remark("seen\n")
    assert capsys.readouterr().err == "seen\n"
    monkeypatch.setattr(sys, "stderr", None)
    remark("unseen\n")


def test_a_bar_that_is_not_wanted_where_nobody_looks_is_not_shown(capsys):
    assert list(tqdm(range(3), disable=None)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_all_bars_of_the_project_are_of_this_kind():
    for path in sources("crbp_d2/progress.py"):
        assert not re.search(r"^\s*(from|import) tqdm", path.read_text(), re.M), path


@needs_full
@pytest.mark.slow
@pytest.mark.parametrize("module", ["doctor", "zoo", "config"])
def test_a_program_that_only_prints_says_that_it_can_not(module):
    line = f"{sys.executable} -m crbp_d2.{module} > /dev/full"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = "standard output: No space left on device; make room there, or choose another place"
    assert done.stderr.splitlines()[-1] == last


def test_a_process_that_is_killed_while_it_draws_leaves_the_bars_of_others_alone():
    def draw_and_die() -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=draw_and_die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert tqdm.get_lock().acquire(blocking=False)
    tqdm.get_lock().release()
