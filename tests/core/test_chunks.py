"""Runs in chunks: the same as all at once, in the memory of one chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import bytes_saved_by
from crbp_d2.core import (
    ConfigurationError,
    HGRUCell,
    LipschitzCoefficientPenalty,
    NonFiniteError,
)
from crbp_d2.core.state import to_parts
from crbp_d2.core.wrappers.chunks import chunks_of
from tests.core.built import built
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
    result = built(cell, steps=6, **options)(drive)
    weights = torch.linspace(-1, 1, flatten(result.state).numel(), dtype=drive.dtype)
    loss = flatten(result.state) @ weights + sum(result.penalties.values())
    return result, torch.autograd.grad(loss, [drive, *cell.parameters()])


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ["mask_hgru", "hgru", "conv_lstm"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_chunks_are_the_run_at_once(name, size, dtype, digits):
    cell, drive = setting(name, dtype)
    options = {"algorithm": "crbp", "penalties": PENALTIES, "adjoint_terms": 4}
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
        {"solver_tolerance": 1e-2},
        {"adjoint_name": "anderson", "solver_name": "anderson"},
        {"adjoint_tolerance": 1e-2},
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
    recurrence = built(cell, algorithm="rbp", penalties=(penalty,), steps=3, chunk_samples=2)
    torch.manual_seed(5)
    result = recurrence(drive)
    expected = torch.random.get_rng_state()
    result.penalties["drawing"].backward()
    assert torch.equal(torch.random.get_rng_state(), expected)
    forward, backward = penalty.drawn[:3], penalty.drawn[3:]
    assert forward == backward
    assert len(set(forward)) == 3


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_random_samples_of_a_penalty_are_drawn_from_the_whole_batch(size, reduction):
    cell, drive = setting("hgru")
    counts = []

    @dataclass(frozen=True)
    class Ones(LipschitzCoefficientPenalty):
        """Of every sample 1: what comes out says how samples are weighted."""

        def __call__(self, before, after):
            counts.append(len(before[0]))
            ones = torch.ones_like(after[0][:, 0, 0, 0]) + 0 * after[0].sum(dim=(1, 2, 3))
            return ones.sum() / (max(len(ones), 1) if self.reduction == "mean" else 1)

    penalty = Ones(weight=1.0, max_samples=3, reduction=reduction)
    drives = torch.cat([drive, drive]).detach().requires_grad_()
    options = {"algorithm": "rbp", "penalties": (penalty,), "steps": 3}
    result = built(cell, chunk_samples=size, **options)(drives)
    assert sum(counts) == 3 and len(counts) == -(-10 // size)
    assert float(result.penalties["lcp"]) == pytest.approx(1 if reduction == "mean" else 10)


def test_a_penalty_on_some_samples_differs_from_that_on_all_by_chance_alone():
    cell, drive = setting("hgru")
    options = {"algorithm": "rbp", "steps": 3, "chunk_samples": 2}
    whole = built(cell, penalties=(LipschitzCoefficientPenalty(bound=0.0),), **options)
    some = LipschitzCoefficientPenalty(bound=0.0, max_samples=2)
    drawn = built(cell, penalties=(some,), **options)
    values = torch.stack([drawn(drive).penalties["lcp"].detach() for _ in range(200)])
    expected = float(whole(drive).penalties["lcp"])
    error = float(values.std()) / 200**0.5
    assert abs(float(values.mean()) - expected) < 4 * error and error > 0


class Dropping(nn.Module):
    """A cell whose every step draws random numbers, and notes them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.drawn: list[Tensor] = []

    def forward(self, drive, state):
        mask = (torch.rand_like(state) > 0.5).to(state.dtype)
        self.drawn.append(mask.detach())
        return torch.tanh(drive + self.weight * mask * state)


def test_the_last_step_of_a_random_cell_is_the_same_in_both_passes():
    cell = Dropping()
    recurrence = built(cell, algorithm="jfb", steps=4, chunk_samples=2)
    drive = torch.rand(4, 6, dtype=torch.float64)
    recurrence(drive)
    cell.drawn.clear()
    result = recurrence(drive)
    forward = list(cell.drawn)
    cell.drawn.clear()
    result.state.sum().backward()
    # Three steps of either chunk, then the last step of either.
    assert len(forward) == 8 and len(cell.drawn) == 2
    for near, exact in zip(cell.drawn, forward[6:], strict=True):
        assert torch.equal(near, exact)


@pytest.mark.parametrize("samples", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_small_batches_work(samples, training):
    cell, drive = setting("hgru")
    recurrence = built(cell, algorithm="crbp", steps=3, chunk_samples=2).train(training)
    result = recurrence(drive[:samples])
    (result.state.sum() + sum(result.penalties.values())).backward()
    assert len(result.state) == samples and torch.isfinite(drive.grad).all()


def test_evaluation_mode_between_the_passes_changes_nothing():
    cell, drive = setting("hgru")
    gradients = []
    for switch in (False, True):
        recurrence = built(cell, algorithm="crbp", steps=3, chunk_samples=2)
        result = recurrence(drive)
        recurrence.train(not switch)
        loss = result.state.sum() + result.penalties["lcp"]
        gradients.append(torch.autograd.grad(loss, drive)[0])
    assert torch.equal(*gradients)


def test_outside_training_too():
    cell, drive = setting("conv_lstm")
    whole = built(cell, algorithm="rbp", steps=4).eval()
    cut = built(cell, algorithm="rbp", steps=4, chunk_samples=2).eval()
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
        recurrence = built(cell, algorithm="crbp", steps=3, chunk_samples=chunk_samples)
        saved = []
        for count in (4, 8):
            drive = torch.rand(count, 8, 16, 16)
            recurrence(drive)
            saved.append(bytes_saved_by(lambda drive=drive: learn_nothing(recurrence, drive)))
        return (saved[1] - saved[0]) / (4 * state)

    assert growth(None) > 20
    # The drive, the state before the last step, and the last one.
    assert growth(2) <= 3

    def level(count: int, chunk_samples: int | None) -> float:
        recurrence = built(cell, algorithm="crbp", steps=3, chunk_samples=chunk_samples)
        drive = torch.rand(count, 8, 16, 16)
        recurrence(drive)
        return bytes_saved_by(lambda: learn_nothing(recurrence, drive)) / state

    # One graph at a time.
    assert level(8, 1) - level(1, None) <= 3 * 8


def learn_nothing(recurrence, drive) -> None:
    result = recurrence(drive)
    (result.state.sum() + sum(result.penalties.values())).backward()


def test_an_observed_run_sees_whole_batches():
    cell, drive = setting("hgru")
    seen = []
    recurrence = built(cell, algorithm="rbp", steps=3, chunk_samples=2).eval()
    recurrence(drive, observe=lambda step, parts: seen.append((step, len(parts[0]))))
    assert seen == [(1, SAMPLES), (2, SAMPLES), (3, SAMPLES)]


class Bursting(nn.Module):
    """`F(x, h) = x + h^4`, from 2: after some steps beyond what a double holds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, drive, state):
        return drive + self.scale * state**4


@pytest.mark.parametrize("steps", [6, 7, 9])
def test_the_step_that_overflows_is_named_as_of_the_run_at_once(steps):
    drive = torch.full((4, 3), 2.0, dtype=torch.float64)
    messages = []
    for size in (None, 4, 2):
        recurrence = built(Bursting(), algorithm="jfb", steps=steps, chunk_samples=size)
        with pytest.raises(NonFiniteError) as raised:
            recurrence(drive)
        messages.append(str(raised.value).replace("2 of 2", "4 of 4"))
    assert len(set(messages)) == 1 and f"of {steps} in 4 of 4" in messages[0]


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
        ({"algorithm": "bptt"}, r"go with Unroll.*crbp, rbp, implicit, jfb"),
        ({"algorithm": "tbptt"}, r"go with Unroll.*crbp, rbp, implicit, jfb"),
        ({"algorithm": "deq"}, r"go with TorchDEQ.*crbp, rbp, implicit, jfb"),
        ({"adjoint_norm_cap": 1.0}, "neumann without norm_cap"),
        ({"adjoint_stopping": "released"}, "stopping at sample"),
        ({"early_from": 0.5}, "early_from"),
        ({"on_nonfinite": "skip"}, "on_nonfinite"),
    ],
)
def test_what_can_not_be_cut_is_refused(options, message):
    cell, _ = setting("hgru")
    with pytest.raises(ConfigurationError, match=message) as raised:
        built(cell, **{"algorithm": "rbp", "chunk_samples": 2, **options})
    assert raised.value.option == "chunk_samples"


def test_batch_statistics_are_refused():
    cell = HGRUCell(channels=4, kernel_size=3, norm="BN")
    with pytest.raises(ConfigurationError, match=r"in parts.*suppression_norm"):
        built(cell, algorithm="rbp", steps=2, chunk_samples=2)


@pytest.mark.parametrize(("count", "size"), [(5, 2), (6, 3), (7, 7), (9, 4), (3, 1)])
def test_chunks_cover_all_samples_once_and_are_of_nearly_equal_length(count, size):
    chunks = chunks_of(count, size)
    assert [i for one in chunks for i in range(count)[one]] == list(range(count))
    lengths = [len(range(count)[one]) for one in chunks]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_parts_of_a_state_stay_together():
    cell, drive = setting("conv_lstm")
    result = built(cell, algorithm="rbp", steps=3, chunk_samples=2)(drive)
    assert len(to_parts(result.state)) == 2
    assert all(len(part) == SAMPLES for part in to_parts(result.state))


def test_mixed_precision_is_on_in_both_passes():
    cell, drive = setting("mask_hgru", torch.float32)
    enabled = []
    cell.register_forward_pre_hook(lambda *_: enabled.append(torch.is_autocast_enabled("cpu")))
    found = []
    for size in (None, 2):
        with torch.autocast("cpu", torch.bfloat16):
            result = built(cell, algorithm="rbp", steps=6, chunk_samples=size)(drive)
        found.append(torch.autograd.grad(result.state.float().sum(), drive)[0])
    assert all(enabled) and len(enabled) == 6 + 3 * 6 + 3
    torch.testing.assert_close(*found, rtol=2e-2, atol=1e-3)
