"""Every lever against the plain path: state, penalty and all gradients of one learning step.

The circuits settle within the steps, so that ways of solving that differ come to the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from crbp_d2.core import HGRUCell, LipschitzCoefficientPenalty, MaskHGRUCell
from tests.core.built import built
from tests.core.circuits import flatten

pytestmark = pytest.mark.slow

PLAIN = {"steps": 60, "adjoint_terms": 60, "adjoint_tolerance": 0.0}
ANDERSON = {
    "steps": 30,
    "adjoint_name": "anderson",
    "adjoint_terms": 20,
    "adjoint_tolerance": 0.0,
    "adjoint_memory": 8,
    "solver_name": "anderson",
    "solver_memory": 8,
}
LOWERED = {"solver_precision": "bf16", "adjoint_precision": "bf16"}
SINGLE, DOUBLE = torch.float32, torch.float64


def mask_hgru(convolution: str) -> nn.Module:
    assert convolution == "direct"
    cell = MaskHGRUCell(channels=8, chrono_steps=2)
    nn.init.constant_(cell.recurrent_gate.bias, 2.0)
    return cell


def hgru(convolution: str) -> nn.Module:
    cell = HGRUCell(
        channels=3,
        kernel_size=9,
        norm="IN",
        norm_scale=0.1,
        chrono_steps=2,
        convolution=convolution,
    )
    nn.init.constant_(cell.recurrent_gate.bias, 2.0)
    return cell


CELLS: dict[str, tuple[Callable[[str], nn.Module], int]] = {
    "mask_hgru": (mask_hgru, 8),
    "hgru": (hgru, 3),
}
# Name -> convolution, options, greatest relative difference by precision. What a penalty on some
# samples is worth is a matter of chance: see test_penalties and test_chunks.
LEVERS: dict[str, tuple[str, dict[str, Any], dict[torch.dtype, float]]] = {
    "chunks": ("direct", PLAIN | {"chunk_samples": 2}, {SINGLE: 1e-4, DOUBLE: 1e-12}),
    "Fourier domain": ("fft", PLAIN, {SINGLE: 1e-4, DOUBLE: 1e-10}),
    "Anderson, adjoint": (
        "direct",
        PLAIN | {"adjoint_terms": 20, "adjoint_name": "anderson", "adjoint_memory": 8},
        {SINGLE: 1e-3, DOUBLE: 1e-5},
    ),
    "Anderson": (
        "direct",
        ANDERSON,
        {SINGLE: 1e-3, DOUBLE: 1e-5},
    ),
    "bfloat16": (
        "direct",
        PLAIN | LOWERED,
        {SINGLE: 1e-2, DOUBLE: 0.0},
    ),
    "compiled": ("direct", PLAIN | {"compile_steps": True}, {SINGLE: 1e-4, DOUBLE: 1e-12}),
    "bfloat16, compiled": (
        "direct",
        PLAIN | LOWERED | {"compile_steps": True},
        {SINGLE: 1e-2, DOUBLE: 1e-12},
    ),
}


def learn(name: str, dtype: torch.dtype, convolution: str, options):
    """State, penalty, and the gradients into drive and weights."""
    build, channels = CELLS[name]
    torch.manual_seed(1)
    cell = build(convolution).to(dtype)
    drive = torch.rand(3, channels, 10, 10).to(dtype).requires_grad_()
    penalty = LipschitzCoefficientPenalty(weight=1.0, bound=0.0)
    result = built(cell, algorithm="crbp", penalties=(penalty,), **options)(drive)
    state = flatten(result.state)
    weights = torch.linspace(-1, 1, state.numel(), dtype=dtype)
    loss = state @ weights + result.penalties["lcp"]
    gradients = torch.autograd.grad(loss, [drive, *cell.parameters()])
    assert float(result.diagnostics.residual.max()) < 1e-3
    return [state, result.penalties["lcp"], *gradients]


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize(
    ("lever", "name"),
    [(lever, name) for lever in LEVERS for name in CELLS if (lever, name) != (
        "Fourier domain", "mask_hgru")],
)  # fmt: skip
def test_a_lever_changes_no_more_than_it_may(lever, name, dtype):
    convolution, options, allowed = LEVERS[lever]
    if options.get("compile_steps") and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    plain = learn(name, dtype, "direct", PLAIN)
    found = learn(name, dtype, convolution, options)
    if lever.startswith("bfloat16"):
        # It is held to a hundredth of the whole gradient: small parts of it differ by more.
        plain, found = (
            [*values[:2], torch.cat([value.reshape(-1) for value in values[2:]])]
            for values in (plain, found)
        )
    size = max(float(value.norm()) for value in plain[2:])
    for near, exact in zip(found, plain, strict=True):
        # Weights whose gradient is nearly zero are held against the largest one.
        scale = max(float(exact.norm()), 1e-3 * size)
        assert float((near - exact).norm()) <= allowed[dtype] * scale
