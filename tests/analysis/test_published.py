"""The published scores that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from crbp_d2.analysis import published
from crbp_d2.analysis.published.overlays import published_steps, read_table
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
    assert published.final_scores("pathfinder_14_kernel_9") == {"bptt": 0.8831, "crbp": 0.9744}
    assert published.final_scores("pathfinder_14_kernel_3") == {"bptt": 0.6603, "crbp": 0.9430}


def test_curves_by_name_have_their_source_and_can_be_chosen():
    found = published_steps("panoptic_R50:bptt3,crbp20")
    assert (found.score, found.place) == ("PQ", "step")
    labels = ["bptt3 (Linsley et al. 2020)", "crbp20 (Linsley et al. 2020)"]
    assert list(found.curves) == labels
    assert found.curves[labels[1]][20] == 41.5939
    assert published_steps("pathfinder_14").score == "F1"
    with pytest.raises(ConfigurationError, match="of adam in panoptic_R50; choose from crbp20, "):
        published_steps("panoptic_R50:adam")


TABLE = """source,model,data set,step,F1
"Someone, 2021",hGRU,of 20 dashes,6,0.5
"Someone, 2021",hGRU,of 20 dashes,2,0.25
"Someone, 2021",hGRU,,1,1
"""


def test_curves_of_ones_own_table_have_its_source(tmp_path):
    (tmp_path / "a.csv").write_text(f"\ufeff{TABLE}")
    found = published_steps(str(tmp_path / "a.csv"))
    assert found.curves == {
        "hGRU, of 20 dashes (Someone, 2021)": {2: 0.25, 6: 0.5}, "hGRU (Someone, 2021)": {1: 1.0},
    }  # fmt: skip
    assert list(found.curves["hGRU, of 20 dashes (Someone, 2021)"]) == [2, 6]
    (tmp_path / "b.csv").write_text("source,model,images,PQ\nA,B,16000,99.5\n")
    learning = read_table(tmp_path / "b.csv", "images")
    assert (learning.score, learning.curves) == ("PQ", {"B (A)": {16000: 99.5}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TABLE.replace("step", "images"), "its columns are source, model, data set, images, F1"),
        (TABLE.replace(",F1", ",accuracy"), "its columns are"),
        (TABLE.replace("0.25", "25"), r"line 3: step 2, F1 25\.0"),
        (TABLE.replace(",6,", ",-6,"), "line 2: step -6"),
        (TABLE.replace(",6,", ",six,"), "invalid literal"),
        (TABLE.replace('"Someone, 2021"', ""), "line 2"),
        (TABLE.splitlines()[0], "it holds no scores"),
        ("", "its columns are none"),
        ("\xff", "its columns are"),
    ],
)
def test_other_tables_are_refused(content, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(content)
    expected = f"--published {path}: no table of published scores .*{message}.* it has the columns"
    with pytest.raises(ConfigurationError, match=expected):
        published_steps(str(path))
    with pytest.raises(ConfigurationError, match="absent.csv: no table"):
        published_steps(str(tmp_path / "absent.csv"))


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
