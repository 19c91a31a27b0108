"""The embedded shapes: reproducible, and really overlapping, cut and textured."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from crbp_d2.data import ShapesConfig, make_shapes
from crbp_d2.data.shapes import SPLITS, register_shapes, shapes_root
from crbp_d2.data.shapes_drawing import OUTLINES, TEXTURES, fill_outline
from crbp_d2.data.shapes_scene import CATEGORY_IDS, draw_scene
from crbp_d2.data.storage import user_cache

from .test_cache import contents

THING_IDS = {CATEGORY_IDS[name] for name in OUTLINES}


@pytest.fixture(scope="module")
def scenes() -> list:
    return [draw_scene(index, seed=5, config=ShapesConfig()) for index in range(60)]


def test_bytes_depend_on_seed_alone_not_on_workers(tmp_path: Path) -> None:
    config = ShapesConfig(size=64)
    for name, workers, seed in (("one", 1, 3), ("two", 2, 3), ("other", 1, 4)):
        make_shapes(tmp_path / name, scenes=4, seed=seed, config=config, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    images = [contents(tmp_path / name / "images") for name in ("one", "other")]
    assert all(images[0][key] != images[1][key] for key in images[0])


def test_scene_is_independent_of_the_number_of_scenes(tmp_path: Path) -> None:
    config = ShapesConfig(size=64)
    make_shapes(tmp_path / "few", scenes=2, seed=3, config=config, workers=1)
    make_shapes(tmp_path / "more", scenes=3, seed=3, config=config, workers=1)
    few, more = (contents(tmp_path / name / "images") for name in ("few", "more"))
    assert few == {key: more[key] for key in few}


def test_same_arguments_draw_the_same_scene() -> None:
    first, second = (draw_scene(7, seed=1, config=ShapesConfig()) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.ids, second.ids)


def test_annotations_fit_the_ids(scenes: list) -> None:
    for scene in scenes:
        assert set(np.unique(scene.ids)) - {0} == set(scene.segments)
        things = [value for value in scene.segments.values() if value in THING_IDS]
        assert 1 <= len(things) <= 8
        assert len(scene.segments) - len(things) >= 1
        assert scene.image.shape == (128, 128, 3) and scene.image.dtype == np.uint8


def test_all_classes_and_difficulties_occur(scenes: list) -> None:
    found = {category for scene in scenes for category in scene.segments.values()}
    assert found == set(CATEGORY_IDS.values())
    numbers = {sum(c in THING_IDS for c in scene.segments.values()) for scene in scenes}
    assert {1, 2, 3, 4, 5, 6} <= numbers
    cut = touching = 0
    for scene in scenes:
        labels = np.where(
            np.isin(scene.ids, [v for v, c in scene.segments.items() if c in THING_IDS]),
            scene.ids,
            0,
        )
        border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        cut += bool(border.any())
        left, right = labels[:, :-1], labels[:, 1:]
        touching += bool(((left != right) & (left > 0) & (right > 0)).any())
    assert cut > 15 and touching > 15


def test_colour_does_not_tell_the_class(scenes: list) -> None:
    # Mean colours of a class scatter over scenes more than the means of the classes differ.
    for names in (OUTLINES, TEXTURES):
        means: dict[int, list[np.ndarray]] = {CATEGORY_IDS[name]: [] for name in names}
        for scene in scenes:
            for value, category in scene.segments.items():
                if category in means:
                    means[category].append(scene.image[scene.ids == value].mean(axis=0))
        within = np.mean([np.std(values, axis=0) for values in means.values()])
        between = np.std([np.mean(values, axis=0) for values in means.values()], axis=0).mean()
        assert within > 2 * between


def test_outlines_differ_and_a_ring_has_a_hole() -> None:
    masks = {
        name: fill_outline(
            name, 100, centre=np.array([0.5, 0.5]), radius=0.4, angle=0.3, stretch=1.0
        )
        for name in OUTLINES
    }
    assert masks["ring"][50, 50] == 0 and masks["disc"][50, 50] == 1
    for name, mask in masks.items():
        for other, other_mask in masks.items():
            overlap = (mask & other_mask).sum() / (mask | other_mask).sum()
            assert name == other or overlap < 0.8


def test_registered_on_import_and_made_on_first_use(tmp_path: Path) -> None:
    assert {f"shapes_{split}" for split in SPLITS} <= set(DatasetCatalog.list())
    register_shapes(tmp_path, {"first_use": (3, 9)})
    metadata = MetadataCatalog.get("shapes_first_use")
    assert metadata.thing_classes == list(OUTLINES)
    assert metadata.stuff_classes == ["things", *TEXTURES]
    assert not list(tmp_path.iterdir())
    records = DatasetCatalog.get("shapes_first_use")
    assert [record["image_id"] for record in records] == [0, 1, 2]
    assert all(record["annotations"] for record in records)
    assert Path(records[0]["file_name"]).parent == tmp_path / "first_use" / "images"


def test_default_place_follows_detectron2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert shapes_root() == tmp_path / "shapes"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    assert shapes_root() == tmp_path / "datasets" / "shapes"
    protected = tmp_path / "protected"
    protected.mkdir(mode=0o555)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(protected))
    assert shapes_root() == user_cache() / "shapes"


@pytest.mark.parametrize(
    "call",
    [
        lambda: ShapesConfig(size=16),
        lambda: ShapesConfig(max_things=0),
        lambda: make_shapes(Path("never"), scenes=0, seed=0),
        lambda: make_shapes(Path("never"), scenes=1, seed=-1),
    ],
)
def test_impossible_requests_are_refused(call) -> None:
    with pytest.raises(ValueError, match="at least"):
        call()
