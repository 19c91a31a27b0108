"""Autocast, gradient scaling, distribution, accumulation, compilation and memory."""

from __future__ import annotations

import gc
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crbp_d2.core import ALGORITHMS, MaskHGRUCell, Recurrence
from tests.core.built import built
from tests.core.circuits import circuit, flatten, mask_hgru
from tests.distributed import run_processes

pytestmark = pytest.mark.slow


def head(algorithm: str = "crbp", **options) -> Recurrence:
    torch.manual_seed(0)
    return built(MaskHGRUCell(channels=16), algorithm=algorithm, steps=6, **options)


def gradients(recurrence, drive, *, scale=1.0, dtype=None):
    recurrence.zero_grad()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        result = recurrence(drive)
        loss = result.state.float().square().mean() + sum(result.penalties.values())
    (scale * loss).backward()
    return torch.cat([p.grad.reshape(-1) / scale for p in recurrence.parameters()]), result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast(dtype):
    recurrence, drive = head(), torch.rand(3, 16, 7, 7)
    exact, _ = gradients(recurrence, drive)
    half, result = gradients(recurrence, drive.to(dtype), dtype=dtype)
    assert result.state.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in recurrence.parameters())
    assert float(F.cosine_similarity(exact, half, dim=0)) > 0.98


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("algorithm", ["crbp", "rbp"])
def test_the_gradient_does_not_depend_on_the_loss_scale(algorithm, dtype):
    recurrence, drive = head(algorithm), torch.rand(3, 16, 7, 7)
    plain, first = gradients(recurrence, drive, dtype=dtype)
    scaled, second = gradients(recurrence, drive, scale=65536.0, dtype=dtype)
    terms = first.diagnostics.adjoint.terms
    assert torch.equal(terms, second.diagnostics.adjoint.terms) and float(terms.min()) > 0
    # float16 loses its smallest gradients without a scale: that is what scales are for.
    tolerance = 2e-2 if dtype == torch.float16 else 1e-6
    assert float((plain - scaled).norm() / plain.norm()) < tolerance


def test_a_gradient_scaler_skips_what_overflows_and_recovers():
    recurrence, drive = head(), torch.rand(2, 16, 7, 7)
    optimizer = torch.optim.SGD(recurrence.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    moved = []
    for _ in range(40):
        before = recurrence.cell.alpha.detach().clone()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            result = recurrence(drive)
            loss = result.state.half().sum() + sum(result.penalties.values())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append(not torch.equal(before, recurrence.cell.alpha))
    assert not moved[0] and moved[-1]
    assert all(torch.isfinite(p).all() for p in recurrence.parameters())


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"deq"}))
def test_accumulated_gradients_are_those_of_the_whole_batch(algorithm):
    torch.manual_seed(0)
    cell, drive = mask_hgru(), torch.rand(4, 8, 4, 4, dtype=torch.float64)
    recurrence = built(cell, algorithm=f"{algorithm}+lcp", steps=8)

    def accumulate(*batches):
        recurrence.zero_grad()
        for batch in batches:
            result = recurrence(batch)
            loss = result.state.square().mean() + sum(result.penalties.values())
            (loss / len(batches)).backward()
        return flatten(tuple(p.grad for p in recurrence.parameters()))

    whole, halves = accumulate(drive), accumulate(drive[:2], drive[2:])
    assert torch.allclose(whole, halves, rtol=1e-9, atol=1e-12)


def _distributed_gradients(rank: int, world: int) -> torch.Tensor:
    torch.manual_seed(0)
    recurrence = built(mask_hgru(), algorithm="crbp", steps=8)
    drive = torch.rand(2, 8, 4, 4, dtype=torch.float64)
    share = drive.chunk(world)[rank]
    model = nn.parallel.DistributedDataParallel(recurrence) if world > 1 else recurrence
    for _ in range(2):
        recurrence.zero_grad()
        result = model(share)
        (result.state.square().mean() + sum(result.penalties.values())).backward()
    return flatten(tuple(p.grad for p in recurrence.parameters()))


def test_distributed_gradients_are_those_of_one_process():
    alone = _distributed_gradients(0, 1)
    for found in run_processes(_distributed_gradients, 2):
        assert torch.allclose(found, alone, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("algorithm", ["bptt", "crbp", "phantom", "implicit"])
def test_nothing_stays_alive_after_backward(algorithm):
    cell, drive = circuit("tanh")
    recurrence = built(cell, algorithm=algorithm, steps=6)

    def living() -> int:
        gc.collect()
        return sum(torch.is_tensor(o) for o in gc.get_objects())

    counts = []
    for iteration in range(50):
        result = recurrence(drive)
        (result.state.sum() + sum(result.penalties.values())).backward()
        if iteration in (5, 49):
            counts.append(living())
    assert counts[1] <= counts[0]


@pytest.mark.parametrize("algorithm", ["rbp", "crbp"])
def test_saved_memory_is_flat_in_steps(algorithm):
    recurrence = head(algorithm)
    drive = torch.rand(2, 16, 7, 7)
    saved = [saved_bytes(recurrence, drive, steps) for steps in (1, 5, 20, 100)]
    assert max(saved) <= 1.02 * min(saved)
    through_time = [saved_bytes(head("bptt"), drive, steps) for steps in (1, 5, 20)]
    slope = (through_time[1] - through_time[0]) / 4
    assert through_time[2] == pytest.approx(through_time[0] + 19 * slope, rel=0.02)


def saved_bytes(recurrence: Recurrence, drive: torch.Tensor, steps: int) -> int:
    """Bytes of distinct storages that autograd saves in one forward pass with its penalties."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = recurrence(drive, steps=steps)
    assert result.state.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_give_the_same_gradients_and_state_dict():
    plain, compiled = head(), head(compile_steps=True)
    drive = torch.rand(2, 16, 7, 7)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    expected, _ = gradients(plain, drive)
    found, _ = gradients(compiled, drive)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7)
