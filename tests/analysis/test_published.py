"""The published scores that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from crbp_d2.analysis import published
from crbp_d2.core import ConfigurationError

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"


def test_scores_per_step_are_those_of_the_paper():
    panoptic = published.per_step("panoptic_R50")
    assert set(panoptic) == {"crbp20", "bptt1", "bptt3", "bptt5"}
    assert all(list(scores) == list(range(1, 31)) for scores in panoptic.values())
    assert panoptic["crbp20"][20] == 41.5939 and panoptic["bptt3"][30] == 27.1526
    pathfinder = published.per_step("pathfinder_14")
    assert pathfinder["bptt"] == {6: 0.991, 20: 0.245, 40: 0.229}
    assert pathfinder["crbp"][40] == 0.982


def test_trainings_on_pathfinder_keep_what_was_not_published_empty():
    rows = published.pathfinder_f1()
    assert len(rows) == 28
    assert published.PathfinderScore("crbp", "pathfinder_25", 15, 80, 15, 0.968, 0.9635) in rows
    feedforward = next(row for row in rows if row.algorithm == "feedforward_6_layers")
    assert (feedforward.steps, feedforward.neumann_terms, feedforward.final) == (None, None, None)


def test_final_scores_are_the_best_of_each_algorithm():
    assert published.final_scores("panoptic_R50") == {
        "feedforward": 39.3896, "bptt": 41.5451, "crbp": 41.6331, "rbp": 41.2170
    }  # fmt: skip
    # The best with kernels of 9 pixels is not among them.
    assert published.final_scores("pathfinder_14")["crbp"] == 0.9804
    assert all(published.final_scores(name) for name in published.FINAL)


@pytest.mark.parametrize("read", [published.per_step, published.final_scores])
def test_unknown_names_list_the_choices(read):
    with pytest.raises(ConfigurationError, match="'pathfinder_15'; choose from panoptic_R50, .*14"):
        read("pathfinder_15")


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs the reference figures beside the clone")
def test_the_files_hold_the_reference_figures():
    names = sorted(path.name for path in REFERENCE.glob("*.csv"))
    carried = files(published)
    assert names == sorted(one.name for one in carried.iterdir() if one.name.endswith(".csv"))
    for name in names:
        assert carried.joinpath(name).read_text() == (REFERENCE / name).read_text(), name
