"""Graphs of operations that PyTorch writes down to be run elsewhere, without this package."""

from __future__ import annotations

import torch

from crbp_d2.core.errors import UnsupportedError


def is_exporting() -> bool:
    """Whether `torch.jit.trace`, `torch.export` (with `strict=False`) or an ONNX exporter that uses
    one of them writes down what runs.

    Whatever Python decides by a value is then decided for all inputs to come, or can't be written.
    A model that is compiled runs here, and is not meant.
    """
    if torch.jit.is_tracing():
        return True
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def refuse_exporting(what: str, cure: str) -> None:
    """Refuse what no graph can hold.

    Args:
        what: is refused, a noun in the singular with what it does.
        cure: what to do in its place.

    Raises:
        UnsupportedError: a graph is being written.
    """
    if is_exporting():
        raise UnsupportedError(f"{what}, which no exported graph can hold: {cure}")
