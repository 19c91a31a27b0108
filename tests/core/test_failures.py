"""Bad cells, options and numbers get errors that say what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crbp_d2.core import (
    CellError,
    ConfigurationError,
    LipschitzCoefficientPenalty,
    NonFiniteError,
    build_recurrence,
    spectral_radius,
)
from tests.core.built import built
from tests.core.circuits import LinearCell, circuit, vector_drive


class Returning(nn.Module):
    """A cell that returns whatever a function makes of drive and state."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, drive, state):
        return self.function(self.weight * drive, state)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, h: (x + h)[:, :3], "shape"),
        (lambda x, h: (x + h).float(), "type"),
        (lambda x, h: (x + h, h), "a tuple of 2"),
        (lambda x, h: None, "NoneType"),
        (lambda x, h: x, "ignores its state"),
        (lambda x, h: (x + h).detach(), "ignores its state"),
    ],
)
@pytest.mark.parametrize("algorithm", ["bptt", "rbp"])
def test_a_cell_that_breaks_its_contract_is_named(function, message, algorithm):
    with pytest.raises(CellError, match=message):
        built(Returning(function), algorithm=algorithm, steps=3)(vector_drive())


def test_a_tuple_state_must_stay_a_tuple_of_that_length():
    class Pair(nn.Module):
        def initial_state(self, drive):
            return torch.zeros_like(drive), torch.zeros_like(drive)

        def forward(self, drive, state):
            return (*state, drive)

    with pytest.raises(CellError, match="2 tensors and returned 3"):
        built(Pair(), algorithm="bptt", steps=2)(vector_drive())


def test_a_parameter_that_is_never_trained_is_named():
    cell = LinearCell()
    cell.forgotten = nn.Parameter(torch.ones(3, dtype=torch.float64))
    with pytest.raises(CellError, match="forgotten"):
        built(cell, steps=2)(vector_drive())
    cell.forgotten.requires_grad_(False)
    built(cell, steps=2)(vector_drive())


def test_inference_tensors_are_refused_in_training_only():
    with torch.inference_mode():
        drive = torch.randn(2, 6, dtype=torch.float64)
    recurrence = built(LinearCell(), steps=2)
    with pytest.raises(CellError, match="clone"):
        recurrence(drive)
    with torch.inference_mode():
        assert recurrence.eval()(drive).state.shape == (2, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "gradient"}, "bptt, crbp, deq, implicit, jfb, phantom, rbp, tbptt"),
        ({"algorithm": "cbrp"}, "unknown algorithm 'cbrp'; did you mean crbp?"),
        ({"algorithm": "bptt+l2"}, "unknown penalty 'l2'; choose from frobenius, lcp, spectral"),
        ({"algorithm": "rbp", "adjoint_term": 3}, "has no option 'term'; did you mean terms?"),
        ({"algorithm": "jfb", "adjoint_terms": 3}, "it takes none"),
        ({"algorithm": "rbp", "adjoint_terms": -1}, "terms must be an integer of at least 0"),
        ({"algorithm": "rbp", "adjoint_tolerance": -1.0}, "tolerance must be at least 0"),
        ({"algorithm": "rbp", "adjoint_norm_cap": -1.0}, "norm_cap"),
        ({"algorithm": "tbptt", "adjoint_length": 0}, "length"),
        ({"algorithm": "phantom", "adjoint_damping": 0.0}, "damping"),
        ({"algorithm": "phantom", "adjoint_length": 0}, "length"),
        ({"algorithm": "implicit", "adjoint_tolerance": 0.0}, "tolerance must lie in"),
        ({"algorithm": "deq", "solver_method": "newton"}, "anderson"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"test_steps": -1}, "steps"),
        ({"solver_tolerance": 0.0}, "tolerance"),
        ({"solver_test_tolerance": -1.0}, "test_tolerance"),
        ({"on_nonfinite": "ignore"}, "raise, skip"),
        ({"algorithm": "tbptt", "adjoint_length": 3, "steps": 2}, "only 2 steps"),
        ({"algorithm": "phantom", "adjoint_length": 3, "steps": 2}, "only 2 steps"),
        ({"algorithm": "bptt", "solver_tolerance": 0.1}, "test_tolerance"),
        ({"algorithm": "deq", "solver_test_tolerance": 0.1}, "no option 'test_tolerance'"),
        ({"algorithm": "deq", "steps": 3}, "at least 4 steps"),
        ({"penalties": (LipschitzCoefficientPenalty(),) * 2}, "different names"),
    ],
)
def test_impossible_options_are_refused_when_built(options, message):
    with pytest.raises(ConfigurationError, match=message):
        built(LinearCell(), **options)


def test_options_of_a_penalty_that_the_algorithm_does_not_have_are_refused():
    with pytest.raises(ConfigurationError, match=r"'spectral', which crbp does not have; say crbp"):
        build_recurrence("crbp", LinearCell(), penalties={"spectral": {"margin": 0.5}})


def test_more_recorded_steps_than_this_run_has_are_refused():
    recurrence = built(LinearCell(), algorithm="tbptt", steps=5, adjoint_length=3)
    with pytest.raises(ConfigurationError, match="only 2 steps"):
        recurrence(vector_drive(), steps=2)


def test_synchronised_batch_norm_with_a_penalty_is_refused():
    cell = nn.Sequential(nn.SyncBatchNorm(3))
    with pytest.raises(ConfigurationError, match="SyncBatchNorm"):
        built(cell, algorithm="crbp")
    built(cell, algorithm="rbp")


class Exploding(nn.Module):
    """Doubles; a sample whose drive is not zero overflows after some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1e10))

    def forward(self, drive, state):
        return drive + self.gain * state


def test_a_state_that_overflows_names_the_step_and_the_residual():
    drive = torch.tensor([[0.0], [1.0]])
    # 1 + 1e10 + 1e20 + ...: step 5 exceeds 3e38.
    for training in (True, False):
        recurrence = built(Exploding(), algorithm="rbp", steps=9).train(training)
        with pytest.raises(NonFiniteError, match=r"step 5 of 9 in 1 of 2 samples.* was 1\."):
            recurrence(drive)


@pytest.mark.parametrize("algorithm", ["bptt", "rbp", "crbp", "implicit"])
def test_skipped_samples_are_counted_and_leave_the_others_alone(algorithm):
    drive = torch.tensor([[0.0], [1.0], [0.0]])
    cell = Exploding()
    with torch.no_grad():
        cell.gain.fill_(0.5)
        bad = drive.clone()
        bad[1] = float("nan")
        good = drive[[0, 2]] + 0.25
        bad[[0, 2]] = good
    bad.requires_grad_()
    recurrence = built(cell, algorithm=algorithm, steps=9, on_nonfinite="skip")
    result = recurrence(bad)
    assert result.diagnostics.skipped_samples == 1
    assert result.diagnostics.scalars()["skipped_samples"] == 1
    assert result.state[1].item() == 0
    result.state.sum().backward()
    assert torch.isfinite(cell.gain.grad)
    assert bad.grad[1].item() == 0
    alone = good.clone().requires_grad_()
    recurrence(alone).state.sum().backward()
    assert torch.allclose(bad.grad[[0, 2]], alone.grad)


def test_weights_that_are_not_finite_raise_even_when_samples_are_skipped():
    cell = LinearCell()
    with torch.no_grad():
        cell.matrix.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="step 1 of 4"):
        built(cell, steps=4, on_nonfinite="skip")(vector_drive())


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [("bptt", {}), ("rbp", {}), ("implicit", {})],
)
def test_a_gradient_that_is_not_finite_raises_or_is_skipped(algorithm, options):
    cell, drive = LinearCell(), vector_drive()
    factor = torch.tensor([[1.0], [float("inf")]], dtype=torch.float64)

    def run(**more):
        result = built(cell, algorithm=algorithm, steps=4, **options, **more)(drive)
        return result, (result.states or [result.state])[-1]

    with pytest.raises(NonFiniteError, match="step 4 is not finite in 1 of 2"):
        (run()[1] * factor).sum().backward()
    result, state = run(on_nonfinite="skip")
    (state * factor).sum().backward()
    assert result.diagnostics.skipped_samples == 1
    assert torch.isfinite(drive.grad).all() and not drive.grad[1].any() and drive.grad[0].any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("max_samples", [None, 1])
def test_skipped_samples_are_not_penalised(reduction, max_samples):
    cell, drive = LinearCell(), vector_drive()
    penalty = LipschitzCoefficientPenalty(bound=0.0, reduction=reduction, max_samples=max_samples)

    def value(x):
        recurrence = built(cell, steps=3, penalties=(penalty,), on_nonfinite="skip")
        return recurrence(x).penalties["lcp"]

    # The Jacobian of a linear cell is the same everywhere.
    expected = value(drive[:1].detach()) * (2 if reduction == "sum" else 1)
    bad = torch.cat([drive.detach(), torch.full_like(drive, float("nan"))])
    assert expected > 0
    assert torch.allclose(value(bad), expected)


def test_spectral_radius_needs_a_sensible_number_of_iterations():
    cell, drive = circuit("tanh")
    with pytest.raises(ValueError, match="averaged"):
        spectral_radius(cell, drive, drive, iterations=5, averaged=6)
