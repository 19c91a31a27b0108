"""Peers side by side, on a tiny cell with a known answer."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from benchmarks.commands import peers as command
from benchmarks.peers import PEERS, compare, count, of_project, of_torchdeq
from crbp_d2.core import MaskHGRUCell
from crbp_d2.engine import run_command
from tests.modeling.conftest import CONFIGS

needs_torchdeq = pytest.mark.skipif(
    importlib.util.find_spec("torchdeq") is None, reason="torchdeq (the extra deq) is not installed"
)


def settling() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    cell = MaskHGRUCell(channels=6, chrono_steps=2).double()
    torch.nn.init.constant_(cell.recurrent_gate.bias, 2.0)
    return cell, torch.rand(2, 6, 5, 4, dtype=torch.float64)


@needs_torchdeq
def test_every_peer_finds_the_exact_gradient_when_it_may_go_on():
    cell, drive = settling()
    exact = [
        of_project("Neumann", "rbp", 100, adjoint={"terms": 100, "tolerance": 0.0}),
        of_project(
            "Anderson",
            "rbp",
            60,
            solver={"name": "anderson"},
            adjoint={"name": "anderson", "terms": 60, "tolerance": 0.0},
        ),
        of_project("BPTT", "bptt", 100),
        of_torchdeq("torchdeq, fixed point", "fixed_point_iter", 100, 100),
        of_torchdeq("torchdeq, Anderson", "anderson", 60, 60),
    ]
    rows, residual = compare(cell, drive, rounds=1, exact_steps=200, peers=exact)
    assert residual < 1e-9
    for row in rows:
        assert row.cosine == pytest.approx(1, abs=1e-6), row.label
        assert row.norm_ratio == pytest.approx(1, abs=1e-3), row.label
    assert rows[0].times == [1.0]


@needs_torchdeq
def test_the_rows_are_named_by_what_they_evaluate():
    cell, drive = settling()
    weights = torch.rand_like(drive)
    for peer in PEERS:
        forward = peer.build(cell)
        forward(drive)
        numbers = [int(word.strip(",")) for word in peer.label.split() if word[0].isdigit()]
        evaluations, products = count(forward, cell, drive, weights)
        assert evaluations == numbers[0], peer.label
        # One more goes on into the weights.
        if len(numbers) == 2:
            assert products == numbers[1] + 1, peer.label


@needs_torchdeq
def test_the_tool_prints_a_table_for_each_cell(monkeypatch, capsys):
    monkeypatch.setattr(
        command, "CELLS", {"a small cell": (lambda: MaskHGRUCell(channels=4), (1, 4, 5, 6))}
    )
    words = ["peers", "--rounds", "2", "--exact-steps", "30", "--seed", "3"]
    run_command("", {"peers": command}, words)
    printed = capsys.readouterr().out
    assert "**a small cell**" in printed and "Random weights and drive, seed 3" in printed
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == len(PEERS) + 2 and len({line.count("|") for line in table}) == 1
    assert "plain 20, Neumann 15 | 20 | 16 |" in table[2] and "1.00 (1.00-1.00)" in table[2]


def test_without_torchdeq_the_cure_is_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        run_command("", {"peers": command}, ["peers", "--rounds", "1"])
    assert "needs torchdeq: pip install torchdeq" in capsys.readouterr().err


def test_numbers_out_of_range_are_refused():
    tool = CONFIGS.parent / "tools" / "benchmark.py"
    words = [sys.executable, str(tool), "peers", "--rounds", "0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "--rounds" in done.stderr and "Traceback" not in done.stderr
