"""Cells: one step `F(drive, state)` of a recurrent circuit.

To add one, write a module with `forward(drive, state) -> state` (and `initial_state(drive)` if
zeros like the drive won't do), in a file of its own, and enter it in `CELLS`.
"""

from crbp_d2.core.cells.conv_lstm import ConvLSTMCell
from crbp_d2.core.cells.hgru import HGRUCell
from crbp_d2.core.cells.mask_hgru import MaskHGRUCell

CELLS = {
    "conv_lstm": ConvLSTMCell,
    "hgru": HGRUCell,
    "mask_hgru": MaskHGRUCell,
}

__all__ = ["CELLS", "ConvLSTMCell", "HGRUCell", "MaskHGRUCell"]
