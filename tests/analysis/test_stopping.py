"""Stopping settled samples: steps and scores of a linear circuit in closed form, and the tool."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from crbp_d2.analysis.stopping import Stopped, evaluate_tolerances, markdown
from crbp_d2.core import ConfigurationError
from crbp_d2.evaluation.pathfinder import PathfinderEvaluator
from tests.analysis.linear import images, linear_model
from tests.analysis.page_runs import write_run
from tests.modeling.conftest import CONFIGS

EVALUATORS = (PathfinderEvaluator(distributed=False),)


def steps_until(factor: float, tolerance: float, most: int) -> int:
    """Steps until `a^(t-1) / (1 + a + ... + a^(t-1)) <= tolerance`, and the last one."""
    for step in range(1, most):
        size = sum(factor**k for k in range(step))
        if factor ** (step - 1) / size <= tolerance:
            return step + 1
    return most


def test_steps_of_a_linear_circuit_are_known_and_its_answer_tends_to_that_of_all_steps():
    model, records = linear_model(0.8, steps=40), images(4)
    batches = [records[:3], records[3:]]
    found = evaluate_tolerances(model, batches, [0.3, 0.0, 0.05, 1e-4, 0.3], EVALUATORS)
    assert [one.tolerance for one in found] == [0.0, 0.3, 0.05, 1e-4]
    expected = [40, *(steps_until(0.8, t, 40) for t in (0.3, 0.05, 1e-4))]
    assert [one.steps for one in found] == expected and len(set(expected)) == 4
    assert found[0].ratios == [1.0, 1.0] and all(len(one.ratios) == 2 for one in found)
    distances = [abs(one.scores["F1"] - found[0].scores["F1"]) for one in found]
    assert distances[1] > 0.05 and distances[3] == 0


def test_the_model_is_left_as_it_was():
    model = linear_model(0.5, steps=6)
    model.sem_seg_head.recurrence.set_test_tolerance(0.125)
    evaluate_tolerances(model, [images(2)], [0.01], EVALUATORS)
    assert model.sem_seg_head.recurrence.solver.test_tolerance == 0.125
    assert not model.sem_seg_head.recurrence._forward_hooks


@pytest.mark.parametrize("tolerance", [-1.0, math.nan])
def test_an_impossible_tolerance_is_refused(tolerance):
    with pytest.raises(ConfigurationError, match="test_tolerance must be"):
        evaluate_tolerances(linear_model(0.5, 4), [images(1)], [tolerance], EVALUATORS)


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate_tolerances(linear_model(0.5, 4), [], [0.1], EVALUATORS)


def test_the_table_shows_quartiles():
    lines = list(markdown([Stopped(0.0, {"PQ": 50.0}, 20.0, [1.0, 1.0]),
                           Stopped(0.1, {"PQ": 49.5}, 7.25, [0.5, 0.7, 0.6])]))  # fmt: skip
    assert lines[2] == "| all steps | 20.0 | 1.00 (1.00-1.00) | 50.00 |"
    assert lines[3] == "| 0.1 | 7.2 | 0.60 (0.55-0.65) | 49.50 |"


@pytest.mark.slow
def test_one_command_prints_and_writes_a_table(tmp_path):
    torch.manual_seed(0)
    run = write_run(tmp_path / "run", "quick/pathfinder_crbp.yaml")
    tool = [sys.executable, str(CONFIGS.parent / "tools" / "analyze.py"), "stopping"]
    command = [*tool, str(run), "--tolerances", "0.5", "0.1", "--batches", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") == 7 and "| all steps |" in done.stdout
    assert done.stdout.endswith("|\n\nOf the first 2 of 256 batches alone.\n")
    assert (run / "early_stopping.md").read_text() == done.stdout
    wrong = subprocess.run([*tool, str(tmp_path)], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "there is no config.yaml" in wrong.stderr
