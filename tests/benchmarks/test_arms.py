"""Time and memory of trained arms."""

from __future__ import annotations

import json

import pytest

from benchmarks.commands import arms as command
from crbp_d2.analysis.comparison import read_comparison, train_one
from crbp_d2.engine import run_command
from tests.analysis.test_comparison import arm, write


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["training", "inference"])
def test_trained_arms_are_measured_in_turns_on_their_data(kind, tmp_path, capsys):
    arms = {
        "feed-forward": arm("pathfinder_feedforward.yaml"),
        "C-RBP": arm("pathfinder_crbp.yaml"),
    }
    file = write(tmp_path / "arms.yaml", arms)
    comparison = read_comparison(file)
    for one in comparison.arms.values():
        train_one(comparison, one, 1, one.folder(tmp_path / "out", 1))
    options = ["--inference", "--steps", "3"] if kind == "inference" else []
    places = ["--trained", tmp_path / "out", "--output", tmp_path / "times"]
    words = ["arms", file, *options, "--rounds", 2, *places]
    # What the trainings said.
    capsys.readouterr()
    run_command("", {"arms": command}, [str(word) for word in words])
    *_, head, _, first_line, second_line, _, last = capsys.readouterr().out.splitlines()
    assert head.startswith("| variant | time, ratio to feed-forward")
    assert first_line.startswith("| feed-forward | 1.00 (1.00-1.00) |")
    assert second_line.startswith("| C-RBP | ") and f"{kind} on pathfinder_tiny_val" in last
    written = json.loads((tmp_path / "times.json").read_text())
    first, second = written["measurements"]
    assert len(first["seconds"]) == len(second["ratios"]) == 2 and written["kind"] == kind
    if kind == "training":
        assert first["peak_bytes"] > 0 and second["peak_bytes"] > 0
