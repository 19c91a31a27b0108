"""Steps, early stopping, observation and diagnostics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crbp_d2.core import (
    ALGORITHMS,
    ConfigurationError,
    HGRUCell,
    LipschitzCoefficientPenalty,
)
from crbp_d2.core.cells.norms import StateBatchNorm2d
from tests.core.built import built
from tests.core.circuits import (
    CIRCUITS,
    LinearCell,
    TanhCell,
    circuit,
    flatten,
    start,
    vector_drive,
)

STEPS = 12


class CountingCell(LinearCell):
    """Counts the samples it is run on."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.samples = 0

    def forward(self, drive, state):
        self.samples += len(drive)
        return super().forward(drive, state)


@pytest.mark.parametrize("name", CIRCUITS)
def test_every_estimator_runs_the_same_steps_forward(name):
    torch.manual_seed(0)
    cell, drive = circuit(name)
    state = start(cell, drive)
    with torch.no_grad():
        for _ in range(STEPS):
            state = cell(drive, state)
    for algorithm in set(ALGORITHMS) - {"deq", "phantom"}:
        recurrence = built(cell, algorithm=algorithm, steps=STEPS)
        assert torch.equal(flatten(recurrence(drive).state), flatten(state)), algorithm
        recurrence.eval()
        with torch.no_grad():
            assert torch.equal(flatten(recurrence(drive).state), flatten(state)), algorithm


def test_steps_in_training_and_testing_differ_freely():
    torch.manual_seed(0)
    cell, drive = LinearCell(), vector_drive()
    recurrence = built(cell, algorithm="rbp", steps=3, test_steps=7)
    assert float(recurrence(drive).diagnostics.steps[0]) == 3
    assert float(recurrence(drive, steps=5).diagnostics.steps[0]) == 5
    recurrence.eval()
    assert float(recurrence(drive).diagnostics.steps[0]) == 7


@pytest.mark.parametrize("algorithm", ["crbp", "bptt", "tbptt", "phantom"])
def test_steps_are_drawn_in_training_only(algorithm):
    torch.manual_seed(0)
    cell, drive = TanhCell(), vector_drive()
    recurrence = built(cell, algorithm=algorithm, steps=6, spread=1)
    taken = [recurrence(drive).diagnostics.steps for _ in range(60)]
    assert all(bool((one == one[0]).all()) for one in taken)
    assert {int(one[0]) for one in taken} == {5, 6, 7}
    assert recurrence(drive, steps=5).diagnostics.steps.tolist() == [5, 5]
    assert recurrence.eval()(drive).diagnostics.steps.tolist() == [6, 6]
    with pytest.raises(ConfigurationError, match="spread must be an integer of at least 0"):
        built(cell, algorithm=algorithm, steps=6, spread=-1)
    with pytest.raises(ConfigurationError, match="spread must be below steps"):
        built(cell, algorithm=algorithm, steps=6, spread=6)


def test_a_spread_that_leaves_too_few_steps_is_refused():
    with pytest.raises(ConfigurationError, match="only 2 steps"):
        built(LinearCell(), algorithm="tbptt", steps=4, spread=2, adjoint_length=3)


@pytest.mark.parametrize("training", [True, False])
def test_settled_samples_leave_the_batch(training):
    torch.manual_seed(0)
    cell = CountingCell(rho=0.9)
    drive = torch.randn(4, 6, dtype=torch.float64) * torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    near = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - cell.matrix.detach(), drive[2])
    begin = torch.zeros_like(drive)
    begin[2] = near
    recurrence = built(
        cell, algorithm="rbp", steps=200, solver_tolerance=1e-6, solver_test_tolerance=1e-6
    ).train(training)
    seen = []
    with torch.set_grad_enabled(training):
        result = recurrence(drive, begin, observe=lambda t, parts: seen.append(parts[0].clone()))
    steps = result.diagnostics.steps
    assert float(steps[1]) <= 2 and float(steps[2]) <= 2
    assert 50 < float(steps[0]) < 200
    assert float(result.diagnostics.residual.max()) < 1e-6
    # One evaluation of every sample at the end, all else by the samples still moving.
    assert cell.samples - len(drive) <= float(steps.sum())
    fixed = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - cell.matrix.detach(), drive.T).T
    assert torch.allclose(result.state, fixed, atol=1e-4)
    assert torch.equal(seen[-1][0], result.state.detach()[0])


def test_observed_states_are_those_of_each_step():
    torch.manual_seed(0)
    cell, drive = circuit("conv_lstm")
    expected, state = [], start(cell, drive)
    with torch.no_grad():
        for _ in range(5):
            state = cell(drive, state)
            expected.append(flatten(state))
    for algorithm in ("bptt", "tbptt", "rbp"):
        seen = []
        built(cell, algorithm=algorithm, steps=5)(
            drive, observe=lambda t, parts, seen=seen: seen.append((t, flatten(parts)))
        )
        assert [t for t, _ in seen] == [1, 2, 3, 4, 5]
        assert all(torch.equal(s, e) for (_, s), e in zip(seen, expected, strict=True))
        assert not any(s.requires_grad for _, s in seen)


def test_diagnostics_of_a_linear_map_are_known():
    torch.manual_seed(0)
    cell, drive = LinearCell(rho=0.6), vector_drive()
    recurrence = built(cell, algorithm="crbp", steps=60, adjoint_terms=25, adjoint_tolerance=0.0)
    result = recurrence(drive)
    assert result.diagnostics.adjoint.terms is None
    (result.state.square().sum() + sum(result.penalties.values())).backward()
    scalars = result.diagnostics.scalars()
    assert scalars["steps"] == 60
    assert scalars["neumann_terms"] == 25
    assert scalars["diverged"] == 0
    assert scalars["contraction_ratio"] == pytest.approx(0.6, rel=1e-2)
    assert scalars["residual"] < 1e-12
    columns = cell.matrix.detach().sum(dim=0)
    assert scalars["lcp"] == pytest.approx(float((columns - 0.9).clamp(min=0).square().mean()))


def test_a_diverging_series_stops_and_is_counted():
    torch.manual_seed(0)
    cell, drive = LinearCell(rho=0.6), vector_drive()
    with torch.no_grad():
        cell.matrix.copy_(1.3 * torch.eye(6, dtype=torch.float64))
    result = built(cell, algorithm="rbp", steps=3)(drive)
    result.state.sum().backward()
    assert result.diagnostics.adjoint.diverged.all()
    assert not result.diagnostics.adjoint.terms.any()
    assert result.diagnostics.scalars()["contraction_ratio"] == pytest.approx(1.3)


def test_the_series_of_a_sample_does_not_depend_on_its_companions():
    torch.manual_seed(0)
    cell, drive = circuit("tanh")
    recurrence = built(cell, algorithm="rbp", steps=9, adjoint_tolerance=1e-3)

    def gradient(x):
        x = x.detach().requires_grad_()
        (recurrence(x).state.square().sum()).backward()
        return x.grad

    together = gradient(torch.cat([drive, 1e3 * drive]))
    assert torch.allclose(together[:2], gradient(drive), rtol=1e-12)


def test_batch_norm_statistics_in_training_and_evaluation():
    torch.manual_seed(0)
    norm = StateBatchNorm2d(3)
    batch = torch.randn(4, 3, 5, 5)
    with torch.no_grad():
        unrecorded = norm(batch)
    assert int(norm.num_batches_tracked) == 0 and not norm.running_mean.any()
    recorded = norm(batch)
    assert torch.allclose(recorded, unrecorded, atol=1e-6)
    assert torch.allclose(norm.running_mean, 0.1 * batch.mean(dim=(0, 2, 3)), atol=1e-6)
    norm.eval()
    assert torch.allclose(norm(batch)[:1], norm(batch[:1]), atol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "options", "steps_seen"),
    [
        ("crbp", {}, 1),
        ("crbp", {"early_from": 0.0}, 1),
        ("rbp", {"penalties": (LipschitzCoefficientPenalty(max_samples=2),)}, 1),
        ("bptt", {}, 5),
        ("bptt", {"adjoint_checkpointed": True}, 5),
    ],
)
def test_batch_norm_statistics_follow_each_recorded_step_once(algorithm, options, steps_seen):
    cell = HGRUCell(channels=4, kernel_size=3, norm="BN")
    recurrence = built(cell, algorithm=algorithm, steps=5, **options)
    result = recurrence(torch.rand(3, 4, 6, 6))
    loss = sum(state.sum() for state in (result.state, *result.early_states))
    (loss + sum(result.penalties.values())).backward()
    assert int(cell.suppression_norm.num_batches_tracked) == steps_seen


def test_another_cell_takes_over_all_steps():
    torch.manual_seed(0)
    first, drive = circuit("tanh")
    second, _ = circuit("tanh")
    recurrence = built(first, algorithm="rbp", steps=5)
    recurrence.cell = second
    expected = built(second, algorithm="rbp", steps=5)(drive).state
    assert torch.equal(recurrence(drive).state, expected)


@pytest.mark.parametrize("algorithm", ["bptt", "tbptt", "rbp", "jfb", "implicit", "deq"])
def test_what_is_learned_is_what_runs_without_gradients(algorithm):
    if algorithm == "deq":
        pytest.importorskip("torchdeq")
    torch.manual_seed(0)
    cell, drive = circuit("tanh")
    recurrence = built(cell, algorithm=algorithm, steps=12).eval()
    recorded = recurrence(drive).state
    with torch.no_grad():
        assert torch.allclose(recurrence(drive).state, recorded, rtol=1e-6, atol=1e-8)


def test_deq_finds_an_equilibrium_that_plain_steps_miss():
    pytest.importorskip("torchdeq")

    class Flipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(-1.5))

        def forward(self, drive, state):
            return torch.tanh(drive + self.gain * state)

    torch.manual_seed(0)
    drive = 0.3 * torch.randn(4, 6)
    deq = built(Flipping(), algorithm="deq", steps=40).eval()
    plain = built(Flipping(), algorithm="rbp", steps=40).eval()
    with torch.no_grad():
        assert float(deq(drive).diagnostics.residual.max()) < 1e-2
        assert float(plain(drive).diagnostics.residual.max()) > 0.1
        assert deq(drive[:0]).state.shape == (0, 6)


@pytest.mark.parametrize("norm", ["BN", "GN", "IN", ""])
def test_predictions_do_not_depend_on_the_companions_in_evaluation(norm):
    torch.manual_seed(0)
    cell = HGRUCell(channels=4, kernel_size=3, norm=norm).double()
    drive = torch.rand(3, 4, 6, 6, dtype=torch.float64)
    recurrence = built(cell, algorithm="rbp", steps=4)
    recurrence(drive).state.sum().backward()
    recurrence.eval()
    with torch.no_grad():
        together, alone = recurrence(drive).state[:1], recurrence(drive[:1]).state
    assert torch.allclose(together, alone, rtol=1e-12)


def test_tolerance_and_batch_statistics_exclude_each_other():
    cell = HGRUCell(channels=4, kernel_size=3, norm="BN")
    with pytest.raises(ConfigurationError, match="suppression_norm"):
        built(cell, algorithm="rbp", steps=4, solver_tolerance=1e-2)
    recurrence = built(cell, algorithm="rbp", steps=4, solver_test_tolerance=1e-2)
    with torch.no_grad():
        recurrence.eval()(torch.rand(2, 4, 6, 6))


def test_a_model_prints_its_algorithm():
    text = repr(built(LinearCell(), algorithm="bptt+lcp", steps=4))
    assert "Unroll(length=None" in text and "steps=4" in text and "lcp" in text
    assert isinstance(built(LinearCell()), nn.Module)
