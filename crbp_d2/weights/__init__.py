"""Weights from files of other people's: read without running what they hold."""

from crbp_d2.weights.reading import UnreadableError, is_counter, read_checkpoint, said
from crbp_d2.weights.released import Converted, convert_released

__all__ = [
    "Converted",
    "UnreadableError",
    "convert_released",
    "is_counter",
    "read_checkpoint",
    "said",
]
