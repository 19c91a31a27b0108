"""Cells: one step `F(drive, state)` of a recurrent circuit.

To add one, write a module with `forward(drive, state) -> state` (and `initial_state(drive)` if
zeros like the drive won't do), and register it under a name:

    @CELLS.register("diffusion")
    class Diffusion(torch.nn.Module): ...
"""

from crbp_d2.core.cells.base import CELLS
from crbp_d2.core.cells.conv_lstm import ConvLSTMCell
from crbp_d2.core.cells.hgru import HGRUCell
from crbp_d2.core.cells.mask_hgru import MaskHGRUCell
from crbp_d2.core.cells.residual import ResidualCell

__all__ = ["CELLS", "ConvLSTMCell", "HGRUCell", "MaskHGRUCell", "ResidualCell"]
