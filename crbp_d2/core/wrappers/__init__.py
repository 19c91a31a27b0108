"""Wrappers of a recurrence, called like it: a few samples at a time, a state of an earlier step."""

from __future__ import annotations

from collections.abc import Callable

from crbp_d2.core.errors import ConfigurationError
from crbp_d2.core.recurrence import Recurrence
from crbp_d2.core.result import RecurrenceResult
from crbp_d2.core.wrappers.chunks import Chunks
from crbp_d2.core.wrappers.early import EarlyState

__all__ = ["Chunks", "EarlyState", "wrapped"]


def wrapped(
    recurrence: Recurrence, *, chunk_samples: int | None = None, early_from: float | None = None
) -> Callable[..., RecurrenceResult]:
    """The recurrence, or one of the wrappers around it.

    Args:
        recurrence: to run.
        chunk_samples: see `Chunks`; `None` for all samples at once.
        early_from: see `EarlyState`; `None` for none.

    Raises:
        ConfigurationError: both are asked for, or one can't work with the recurrence.
    """
    if chunk_samples is not None and early_from is not None:
        raise ConfigurationError(
            "chunk_samples does not go with early_from, which records an earlier step, too",
            option="chunk_samples",
        )
    if chunk_samples is not None:
        return Chunks(recurrence, chunk_samples)
    return recurrence if early_from is None else EarlyState(recurrence, early_from)
