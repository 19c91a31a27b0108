"""The first estimate of how long a training takes."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from .runs import train

LINE = (
    r"the (\d+) iterations to come take about (\d+:\d\d:\d\d), as the last one took ([\d.]+) s; "
    r"evaluations are not included(.*)"
)


def lines(output: Path) -> list[tuple[str, ...]]:
    return re.findall(LINE, (output / "log.txt").read_text())


def test_it_is_told_once_after_three_iterations_and_again_of_a_resumed_rest(tmp_path):
    train(tmp_path, "SOLVER.MAX_ITER", 6)
    ((left, duration, seconds, but),) = lines(tmp_path)
    assert left == "3" and not but
    hours, minutes, rest = map(int, duration.split(":"))
    told = timedelta(hours=hours, minutes=minutes, seconds=rest).total_seconds()
    assert abs(told - 3 * float(seconds)) <= 0.52
    train(tmp_path, "SOLVER.MAX_ITER", 16, flags=("--resume",))
    assert [line[0] for line in lines(tmp_path)] == ["3", "7"]


@pytest.mark.parametrize("length", [2, 3])
def test_nothing_is_told_of_a_training_that_is_over_by_then(length, tmp_path):
    train(tmp_path, "SOLVER.MAX_ITER", length)
    assert not lines(tmp_path)


def test_a_training_with_phases_says_so(tmp_path):
    phases = '[{"FROM": 0.5, "ALGORITHM": "bptt"}]'
    train(tmp_path, "SOLVER.MAX_ITER", 5, "CRBP.PHASES", phases)
    assert [line[3] for line in lines(tmp_path)] == ["; another phase may be slower or faster"]
