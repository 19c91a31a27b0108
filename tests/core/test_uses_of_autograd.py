"""Whatever PyTorch offers around a backward pass, for every algorithm: the same gradients, or a
refusal that names a way."""

from __future__ import annotations

import copy
import io
import shutil
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from crbp_d2.core import (
    CellError,
    ConfigurationError,
    HGRUCell,
    LipschitzCoefficientPenalty,
    Recurrence,
    UnsupportedError,
)
from tests.core.built import built
from tests.core.circuits import TanhCell, circuit, flatten

STEPS = 6
ANDERSON = {"adjoint_name": "anderson", "solver_name": "anderson"}
CASES = {
    "bptt": ("bptt", {}),
    "bptt, checkpointed": ("bptt", {"adjoint_checkpointed": True}),
    "bptt+lcp": ("bptt+lcp", {}),
    "tbptt": ("tbptt", {}),
    "phantom": ("phantom", {}),
    "jfb": ("jfb", {}),
    "rbp": ("rbp", {}),
    "rbp, Anderson": ("rbp", ANDERSON),
    "rbp, tolerance": ("rbp", {"solver_tolerance": 1e-2}),
    "rbp, bf16": ("rbp", {"solver_precision": "bf16", "adjoint_precision": "bf16"}),
    "crbp": ("crbp", {}),
    "crbp, early": ("crbp", {"early_from": 0.0}),
    "crbp, skip": ("crbp", {"on_nonfinite": "skip"}),
    "crbp, chunks": ("crbp", {"chunk_samples": 1}),
    "implicit": ("implicit", {}),
    "deq": ("deq", {}),
}
every_case = pytest.mark.parametrize("case", list(CASES))


def setting(case: str, name: str = "tanh") -> tuple[Recurrence, Tensor]:
    algorithm, options = CASES[case]
    if algorithm == "deq":
        pytest.importorskip("torchdeq", reason="the optional package torchdeq is not installed")
    torch.manual_seed(3)
    cell, drive = circuit(name)
    if "solver_precision" in options:
        cell, drive = cell.float(), drive.detach().float().requires_grad_()
    penalties = None
    if "crbp" in algorithm or "lcp" in algorithm:
        penalties = (LipschitzCoefficientPenalty(bound=0.0),)
    return built(cell, algorithm=algorithm, steps=STEPS, penalties=penalties, **options), drive


def loss_of(recurrence: Recurrence, drive: Tensor) -> Tensor:
    result = recurrence(drive)
    states = [result.state, *result.states, *result.early_states]
    return sum(flatten(s).pow(3).sum() for s in states) + sum(result.penalties.values())


def gradients(recurrence: Recurrence, drive: Tensor, compute=loss_of) -> list[Tensor]:
    """Into drive and weights; an early step is the same at every call."""
    drive.grad = None
    recurrence.zero_grad()
    torch.manual_seed(7)
    compute(recurrence, drive).backward()
    return [drive.grad.clone(), *(p.grad.clone() for p in recurrence.parameters())]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for near, exact in zip(found, expected, strict=True):
        digits = 1e-11 if exact.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(near, exact, rtol=digits, atol=digits)


@pytest.mark.parametrize("name", ["tanh", "conv_lstm"])
@pytest.mark.parametrize("reentrant", [False, True])
@every_case
def test_a_checkpoint_around_it_changes_nothing(case, reentrant, name):
    recurrence, drive = setting(case, name)
    expected = gradients(recurrence, drive)

    def within(recurrence, drive):
        # A head around the recurrence: the drive is no leaf of the graph.
        return checkpoint(
            lambda x: loss_of(recurrence, 1.0 * x), drive * 1.0, use_reentrant=reentrant
        )

    assert_same(gradients(recurrence, drive, within), expected)
    fresh, drive = setting(case, name)
    assert_same(gradients(fresh, drive, within), expected)


@every_case
def test_a_second_backward_pass_gives_the_same_again_and_reports_once(case):
    recurrence, drive = setting(case)
    expected = gradients(recurrence, drive)
    torch.manual_seed(7)
    result = recurrence(drive)
    states = [result.state, *result.states, *result.early_states]
    loss = sum(flatten(s).pow(3).sum() for s in states) + sum(result.penalties.values())
    inputs = [drive, *recurrence.parameters()]
    scalars = []
    for again in (True, False):
        assert_same(list(torch.autograd.grad(loss, inputs, retain_graph=again)), expected)
        scalars.append(result.diagnostics.scalars())
    assert scalars[0] == scalars[1]


@every_case
def test_hooks_of_parameters_are_called_once_with_the_whole_gradient(case):
    plain, drive = setting(case, "conv_lstm")
    expected = gradients(plain, drive)[1:]
    recurrence, drive = setting(case, "conv_lstm")
    seen: dict[str, list[Tensor]] = {}
    for name, parameter in recurrence.named_parameters():
        parameter.register_hook(lambda g, name=name: seen.setdefault(name, []).append(g.clone()))
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: seen.setdefault(name, []).append(p.grad.clone())
        )
    gradients(recurrence, drive)
    assert all(len(calls) == 2 for calls in seen.values())
    for call in (0, 1):
        assert_same([seen[name][call] for name, _ in recurrence.named_parameters()], expected)


@every_case
def test_hooks_that_change_a_gradient_do_so_once(case):
    plain, drive = setting(case)
    expected = gradients(plain, drive)
    recurrence, drive = setting(case)
    for parameter in recurrence.parameters():
        parameter.register_hook(lambda g: 2 * g)
    drive.register_hook(lambda g: 3 * g)
    found = gradients(recurrence, drive)
    assert_same(found, [3 * expected[0], *(2 * g for g in expected[1:])])


@pytest.mark.parametrize("algorithm", ["bptt+lcp", "crbp"])
def test_hooks_of_a_start_are_not_called_by_penalties(algorithm):
    torch.manual_seed(0)
    cell, drive = circuit("tanh")
    begin = torch.randn_like(drive).requires_grad_()
    seen = []
    begin.register_hook(seen.append)
    result = built(cell, algorithm=algorithm, steps=1)(drive, begin)
    assert not seen
    (result.state.sum() + sum(result.penalties.values())).backward()
    assert len(seen) == (1 if algorithm == "bptt+lcp" else 0)


@every_case
def test_hooks_of_modules_see_gradients_and_change_none(case):
    recurrence, drive = setting(case, "conv_lstm")
    expected = gradients(recurrence, drive)
    seen = []
    recurrence.cell.register_full_backward_hook(lambda *_: seen.append(1))
    recurrence.cell.from_state.register_full_backward_hook(lambda *_: seen.append(2))
    assert_same(gradients(recurrence, drive), expected)
    assert set(seen) == {1, 2}


@every_case
def test_anomaly_mode_finds_nothing(case):
    recurrence, drive = setting(case)
    expected = gradients(recurrence, drive)
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        assert_same(gradients(recurrence, drive), expected)


class Model(nn.Module):
    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__()
        self.entry = nn.Linear(6, 6, dtype=torch.float64)
        self.recurrence = recurrence

    def forward(self, x: Tensor) -> Tensor:
        return loss_of(self.recurrence, torch.relu(self.entry(x)))


@pytest.mark.parametrize("case", ["bptt", "crbp", "crbp, chunks", "crbp, skip"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_runs_it_uncompiled(case, whole):
    recurrence, drive = setting(case)
    model = Model(recurrence)
    expected = gradients(recurrence, drive, lambda _, x: model(x))
    # Graphs as of the default backend, without its compiler.
    compiled = torch.compile(model if whole else recurrence, backend="aot_eager")
    if whole:
        assert_same(gradients(recurrence, drive, lambda _, x: compiled(x)), expected)
    else:
        found = gradients(recurrence, drive, lambda _, x: loss_of(compiled, x))
        assert_same(found, gradients(recurrence, drive))


class Counting(TanhCell):
    """Which cell has run, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, drive, state):
        self.calls += 1
        return super().forward(drive, state)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_another_cell_is_run_compiled_too():
    torch.manual_seed(0)
    drive = torch.randn(2, 6, dtype=torch.float64)
    recurrence = built(TanhCell(), algorithm="jfb", steps=STEPS, compile_steps=True)
    recurrence(drive)
    other = TanhCell()
    recurrence.cell = other
    expected = built(other, algorithm="jfb", steps=STEPS)(drive).state
    torch.testing.assert_close(recurrence(drive).state, expected, rtol=1e-12, atol=1e-14)
    assert list(recurrence.state_dict()) == ["cell.matrix"]
    copied = copy.deepcopy(recurrence)
    with torch.no_grad():
        copied.cell.matrix.zero_()
    assert torch.equal(copied(drive).state, torch.tanh(drive))
    torch.testing.assert_close(recurrence(drive).state, expected, rtol=1e-12, atol=1e-14)


def test_another_cell_is_checked_as_the_first_one():
    drive = torch.randn(2, 6, dtype=torch.float64)
    recurrence = built(TanhCell(), algorithm="crbp", steps=STEPS, chunk_samples=1)
    recurrence(drive)
    recurrence.recurrence.cell = TanhCell()
    recurrence.recurrence.cell.forgotten = nn.Parameter(torch.ones(3, dtype=torch.float64))
    with pytest.raises(CellError, match="forgotten"):
        recurrence(drive)
    recurrence.recurrence.cell = nn.Sequential(nn.SyncBatchNorm(6))
    with pytest.raises(ConfigurationError, match="batch statistics of 0"):
        recurrence(drive)
    recurrence.recurrence.cell = HGRUCell(channels=6, kernel_size=3, norm="BN")
    with pytest.raises(ConfigurationError, match="chunk_samples"):
        recurrence(drive)


@every_case
def test_copies_pickles_and_state_dicts_are_the_same_recurrence(case):
    recurrence, drive = setting(case)
    expected = gradients(recurrence, drive)
    pickled = io.BytesIO()
    torch.save(recurrence, pickled)
    pickled.seek(0)
    other, _ = setting(case)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(recurrence.state_dict())
    for same in (
        copy.deepcopy(recurrence),
        torch.load(pickled, weights_only=False),
        other,
    ):
        assert_same(gradients(same, drive), expected)


@every_case
def test_weights_given_by_functional_call_get_the_gradient(case):
    recurrence, drive = setting(case)
    halved = copy.deepcopy(recurrence)
    with torch.no_grad():
        for parameter in halved.parameters():
            parameter.mul_(0.5)
    expected = gradients(halved, drive)
    weights = {
        name: (0.5 * p.detach()).requires_grad_() for name, p in recurrence.named_parameters()
    }
    torch.manual_seed(7)
    result = torch.func.functional_call(recurrence, weights, (drive,))
    states = [result.state, *result.states, *result.early_states]
    loss = sum(flatten(s).pow(3).sum() for s in states) + sum(result.penalties.values())
    # By now the module has its own weights again.
    if "checkpointed" in case:
        with pytest.raises(UnsupportedError, match="functional_call"):
            torch.autograd.grad(loss, [drive, *weights.values()])
        return
    assert_same(list(torch.autograd.grad(loss, [drive, *weights.values()])), expected)
    assert all(isinstance(p, nn.Parameter) for p in recurrence.parameters())


@every_case
def test_function_transforms_are_refused(case):
    recurrence, drive = setting(case)
    drive = drive.detach()

    def run(x):
        return flatten(recurrence(x).state).sum()

    for transform in (
        lambda: torch.func.grad(run)(drive),
        lambda: torch.func.vmap(lambda x: run(x[None]))(drive),
        lambda: torch.func.jacrev(run)(drive),
        lambda: torch.func.jvp(run, (drive,), (drive,)),
    ):
        with pytest.raises(UnsupportedError, match=r"torch\.autograd\.grad"):
            transform()
    with forward_ad.dual_level(), pytest.raises(UnsupportedError, match="forward mode"):
        run(forward_ad.make_dual(drive, drive))
    with torch.no_grad(), pytest.raises(UnsupportedError, match=r"torch\.func"):
        torch.func.vmap(lambda x: run(x[None]))(drive)


@every_case
def test_parametrised_weights_are_learned(case):
    plain, drive = setting(case)
    matrix = plain.cell.matrix.detach().clone()
    expected = gradients(plain, drive)
    recurrence, drive = setting(case)
    parametrizations.weight_norm(recurrence.cell, "matrix")
    found = gradients(recurrence, drive)
    assert_same(found[:1], expected[:1])
    # The lengths of its rows and their directions.
    lengths, directions = found[1:]
    along = (expected[1] * matrix).sum(dim=1, keepdim=True) / matrix.norm(dim=1, keepdim=True)
    assert_same([lengths], [along])
    assert_same([directions], [expected[1] - along * matrix / matrix.norm(dim=1, keepdim=True)])


@pytest.mark.parametrize("case", [case for case in CASES if "chunks" not in case])
def test_threads_that_share_a_cell_leave_it_as_it_was(case):
    recurrence, drive = setting(case)
    expected = gradients(recurrence, drive)
    parameters = list(recurrence.parameters())
    drives = [drive.detach().clone().requires_grad_() for _ in range(4)]
    errors = []

    def work(own: Tensor) -> None:
        try:
            for _ in range(5):
                loss = loss_of(recurrence, own)
            own.grad = torch.autograd.grad(loss, own)[0]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(own,)) for own in drives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(a is b for a, b in zip(recurrence.parameters(), parameters, strict=True))
    if "early" not in case:
        for own in drives:
            assert_same([own.grad], expected[:1])
