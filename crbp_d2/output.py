"""Standard output: what programs print of what they have done."""

from __future__ import annotations

import os
import sys


def say(text: str) -> None:
    """Write to standard output, at once. Nothing is written where it was closed (`>&-`), or where
    the reader has seen enough, as `head`.

    Raises:
        OSError: it can't be written, as on a full disk; names standard output.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop()
    except OSError as error:
        _drop()
        raise OSError(error.errno, error.strerror, "standard output") from error


def _drop() -> None:
    # Python would write what is left once more at its end, and fail with a message of its own.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
