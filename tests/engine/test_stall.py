"""What is said of an iteration that waits for a process that has stopped."""

from __future__ import annotations

import time

import pytest
from detectron2.utils import comm

from crbp_d2.engine.stall import TIMES, Stall


@pytest.fixture
def two(monkeypatch):
    """As one of two processes."""
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)


def test_an_iteration_that_takes_far_longer_than_others_is_told_once(two, capsys):
    stall = Stall(least=0.05)
    with stall.told(0):
        pass
    with stall.told(1):
        time.sleep(0.2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rank 1 of 2: iteration 1 has taken 0 s, the longest before 0.0 s; it")
    assert "--resume then goes on" in line
    # From here on such a time is nothing unusual.
    with stall.told(2):
        time.sleep(0.2)
    assert TIMES > 1 and not capsys.readouterr().err


def test_a_process_alone_waits_for_none(capsys):
    with Stall(least=0.01).told(0):
        time.sleep(0.1)
    assert not capsys.readouterr().err


def test_an_iteration_that_fails_leaves_no_word_behind(two, capsys):
    with pytest.raises(KeyError), Stall(least=0.05).told(0):
        raise KeyError
    time.sleep(0.2)
    assert not capsys.readouterr().err
