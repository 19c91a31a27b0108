"""Standard output and error: what programs print of what they have done, and remarks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STANDARD_OUTPUT = "standard output"
"""What an error calls it in the place of a file."""


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
        raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from error


def remark(text: str) -> None:
    """Write to standard error what a user may know; where it can't be shown nothing is lost."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


@contextmanager
def only_saying() -> Iterator[None]:
    """Lets a program that does nothing but print end with a line where it can't."""
    try:
        yield
    except OSError as error:
        if error.filename != STANDARD_OUTPUT:
            raise
        sys.exit(f"\n{error.filename}: {error.strerror}; make room there, or choose another place")


def _drop() -> None:
    # Python would write what is left once more at its end, and fail with a message of its own.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
