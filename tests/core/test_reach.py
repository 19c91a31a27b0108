"""How far it is from a call to a step: what a reader has to follow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from crbp_d2.core import HGRUCell, build_recurrence

CORE = "crbp_d2"


class Watching(HGRUCell):
    """Notes the frames of this package that lead to its second step, which is unrecorded."""

    def __init__(self) -> None:
        super().__init__(channels=2, kernel_size=3)
        self.frames: list[str] = []
        self.calls = 0

    def forward(self, drive, state):
        self.calls += 1
        if self.calls == 2:
            frame = sys._getframe(1)
            while frame is not None:
                file = Path(frame.f_code.co_filename)
                if CORE in file.parts and "tests" not in file.parts:
                    self.frames.append(f"{file.name}:{frame.f_code.co_name}")
                frame = frame.f_back
        return super().forward(drive, state)


@pytest.mark.parametrize("algorithm", ["crbp", "rbp", "jfb", "implicit", "tbptt", "phantom"])
def test_a_step_without_gradients_is_few_frames_and_files_away(algorithm):
    cell = Watching()
    build_recurrence(algorithm, cell, steps=6)(torch.rand(2, 2, 5, 5))
    # The cell's own frame is the last.
    assert len(cell.frames) + 1 <= 6
    assert len({frame.partition(":")[0] for frame in cell.frames} | {"hgru.py"}) <= 4
