"""Time and memory of the recurrent models beside their rivals."""

from .measure import Measurement, interleave, markdown, resident_bytes
from .subjects import SUBJECTS, Load, build_step
from .variants import LEVERS, Variant

__all__ = [
    "LEVERS",
    "SUBJECTS",
    "Load",
    "Measurement",
    "Variant",
    "build_step",
    "interleave",
    "markdown",
    "resident_bytes",
]
