"""Weights from files of other people's: read without running what they hold."""

from crbp_d2.weights.reading import UnreadableError, is_counter, read_checkpoint, said

__all__ = [
    "UnreadableError",
    "is_counter",
    "read_checkpoint",
    "said",
]
