"""Norms of a cell: what they compute, and by which statistics."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from crbp_d2.core import ConfigurationError, HGRUCell
from crbp_d2.core.cells.norms import build_norm
from tests.core.built import built


def by_hand(x: torch.Tensor, dims: tuple[int, ...], eps: float) -> torch.Tensor:
    variance = x.var(dim=dims, unbiased=False, keepdim=True)
    return 0.5 * (x - x.mean(dim=dims, keepdim=True)) / (variance + eps).sqrt()


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize(("kind", "dims"), [("IN", (2, 3)), ("BN", (0, 2, 3)), ("GN", (1, 2, 3))])
def test_norms_add_eps_to_the_variance(kind, dims, eps):
    torch.manual_seed(0)
    x = 0.03 * torch.randn(3, 4, 5, 6, dtype=torch.float64)
    norm = build_norm(kind, 4, scale=0.5, groups=1, eps=eps).double()
    torch.testing.assert_close(norm(x), by_hand(x, dims, eps), rtol=1e-12, atol=1e-15)


def test_the_contour_circuit_has_the_eps_in_both_of_its_norms():
    torch.manual_seed(0)
    cell = HGRUCell(channels=3, kernel_size=3, norm="BN", norm_eps=1e-3)
    assert cell.suppression_norm.eps == cell.facilitation_norm.eps == 1e-3
    assert HGRUCell(channels=3).suppression_norm.eps == 1e-5
    with pytest.raises(ConfigurationError, match="norm_eps must be above 0"):
        HGRUCell(channels=3, norm_eps=0.0)


def test_batch_statistics_are_those_of_training_in_evaluation_too():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6)
    norm, running = (build_norm(kind, 4, scale=0.1) for kind in ("BatchBN", "BN"))
    # Not by the running statistics, nor do any remain.
    assert set(norm.state_dict()) == {"weight", "bias"}
    expected = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    for mode in (True, False):
        torch.testing.assert_close(norm.train(mode)(x), expected)
        with torch.no_grad():
            torch.testing.assert_close(norm(x), expected)
    assert (running.eval()(x) - expected).abs().max() > 0.01
    assert norm.eval()(x[:0]).shape == (0, 4, 5, 6)


@pytest.mark.parametrize("algorithm", ["bptt", "crbp"])
def test_a_circuit_trains_on_batch_statistics_as_on_shared_batch_norm(algorithm):
    found = []
    for norm in ("BN", "BatchBN"):
        torch.manual_seed(0)
        cell = HGRUCell(channels=3, kernel_size=3, norm=norm).double()
        drive = torch.rand(2, 3, 5, 6, dtype=torch.float64)
        result = built(cell, algorithm, steps=4)(drive)
        loss = result.state.square().sum() + sum(result.penalties.values())
        found.append([loss.detach(), *torch.autograd.grad(loss, list(cell.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_takes_a_batch_apart_refuses_batch_statistics_in_evaluation_too():
    cell = HGRUCell(channels=3, kernel_size=3, norm="BatchBN").eval()
    with pytest.raises(ConfigurationError, match="suppression_norm"):
        built(cell, "rbp", steps=3, chunk_samples=1)
