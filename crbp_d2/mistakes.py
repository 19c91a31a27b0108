"""Failures that one line tells: mistakes in what is given, what the operating system refuses."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from crbp_d2.core import ConfigurationError
from crbp_d2.data import DatasetError
from crbp_d2.data.files import explained

TRACEBACK = "CRBP_D2_TRACEBACK"
"""Environment variable: set, every failure ends with its traceback."""


def refuse(parser: argparse.ArgumentParser, error: Exception) -> NoReturn:
    """End a program as for a wrong option, with what is told of an error and the code 2.

    Args:
        parser: of its command line.
        error: a mistake in what was given; raised again where `CRBP_D2_TRACEBACK` is set.
    """
    if os.environ.get(TRACEBACK):
        raise error
    # A KeyError puts its message in quotes.
    usual = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    parser.error(told(error) or usual)


def told(error: BaseException) -> str:
    """What a user is told of a failure; empty of one that needs a traceback, as a fault of the
    program.

    Args:
        error: a mistake's message stays as it is. The operating system's errors get a cure, others
            become one line. All need their traceback where `CRBP_D2_TRACEBACK` is set.
    """
    if os.environ.get(TRACEBACK):
        return ""
    if isinstance(error, (ConfigurationError, DatasetError)):
        return str(error)
    if isinstance(error, OSError):
        return _of_system(error)
    # Losses and states, of Detectron2 and of this project.
    if isinstance(error, FloatingPointError):
        return _line(error)
    memory = "allocate memory" in str(error) or "out of memory" in str(error)
    if isinstance(error, MemoryError) or (memory and isinstance(error, RuntimeError)):
        return f"Not enough memory ({_line(error)[:200]}); choose a smaller model or batch"
    if isinstance(error, RecursionError):
        return f"What was given is nested too deep ({_line(error)}); flatten it"
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "A path holds the character NUL, which no file's name can have; leave it out"
    return ""


def _of_system(error: OSError) -> str:
    # A data worker's error comes with its traceback for a message.
    return explained(error) if error.strerror else _line(error).rpartition("Error: ")[2]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
