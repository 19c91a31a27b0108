"""NumPy arrays from a pickle, without running what else it asks for.

Detectron2's model zoo keeps weights as pickled dictionaries of arrays. A pickle names functions and
says what to call them with, so that unpickling a file runs whatever its author wished. Here every
name stands for a class of this module, or is refused; NumPy builds arrays from checked parts alone.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from crbp_d2.core import ConfigurationError


def load_arrays(path: str | Path) -> Any:
    """What a pickle of dictionaries, lists, strings, numbers and numeric arrays holds.

    Raises:
        ConfigurationError: it asks for anything else.
        Exception: it is no pickle, or a damaged one; what is raised depends on where it ends.
    """
    with open(path, "rb") as file:
        # The zoo's files were written by Python 2, too, whose byte strings are latin1.
        return _as_arrays(_ArrayUnpickler(file, encoding="latin1").load())


class _Element:
    """Stands for `numpy.dtype`: booleans, integers and floating-point numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[?]|[biuf]\d{1,2}", code):
            raise ConfigurationError(f"it holds an array of {code!r}, which are no numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for `numpy.ndarray` and the function that makes an empty one."""

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, element, by_columns, content = state[-4:]
        self.value = _read(content, element).reshape(shape, order="F" if by_columns else "C")


class _Bytes:
    """Stands for the functions that make bytes, which old pickles can't hold."""

    def __new__(cls, text: str = "", *_: Any) -> Any:
        return text.encode("latin1")


class _Scalar:
    """Stands for the function that makes a NumPy number."""

    def __new__(cls, element: _Element, content: Any) -> Any:
        return _read(content, element)[0]


class _Buffer:
    """Stands for the function that makes an array in pickles of the fifth protocol."""

    def __new__(cls, content: Any, element: _Element, shape: tuple[int, ...], order: Any) -> Any:
        return _read(content, element).reshape(shape, order=order)


_KNOWN: dict[str, type] = {
    "__builtin__.bytes": _Bytes,
    "_codecs.encode": _Bytes,
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": _Element,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _Scalar,
    "numpy.core.numeric._frombuffer": _Buffer,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        # NumPy 2 has renamed its core.
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if full not in _KNOWN:
            raise ConfigurationError(f"it holds {module}.{name} beside arrays")
        return _KNOWN[full]


def _read(content: Any, element: _Element) -> np.ndarray:
    """A flat array of its own, in the byte order of the machine."""
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, (bytes, bytearray)):
        raise ConfigurationError(f"it holds an array of {type(content).__name__}, not of numbers")
    return np.frombuffer(content, element.dtype).astype(element.dtype.newbyteorder("="))


def _as_arrays(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _as_arrays(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_arrays(item) for item in value]
    return value
