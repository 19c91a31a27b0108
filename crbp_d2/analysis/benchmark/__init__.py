"""Time and memory of the recurrent models beside their rivals."""

from .measure import Measurement, interleave, markdown, resident_bytes
from .subjects import SUBJECTS, Load, Variant, build_step

__all__ = [
    "SUBJECTS",
    "Load",
    "Measurement",
    "Variant",
    "build_step",
    "interleave",
    "markdown",
    "resident_bytes",
]
