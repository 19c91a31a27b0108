"""Anderson acceleration: exact where it can be, guarded where it can fail, off by default."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from crbp_d2.core import (
    AndersonAdjoint,
    AndersonSteps,
    ConfigurationError,
    HGRUCell,
    MaskHGRUCell,
    spectral_radius,
)
from crbp_d2.core.circuit import Circuit
from crbp_d2.core.diagnostics import AdjointReport
from crbp_d2.core.state import to_parts
from tests.core.built import built
from tests.core.circuits import (
    CIRCUITS,
    LinearCell,
    circuit,
    fixed_point,
    flatten,
    flatten_drive_and_weights,
    implicit_gradient,
    map_drive,
    start,
    vector_drive,
)
from tests.core.test_gradients import distance, estimated, incoming_for

BOTH = {"adjoint_name": "anderson", "solver_name": "anderson"}


def remembering(memory: int) -> dict[str, object]:
    return {**BOTH, "adjoint_memory": memory, "solver_memory": memory}


@pytest.fixture(params=CIRCUITS)
def case(request):
    torch.manual_seed(7)
    cell, drive = circuit(request.param)
    return request.param, cell, drive, incoming_for(cell, drive)


class Arctangent(nn.Module):
    """A contraction to the drive, whose slope vanishes far away: there secants overshoot."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def forward(self, drive: Tensor, state: Tensor) -> Tensor:
        return state - self.rate * torch.atan(state - drive)


class Bounded(LinearCell):
    """A linear contraction that is not a number for states beyond a bound."""

    def forward(self, drive: Tensor, state: Tensor) -> Tensor:
        following = super().forward(drive, state)
        return torch.where(state.abs() > 2.0, following * float("nan"), following)


class OneTensor(nn.Module):
    """A ConvLSTM whose two states lie side by side in one tensor."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def initial_state(self, drive: Tensor) -> Tensor:
        return torch.cat(self.cell.initial_state(drive), dim=1)

    def forward(self, drive: Tensor, state: Tensor) -> Tensor:
        return torch.cat(self.cell(drive, state.chunk(2, dim=1)), dim=1)


def textbook(cell: nn.Module, drive: Tensor, evaluations: int, memory: int) -> Tensor:
    """Anderson acceleration without a safeguard; the last plain step."""
    points: list[Tensor] = []
    residuals: list[Tensor] = []
    point = torch.zeros_like(drive)
    value = point
    for _ in range(evaluations):
        value = cell(drive, point)
        points, residuals = [*points, value], [*residuals, value - point]
        points, residuals = points[-memory - 1 :], residuals[-memory - 1 :]
        point = value
        if len(points) > 1:
            changes = torch.stack(residuals, 2).diff(dim=2)
            weights = torch.linalg.lstsq(changes, residuals[-1][:, :, None]).solution
            point = value - (torch.stack(points, 2).diff(dim=2) @ weights)[:, :, 0]
    return value


def settled(cell: nn.Module, drive: Tensor, state: Tensor) -> Tensor:
    """`|F(h) - h|` of each sample."""
    return (cell(drive, state) - state).detach().norm(dim=1)


def accelerated(cell: nn.Module, drive: Tensor, evaluations: int, memory: int = 5) -> Tensor:
    parts = (torch.zeros_like(drive),)
    (state,) = AndersonSteps(memory)(Circuit(cell, drive, parts[0]), parts, evaluations).state
    return state


def test_without_acceleration_it_is_the_plain_path_to_the_bit(case):
    _, cell, drive, incoming = case
    state = to_parts(start(cell, drive))
    as_given = (lambda parts: parts[0]) if len(state) == 1 else tuple
    with torch.no_grad():
        for _ in range(8):
            state = to_parts(cell(drive, as_given(state)))
    before = tuple(part.requires_grad_() for part in state)
    after = to_parts(cell(drive, as_given(before)))
    sizes = [part.numel() for part in after]
    first = [v.reshape(p.shape) for v, p in zip(incoming.split(sizes), after, strict=True)]
    total = vector = tuple(first)
    for _ in range(3):
        vector = torch.autograd.grad(after, before, vector, retain_graph=True)
        total = tuple(t + v for t, v in zip(total, vector, strict=True))
    by_hand = torch.autograd.grad(after, flatten_drive_and_weights(cell, drive), total)
    options = {"adjoint_terms": 3, "adjoint_tolerance": 0.0}
    off = {"solver_name": "steps", "adjoint_name": "neumann"}
    for chosen in (options, {**options, **off}):
        found = estimated(cell, drive, incoming, "rbp", steps=9, **chosen)
        assert all(torch.equal(f, b) for f, b in zip(found, by_hand, strict=True))


def test_a_memory_of_all_dimensions_finds_a_linear_equilibrium_exactly():
    torch.manual_seed(0)
    cell, drive = LinearCell(rho=0.9), vector_drive()
    exact = fixed_point(cell, drive)
    # Seven points span six dimensions; the eighth is their mixture, evaluated.
    assert (accelerated(cell, drive, 8, memory=6) - exact).norm() < 1e-10 * exact.norm()
    assert (fixed_point(cell, drive, steps=8) - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("seed", [1, 3])
def test_the_safeguard_keeps_a_contraction_settling_where_the_textbook_fails(seed):
    torch.manual_seed(seed)
    cell, drive = Arctangent(), 5 * torch.randn(3, 30, dtype=torch.float64)
    with torch.no_grad():
        for evaluations in (12, 20, 40):
            plain = settled(cell, drive, fixed_point(cell, drive, steps=evaluations))
            unguarded = settled(cell, drive, textbook(cell, drive, evaluations, memory=5))
            guarded = settled(cell, drive, accelerated(cell, drive, evaluations))
            assert unguarded.max() > plain.max()
            assert (guarded <= plain).all()


def test_a_rejected_point_is_followed_by_the_plain_step_and_a_new_history():
    torch.manual_seed(3)
    cell, drive = Arctangent(), 5 * torch.randn(1, 30, dtype=torch.float64)
    points: list[Tensor] = []
    cell.register_forward_hook(lambda _cell, inputs, _value: points.append(inputs[1]))
    with torch.no_grad():
        accelerated(cell, drive, 20)
        pairs = [(point, cell(drive, point)) for point in list(points)]
    counted, rejected = [pairs[0]], 0
    for (point, value), following in zip(pairs[1:-1], points[2:], strict=False):
        change, last = value - point, counted[-1][1] - counted[-1][0]
        plain = torch.equal(point, counted[-1][1])
        if plain or change.norm() < last.norm():
            counted = [*counted, (point, value)]
        else:
            rejected += 1
            counted = counted[-1:]
        residuals = torch.stack([v - p for p, v in counted[-6:]], 2).diff(dim=2)
        values = torch.stack([v for _, v in counted[-6:]], 2).diff(dim=2)
        expected = counted[-1][1]
        if len(counted) > 1:
            latest = (counted[-1][1] - counted[-1][0])[:, :, None]
            expected = expected - (values @ torch.linalg.lstsq(residuals, latest).solution)[:, :, 0]
        assert torch.allclose(following, expected, rtol=1e-6)
    assert rejected > 1


def test_where_nothing_is_rejected_it_is_the_textbook_method():
    torch.manual_seed(3)
    cell, drive = circuit("tanh")
    for memory in (2, 5):
        recurrence = built(cell, algorithm="rbp", steps=10, **remembering(memory))
        expected = cell(drive, textbook(cell, drive, 9, memory))
        assert torch.allclose(recurrence(drive).state, expected, rtol=1e-7)


def test_points_that_are_not_finite_are_rejected():
    torch.manual_seed(0)
    cell, drive = Bounded(rho=0.9), 0.2 * vector_drive()
    drive = drive.detach()
    exact = fixed_point(cell, drive)
    assert torch.isfinite(exact).all()
    found = accelerated(cell, drive, 30, memory=2)
    assert torch.isfinite(found).all()
    assert (settled(cell, drive, found) <= settled(cell, drive, fixed_point(cell, drive, 30))).all()


def test_gates_that_hardly_move_end_no_worse_than_plain_steps():
    torch.manual_seed(0)
    drive = torch.rand(2, 8, 6, 6, dtype=torch.float64)
    cell = MaskHGRUCell(channels=8, gate_bias="released").double().eval()
    residuals = {}
    for name, options in {"plain": {}, "anderson": {"solver_name": "anderson"}}.items():
        recurrence = built(cell, algorithm="rbp", steps=20, **options).eval()
        with torch.no_grad():
            residuals[name] = recurrence(drive).diagnostics.residual
    assert (residuals["anderson"] < residuals["plain"]).all()


def near_one(name: str) -> tuple[nn.Module, Tensor]:
    """Cells of the paper whose spectral radius at their equilibrium is near .97."""
    if name == "mask_hgru":
        torch.manual_seed(2)
        cell = MaskHGRUCell(channels=8, chrono_steps=10).double()
        return cell, map_drive(8)
    torch.manual_seed(1)
    return HGRUCell(channels=3, kernel_size=5, norm="IN").double(), map_drive(3, space=6)


@pytest.mark.parametrize("name", ["mask_hgru", "hgru"])
def test_twelve_evaluations_and_seven_products_beat_twenty_and_fifteen(name):
    cell, drive = near_one(name)
    incoming = incoming_for(cell, drive)
    state = fixed_point(cell, drive, steps=600)
    radius = spectral_radius(cell, drive.detach(), state, iterations=100)
    assert ((radius > 0.95) & (radius < 0.98)).all()
    exact = implicit_gradient(cell, drive, state, incoming)
    plain = estimated(cell, drive, incoming, "rbp", steps=20, adjoint_terms=15)
    found = estimated(cell, drive, incoming, "rbp", steps=12, adjoint_terms=7, **BOTH)
    assert distance(found, exact) < distance(plain, exact)
    flat = [torch.cat([g.reshape(-1) for g in gradients]) for gradients in (found, plain, exact)]
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(flat[0], flat[2], dim=0) > cosine(flat[1], flat[2], dim=0)


def test_a_sample_does_not_depend_on_its_companions():
    torch.manual_seed(0)
    cell, drive = circuit("tanh")
    recurrence = built(cell, algorithm="rbp", steps=9, adjoint_terms=5, **remembering(2))

    def gradient(x):
        x = x.detach().requires_grad_()
        state = recurrence(x).state
        state.square().sum().backward()
        return state.detach(), x.grad

    together = gradient(torch.cat([drive, 1e3 * drive]))
    alone = gradient(drive)
    for both, one in zip(together, alone, strict=True):
        assert torch.allclose(both[:2], one, rtol=1e-10)


def test_the_parts_of_a_state_are_mixed_as_one():
    torch.manual_seed(0)
    cell, drive = circuit("conv_lstm")
    results = []
    for kind in (cell, OneTensor(cell)):
        state = built(kind, algorithm="rbp", steps=8, adjoint_terms=4, **BOTH)(drive).state
        hidden, memory = state if isinstance(state, tuple) else state.chunk(2, dim=1)
        loss = (hidden.square() + memory.sin()).sum()
        results.append((hidden, memory, *torch.autograd.grad(loss, list(cell.parameters()))))
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(*results, strict=True))


def test_evaluations_are_counted_and_every_one_is_observed():
    torch.manual_seed(0)
    cell, drive = circuit("tanh")
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    cell.register_forward_hook(count)
    recurrence = built(cell, algorithm="rbp", steps=7, adjoint_terms=4, **BOTH)
    for recorded in (True, False):
        seen: dict[int, Tensor] = {}
        calls = 0
        with torch.set_grad_enabled(recorded):
            result = recurrence(drive, observe=lambda t, parts, s=seen: s.update({t: parts[0]}))
        assert calls == 7 and list(seen) == list(range(1, 8))
        assert result.diagnostics.steps.tolist() == [7, 7]
        assert torch.equal(seen[7], result.state.detach())
        if recorded:
            learned = result.state.detach()
            result.state.sum().backward()
            assert calls == 7
            scalars = result.diagnostics.scalars()
            assert scalars["neumann_terms"] == 4 and 0 < scalars["adjoint_residual"] < 1
        assert torch.allclose(result.state.detach(), learned, rtol=1e-12)


@pytest.mark.parametrize(("steps", "terms", "samples"), [(1, 0, 2), (2, 1, 2), (3, 2, 0)])
def test_the_smallest_runs_work(steps, terms, samples):
    cell, drive = circuit("conv_lstm")
    recurrence = built(cell, algorithm="crbp", steps=steps, adjoint_terms=terms, **BOTH)
    result = recurrence(drive[:samples])
    (result.state[0].sum() + sum(result.penalties.values())).backward()
    if steps == 1:
        one_step = estimated(cell, drive, torch.ones(128, dtype=torch.float64), "jfb", steps=1)
        plain = estimated(
            cell,
            drive,
            torch.ones(128, dtype=torch.float64),
            "rbp",
            steps=1,
            adjoint_terms=0,
            **BOTH,
        )
        assert all(torch.equal(a, b) for a, b in zip(plain, one_step, strict=True))


def test_lower_precision_changes_little():
    cell, drive = near_one("mask_hgru")
    incoming = incoming_for(cell, drive)
    options = {"steps": 12, "adjoint_terms": 7, **BOTH}
    exact = estimated(cell, drive, incoming, "rbp", **options)
    single = estimated(
        cell.float(), drive.detach().float().requires_grad_(), incoming.float(), "rbp", **options
    )
    # Mixing amplifies rounding, a thousandfold at most here; the method is off by a tenth.
    assert distance([g.double() for g in single], exact) < 1e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = built(cell, algorithm="rbp", **options)(drive.float()).state
    assert state.dtype == torch.float32 and torch.isfinite(state).all()


def test_nothing_is_read_back_from_a_gpu():
    class Halving:
        drives = ()

        def advance(self, parts):
            return (parts[0] * 0.5 + 1,)

    with FakeTensorMode():
        state = (torch.empty(3, 6, device="cuda"),)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            bool((state[0] > 0).all())
        found = AndersonSteps(memory=3)(Halving(), state, 6).state
        assert found[0].shape == (3, 6)
        solve = AndersonAdjoint(terms=5, memory=3, tolerance=1e-3).solve
        (gradient,) = solve(lambda v: (v[0] * 0.5,), state, torch.ones(()), AdjointReport())
        assert gradient.is_cuda


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjoint_name": "aitken"}, "unknown adjoint 'aitken'; choose from anderson, "),
        ({"solver_name": "broyden"}, "unknown solver 'broyden'"),
        ({**BOTH, "adjoint_memory": 0}, "memory must be an integer of at least 1"),
        ({**BOTH, "solver_memory": 0}, "memory must be an integer of at least 1"),
        (
            {"adjoint_name": "anderson", "adjoint_norm_cap": 1.0},
            "the adjoint 'anderson' has no option 'norm_cap'",
        ),
        (
            {"solver_name": "anderson", "solver_tolerance": 0.1},
            "the solver 'anderson' has no option 'tolerance'",
        ),
        (
            {"solver_name": "anderson", "solver_test_tolerance": 0.1},
            "the solver 'anderson' has no option 'test_tolerance'",
        ),
        ({"solver_name": "anderson", "early_from": 0.2}, "early_from does not go with Anderson"),
    ],
)
def test_what_can_not_work_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        built(LinearCell(), algorithm="rbp", steps=5, **options)


def test_an_accelerated_adjoint_goes_with_a_tolerance_and_an_earlier_loss():
    torch.manual_seed(0)
    cell, drive = circuit("tanh")
    recurrence = built(
        cell,
        algorithm="rbp",
        steps=30,
        solver_tolerance=1e-2,
        early_from=0.0,
        adjoint_name="anderson",
    )
    result = recurrence(drive)
    assert result.early_states and (result.diagnostics.steps < 30).all()
    flatten(result.state).sum().backward()
    assert (result.diagnostics.adjoint.residual < 1e-3).all()
