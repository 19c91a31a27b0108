"""Weights in files: those of others are read without running them, own ones are written whole."""

from crbp_d2.weights.reading import UnreadableError, is_counter, read_checkpoint, said
from crbp_d2.weights.writing import remove_parts, write_synced, writing_whole

__all__ = [
    "UnreadableError",
    "is_counter",
    "read_checkpoint",
    "remove_parts",
    "said",
    "write_synced",
    "writing_whole",
]
