"""Other processes for tests: several that talk over gloo, and what commands need to know."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch import multiprocessing as mp

ROOT = Path(__file__).parents[1]


def python_path() -> str:
    """`PYTHONPATH` for a command: this checkout, and before it where this process was told to look,
    as for another Detectron2."""
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))


def run_processes(function: Callable[[int, int], Any], world: int) -> list[Any]:
    """`function(rank, world)` in `world` spawned processes; what each returned (tensors, numbers
    and containers of them), by rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, args=(world, folder, function), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]


def _process(rank: int, world: int, folder: str, function) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        torch.save(function(rank, world), Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()
