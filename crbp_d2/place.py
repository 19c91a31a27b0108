"""Where a process stands among those of a run, by its command line and environment.

Either this program starts them (`--num-gpus`, `--num-machines`), or torchrun or SLURM's srun has
started it several times.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from crbp_d2.core import ConfigurationError


@dataclass(frozen=True)
class Place:
    """Of one process among those of a run.

    Attributes:
        rank: 0, 1, ... among all `world_size` processes.
        world_size: processes of the run.
        local_rank: 0, 1, ... among the `local_size` processes on this machine.
        local_size: processes on each machine.
        url: where they meet, for `torch.distributed.init_process_group`.
        starter: who has started them, `torchrun` or `srun`. Empty: nobody yet, so that this process
            has to start those of its machine, the first of which has this rank.
        launch: what tells the launch that a process belongs to from others, where there is such a
            thing; the same in all processes, and when torchrun starts them again.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    url: str = ""
    starter: str = ""
    launch: str = field(default="", compare=False)


def find_place(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Place:
    """Where this process stands, by Detectron2's command line and the environment.

    Args:
        arguments: `num_gpus`, `num_machines`, `machine_rank` and `dist_url`, of Detectron2's
            `default_argument_parser`.
        environment: with the variables of torchrun or SLURM, if they have started this process.

    Raises:
        ConfigurationError: both are to start processes, so that every rank would train several
            times; or what is given makes no sense.
    """
    gpus, machines = max(arguments.num_gpus, 1), arguments.num_machines
    place = started_by(environment)
    if place and gpus == machines == 1:
        return place
    # One process was started on each machine, which is to start those of its GPUs.
    if place and (place.local_size > 1 or place.world_size != machines):
        raise ConfigurationError(
            f"{place.starter} has started {place.world_size} processes of this program, and "
            f"--num-gpus {gpus} --num-machines {machines} asks each of them to start more, so that "
            f"every rank would train several times: leave these two to {place.starter}"
        )
    if not 0 <= arguments.machine_rank < machines:
        raise ConfigurationError(
            f"--machine-rank {arguments.machine_rank}: must be 0 to {machines - 1} with "
            f"--num-machines {machines}, on each machine another"
        )
    url = arguments.dist_url
    if url == "auto":
        if machines > 1:
            raise ConfigurationError(
                "--dist-url auto: only on one machine; name tcp://HOST:PORT of machine 0"
            )
        url = f"tcp://127.0.0.1:{_free_port()}"
    launch = uuid.uuid4().hex if machines == 1 else ""
    return Place(gpus * arguments.machine_rank, gpus * machines, 0, gpus, url, launch=launch)


def started_by(environment: Mapping[str, str]) -> Place | None:
    """Where torchrun or srun has put this process, or None where neither has started several.

    Raises:
        ConfigurationError: the variables they set are incomplete, or of uneven machines.
    """
    return _of_torchrun(environment) or _of_srun(environment)


def is_restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started this program again, after one of its processes had failed."""
    return environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def launch_by_torchrun(environment: Mapping[str, str] = os.environ) -> str:
    """What tells this launch by torchrun from others, also when it starts processes again; empty
    where another has started this one."""
    name = environment.get("TORCHELASTIC_RUN_ID", "")
    if name and environment.get("WORLD_SIZE") == environment.get("LOCAL_WORLD_SIZE"):
        # By default torchrun calls all of its runs "none". Their starter is not the same.
        return f"{name} of process {os.getppid()}"
    return name


def _of_torchrun(environment: Mapping[str, str]) -> Place | None:
    """None where neither torchrun nor another that sets its variables has started several."""
    if "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
        return None
    rank, size, local_rank, local_size = _numbers(
        environment, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
    )
    launch = launch_by_torchrun(environment)
    return _checked(Place(rank, size, local_rank, local_size, "env://", "torchrun", launch))


def _of_srun(environment: Mapping[str, str]) -> Place | None:
    """None where srun has not started several.

    SLURM_NTASKS and SLURM_PROCID say nothing: a batch script has them too, and runs once.
    """
    if "SLURM_STEP_ID" not in environment or environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    rank, size, local_rank, node, job, step = _numbers(
        environment,
        *("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
        *("SLURM_NODEID", "SLURM_JOB_ID", "SLURM_STEP_ID"),
    )
    # Tasks of each machine, as "4(x2),3" for 4, 4 and 3.
    counts = [
        int(count)
        for count, times in re.findall(
            r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
        )
        for _ in range(int(times or 1))
    ]
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    machines = next((environment[name] for name in names if environment.get(name)), "")
    if node >= len(counts) or not machines:
        raise ConfigurationError(
            f"SLURM_STEP_TASKS_PER_NODE {counts or '(not set)'} or SLURM_STEP_NODELIST "
            f"{machines or '(not set)'} does not say where the {size} processes are: start the "
            "program with srun, which sets both"
        )
    host = environment.get("MASTER_ADDR") or first_host(machines)
    # Another one for every step, as several may share a machine.
    port = environment.get("MASTER_PORT") or 15000 + (job * 31 + step) % 15000
    return _checked(
        Place(rank, size, local_rank, counts[node], f"tcp://{host}:{port}", "srun", f"{job}.{step}")
    )


def first_host(machines: str) -> str:
    """The first machine of a list as SLURM writes it: `gpu03` of `gpu[03-05,9],cpu1`."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", machines)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0] if found else machines)


def _numbers(environment: Mapping[str, str], *names: str) -> list[int]:
    wrong = [name for name in names if not environment.get(name, "").isdecimal()]
    if wrong:
        raise ConfigurationError(
            f"{names[0]} and {names[1]} say that several processes were started, but "
            f"{' and '.join(wrong)} is not set to a number: start the program with torchrun or "
            f"srun, which set all, or unset {names[1]}"
        )
    return [int(environment[name]) for name in names]


def _checked(place: Place) -> Place:
    # Detectron2's groups of the processes on a machine suppose both.
    if place.world_size % place.local_size or place.rank % place.local_size != place.local_rank:
        raise ConfigurationError(
            f"rank {place.rank} of {place.world_size} is number {place.local_rank} of "
            f"{place.local_size} on its machine: every machine must have as many processes, "
            "numbered one machine after the other. torchrun: the same --nproc-per-node everywhere; "
            "srun: --ntasks-per-node and --distribution=block"
        )
    return place


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
