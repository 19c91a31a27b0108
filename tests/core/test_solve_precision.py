"""bfloat16 inside the solve: near full precision where it applies, and nothing elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crbp_d2.core import ConfigurationError, HGRUCell, LipschitzCoefficientPenalty
from crbp_d2.core.state import to_parts
from tests.core.built import built
from tests.core.circuits import LinearCell, circuit, flatten, flatten_drive_and_weights
from tests.core.test_gradients import distance, incoming_for

LOWERED = {"solver_precision": "bf16", "adjoint_precision": "bf16"}
STEPS = 12
CONTRACTING = ("mask_hgru", "hgru", "conv_lstm")


def single(name: str) -> tuple[nn.Module, Tensor]:
    """A cell that contracts, and its drive, in float32."""
    torch.manual_seed(7)
    cell, drive = circuit(name)
    return cell.float(), drive.detach().float().requires_grad_()


def run(cell, drive, incoming: Tensor, algorithm: str = "rbp", **options):
    """The state, the gradients of `incoming . state`, and the result."""
    result = built(cell, algorithm=algorithm, steps=STEPS, **options)(drive)
    state = flatten(result.state)
    gradients = torch.autograd.grad(state @ incoming, flatten_drive_and_weights(cell, drive))
    return state.detach(), list(gradients), result


class Watched(nn.Module):
    """Notes for every call whether it was lowered, and whether it was recorded."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell
        self.calls: list[tuple[bool, bool]] = []

    def forward(self, drive, state):
        self.calls.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return self.cell(drive, state)


class Failing(nn.Module):
    """Its state is no number for the samples whose drive is `BAD`."""

    BAD = 17.0

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, drive, state):
        bad = (drive == self.BAD).flatten(1).all(1).view(-1, 1, 1, 1)
        return self.cell(drive, state).masked_fill(bad, float("nan"))


@pytest.mark.parametrize("name", CONTRACTING)
def test_gradient_and_state_are_those_of_full_precision_but_for_a_hundredth(name):
    cell, drive = single(name)
    incoming = incoming_for(cell, drive)
    state, gradients, _ = run(cell, drive, incoming)
    lowered, near, result = run(cell, drive, incoming, **LOWERED)
    assert 0 < distance(near, gradients) < 1e-2
    # The last three steps contract what bfloat16 (2^-9) leaves.
    assert 0 < (lowered - state).norm() / state.norm() < 3e-3
    assert all(part.dtype == torch.float32 for part in to_parts(result.state))


@pytest.mark.parametrize("name", CONTRACTING)
@pytest.mark.parametrize("algorithm", ["crbp", "tbptt", "phantom", "jfb", "bptt"])
def test_full_precision_is_the_plain_path_to_the_bit(name, algorithm):
    cell, drive = single(name)
    incoming = incoming_for(cell, drive)
    _, plain, _ = run(cell, drive, incoming, algorithm)
    _, full, _ = run(cell, drive, incoming, algorithm, solver_precision="full")
    assert all(torch.equal(a, b) for a, b in zip(plain, full, strict=True))


@pytest.mark.parametrize("anderson", [False, True])
def test_all_steps_but_three_and_the_series_are_lowered(anderson):
    cell, drive = single("mask_hgru")
    watched = Watched(cell)
    options = {"adjoint_name": "anderson", "solver_name": "anderson"} if anderson else {}
    recurrence = built(
        watched, algorithm="crbp", steps=STEPS, adjoint_terms=4, **LOWERED, **options
    )
    result = recurrence(drive)
    polished = [(True, False)] * (STEPS - 3) + [(False, False)] * 2
    assert watched.calls == [*polished, (False, True)]
    (result.state.sum() + sum(result.penalties.values())).backward()
    # The step is recorded once more for the series, whatever the number of its terms.
    assert watched.calls[STEPS:] == [(True, True)]
    assert result.diagnostics.steps.tolist() == [STEPS] * len(drive)
    assert result.diagnostics.scalars()["neumann_terms"] == 4
    watched.calls.clear()
    with torch.no_grad():
        state = recurrence.eval()(drive).state
    assert watched.calls == [*polished, (False, False)]
    assert torch.allclose(state, result.state, rtol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "options", "recorded"),
    [("jfb", {}, 1), ("tbptt", {"adjoint_length": 5}, 5), ("phantom", {"adjoint_length": 2}, 2)],
)
def test_other_algorithms_lower_their_unrecorded_steps(algorithm, options, recorded):
    cell, drive = single("mask_hgru")
    watched = Watched(cell)
    result = built(watched, algorithm=algorithm, steps=STEPS, solver_precision="bf16", **options)(
        drive
    )
    result.state.sum().backward()
    lowered = STEPS - recorded - 2
    assert [low for low, _ in watched.calls] == [True] * lowered + [False] * (STEPS - lowered)
    assert sum(grad for _, grad in watched.calls) == recorded


def test_penalties_are_those_of_full_precision_at_the_same_state():
    cell, drive = single("mask_hgru")
    penalties = (LipschitzCoefficientPenalty(weight=1.0, bound=0.0),)
    seen: dict[int, Tensor] = {}
    lowered = built(cell, steps=STEPS, penalties=penalties, **LOWERED)(
        drive, observe=lambda t, parts: seen.update({t: parts[0]})
    )
    full = built(cell, steps=1, penalties=penalties)(drive, seen[STEPS - 1])
    assert lowered.penalties["lcp"] > 0
    assert torch.equal(lowered.penalties["lcp"], full.penalties["lcp"])
    weights = list(cell.parameters())
    found, expected = (
        torch.autograd.grad(result.penalties["lcp"], weights, allow_unused=True)
        for result in (lowered, full)
    )
    assert all(a is b or torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_observers_see_every_step_and_are_not_lowered():
    cell, drive = single("mask_hgru")
    seen: list[tuple[int, bool, torch.dtype]] = []

    def observe(step, parts):
        seen.append((step, torch.is_autocast_enabled("cpu"), parts[0].dtype))

    with torch.no_grad():
        built(cell, algorithm="rbp", steps=STEPS, **LOWERED)(drive, observe=observe)
    assert seen == [(step, False, torch.float32) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_up_to_three_steps_have_full_precision(steps):
    cell, drive = single("mask_hgru")
    plain = built(cell, algorithm="rbp", steps=steps)(drive)
    lowered = built(cell, algorithm="rbp", steps=steps, **LOWERED)(drive)
    assert torch.equal(lowered.state, plain.state)
    lowered.state.sum().backward()


def test_double_precision_is_left_alone():
    torch.manual_seed(7)
    cell, drive = circuit("mask_hgru")
    incoming = incoming_for(cell, drive)
    watched = Watched(cell)
    _, plain, _ = run(watched, drive, incoming)
    _, lowered, _ = run(watched, drive, incoming, **LOWERED)
    assert all(torch.equal(a, b) for a, b in zip(plain, lowered, strict=True))
    assert not any(low for low, _ in watched.calls)


def test_within_autocast_nothing_changes():
    cell, drive = single("mask_hgru")
    incoming = incoming_for(cell, drive)
    # Of the other half precision: lowering to bfloat16 would show.
    with torch.autocast("cpu", dtype=torch.float16):
        _, plain, _ = run(cell, drive, incoming)
        _, lowered, _ = run(cell, drive, incoming, **LOWERED)
    assert all(torch.equal(a, b) for a, b in zip(plain, lowered, strict=True))


def test_a_run_repeated_without_a_bad_sample_is_lowered_as_well():
    cell, drive = single("mask_hgru")
    watched = Watched(Failing(cell))
    bad = drive.detach().clone()
    # Finite itself, or there were nothing to repeat.
    bad[1] = Failing.BAD
    recurrence = built(watched, algorithm="rbp", steps=STEPS, on_nonfinite="skip", **LOWERED)
    state = recurrence(bad).state
    assert watched.calls[:STEPS] == watched.calls[STEPS:]
    assert sum(low for low, _ in watched.calls) == 2 * (STEPS - 3)
    assert torch.allclose(state[0], recurrence(drive[:1]).state[0], rtol=1e-2)


def test_a_tolerance_stops_lowered_steps_too():
    cell, drive = single("mask_hgru")
    options = {"algorithm": "rbp", "steps": 200, "solver_tolerance": 2e-2}
    plain = built(cell, **options)(drive)
    lowered = built(cell, **options, **LOWERED)(drive)
    # Settled samples still take the two steps in full precision, or the first of them.
    assert (lowered.diagnostics.steps - plain.diagnostics.steps).abs().max() <= 2
    assert (lowered.diagnostics.residual < 2e-2).all()


def test_batch_norm_statistics_follow_the_recorded_step_once():
    torch.manual_seed(0)
    cell = HGRUCell(channels=4, kernel_size=3, norm="BN")
    result = built(cell, algorithm="rbp", steps=5, **LOWERED)(torch.rand(3, 4, 6, 6))
    result.state.sum().backward()
    assert int(cell.suppression_norm.num_batches_tracked) == 1


@pytest.mark.parametrize(
    ("algorithm", "precision", "message"),
    [
        ("rbp", "half", "precision is 'half'; choose from bf16, full"),
        ("bptt", "bf16", "gradients go through all steps"),
        ("deq", "bf16", "the solver 'torchdeq' has no option 'precision'"),
    ],
)
def test_what_can_not_be_lowered_is_refused(algorithm, precision, message):
    if algorithm == "deq":
        pytest.importorskip("torchdeq", reason="the optional package torchdeq is not installed")
    with pytest.raises(ConfigurationError, match=message):
        built(LinearCell(), algorithm=algorithm, solver_precision=precision)
