"""Bars of long work, on standard error; where that can't be written the work goes on without."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import tqdm as bars
from tqdm.utils import ObjectWrapper


class _Shown(ObjectWrapper):
    """A stream that drops what it can't take: on a full disk, or closed in the meantime."""

    def write(self, text: str) -> None:
        self._unless_refused(lambda stream: stream.write(text))

    def flush(self) -> None:
        self._unless_refused(lambda stream: stream.flush())

    def _unless_refused(self, do: Callable[[Any], Any]) -> None:
        try:
            do(self._wrapped)
        except (OSError, ValueError):
            self._drop()

    def _drop(self) -> None:
        # Python would write what is left once more at its end, and end with a code of its own.
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._wrapped.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            return


class tqdm(bars.tqdm):  # noqa: N801  the name that it goes by everywhere
    """tqdm's, for any work: what can't be shown ends none.

    Args:
        options: of `tqdm.tqdm`; without `file` it is shown on standard error, if that is open.
    """

    def __init__(self, *values: Any, **options: Any) -> None:
        if options.get("file") is None:
            if sys.stderr is None:
                options["disable"] = True
            else:
                options["file"] = _Shown(sys.stderr)
        super().__init__(*values, **options)

    @classmethod
    def tell(cls, line: str) -> None:
        """A line between the bars, on standard error, if that is open."""
        if sys.stderr is not None:
            cls.write(line, file=_Shown(sys.stderr))


# tqdm's own is shared with forked processes, where one that is killed while it draws would leave it
# locked for all. Bars are drawn by one process here.
tqdm.set_lock(threading.RLock())
