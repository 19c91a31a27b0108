"""The tutorial's blocks run as printed, in order, in a folder of their own."""

from __future__ import annotations

import json
import re

import pytest

from tests.distributed import ROOT

from .blocks import blocks_of, link_clone, run_blocks

pytestmark = pytest.mark.slow

TEXT = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = blocks_of(TEXT)
# Fewer iterations and scenes, and no fewer kinds of anything: what is left is to start the tools.
SHORTER = {
    "MAX_ITER: 400": "MAX_ITER: 4",
    '"scenes/train"), 60': '"scenes/train"), 16',
    '"scenes/val"), 20': '"scenes/val"), 4',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all blocks have run, with what the clone has beside them."""
    folder = tmp_path_factory.mktemp("clone")
    link_clone(folder)
    (folder / "printed").write_text(run_blocks(BLOCKS, folder, SHORTER))
    return folder


def test_what_is_shortened_is_there():
    assert all(long in TEXT for long in SHORTER)
    assert len([name for name, _, _ in BLOCKS if name]) == 3
    assert TEXT.count("```") == 2 * len(BLOCKS)


def test_it_trains_and_scores(folder):
    results = json.loads((folder / "outputs" / "scenes_crbp" / "results.json").read_text())
    assert {"PQ", "PQ_th", "PQ_st"} <= results["panoptic_seg"].keys()


def test_the_log_has_what_the_table_explains(folder):
    logged = json.loads(
        (folder / "outputs" / "scenes_crbp" / "metrics.json").read_text().splitlines()[0]
    )
    explained = re.findall(r"^\| `(\w+)` \|", TEXT, re.M)
    assert explained
    assert {f"recurrence/{name}" for name in explained} == {
        key for key in logged if key.startswith("recurrence/")
    }


def test_it_draws_pictures_and_answers_about_all_steps(folder):
    run = folder / "outputs" / "scenes_crbp"
    assert len(list((folder / "pictures").glob("*.png"))) == 2
    assert {"curves.png", "steps.png", "stability.png"} <= {path.name for path in run.iterdir()}
    words = "contracting|settled|restless|drifting|forgetting"
    assert re.search(rf"({words}): rho", (folder / "printed").read_text())
