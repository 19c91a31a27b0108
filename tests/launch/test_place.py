"""Where a process stands, by its command line and what torchrun or SLURM set."""

from __future__ import annotations

import argparse

import pytest

from crbp_d2.core import ConfigurationError
from crbp_d2.engine import argument_parser
from crbp_d2.place import Place, find_place, first_host

TORCHRUN = {
    **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    **{"MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"},
}
# The last of two machines with four tasks each, within a job of more.
SRUN = {
    **{"SLURM_JOB_ID": "1234", "SLURM_JOB_NODELIST": "gpu[1-4]", "SLURM_NTASKS": "16"},
    **{"SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "gpu[2-3]"},
    **{"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1"},
    **{"SLURM_PROCID": "7", "SLURM_LOCALID": "3"},
}
ONE_A_MACHINE = {
    **SRUN,
    **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
    **{"SLURM_PROCID": "1", "SLURM_LOCALID": "0"},
}
ALONE = Place(url="tcp://127.0.0.1:9")


def found(environment: dict[str, str], **options: object) -> Place:
    arguments = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": ALONE.url}
    return find_place(argparse.Namespace(**arguments | options), environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # Started by torchrun, but alone.
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        # A script often sets some of them for another program.
        {"WORLD_SIZE": "8", "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"},
        # What sbatch gives its script, which runs once however many tasks the job is for.
        {
            **{"SLURM_JOB_ID": "1234", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
            **{"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "gpu[1-2]"},
        },
        # An interactive shell in a step of its own.
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},
    ],
)
def test_a_process_alone_stays_alone_and_may_start_others(environment):
    assert found(environment) == ALONE
    two = found(environment, num_gpus=2, num_machines=3, machine_rank=1)
    assert two == Place(2, 6, 0, 2, ALONE.url)


def test_torchrun_and_srun_say_where_a_process_stands():
    assert found(TORCHRUN) == Place(5, 8, 1, 4, "env://", "torchrun")
    place = found(SRUN)
    assert place == Place(7, 8, 3, 4, place.url, "srun")
    assert place.url.startswith("tcp://gpu2:")
    # Within a task of srun, torchrun's word is the last.
    assert found(ONE_A_MACHINE | TORCHRUN) == found(TORCHRUN)


def test_processes_of_one_step_meet_at_one_port_and_those_of_others_elsewhere():
    first = SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert found(first).url == found(SRUN).url
    assert found(SRUN | {"SLURM_STEP_ID": "3"}).url != found(SRUN).url
    named = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert found(SRUN | named).url == "tcp://10.0.0.1:29500"


@pytest.mark.parametrize(
    ("machines", "first"),
    [
        ("localhost", "localhost"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("gpu[7,9-12]", "gpu7"),
        ("rack[1-2]node[08-09]-ib,login", "rack1node08-ib"),
    ],
)
def test_the_first_machine_of_a_list(machines, first):
    assert first_host(machines) == first


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN, ONE_A_MACHINE])
@pytest.mark.parametrize("more", [{"num_gpus": 2}, {"num_machines": 3}])
def test_ranks_that_would_be_started_twice_over_are_refused(environment, more):
    with pytest.raises(ConfigurationError, match="every rank would train several times"):
        found(environment, **more)


def test_one_process_on_each_machine_may_start_those_of_its_gpus():
    place = found(ONE_A_MACHINE, num_gpus=4, num_machines=2, machine_rank=1)
    assert place == Place(4, 8, 0, 4, ALONE.url)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK and LOCAL_WORLD_SIZE is not set"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "the same --nproc-per-node everywhere"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "5,3"}, "--ntasks-per-node"),
        # Dealt out to the machines like cards.
        (SRUN | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, "--distribution=block"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": ""}, r"SLURM_STEP_TASKS_PER_NODE \(not set\)"),
        ({**SRUN, "SLURM_LOCALID": ""}, "SLURM_LOCALID is not set to a number"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(environment, message):
    with pytest.raises(ConfigurationError, match=message):
        found(environment)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_machines": 2, "machine_rank": 2}, "--machine-rank 2: must be 0 to 1"),
        ({"num_machines": 2, "dist_url": "auto"}, "--dist-url auto: only on one machine"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        found({}, **options)


def test_a_launch_is_told_from_others_and_known_again(monkeypatch):
    assert found({}, num_gpus=2).launch != found({}, num_gpus=2).launch
    named, unnamed = TORCHRUN | {"TORCHELASTIC_RUN_ID": "a"}, TORCHRUN
    next_one = named | {"RANK": "6", "LOCAL_RANK": "2"}
    assert found(named).launch == found(next_one).launch != found(unnamed).launch
    # On one machine also where torchrun calls both "none".
    one = TORCHRUN | {"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none"}
    first = found(one).launch
    assert found(one | {"TORCHELASTIC_RESTART_COUNT": "1"}).launch == first
    monkeypatch.setattr("os.getppid", lambda: 7)
    assert found(one).launch != first
    assert found(SRUN).launch != found(SRUN | {"SLURM_STEP_ID": "9"}).launch


def test_without_an_address_a_free_one_is_taken():
    arguments = argument_parser().parse_args(["--num-gpus", "2"])
    assert find_place(arguments, {}).url != find_place(arguments, {}).url
    several = argument_parser().parse_args(["--num-machines", "2"])
    with pytest.raises(ConfigurationError, match="name tcp://HOST:PORT of machine 0"):
        find_place(several, {})


def test_a_free_port_is_found():
    assert found({}, num_gpus=2, dist_url="auto").url.startswith("tcp://127.0.0.1:")
