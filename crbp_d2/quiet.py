"""Warnings of the packages below that say nothing to who trains a model, silenced by name."""

from __future__ import annotations

import logging
import warnings

# Start of the message, kind, module that warns.
_WARNINGS: tuple[tuple[str, type[Warning], str], ...] = (
    # fvcore compiles a loss when it is imported, which nothing here uses.
    (r"`torch\.jit\.script` is deprecated", FutureWarning, r"torch\.jit\."),
    # Detectron2's anchors.
    (r"torch\.meshgrid: in an upcoming release", UserWarning, r"torch\.functional"),
)

# Logger, start of the message.
_RECORDS = (
    # Detectron2 asks where CUDA is when it describes the environment; whether there is a GPU it
    # says itself.
    ("torch.utils.cpp_extension", "No CUDA runtime is found"),
    # Detectron2 asks whether it is being traced, of which either meaning serves.
    ("torch.fx._symbolic_trace", "is_fx_tracing will return true for both"),
)


def silence() -> None:
    """Leave out what the tables above name, in this process. Filters that were set before, as by
    `python -W`, go first."""
    for message, category, module in _WARNINGS:
        warnings.filterwarnings("ignore", message, category, module, append=True)
    for name, start in _RECORDS:
        logging.getLogger(name).addFilter(_Leaving(start))


class _Leaving(logging.Filter):
    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self._start)
