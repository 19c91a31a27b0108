"""What a cell is, and the registry."""

from __future__ import annotations

from torch import nn

from crbp_d2.core.registry import Registry

CELLS: Registry[nn.Module] = Registry("cell")
"""Cells by name. A cell is a module `forward(drive, state) -> state`, with `initial_state(drive)`
if zeros like the drive won't do."""
