"""The Neumann series as the released code ends it, in closed form and float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crbp_d2.core import ConfigurationError, Neumann
from tests.core.built import built
from tests.core.circuits import LinearCell, vector_drive
from tests.core.test_gradients import distance, estimated


class ScaledCell(nn.Module):
    """`F(x, h) = x + a h`: the adjoint of `x` is the sum of `a^k g0`."""

    def __init__(self, factor: float | list[list[float]]) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, drive: Tensor, state: Tensor) -> Tensor:
        return drive + self.factor * state


def adjoint(
    incoming: list[float], *, factor: float | list[list[float]] = 0.5, **options
) -> list[float]:
    """What arrives at the drive, a number for each sample."""
    drive = torch.zeros(len(incoming), 1, dtype=torch.float64, requires_grad=True)
    options = {"terms": 100, "tolerance": 0.0, "norm_cap": 1.0, **options}
    recurrence = built(
        ScaledCell(factor), "rbp", steps=2, **{f"adjoint_{k}": v for k, v in options.items()}
    )
    state = recurrence(drive).state
    found = torch.autograd.grad(state, drive, torch.tensor(incoming, dtype=torch.float64)[:, None])
    return found[0].flatten().tolist()


@pytest.mark.parametrize(("incoming", "released", "late"), [(0.8, 0.8, 1.2), (0.6, 0.9, 1.05)])
def test_the_released_cap_rejects_the_term_that_exceeds_it(incoming, released, late):
    assert adjoint([incoming], stopping="released") == pytest.approx([released], rel=1e-15)
    assert adjoint([incoming]) == pytest.approx([late], rel=1e-15)


def test_the_released_series_is_one_for_all_samples():
    # Alone each has a sum below 1; together the first term takes the norm from .85 to 1.27.
    assert adjoint([0.6], stopping="released") == pytest.approx([0.9])
    assert adjoint([0.6, 0.6], stopping="released") == [0.6, 0.6]
    # The first sample ends the series of the second, whose own sum would be .2.
    assert adjoint([0.8, 0.1], stopping="released") == [0.8, 0.1]
    assert adjoint([0.8, 0.1], norm_cap=None) == pytest.approx([1.6, 0.2])


def test_the_released_series_ends_before_a_term_below_an_absolute_size():
    found = adjoint([3e-9, 0.0], stopping="released")
    assert found == pytest.approx([3e-9 + 1.5e-9, 0], rel=1e-12)
    # Four samples have a term of twice the size.
    found = adjoint([3e-9] * 4, stopping="released")
    assert found == pytest.approx([3e-9 + 1.5e-9 + 0.75e-9] * 4, rel=1e-12)


def test_the_released_series_ends_before_a_term_that_is_larger_over_the_batch():
    assert adjoint([0.1], factor=1.5, stopping="released") == [0.1]
    assert adjoint([0.1], factor=1.5, stopping="released", norm_cap=None) == [0.1]
    # The terms of the first sample grow, those of both together do at the third.
    factors = [[1.5], [0.1]]
    found = adjoint([0.01, 0.3], factor=factors, stopping="released")
    assert found == pytest.approx([0.01 + 0.015 + 0.0225, 0.3 + 0.03 + 0.003])
    assert adjoint([0.01, 0.3], factor=factors, norm_cap=None) == pytest.approx([0.01, 1 / 3])


def test_without_a_cap_the_released_series_is_the_same_series():
    torch.manual_seed(2)
    cell, drive = LinearCell(rho=0.6), vector_drive()
    incoming = torch.randn(drive.numel(), dtype=torch.float64)
    options = {"steps": 50, "adjoint_terms": 12, "adjoint_tolerance": 0.0}
    usual = estimated(cell, drive, incoming, "rbp", **options)
    released = estimated(cell, drive, incoming, "rbp", adjoint_stopping="released", **options)
    assert distance(released, usual) < 1e-14


def test_the_report_tells_how_the_released_series_ended():
    drive = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    for size, terms in ((0.6, 0), (0.4, 2), (0.0, 0)):
        recurrence = built(
            *(ScaledCell(0.5), "rbp"), steps=2, adjoint_norm_cap=1.0, adjoint_stopping="released"
        )
        result = recurrence(drive)
        (size * result.state.sum()).backward()
        report = result.diagnostics.adjoint
        assert report.terms.tolist() == [terms, terms] and not report.diverged.any()
        assert report.contraction_ratio.tolist() == pytest.approx(
            [0.5 if size else float("nan")] * 2, nan_ok=True
        )


def test_what_is_no_way_to_stop_is_refused():
    with pytest.raises(ConfigurationError, match="stopping is 'batch'; choose from released, samp"):
        Neumann(stopping="batch")
    assert Neumann().separable and not Neumann(stopping="released").separable
