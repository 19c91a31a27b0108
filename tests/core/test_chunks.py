"""Runs in chunks: the same as all at once, in the memory of one chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from crbp_d2.analysis.memory import bytes_saved_by
from crbp_d2.core import (
    ConfigurationError,
    HGRUCell,
    JacobianFrobeniusPenalty,
    LipschitzCoefficientPenalty,
    NonFiniteError,
    Recurrence,
)
from crbp_d2.core.chunks import chunks_of
from crbp_d2.core.state import to_parts
from tests.core.circuits import circuit, flatten

SAMPLES = 5
PENALTIES = (
    LipschitzCoefficientPenalty(weight=10.0, bound=0.0),
    LipschitzCoefficientPenalty(weight=0.1, bound=0.0, reduction="sum", name="summed"),
)


def setting(name: str, dtype: torch.dtype = torch.float64):
    """A contractive cell and a drive of five samples."""
    torch.manual_seed(3)
    cell, drive = circuit(name)
    several = torch.cat([drive.detach() * factor for factor in (1.0, 0.7, 0.2)])[:SAMPLES]
    return cell.to(dtype), several.to(dtype).requires_grad_()


def learn(cell: nn.Module, drive, **options):
    """Result, and gradients into drive and weights, of a loss with penalties."""
    result = Recurrence(cell, steps=6, **options)(drive)
    weights = torch.linspace(-1, 1, flatten(result.state).numel(), dtype=drive.dtype)
    loss = flatten(result.state) @ weights + sum(result.penalties.values())
    return result, torch.autograd.grad(loss, [drive, *cell.parameters()])


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ["mask_hgru", "hgru", "conv_lstm"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_chunks_are_the_run_at_once(name, size, dtype, digits):
    cell, drive = setting(name, dtype)
    options = {"algorithm": "crbp", "penalties": PENALTIES, "neumann_terms": 4}
    whole, expected = learn(cell, drive, **options)
    cut, found = learn(cell, drive, chunk_samples=size, **options)
    torch.testing.assert_close(flatten(cut.state), flatten(whole.state), rtol=digits, atol=digits)
    assert list(cut.penalties) == ["lcp", "summed"]
    for name in cut.penalties:
        assert float(whole.penalties[name]) > 0
        torch.testing.assert_close(cut.penalties[name], whole.penalties[name], rtol=digits, atol=0)
        torch.testing.assert_close(
            cut.diagnostics.penalties[name], whole.diagnostics.penalties[name], rtol=digits, atol=0
        )
    for near, exact in zip(found, expected, strict=True):
        assert (near - exact).norm() <= digits * exact.norm()


@pytest.mark.parametrize("algorithm", ["rbp", "jfb", "jfb+lcp", "implicit"])
def test_every_algorithm_that_records_the_last_step_alone_can_be_cut(algorithm):
    cell, drive = setting("hgru")
    whole, expected = learn(cell, drive, algorithm=algorithm)
    cut, found = learn(cell, drive, algorithm=algorithm, chunk_samples=2)
    assert torch.equal(flatten(cut.state), flatten(whole.state))
    for near, exact in zip(found, expected, strict=True):
        assert (near - exact).norm() <= 1e-9 * exact.norm()


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance": 1e-2},
        {"acceleration": "anderson", "forward_acceleration": "anderson"},
        {"compile_steps": False, "neumann_tolerance": 1e-2},
    ],
)
def test_what_changes_the_solve_goes_with_chunks(options):
    cell, drive = setting("mask_hgru")
    whole, expected = learn(cell, drive, algorithm="rbp", **options)
    cut, found = learn(cell, drive, algorithm="rbp", chunk_samples=2, **options)
    assert torch.equal(cut.diagnostics.steps, whole.diagnostics.steps)
    for near, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(near, exact, rtol=1e-9, atol=1e-12)


def test_diagnostics_are_of_all_samples():
    cell, drive = setting("mask_hgru")
    whole, _ = learn(cell, drive, algorithm="crbp")
    cut, _ = learn(cell, drive, algorithm="crbp", chunk_samples=2)
    assert cut.diagnostics.scalars().keys() == whole.diagnostics.scalars().keys()
    for name, value in whole.diagnostics.scalars().items():
        assert cut.diagnostics.scalars()[name] == pytest.approx(value, rel=1e-9)
    assert cut.diagnostics.adjoint.terms.shape == (SAMPLES,)


@dataclass(frozen=True)
class Drawing:
    """A penalty that notes the random numbers it drew."""

    weight: float = 1.0
    max_samples: int | None = None
    reduction: str = "mean"
    name: str = "drawing"
    drawn: list[float] = field(default_factory=list)

    def __call__(self, before, after):
        number = torch.rand(())
        self.drawn.append(float(number))
        return torch.stack([part.square().mean() for part in after]).mean() * number


def test_the_backward_pass_draws_the_numbers_of_the_forward_pass_and_disturbs_no_others():
    cell, drive = setting("hgru")
    penalty = Drawing()
    recurrence = Recurrence(cell, algorithm="rbp", penalties=(penalty,), steps=3, chunk_samples=2)
    torch.manual_seed(5)
    result = recurrence(drive)
    expected = torch.random.get_rng_state()
    result.penalties["drawing"].backward()
    assert torch.equal(torch.random.get_rng_state(), expected)
    forward, backward = penalty.drawn[:3], penalty.drawn[3:]
    assert forward == backward
    assert len(set(forward)) == 3


def test_random_samples_of_a_penalty_are_shared_out_among_the_chunks():
    cell, drive = setting("hgru")
    counts = []

    @dataclass(frozen=True)
    class Counting(JacobianFrobeniusPenalty):
        def __call__(self, before, after):
            counts.append(len(before[0]))
            return super().__call__(before, after)

    penalty = Counting(max_samples=3)
    drives = torch.cat([drive, drive]).detach().requires_grad_()
    Recurrence(cell, algorithm="rbp", penalties=(penalty,), steps=3, chunk_samples=4)(drives)
    # Ten samples in chunks of 3, 3 and 4.
    assert counts == [1, 1, 1]


def test_outside_training_too():
    cell, drive = setting("conv_lstm")
    whole = Recurrence(cell, algorithm="rbp", steps=4).eval()
    cut = Recurrence(cell, algorithm="rbp", steps=4, chunk_samples=2).eval()
    with torch.no_grad():
        assert torch.equal(flatten(cut(drive).state), flatten(whole(drive).state))
    (gradient,) = torch.autograd.grad(flatten(cut(drive).state).sum(), drive)
    (expected,) = torch.autograd.grad(flatten(whole(drive).state).sum(), drive)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert not cut(drive).penalties


def test_memory_does_not_grow_with_the_number_of_samples_but_for_drive_and_state():
    torch.manual_seed(0)
    cell = HGRUCell(channels=8, kernel_size=3, norm="IN")
    state = 4 * 8 * 16 * 16

    def growth(chunk_samples: int | None) -> float:
        recurrence = Recurrence(cell, algorithm="crbp", steps=3, chunk_samples=chunk_samples)
        saved = []
        for count in (4, 8):
            drive = torch.rand(count, 8, 16, 16)
            recurrence(drive)
            saved.append(bytes_saved_by(lambda drive=drive: learn_nothing(recurrence, drive)))
        return (saved[1] - saved[0]) / (4 * state)

    assert growth(None) > 20
    assert growth(2) <= 2


def learn_nothing(recurrence, drive) -> None:
    result = recurrence(drive)
    (result.state.sum() + sum(result.penalties.values())).backward()


def test_an_observed_run_sees_whole_batches():
    cell, drive = setting("hgru")
    seen = []
    recurrence = Recurrence(cell, algorithm="rbp", steps=3, chunk_samples=2).eval()
    recurrence(drive, observe=lambda step, parts: seen.append((step, len(parts[0]))))
    assert seen == [(1, SAMPLES), (2, SAMPLES), (3, SAMPLES)]


def test_an_infinite_state_is_named_by_its_step():
    cell, drive = setting("hgru")
    with torch.no_grad():
        drive[3, 0, 0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="after step 1 of 6"):
        learn(cell, drive, algorithm="rbp", chunk_samples=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_samples": 0}, "at least 1"),
        ({"algorithm": "bptt"}, "crbp, rbp, jfb or implicit"),
        ({"algorithm": "tbptt"}, "crbp, rbp, jfb or implicit"),
        ({"early_from": 0.5}, "early_from"),
        ({"on_nonfinite": "skip"}, "on_nonfinite"),
    ],
)
def test_what_can_not_be_cut_is_refused(options, message):
    cell, _ = setting("hgru")
    with pytest.raises(ConfigurationError, match=message) as raised:
        Recurrence(cell, **{"algorithm": "rbp", "chunk_samples": 2, **options})
    assert raised.value.option == "chunk_samples"


def test_batch_statistics_are_refused():
    cell = HGRUCell(channels=4, kernel_size=3, norm="BN")
    recurrence = Recurrence(cell, algorithm="rbp", steps=2, chunk_samples=2)
    with pytest.raises(ConfigurationError, match=r"in parts.*suppression_norm"):
        recurrence(torch.rand(3, 4, 6, 6))


@pytest.mark.parametrize(("count", "size"), [(5, 2), (6, 3), (7, 7), (9, 4), (3, 1)])
def test_chunks_cover_all_samples_once_and_are_of_nearly_equal_length(count, size):
    chunks = chunks_of(count, size)
    assert [i for one in chunks for i in range(count)[one]] == list(range(count))
    lengths = [len(range(count)[one]) for one in chunks]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_parts_of_a_state_stay_together():
    cell, drive = setting("conv_lstm")
    result = Recurrence(cell, algorithm="rbp", steps=3, chunk_samples=2)(drive)
    assert len(to_parts(result.state)) == 2
    assert all(len(part) == SAMPLES for part in to_parts(result.state))


def test_mixed_precision_is_the_same_in_both_passes():
    cell, drive = setting("mask_hgru", torch.float32)
    found = []
    for size in (None, 2):
        with torch.autocast("cpu", torch.bfloat16):
            result = Recurrence(cell, algorithm="rbp", steps=6, chunk_samples=size)(drive)
        found.append(torch.autograd.grad(result.state.float().sum(), drive)[0])
    torch.testing.assert_close(*found, rtol=2e-2, atol=1e-3)
