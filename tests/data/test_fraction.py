"""Training on a fraction of the images."""

from __future__ import annotations

import hashlib
import logging
import random

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from crbp_d2.core import ConfigurationError
from crbp_d2.data import build_train_loader, register_panoptic, require_fraction, set_num_classes
from crbp_d2.data.fraction import fraction_of
from crbp_d2.engine.run import report_changes
from tests.data.panoptic_data import write_panoptic
from tests.modeling.conftest import load_config  # noqa: F401  a fixture

NAME = "test_fraction_mine"


def ids_of(records) -> list:
    return [record["image_id"] for record in records]


def test_a_fraction_of_coco_has_the_number_of_images_that_is_said():
    records = [{"image_id": number} for number in range(118_287)]
    parts = [ids_of(fraction_of(records, f, 0)) for f in (0.01, 0.10, 0.25, 0.50, 1.0)]
    assert [len(part) for part in parts] == [1183, 11829, 29572, 59144, 118_287]
    for smaller, larger in zip(parts, parts[1:], strict=False):
        assert set(smaller) < set(larger)
    # Evenly from everywhere: of 29,572 draws 1 % is more than three standard deviations.
    assert abs(sum(number < 59_144 for number in parts[2]) / len(parts[2]) - 0.5) < 0.01
    other = ids_of(fraction_of(records, 0.10, 1))
    assert abs(len(set(other) & set(parts[1])) / len(other) - 0.10) < 0.01


def test_the_images_follow_from_seed_and_ids_alone():
    records = [{"image_id": f"case {number}", "file_name": f"{number}.png"} for number in range(30)]
    ids = ids_of(records)
    first = sorted(ids, key=lambda one: hashlib.sha256(f"7/{one}".encode()).digest())[:9]
    assert set(ids_of(fraction_of(records, 0.3, 7))) == set(first)
    shuffled = random.Random(3).sample(records, len(records))
    found = ids_of(fraction_of(shuffled, 0.3, 7))
    assert set(found) == set(first)
    assert found == [one for one in ids_of(shuffled) if one in first]
    assert len(fraction_of(records, 1e-9, 7)) == 1
    nameless = [{"file_name": record["file_name"]} for record in records]
    assert len({record["file_name"] for record in fraction_of(nameless, 0.3, 7)}) == 9


@pytest.fixture
def name(tmp_path):
    """A registered data set of three images."""
    register_panoptic(NAME, **write_panoptic(tmp_path / "mine").arguments())
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.mark.parametrize("grouping", [False, True])
def test_a_training_sees_its_fraction_alone(grouping, name, load_config, caplog):  # noqa: F811
    cfg = load_config(
        "quick/shapes_crbp.yaml", "DATASETS.TRAIN", f"('{name}',)", "SOLVER.IMS_PER_BATCH", 1,
        "DATASETS.FRACTION", 0.67, "DATASETS.FRACTION_SEED", 5,
        "DATALOADER.ASPECT_RATIO_GROUPING", grouping,
    )  # fmt: skip
    set_num_classes(cfg, name)
    with caplog.at_level(logging.INFO):
        batches = iter(build_train_loader(cfg))
    assert "FRACTION 0.67: 2 of 3 training images, drawn by DATASETS.FRACTION_SEED 5" in caplog.text
    seen = {record["image_id"] for _, (record,) in zip(range(12), batches, strict=False)}
    assert seen == set(ids_of(fraction_of(DatasetCatalog.get(name), 0.67, 5)))
    assert len(seen) == 2


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_what_is_no_fraction_is_refused(fraction, load_config):  # noqa: F811
    cfg = load_config("quick/shapes_crbp.yaml", "DATASETS.FRACTION", fraction)
    with pytest.raises(ConfigurationError, match=r"FRACTION is .*: must be above 0 and at most 1"):
        require_fraction(cfg)


def test_drawn_images_have_no_fraction(load_config):  # noqa: F811
    cfg = load_config("quick/pathfinder_crbp.yaml", "DATASETS.FRACTION", 0.5)
    with pytest.raises(ConfigurationError, match="FRACTION is 0.5: Pathfinder images .* set it to"):
        require_fraction(cfg)


def test_a_resumed_training_on_another_fraction_says_so(load_config, tmp_path, caplog):  # noqa: F811
    own = ("OUTPUT_DIR", str(tmp_path))
    (tmp_path / "config.yaml").write_text(load_config("quick/shapes_crbp.yaml", *own).dump())
    cfg = load_config("quick/shapes_crbp.yaml", *own, "DATASETS.FRACTION", 0.5)
    with caplog.at_level(logging.WARNING):
        report_changes(cfg)
    assert "--resume: goes on with other values: DATASETS.FRACTION 0.5 (was 1.0)" in caplog.text
