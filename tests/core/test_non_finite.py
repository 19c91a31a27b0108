"""Samples that are not finite: left out and counted once each, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crbp_d2.core import (
    ConvLSTMCell,
    HGRUCell,
    LipschitzCoefficientPenalty,
    MaskHGRUCell,
    NonFiniteError,
    RecurrenceResult,
    to_parts,
)
from tests.core.built import built
from tests.core.circuits import flatten
from tests.core.test_uses_of_autograd import CASES as ALL

CASES = {name: case for name, case in ALL.items() if "chunks" not in name and "skip" not in name}
every_case = pytest.mark.parametrize("case", list(CASES))
ELEMENTS = {"NaN": float("nan"), "infinity": float("-inf"), "too large to be squared": 1e38}
SAMPLES = 4


def setting(case: str, policy: str = "skip"):
    algorithm, options = CASES[case]
    if algorithm == "deq":
        pytest.importorskip("torchdeq", reason="the optional package torchdeq is not installed")
    torch.manual_seed(3)
    cell = MaskHGRUCell(channels=4, chrono_steps=2)
    penalties = None
    if "crbp" in algorithm or "lcp" in algorithm:
        penalties = (LipschitzCoefficientPenalty(bound=0.0, reduction="sum"),)
    recurrence = built(
        cell, algorithm, steps=6, penalties=penalties, on_nonfinite=policy, **options
    )
    return recurrence, torch.rand(SAMPLES, 4, 5, 5)


def learn(
    recurrence, drive: Tensor, factor: Tensor | None = None
) -> tuple[RecurrenceResult, list[Tensor]]:
    """The result, and the gradients into drive and weights of a sum over all states."""
    recurrence.zero_grad()
    drive = drive.detach().clone().requires_grad_()
    torch.manual_seed(5)
    result = recurrence(drive)
    loss = sum(result.penalties.values())
    for state in (result.state, *result.states, *result.early_states):
        loss = loss + (state if factor is None else state * factor).square().sum()
    loss.backward()
    return result, [drive.grad, *(p.grad for p in recurrence.parameters())]


@pytest.mark.parametrize("bad", [[1], [0, 3]])
@pytest.mark.parametrize("element", list(ELEMENTS))
@every_case
def test_a_batch_with_bad_samples_is_the_batch_without_them(case, element, bad):
    recurrence, drive = setting(case)
    good = [n for n in range(SAMPLES) if n not in bad]
    _, expected = learn(recurrence, drive[good])
    drive[bad, 2, 1, 1] = ELEMENTS[element]
    result, found = learn(recurrence, drive)
    assert result.diagnostics.skipped_samples == len(bad)
    assert result.diagnostics.scalars()["skipped_samples"] == len(bad)
    assert not result.state[bad].any() and not found[0][bad].any()
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for near, exact in zip([found[0][good], *found[1:]], expected, strict=True):
        torch.testing.assert_close(near, exact, rtol=2e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("element", list(ELEMENTS))
@every_case
def test_the_same_samples_raise_where_none_may_be_left_out(case, element):
    recurrence, drive = setting(case, "raise")
    drive[1, 2, 1, 1] = ELEMENTS[element]
    with pytest.raises(NonFiniteError, match=rf"1 of {SAMPLES} samples"):
        learn(recurrence, drive)


@every_case
def test_a_sample_counts_once_for_all_the_reasons_it_has(case):
    recurrence, drive = setting(case)
    drive[0, 0, 0, 0] = float("nan")
    factor = torch.ones(SAMPLES, 1, 1, 1)
    factor[0] = factor[3] = float("nan")
    result, found = learn(recurrence, drive, factor)
    assert result.diagnostics.skipped.tolist() == [True, False, False, True]
    assert all(gradient.isfinite().all() for gradient in found)
    assert not found[0][0].any()


@every_case
def test_a_batch_of_bad_samples_gives_zeros(case):
    recurrence, drive = setting(case)
    result, found = learn(recurrence, torch.full_like(drive, float("nan")))
    assert result.diagnostics.skipped_samples == SAMPLES
    assert not any(gradient.any() for gradient in found) and not result.state.any()
    assert not any(float(value.detach()) for value in result.penalties.values())


@pytest.mark.parametrize("case", ["bptt", "crbp, early", "jfb"])
def test_a_second_backward_pass_counts_no_sample_again(case):
    recurrence, drive = setting(case)
    factor = torch.ones(SAMPLES, 1, 1, 1)
    factor[2] = float("inf")
    result = recurrence(drive.requires_grad_())
    loss = (result.state * factor).sum() + sum(result.penalties.values())
    first, second = (torch.autograd.grad(loss, drive, retain_graph=True)[0] for _ in range(2))
    assert result.diagnostics.skipped_samples == 1
    assert torch.equal(first, second) and first.isfinite().all()


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("algorithm", ["bptt", "crbp", "tbptt", "jfb"])
def test_a_sample_is_bad_if_one_part_of_its_start_is(algorithm, part):
    torch.manual_seed(2)
    cell = ConvLSTMCell(channels=2, kernel_size=3)
    drive = torch.rand(3, 2, 4, 4)
    begin = (torch.zeros_like(drive), torch.zeros_like(drive))
    begin[part][1] = float("nan")
    result = built(cell, algorithm, steps=4, on_nonfinite="skip")(drive, begin)
    assert result.diagnostics.skipped.tolist() == [False, True, False]
    assert all(p.isfinite().all() and not p[1].any() for p in to_parts(result.state))
    with pytest.raises(NonFiniteError, match="initial state"):
        built(cell, algorithm, steps=4)(drive, begin)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["bptt", "rbp", "crbp", "jfb"])
def test_half_precision_leaves_out_the_same_samples(case, dtype):
    recurrence, drive = setting(case)
    recurrence, drive = recurrence.to(dtype), drive.to(dtype)
    drive[1, 0, 0, 0] = float("nan")
    result, found = learn(recurrence, drive)
    assert result.diagnostics.skipped.tolist() == [False, True, False, False]
    assert all(gradient.isfinite().all() for gradient in found)


@every_case
def test_outside_training_they_are_left_out_too(case):
    recurrence, drive = setting(case)
    recurrence.eval()
    with torch.no_grad():
        alone = recurrence(drive[[0, 2, 3]]).state
        drive[1, 0, 0, 0] = float("nan")
        result = recurrence(drive)
    assert result.diagnostics.skipped.tolist() == [False, True, False, False]
    torch.testing.assert_close(flatten(result.state[[0, 2, 3]]), flatten(alone))


@pytest.mark.parametrize("element", list(ELEMENTS))
@every_case
def test_a_batch_norm_spreads_no_bad_sample(case, element):
    if "tolerance" in case:
        pytest.skip("a tolerance is refused beside a batch norm")
    algorithm, options = CASES[case]
    if algorithm == "deq":
        pytest.importorskip("torchdeq", reason="the optional package torchdeq is not installed")
    torch.manual_seed(2)
    cell = HGRUCell(channels=3, kernel_size=3, norm="BN")
    recurrence = built(cell, algorithm, steps=6, on_nonfinite="skip", **options)
    drive = torch.rand(SAMPLES, 3, 5, 5)
    drive[1, 0, 0, 0] = ELEMENTS[element]
    result, found = learn(recurrence, drive)
    assert result.diagnostics.skipped.tolist() == [False, True, False, False]
    assert all(gradient.isfinite().all() for gradient in found) and not found[0][1].any()
    assert all(buffer.isfinite().all() for buffer in cell.buffers())
