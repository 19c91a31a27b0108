"""Small circuits whose fixed points and Jacobians are known, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crbp_d2.core import ConvLSTMCell, HGRUCell, MaskHGRUCell
from crbp_d2.core.state import State, to_parts

SAMPLES = 2


class LinearCell(nn.Module):
    """`F(x, h) = x + A h` with `A` symmetric of spectral radius `rho`, so also of that norm."""

    def __init__(self, size: int = 6, rho: float = 0.6) -> None:
        super().__init__()
        basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
        eigenvalues = torch.linspace(-0.5 * rho, rho, size, dtype=torch.float64)
        self.matrix = nn.Parameter(basis @ torch.diag(eigenvalues) @ basis.T)

    def forward(self, drive: Tensor, state: Tensor) -> Tensor:
        return drive + state @ self.matrix.T


class TanhCell(nn.Module):
    """`F(x, h) = tanh(x + A h)`, a contraction for `|A| < 1`."""

    def __init__(self, size: int = 6, norm: float = 0.7) -> None:
        super().__init__()
        matrix = torch.randn(size, size, dtype=torch.float64)
        self.matrix = nn.Parameter(norm * matrix / torch.linalg.matrix_norm(matrix, 2))

    def forward(self, drive: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(drive + state @ self.matrix.T)


def vector_drive(size: int = 6) -> Tensor:
    return torch.randn(SAMPLES, size, dtype=torch.float64, requires_grad=True)


def map_drive(channels: int, space: int = 4) -> Tensor:
    drive = torch.rand(SAMPLES, channels, space, space, dtype=torch.float64)
    return drive.requires_grad_()


def hgru() -> nn.Module:
    cell = HGRUCell(channels=3, kernel_size=3, norm="IN", norm_scale=0.1, chrono_steps=2)
    return cell.double()


def mask_hgru() -> nn.Module:
    cell = MaskHGRUCell(channels=8, kernel_size=3, chrono_steps=2)
    # Open gates: a radius of 0.8 instead of 0.96, so that 200 steps converge.
    nn.init.constant_(cell.recurrent_gate.bias, 2.0)
    return cell.double()


def conv_lstm() -> nn.Module:
    cell = ConvLSTMCell(channels=2, kernel_size=3, forget_bias=0.0)
    with torch.no_grad():
        cell.from_state.weight.mul_(0.5)
    return cell.double()


def circuit(name: str) -> tuple[nn.Module, Tensor]:
    """A contractive cell and a drive for it; the seed is the caller's."""
    if name.startswith("linear"):
        return LinearCell(rho=float(name.removeprefix("linear"))), vector_drive()
    if name == "tanh":
        return TanhCell(), vector_drive()
    kinds = {"hgru": (hgru, 3), "mask_hgru": (mask_hgru, 8), "conv_lstm": (conv_lstm, 2)}
    build, channels = kinds[name]
    return build(), map_drive(channels)


CIRCUITS = ("linear0.3", "linear0.6", "linear0.9", "tanh", "hgru", "mask_hgru", "conv_lstm")


def flatten(state: State) -> Tensor:
    """All samples and parts in one vector."""
    return torch.cat([part.reshape(-1) for part in to_parts(state)])


def flatten_drive_and_weights(cell: nn.Module, drive: Tensor) -> list[Tensor]:
    return [drive, *cell.parameters()]


def fixed_point(cell: nn.Module, drive: Tensor, steps: int = 2000) -> State:
    """By plain steps, far beyond what the tolerances need."""
    state = start(cell, drive)
    with torch.no_grad():
        for _ in range(steps):
            state = cell(drive, state)
    return state


def start(cell: nn.Module, drive: Tensor) -> State:
    return cell.initial_state(drive) if hasattr(cell, "initial_state") else torch.zeros_like(drive)


def dense_jacobian(cell: nn.Module, drive: Tensor, state: State) -> Tensor:
    """`dF/dh` over all samples and parts, `(n, n)`, one row at a time."""
    leaves = tuple(part.detach().requires_grad_() for part in to_parts(state))
    following = flatten(cell(drive, leaves[0] if isinstance(state, Tensor) else leaves))
    rows = []
    for element in following:
        gradients = torch.autograd.grad(element, leaves, retain_graph=True, allow_unused=True)
        rows.append(
            flatten(
                tuple(
                    torch.zeros_like(leaf) if g is None else g
                    for leaf, g in zip(leaves, gradients, strict=True)
                )
            )
        )
    return torch.stack(rows)


def implicit_gradient(
    cell: nn.Module, drive: Tensor, state: State, incoming: Tensor
) -> list[Tensor]:
    """The exact gradient into drive and weights: a dense solve of `(I - J)^T g = g0`."""
    jacobian = dense_jacobian(cell, drive, state)
    identity = torch.eye(len(jacobian), dtype=jacobian.dtype)
    solution = torch.linalg.solve((identity - jacobian).T, incoming)
    following = flatten(cell(drive, state))
    return list(torch.autograd.grad(following, flatten_drive_and_weights(cell, drive), solution))
