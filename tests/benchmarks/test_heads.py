"""Mask heads on cached RoI features: what is collected, what is trained, what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from benchmarks.heads import (
    Bench,
    HeadOutcome,
    Measured,
    markdown,
    measure_head,
    outcome_of,
    read_bench,
    trained_head,
)
from benchmarks.roi_features import (
    TOUCHING,
    Collection,
    RoIs,
    cached_rois,
    elongation_of,
    touching,
)
from crbp_d2.analysis.arms import Arm
from crbp_d2.analysis.runs import load_run
from crbp_d2.core import ConfigurationError, Recurrence
from tests.analysis.panoptic_models import tiny_model, write_run
from tests.data.mixed_data import registered, write_mixed
from tests.modeling.conftest import CONFIGS

NAME = "test_heads_mixed"
QUICK = CONFIGS / "quick"
SMALL = {"CRBP.CELL.CHANNELS": 8, "MODEL.ROI_MASK_HEAD.CONV_DIM": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    with registered(NAME, write_mixed(folder / "data").arguments()):
        cfg, model = tiny_model(NAME, "INPUT.MIN_SIZE_TEST", 64)
        yield load_run(str(write_run(folder / "run", cfg, model)))


def discs(count: int, seed: int) -> RoIs:
    """Regions whose features show the disc that is to be found, beside noise."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    middle = 10 + 8 * torch.rand(count, 2, 1, 1, generator=random)
    radius = 4 + 6 * torch.rand(count, 1, 1, generator=random)
    masks = (x - middle[:, 0]) ** 2 + (y - middle[:, 1]) ** 2 < radius**2
    shown = nn.functional.avg_pool2d(masks.float()[:, None], 2)
    noise = 0.2 * torch.rand(count, 7, 14, 14, generator=random)
    classes = torch.randint(2, (count,), generator=random)
    near = torch.arange(count) % 2 == 0
    return RoIs(torch.cat([shown, noise], dim=1), masks, classes, near, torch.ones(count) + near)


def test_features_are_those_of_the_mask_head_and_masks_those_of_the_boxes(run):
    exact = cached_rois(run, [NAME], Collection(jitter=0.0, per_image=2))
    moved = cached_rois(run, [NAME], Collection(jitter=0.1, per_image=2))
    assert len(exact) == len(moved) > 2
    assert exact.features.shape[1:] == (run.model.backbone.output_shape()["p2"].channels, 14, 14)
    assert exact.masks.shape[1:] == (28, 28) and exact.masks.dtype == torch.bool
    # Within its own box an object reaches all four sides, if it is not of a few pixels alone.
    for side in (exact.masks[:, 0], exact.masks[:, -1], exact.masks[..., 0], exact.masks[..., -1]):
        assert side.any(dim=1).float().mean() > 0.8
    assert not torch.equal(exact.masks, moved.masks)
    assert not torch.equal(exact.features, moved.features)


def test_features_are_kept_for_the_same_settings_alone(run):
    how = Collection(per_image=1, seed=3)
    first = cached_rois(run, [NAME], how)
    files = set(run.folder.glob("roi_features_*.pt"))
    again = cached_rois(run, [NAME], how)
    assert all(torch.equal(vars(first)[name], vars(again)[name]) for name in vars(first))
    assert set(run.folder.glob("roi_features_*.pt")) == files
    cut = max(files, key=lambda path: path.stat().st_mtime)
    cut.write_bytes(cut.read_bytes()[:-100])
    mended = cached_rois(run, [NAME], how)
    assert torch.equal(mended.features, first.features)
    assert len(cached_rois(run, [NAME], Collection(per_image=3, seed=3))) > len(first)
    assert len(set(run.folder.glob("roi_features_*.pt"))) == len(files) + 1
    smaller = load_run(str(run.folder), ["INPUT.MIN_SIZE_TEST", 48])
    assert not torch.equal(cached_rois(smaller, [NAME], how).features, first.features)


def test_finer_features_and_noisy_images_are_of_the_same_objects(run):
    usual = cached_rois(run, [NAME], Collection(jitter=0.0))
    finer = cached_rois(run, [NAME], Collection(jitter=0.0, resolution=28))
    assert finer.features.shape[2:] == (28, 28) and finer.masks.shape[1:] == (56, 56)
    pooled = nn.functional.avg_pool2d(finer.features, 2)
    assert torch.nn.functional.cosine_similarity(pooled, usual.features).mean() > 0.98
    assert run.model.roi_heads.mask_pooler.output_size == (14, 14)
    noisy = cached_rois(run, [NAME], Collection(jitter=0.0, noise=30.0))
    assert not torch.equal(noisy.features, usual.features)
    for name in ("masks", "classes", "touching", "elongation"):
        assert torch.equal(getattr(noisy, name), getattr(usual, name))


def test_touching_and_elongated_objects_are_known():
    masks = torch.zeros(5, 40, 60, dtype=torch.bool)
    masks[0, 4:10, 4:28] = True
    masks[1, 4:10, 28 + TOUCHING - 1 : 34] = True
    masks[2, 4:10, 34 + TOUCHING : 48] = True
    masks[3, 20:32, 4:16] = True
    of_parts = [True, True, False, False, False]
    assert touching(masks).tolist() == of_parts
    found = elongation_of(masks)
    # A rectangle has the moments of its sides: 24 x 6 pixels.
    assert found[0] == pytest.approx(4, rel=1e-4) and found[3] == pytest.approx(1, rel=1e-4)
    assert found[4] == 1


@pytest.mark.parametrize(
    ("config", "settings", "recurrent"),
    [
        ("shapes_feedforward.yaml", {"MODEL.ROI_MASK_HEAD.NUM_CONV": 2}, False),
        ("shapes_settling.yaml", {"CRBP.SOLVER.STEPS": 4, "CRBP.SOLVER.SPREAD": 1}, True),
        ("shapes_crbp.yaml", {"CRBP.ALGORITHM": "bptt", "CRBP.SOLVER.STEPS": 3}, True),
    ],
)
def test_a_head_learns_what_its_features_show(config, settings, recurrent, tmp_path):
    arm = Arm("one", QUICK / config, {**SMALL, **settings})
    bench = Bench(iterations=150, batch=16, learning_rate=0.01, arms={"one": arm})
    trained = trained_head(arm, bench, discs(64, 1), num_classes=2, seed=1, folder=tmp_path)
    head = trained.head
    assert trained.milliseconds > 0 and trained.saved_bytes > 0 and not head.training
    steps = head.recurrence.test_steps if recurrent else None
    found = measure_head(head, discs(70, 2), steps)
    assert len(found.iou) == 4 and found.iou[1] > 0.8
    assert 0 < found.shares["0.85"][1] <= 1 and found.shares["0.9"][1] <= found.shares["0.85"][1]
    of_kinds = (found.kinds["touching"], found.kinds["elongated"])
    # Every second disc is of both kinds.
    assert of_kinds[0] == of_kinds[1] != found.iou[1]
    if not recurrent:
        assert (found.change, found.radius) == (None, None) and len(set(found.iou)) == 1
        return
    assert found.change is not None and found.radius is not None
    assert 0 < found.radius[0] <= found.radius[1] <= found.radius[2]


def test_overlaps_are_those_of_the_class_and_of_all_regions():
    rois = discs(70, 1)

    class Perfect(nn.Module):
        """Knows the masks, in the order of the regions, and answers them for their class alone."""

        def __init__(self) -> None:
            super().__init__()
            self.seen = 0

        def layers(self, features):
            part = rois.select(torch.arange(self.seen, self.seen + len(features)))
            self.seen += len(features)
            logits = -torch.ones(len(features), 2, 28, 28)
            logits[torch.arange(len(features)), part.classes] = part.masks.float() * 2 - 1
            return logits

    assert measure_head(Perfect(), rois, None) == Measured(
        iou=[1.0] * 4,
        shares={"0.85": [1.0] * 4, "0.9": [1.0] * 4},
        kinds={"touching": 1.0, "elongated": 1.0},
    )


def test_an_arm_is_trained_once_and_other_settings_are_refused(tmp_path):
    arm = Arm("one, small", QUICK / "shapes_crbp.yaml", {**SMALL, "CRBP.SOLVER.STEPS": 2})
    bench = Bench(iterations=2, batch=4, learning_rate=0.01, arms={arm.label: arm})
    rois = discs(8, 1), discs(5, 2)
    kept = tmp_path / "kept"
    folders = {"folder": tmp_path / "first", "heads": kept}
    common = {"num_classes": 2, "seed": 1, **folders, "conditions": {"noise": 0}}
    first = outcome_of(arm, bench, rois, **common)
    assert outcome_of(arm, bench, rois, **common) == first
    (path,) = folders["folder"].glob("*.json")
    whole = json.loads(path.read_text())
    for damage, message in (
        ({"kinds": {"touching": 0.5}}, "kinds lacks elongated"),
        ({"shares": {"0.85": [0.5] * 3, "0.9": [0.5] * 4}}, "shares is "),
        ({"radius": [1.0, "1"]}, "radius is "),
        ({"seed": 2}, "of the seed 2, not 1"),
    ):
        path.write_text(json.dumps({**whole, **damage}))
        with pytest.raises(ConfigurationError, match=f"{path}: .*{message}.*; remove it"):
            outcome_of(arm, bench, rois, **common)
    path.write_text(json.dumps(whole))
    other = Bench(iterations=3, batch=4, learning_rate=0.01, arms=bench.arms)
    with pytest.raises(ConfigurationError, match="was trained with .*name another --output"):
        outcome_of(arm, other, rois, **common)
    with pytest.raises(ConfigurationError, match="was trained with .*name another --output"):
        outcome_of(arm, bench, rois, **{**common, "conditions": {"noise": 20}})
    # To be asked otherwise, it is not trained again.
    elsewhere = {**common, "folder": tmp_path / "second", "conditions": {"noise": 20}}
    second = outcome_of(arm, bench, rois, **elsewhere)
    assert (second.milliseconds, second.radius) == (first.milliseconds, first.radius)
    assert len(list(kept.iterdir())) == 1
    third = outcome_of(arm, bench, (discs(8, 3), rois[1]), **{**elsewhere, "folder": tmp_path})
    assert third.radius != first.radius and len(list(kept.iterdir())) == 2
    head, rule, line = markdown(bench, [first])
    assert head.count("|") == rule.count("|") == line.count("|")
    assert line.startswith("| one, small | 0.") and line.endswith("| 1 |")


def test_the_benchs_file_is_whole_and_its_heads_are_of_comparable_size(tmp_path):
    bench = read_bench(CONFIGS.parent / "benchmarks" / "mask_heads.yaml")
    assert bench.iterations == 800 and "feed-forward" in bench.arms
    rois = RoIs(
        torch.rand(2, 64, 14, 14),
        torch.ones(2, 28, 28, dtype=torch.bool),
        torch.tensor([0, 0]),
        torch.tensor([True, False]),
        torch.ones(2),
    )
    one = Bench(iterations=1, batch=2, learning_rate=0.001, arms=bench.arms)
    for label, arm in bench.arms.items():
        head = trained_head(arm, one, rois, num_classes=1, seed=1, folder=tmp_path).head
        recurrent = any(isinstance(module, Recurrence) for module in head.modules())
        assert recurrent != label.startswith("feed-forward")
        assert 80_000 < sum(p.numel() for p in head.parameters()) < 170_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iteration": 3}, "unknown key 'iteration'; did you mean iterations"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', must be a number"),
        ({"arms": {"a": {"config": "absent.yaml"}}}, "arm 'a': .*absent.yaml"),
    ],
)
def test_a_mistake_in_the_file_is_named(change, message, tmp_path):
    content = {"iterations": 2, "batch": 2, "learning_rate": 0.1, "arms": {"b": {}}, **change}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigurationError, match=message):
        read_bench(tmp_path / "arms.yaml")
    with pytest.raises(ConfigurationError, match="no such file"):
        read_bench(Path("absent.yaml"))


def test_the_largest_radius_of_all_seeds_is_shown():
    bench = Bench(1, 1, 0.1, {"a": Arm("a", Path("c.yaml"))})

    def outcome(seed: int, radius: list[float], iou: float) -> HeadOutcome:
        shares = {"0.85": [0.5] * 4, "0.9": [0.25] * 4}
        kinds = {"touching": 0.75, "elongated": iou}
        return HeadOutcome("a", seed, {}, [iou] * 4, shares, kinds, 0.01, radius, 5.0, 10**6, 1234)

    runs = [outcome(2, [0.5, 0.7, 1.2], 0.8), outcome(1, [0.7, 0.9, 0.95], 0.9)]
    *_, line = markdown(bench, runs)
    assert line == (
        "| a | 0.8500 | 0.8500 (0.8000-0.9000) | 0.8500 | 0.8500 | 0.500 | 0.250 | 0.7500 | 0.8500 "
        "| 0.01000 | 0.60, 0.90, 1.20 | 5 | 1 | 1,234 | 1, 2 |"
    )
