"""The comparison of estimators, on a tiny cell with a known answer."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from crbp_d2.analysis.estimators import CONTENDERS, compare, markdown, saved_bytes
from crbp_d2.core import MaskHGRUCell, Recurrence


def test_the_comparison_ranks_known_estimators():
    torch.manual_seed(0)
    cell = MaskHGRUCell(channels=8, chrono_steps=2)
    torch.nn.init.constant_(cell.recurrent_gate.bias, 2.0)
    rows, residual = compare(
        cell.double(),
        torch.rand(2, 8, 5, 5, dtype=torch.float64),
        steps=30,
        memory_steps=(1, 5, 10),
        rounds=1,
        exact_steps=200,
    )
    by_label = {row.label: row for row in rows}
    assert list(by_label) == [contender.label for contender in CONTENDERS]
    assert residual < 1e-9
    implicit, rbp, jfb = (by_label[n] for n in ("implicit", "rbp, 15 terms", "jfb"))
    assert implicit.cosine == pytest.approx(1, abs=1e-5)
    assert implicit.norm_ratio == pytest.approx(1, abs=1e-3)
    assert jfb.cosine < rbp.cosine < implicit.cosine
    assert rbp.saved_bytes[1] == rbp.saved_bytes[5] == rbp.saved_bytes[10]
    bptt = by_label["bptt"].saved_bytes
    assert bptt[10] - bptt[5] == pytest.approx(5 / 4 * (bptt[5] - bptt[1]), rel=0.02)
    assert by_label["tbptt, 3 steps"].saved_bytes[1] is None
    assert all(len(row.times) == 1 and row.times[0] > 0 for row in rows)
    lines = list(markdown(rows))
    assert len(lines) == len(CONTENDERS) + 2
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("algorithm", ["bptt", "crbp", "implicit"])
def test_measuring_memory_leaves_none_behind(algorithm):
    cell, drive = MaskHGRUCell(channels=8), torch.rand(2, 8, 5, 5)
    recurrence = Recurrence(cell, algorithm=algorithm, steps=5)

    def living() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    first = saved_bytes(recurrence, drive)
    before, released = living(), weakref.ref(drive)
    assert saved_bytes(recurrence, drive) == first
    assert living() == before
    del drive
    gc.collect()
    assert released() is None
