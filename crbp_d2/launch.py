"""A run in several processes: started here or elsewhere, brought together, and ended."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing import resource_tracker
from typing import Any

import torch
from detectron2.utils import comm
from torch import distributed
from torch import multiprocessing as mp
from torch.distributed.elastic.multiprocessing.errors import record

from crbp_d2.core import ConfigurationError
from crbp_d2.interruption import Interrupted, asked, handling, held_back, let_through
from crbp_d2.meeting import meeting
from crbp_d2.mistakes import told
from crbp_d2.output import remark
from crbp_d2.place import Place, started_by

# As in Detectron2: evaluation on the main process alone can take long.
_TIMEOUT = timedelta(minutes=30)


def launch(
    main: Callable[[argparse.Namespace], Any],
    arguments: argparse.Namespace,
    place: Place,
    *,
    gpu: bool,
) -> Any:
    """Calls `main(arguments)` in every process of a run, between which Detectron2's `comm` works.

    Detectron2's own `launch` always starts the processes itself, and on a machine with a GPU lets
    them talk about its memory alone.

    Args:
        main: importable by its name.
        arguments: of the command line.
        place: see `find_place`.
        gpu: whether the model is on a GPU, of which every process gets one.

    Returns:
        What `main` returns, where this process is one of those; None where it has started them.

    Raises:
        ConfigurationError: there are not as many GPUs, or the processes can't meet.
        ProcessRaisedException, ProcessExitedException: (of `torch.multiprocessing`) a process that
            was started here failed. The others have been ended.
    """
    if place.world_size == 1:
        return main(arguments)
    if gpu:
        _gpu_of(place)
    if place.starter:
        # torchrun then says whose error came first.
        return record(_work)(main, arguments, place, gpu)
    context = None
    while True:
        try:
            if context is None:
                # They take no signal before they handle it, as imports would swallow some. Python's
                # tracker would let them through when it is started.
                resource_tracker.ensure_running()
                with held_back():
                    context = mp.start_processes(
                        _started,
                        args=(main, arguments, place, gpu),
                        nprocs=place.local_size,
                        join=False,
                        # Daemons could have no data workers.
                        daemon=False,
                    )
            if context.join():
                return None
        except Interrupted as end:
            if context is None:
                raise
            # A scheduler may have told this process alone. They agree on where to stop.
            _hand_on(end.number, context.processes)


def _hand_on(number: int, processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)


@contextmanager
def ending_with_message() -> Iterator[None]:
    """Lets the program end with a line about a mistake that a user can mend, what the operating
    system refused or a signal that ended it, or with the message of the process that failed;
    without the traceback of this one."""
    # What can't be logged, as on a full disk, would be told with a traceback for every line.
    logging.raiseExceptions = False
    try:
        with handling():
            try:
                yield
            except mp.ProcessExitedException as error:
                if error.signal_name is None:
                    # It has said why, as in `sys.exit(message)`.
                    sys.exit(error.exit_code)
                sys.exit(f"\nProcess {error.error_index} was ended by {error.signal_name}")
            except mp.ProcessRaisedException as error:
                sys.exit(str(error))
            except Exception as error:
                if asked():
                    # As of a data worker that the signal has ended, too.
                    raise Interrupted(asked()) from error
                line = told(error)
                if not line:
                    raise
                sys.exit(f"\n{line}")
    # Also one that came after the last line of the block.
    except Interrupted as end:
        if comm.is_main_process():
            remark(f"\n{end.line}\n")
        raise


def run_alone(main: Callable[[], None], environment: Mapping[str, str] = os.environ) -> None:
    """Calls `main()` of a tool that works in one process only.

    Several would do the same work and write the same files; then the program ends with a message.
    """
    with ending_with_message():
        place = started_by(environment)
        if place:
            raise ConfigurationError(
                f"{place.starter} has started {place.world_size} processes of this program, which "
                "works in one: start it once, by itself"
            )
        main()


def _gpu_of(place: Place) -> int:
    """The index of the GPU of a process."""
    there = torch.cuda.device_count()
    if there >= place.local_size:
        return place.local_rank
    # As with --gpus-per-task: every process sees its own alone.
    if there == 1 and place.starter == "srun":
        return 0
    raise ConfigurationError(
        f"{place.local_size} processes on this machine need as many GPUs, but PyTorch sees "
        f"{there}: start fewer, look at CUDA_VISIBLE_DEVICES, or add MODEL.DEVICE cpu"
    )


def _started(
    local_rank: int,
    main: Callable[[argparse.Namespace], Any],
    arguments: argparse.Namespace,
    first: Place,
    gpu: bool,
) -> None:
    place = replace(first, rank=first.rank + local_rank, local_rank=local_rank)
    with ending_with_message():
        let_through()
        starter = multiprocessing.parent_process()
        # From here on its end is a signal, but this process may have been left before.
        if starter is not None and not starter.is_alive():
            raise ConfigurationError("The process that started this one is gone, so it ends, too")
        _work(main, arguments, place, gpu)


def _work(
    main: Callable[[argparse.Namespace], Any],
    arguments: argparse.Namespace,
    place: Place,
    gpu: bool,
) -> Any:
    join(place, gpu=gpu)
    result = main(arguments)
    # After a failure there is no waiting for the others: they would report a lost connection
    # before the failure is.
    comm.synchronize()
    distributed.destroy_process_group()
    return result


def join(place: Place, *, gpu: bool) -> None:
    """Meet the other processes, so that Detectron2's `comm` works between them.

    Args:
        place: of this process.
        gpu: whether the model is on a GPU.

    Raises:
        ConfigurationError: that failed, or some are of another run. Where nobody comes the process
            ends, see `meeting`.
    """
    if gpu:
        torch.cuda.set_device(_gpu_of(place))
    with meeting(place):
        _connect(place, "nccl" if gpu else "gloo")
        form_local_groups(place)
        if len(set(comm.all_gather(place.launch))) > 1:
            raise ConfigurationError(
                f"rank {place.rank} of {place.world_size}: processes of different runs have met at "
                f"{place.url}; give each run an address of its own (--dist-url, or MASTER_PORT)"
            )
        comm.synchronize()


def _connect(place: Place, backend: str) -> None:
    try:
        distributed.init_process_group(
            backend,
            init_method=place.url,
            rank=place.rank,
            world_size=place.world_size,
            timeout=_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"rank {place.rank} of {place.world_size} can't meet the others at {place.url} "
            f"({error}). Is the address right (--dist-url, or MASTER_ADDR and MASTER_PORT), and "
            "the port free? Without --dist-url a free one is found, for a single machine"
        ) from error


def form_local_groups(place: Place) -> None:
    """Let Detectron2's `comm` know which processes are on the same machine."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(place.local_size)
        return
    # Detectron2 0.6 does it in its own `launch`, and leaves nobody another way.
    for first in range(0, place.world_size, place.local_size):
        ranks = range(first, first + place.local_size)
        group = distributed.new_group(list(ranks))
        if place.rank in ranks:
            comm._LOCAL_PROCESS_GROUP = group
