"""Cells that end with a norm of drive and state: their equations, and that they settle."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crbp_d2.core import (
    CELLS,
    ConfigurationError,
    HGRUCell,
    MaskHGRUCell,
    ResidualCell,
    build_recurrence,
    spectral_radius,
)

PUBLISHED = {
    "hgru": {"kernel_size": 5, "norm": "IN"},
    "mask_hgru": {"norm_scale": 1.0},
}


def pair(name: str, **options: object) -> tuple[nn.Module, nn.Module]:
    """A cell by the published equations, and one with the norm and the same weights."""
    torch.manual_seed(0)
    published = CELLS[name](channels=12, **PUBLISHED[name]).double()
    settling = CELLS[name](channels=12, **PUBLISHED[name], **{"state_norm": 4, **options}).double()
    missing, unexpected = settling.load_state_dict(published.state_dict(), strict=False)
    assert sorted(missing) == ["last_norm.bias", "last_norm.weight"] and not unexpected
    return published, settling


def inputs(seed: int = 1, samples: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shape = (2, samples, 12, 7, 9)
    drive, state = torch.rand(shape, generator=random, dtype=torch.float64)
    return drive, state


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_norm_is_of_drive_and_new_state(name):
    published, settling = pair(name, state_norm_scale=0.75)
    with torch.no_grad():
        settling.last_norm.bias.uniform_(-1, 1)
    drive, state = inputs()
    total = (drive + published(drive, state)).reshape(3, 4, -1)
    spread = (total.var(dim=-1, unbiased=False, keepdim=True) + settling.last_norm.eps).sqrt()
    normal = ((total - total.mean(dim=-1, keepdim=True)) / spread).reshape(drive.shape)
    expected = 0.75 * normal + settling.last_norm.bias.reshape(-1, 1, 1)
    torch.testing.assert_close(settling(drive, state), expected, rtol=1e-12, atol=1e-12)


def test_without_it_the_cells_are_the_published_ones():
    for cell in (HGRUCell(channels=4, kernel_size=3), MaskHGRUCell(channels=4)):
        assert cell.last_norm is None
        assert not [key for key in cell.state_dict() if key.startswith("last_norm")]


def test_a_rectified_state_is_rectified_last():
    _, settling = pair("hgru")
    rectified = HGRUCell(channels=12, kernel_size=5, norm="IN", state_norm=4, rectify_state=True)
    rectified.double().load_state_dict(settling.state_dict())
    drive, state = inputs()
    torch.testing.assert_close(rectified(drive, state), F.softplus(settling(drive, state)))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_unit_whose_gate_is_shut_stays_in_the_published_circuit_and_fades_in_this_one(name):
    published, settling = pair(name)
    for cell in (published, settling):
        with torch.no_grad():
            cell.recurrent_gate.bias.fill_(-50)
    drive, state = inputs()
    torch.testing.assert_close(published(drive, state), state)
    radius = spectral_radius(published, drive, state)
    torch.testing.assert_close(radius, torch.ones_like(radius))
    # H' = norm(Z + H): what is not along the mean or the sum itself comes back smaller by the
    # spread of the sum, once that is what it was normalised to.
    result = build_recurrence("rbp", settling, steps=60)(drive)
    assert (result.diagnostics.residual < 1e-8).all()
    total = (drive + result.state).detach().reshape(3, 4, -1)
    slowest = 1 / total.std(dim=-1, unbiased=False).amin(dim=-1)
    radius = spectral_radius(settling, drive, result.state.detach(), iterations=200)
    assert (radius <= slowest * (1 + 1e-6)).all() and (radius > 0.9 * slowest).all()
    assert (slowest < 0.95).all()


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {"state_norm": 4}) for name in PUBLISHED), ("residual", {})]
)
def test_an_untrained_circuit_comes_to_the_same_rest_from_everywhere(name, options):
    torch.manual_seed(3)
    cell = CELLS[name](channels=12, **PUBLISHED.get(name, {}), **options).double()
    drive, start = inputs()
    recurrence = build_recurrence("rbp", cell, steps=80)
    usual = recurrence(drive)
    other = recurrence(drive, 3 * start)
    assert (usual.diagnostics.residual < 1e-6).all()
    torch.testing.assert_close(usual.state, other.state, rtol=1e-4, atol=1e-4)
    assert (spectral_radius(cell, drive, usual.state.detach()) < 0.9).all()


def test_the_residual_block_is_that_of_its_equations():
    torch.manual_seed(0)
    cell = ResidualCell(channels=8, kernel_size=3, groups=2, norm_scale=0.5).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    drive, state = torch.rand(2, 2, 8, 5, 6, dtype=torch.float64)

    def kernel(convolution: nn.Module) -> torch.Tensor:
        weight = convolution.parametrizations.weight
        length, direction = weight.original0, weight.original1
        return length * direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)

    def norm(x: torch.Tensor, layer: nn.GroupNorm) -> torch.Tensor:
        parts = x.reshape(2, 2, -1)
        variance = parts.var(dim=-1, unbiased=False, keepdim=True)
        flat = (parts - parts.mean(dim=-1, keepdim=True)) / (variance + layer.eps).sqrt()
        return flat.reshape(x.shape) * layer.weight[:, None, None] + layer.bias[:, None, None]

    inner = norm(F.conv2d(state, kernel(cell.inner), padding=1), cell.inner_norm).clamp(min=0)
    refined = drive + F.conv2d(inner, kernel(cell.outer), padding=1)
    sum_ = (norm(refined, cell.outer_norm) + state).clamp(min=0)
    torch.testing.assert_close(cell(drive, state), norm(sum_, cell.last_norm))


def test_parameters_of_the_residual_block():
    cell = ResidualCell(channels=64)
    # Two kernels, a length for each of their filters, and three norms.
    assert sum(p.numel() for p in cell.parameters()) == 2 * (64 * 64 * 9 + 64) + 3 * 2 * 64
    assert cell.last_norm.num_groups == 4
    assert ResidualCell(channels=6).last_norm.num_groups == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mask_hgru", {"state_norm": -1}, "state_norm must be an integer of at least 0"),
        ("hgru", {"state_norm": 2.5}, "state_norm must be an integer of at least 0"),
        ("hgru", {"state_norm": 4, "state_norm_scale": "much"}, "state_norm_scale"),
        ("residual", {"groups": 0}, "groups must be an integer of at least 1"),
        ("residual", {"kernel_size": 2}, "odd"),
    ],
)
def test_impossible_norms_are_refused(name, options, message):
    with pytest.raises(ConfigurationError, match=message):
        CELLS[name](channels=8, **options)
