"""The comparison of estimators, on a tiny cell with a known answer."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import weakref

import pytest
import torch

from benchmarks.commands import gradients
from benchmarks.gradients import (
    CONTENDERS,
    Row,
    compare,
    markdown,
    saved_bytes,
    trained_setting,
)
from crbp_d2.analysis.outputs import find_recurrence
from crbp_d2.analysis.runs import load_run
from crbp_d2.core import ConfigurationError, MaskHGRUCell, build_recurrence
from crbp_d2.data import build_test_loader
from crbp_d2.engine import run_command
from tests.analysis.page_runs import write_run
from tests.modeling.conftest import CONFIGS


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
    assert jfb.cosine < by_label["rbp, Anderson 12/7"].cosine
    assert jfb.cosine < rbp.cosine < implicit.cosine
    # Seven products mixed are worth fifteen summed.
    assert rbp.cosine < by_label["rbp, Anderson adjoint 20/7"].cosine
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
    recurrence = build_recurrence(algorithm, cell, steps=5)

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


def test_a_trained_circuit_comes_with_what_drives_it(tmp_path):
    run = load_run(str(write_run(tmp_path / "run", "quick/pathfinder_crbp.yaml")))
    cell, drive = trained_setting(run, 3)
    assert cell is find_recurrence(run.model).cell and len(drive) == 3
    (batch,) = itertools.islice(
        build_test_loader(run.cfg, run.cfg.DATASETS.TEST[0], batch_size=3), 1
    )
    head = run.model.sem_seg_head
    with torch.no_grad():
        expected = [output["sem_seg"] for output in run.model(batch)]
        found = head.read_out(head.recurrence(drive).state)
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_run_without_test_sets_is_told_how_to_name_one(tmp_path):
    folder = write_run(tmp_path / "run", "quick/pathfinder_crbp.yaml")
    run = load_run(str(folder), ["DATASETS.TEST", "()"])
    with pytest.raises(ConfigurationError, match=r"run: DATASETS.TEST .* --dataset"):
        trained_setting(run, 3)


def test_each_of_several_runs_has_the_table_that_it_has_alone(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "run", "quick/pathfinder_crbp.yaml")

    def drawn(cell, drive, **_):
        return [Row("bptt", float(torch.rand(())), float(drive.sum()), {}, [1.0])], 0.0

    monkeypatch.setattr(gradients, "compare", drawn)

    def printed(*labels: str) -> str:
        words = [f"{label}={folder}" for label in labels]
        run_command("", {"gradients": gradients}, ["gradients", *words, "--samples", "2"])
        return capsys.readouterr().out

    both = printed("one", "two")
    assert both == printed("one") + printed("two")
    assert "**one: 2 samples of" in both and both.count("Trained weights, test images") == 2


@pytest.mark.slow
def test_the_tool_names_what_is_no_run(tmp_path):
    tool = CONFIGS.parent / "tools" / "benchmark.py"
    command = [sys.executable, str(tool), "gradients", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "there is no config.yaml" in done.stderr
    assert "Traceback" not in done.stderr
