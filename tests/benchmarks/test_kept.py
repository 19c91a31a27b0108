"""Kept features and heads that are whole, but not what was kept: made anew, with a word."""

from __future__ import annotations

import logging
import math
import pickle

import pytest
import torch

from benchmarks.heads import Bench, trained_head
from benchmarks.roi_features import Collection, cached_rois
from crbp_d2.analysis.arms import Arm
from tests.benchmarks.test_heads import QUICK, SMALL, discs, run  # noqa: F401  a fixture


def changed(name, change):
    def edit(stored):
        stored["model"][name] = change(stored["model"][name])

    return edit


WRONG_ROIS = {
    "of another kind": lambda stored: stored.update(model={"w": torch.ones(1)}),
    "without one": lambda stored: stored["model"].pop("masks"),
    "with one more": lambda stored: stored["model"].update(w=torch.ones(1)),
    "shorter": changed("masks", lambda value: value[:1]),
    "of other channels": changed("features", lambda value: value[:, :3]),
    "of another resolution": changed("features", lambda value: value[..., :7, :7]),
    "of another type": changed("features", lambda value: value.long()),
    "not finite": changed("features", lambda value: value * math.nan),
    "of unknown classes": changed("classes", lambda value: value + 99),
    "empty": lambda stored: stored.update(
        model={name: value[:0] for name, value in stored["model"].items()}
    ),
}


@pytest.mark.parametrize("edit", WRONG_ROIS.values(), ids=WRONG_ROIS.keys())
def test_features_of_another_form_are_made_anew(edit, run, caplog):  # noqa: F811
    how = Collection(per_image=1, seed=7)
    before = set(run.folder.glob("roi_features_*.pt"))
    first = cached_rois(run, ["test_heads_mixed"], how)
    (path,) = set(run.folder.glob("roi_features_*.pt")) - before
    stored = torch.load(path, weights_only=True)
    edit(stored)
    torch.save(stored, path)
    with caplog.at_level(logging.WARNING):
        mended = cached_rois(run, ["test_heads_mixed"], how)
    assert f"{path} can't be used (" in caplog.text and "made anew" in caplog.text
    assert all(torch.equal(vars(first)[name], vars(mended)[name]) for name in vars(first))
    caplog.clear()
    cached_rois(run, ["test_heads_mixed"], how)
    assert caplog.text == ""
    path.unlink()


WRONG_HEADS = {
    "of another kind": lambda stored: stored.update(model={"w": torch.ones(1)}),
    "without one": lambda stored: stored["model"].popitem(),
    "of another shape": changed("predictor.weight", lambda value: value[:1]),
    "of another type": changed("predictor.weight", lambda value: value.long()),
    "not finite": changed("predictor.bias", lambda value: value * math.inf),
    "without time": lambda stored: stored.pop("milliseconds"),
    "with a text for the time": lambda stored: stored.update(milliseconds="x"),
    "with bytes below 0": lambda stored: stored.update(saved_bytes=-1),
}


@pytest.mark.parametrize("edit", WRONG_HEADS.values(), ids=WRONG_HEADS.keys())
def test_a_head_of_another_form_is_trained_anew(edit, tmp_path, caplog):
    arm = Arm("one", QUICK / "shapes_crbp.yaml", {**SMALL, "CRBP.SOLVER.STEPS": 2})
    bench = Bench(iterations=2, batch=4, learning_rate=0.01, arms={"one": arm})
    common = {"num_classes": 2, "seed": 1, "folder": tmp_path}
    first = trained_head(arm, bench, discs(8, 1), **common).head.state_dict()
    (path,) = tmp_path.iterdir()
    stored = torch.load(path, weights_only=True)
    edit(stored)
    torch.save(stored, path)
    with caplog.at_level(logging.WARNING):
        again = trained_head(arm, bench, discs(8, 1), **common)
    assert f"{path} can't be used (" in caplog.text
    assert again.milliseconds > 0 and again.saved_bytes > 0
    found = again.head.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in first.items())


def test_what_would_run_code_is_not_run_but_made_anew(tmp_path, caplog):
    arm = Arm("one", QUICK / "shapes_crbp.yaml", {**SMALL, "CRBP.SOLVER.STEPS": 2})
    bench = Bench(iterations=1, batch=4, learning_rate=0.01, arms={"one": arm})
    common = {"num_classes": 2, "seed": 1, "folder": tmp_path}
    trained_head(arm, bench, discs(8, 1), **common)
    (path,) = tmp_path.iterdir()
    path.write_bytes(pickle.dumps(Arm))
    trained_head(arm, bench, discs(8, 1), **common)
    assert f"{path} can't be used (" in caplog.text
    assert set(torch.load(path, weights_only=True)) == {"model", "milliseconds", "saved_bytes"}
