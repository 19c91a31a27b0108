"""The tools that work in one process."""

from __future__ import annotations

import pytest

from crbp_d2.launch import run_alone
from tests.modeling.conftest import CONFIGS

from .test_place import SRUN, TORCHRUN

TOOLS = sorted((CONFIGS.parent / "tools").glob("*.py"))


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_they_refuse_to_be_started_several_times(environment):
    def work():
        raise AssertionError("must not be done")

    with pytest.raises(SystemExit, match="(torchrun|srun) has started 8 processes"):
        run_alone(work, environment)


def test_they_run_where_one_was_started():
    done = []
    run_alone(lambda: done.append(1), {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"})
    assert done == [1]


def test_all_but_the_training_are_such():
    several = [tool.stem for tool in TOOLS if "    run_alone(main)\n" not in tool.read_text()]
    assert several == ["train_net"]
