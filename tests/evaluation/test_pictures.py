"""Pictures of predictions beside the truth: their colours, labels, names and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image
from torch import nn

from crbp_d2.config import add_crbp_config
from crbp_d2.data import ensure_prepared
from crbp_d2.evaluation import drawing
from crbp_d2.evaluation.colours import ObjectColours, class_colours
from crbp_d2.evaluation.drawing import (
    GAP,
    LONGEST_SIDE,
    MOST_LABELS,
    OPACITY_OF_STUFF,
    draw_segments,
    drawn_size,
    title_height,
)
from crbp_d2.evaluation.palette import Colour, weighted_lab
from crbp_d2.evaluation.pictures import (
    answer_as_drawn,
    contour_panels,
    ground_truth,
    image_name,
    unused,
    write_pictures,
)
from tests.analysis.panoptic_models import tiny_model
from tests.data.mixed_data import SIZES, registered, write_mixed
from tests.data.panoptic_data import CATEGORIES, write_panoptic
from tests.data.real_data import needs_real_data, real_arguments
from tests.data.thin_data import write_halves

from .models import annotations_as_predictions, tiny_config

NAME = "test_pictures"


class Right(nn.Module):
    """A model that answers with the annotations."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.answers = {
            record["image_id"]: output for record, output in annotations_as_predictions(name)
        }

    def forward(self, batch: list[dict]) -> list[dict]:
        return [self.answers[record["image_id"]] for record in batch]


def pictures_of(name: str, folder: Path) -> list[Path]:
    cfg = tiny_config(name)
    add_crbp_config(cfg)
    return write_pictures(cfg, Right(name), name, folder)


def panels_of(path: Path) -> list[np.ndarray]:
    """Image, prediction and truth of a picture, without titles."""
    picture = np.asarray(Image.open(path))
    width = (picture.shape[1] - 2 * GAP) // 3
    strip = next(h for h in range(32, picture.shape[0]) if title_height(picture.shape[0] - h) == h)
    return [picture[strip:, start : start + width] for start in (0, width + GAP, 2 * (width + GAP))]


def assert_right_predictions_look_like_the_truth(name: str, folder: Path) -> None:
    for path in pictures_of(name, folder):
        _, predicted, true = panels_of(path)
        assert np.array_equal(predicted, true), path
        # Every segment is drawn, so that the comparison means something.
        assert predicted.std() > 1


def test_a_right_prediction_looks_like_the_truth(tmp_path):
    with registered(NAME, write_mixed(tmp_path / "data").arguments()):
        assert_right_predictions_look_like_the_truth(NAME, tmp_path / "out")
        first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert len(first) == len(SIZES)
        # And in every run.
        np.random.seed(7)
        again = pictures_of(NAME, tmp_path / "again")
        assert {path.name: path.read_bytes() for path in again} == first


@needs_real_data
@pytest.mark.parametrize("kind", ["nuclei", "coco"])
def test_a_right_prediction_of_a_real_image_looks_like_the_truth(kind, tmp_path):
    name = f"{NAME}_{kind}"
    with registered(name, real_arguments(kind, tmp_path / "data", images=4)):
        ensure_prepared(name)
        assert_right_predictions_look_like_the_truth(name, tmp_path / "out")


def test_classes_have_the_colours_of_their_categories(tmp_path):
    with registered(NAME, write_mixed(tmp_path / "data").arguments()):
        metadata = MetadataCatalog.get(NAME)
        things, stuff = class_colours(metadata)
        given = {category["name"]: tuple(category["color"]) for category in CATEGORIES}
        assert dict(zip(metadata.thing_classes, things, strict=True)) == {
            name: given[name] for name in ("dog", "cup")
        }
        named = dict(zip(metadata.stuff_classes, stuff, strict=True))
        assert (named["sky"], named["road"]) == (given["sky"], given["road"])
        # In the picture, over the image in grey.
        image, predicted, _ = panels_of(pictures_of(NAME, tmp_path / "out")[0])
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    expected = grey + OPACITY_OF_STUFF * (np.array(given["sky"]) - grey)
    near_the_corner = np.s_[2:40, -60:-2]
    assert np.abs(predicted[near_the_corner] - expected[near_the_corner]).max() <= 1


def test_classes_without_a_colour_have_fixed_different_ones():
    metadata = MetadataCatalog.get("test_pictures_uncoloured").set(
        thing_classes=list("abcdefgh"), stuff_classes=list("things"), stuff_colors=[[1, 2, 3], None]
    )
    things, stuff = class_colours(metadata)
    assert len(things) == 8 and len(stuff) == 6 and stuff[0] == (1, 2, 3)
    both = np.array(things + stuff[1:])
    differences = np.abs(both[:, None] - both[None]).max(axis=2) + 255 * np.eye(len(both))
    assert differences.min() > 20
    assert class_colours(metadata) == (things, stuff)


def least_distance(colours: Sequence[Colour]) -> float:
    """In CIELAB, where a difference of about two can be seen side by side."""
    channels = np.asarray(colours, np.float32)[None] / 255
    lab = cv2.cvtColor(channels, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    return float(distances[~np.eye(len(lab), dtype=bool)].min())


@pytest.mark.parametrize(
    ("things", "stuff", "least"), [(2, 0, 200), (1, 1, 150), (6, 4, 50), (20, 10, 25), (80, 53, 11)]
)
def test_colours_of_classes_differ_as_far_as_their_number_leaves_room(things, stuff, least):
    metadata = MetadataCatalog.get(f"test_pictures_{things}_{stuff}").set(
        thing_classes=[f"thing {number}" for number in range(things)],
        stuff_classes=[f"stuff {number}" for number in range(stuff)],
    )
    vivid, muted = class_colours(metadata)
    assert (len(vivid), len(muted)) == (things, stuff)
    assert least_distance([*vivid, *muted]) > least
    for colours, is_vivid in ((vivid, True), (muted, False)):
        assert all((np.ptp(colour) > 130) == is_vivid for colour in colours), colours


def test_other_classes_keep_away_from_colours_of_the_data_set():
    names = [f"thing {number}" for number in range(8)]
    free = MetadataCatalog.get("test_pictures_free").set(thing_classes=names)
    first = class_colours(free)[0][0]
    own = [None, first, [0.4, 300, 20]]
    mixed = MetadataCatalog.get("test_pictures_mixed").set(thing_classes=names, thing_colors=own)
    colours = class_colours(mixed)[0]
    assert colours[1:3] == [first, (0, 255, 20)]
    assert least_distance(colours) > 45


@pytest.fixture
def two_classes() -> Any:
    return MetadataCatalog.get("test_pictures_two").set(
        thing_classes=["dog", "cup"], stuff_classes=["things", "sky"],
        thing_colors=[[200, 60, 60], [60, 60, 200]], stuff_colors=[[0, 0, 0], [90, 90, 90]],
    )  # fmt: skip


def thing(number: int, category: int = 0, **more: Any) -> dict:
    return {"id": number, "isthing": True, "category_id": category, **more}


def test_an_object_is_recognised_in_another_picture_where_it_overlaps_by_half(two_classes):
    colours = ObjectColours(two_classes)
    first = np.zeros((20, 30), int)
    first[:10, :10], first[10:, 10:20], first[:, 20:] = 7, 2, 300
    known = colours.of(first, [thing(7), thing(2), {"id": 300, "isthing": False, "category_id": 1}])
    assert known[7] == (200, 60, 60) and known[2] != known[7] and known[300] == (90, 90, 90)
    other = np.zeros((20, 30), int)
    other[:8, :10], other[10:, 16:26], other[10:, :10] = 1, 2, 3
    found = colours.of(other, [thing(1), thing(2), thing(3, category=1)])
    assert found[1] == known[7]
    assert found[2] not in known.values() and found[3] == (60, 60, 200)
    # Another class is another object; what was new is known from then on.
    third = np.where(other == 1, 5, np.where(other == 2, 6, 0))
    assert colours.of(third, [thing(5, category=1), thing(6)])[6] == found[2]
    assert colours.of(third, [thing(5, category=1)])[5] not in known.values()


def test_dozens_of_objects_have_different_shades(two_classes):
    segments = np.arange(150).repeat(4).reshape(30, 20) + 1
    shades = ObjectColours(two_classes).of(segments, [thing(n + 1) for n in range(150)])
    assert len(set(shades.values())) > 140
    ordered = np.array([shades[number + 1] for number in range(150)])
    assert np.abs(np.diff(ordered, axis=0)).sum(axis=1).min() > 20


@pytest.mark.parametrize("classes", [2, 10])
def test_objects_look_more_like_their_class_than_like_another(classes):
    metadata = MetadataCatalog.get(f"test_pictures_shades_{classes}").set(
        thing_classes=[f"thing {number}" for number in range(classes)]
    )
    segments = np.arange(5 * classes).repeat(4).reshape(-1, 20) + 1
    infos = [thing(number + 1, category=number % classes) for number in range(5 * classes)]
    shades = ObjectColours(metadata).of(segments, infos)
    assert len(set(shades.values())) == 5 * classes
    found = weighted_lab([shades[info["id"]] for info in infos])
    own = weighted_lab(class_colours(metadata)[0])
    away = np.linalg.norm(found[:, None] - own[None], axis=2)
    assert away.argmin(axis=1).tolist() == [info["category_id"] for info in infos]
    nearest, next_one = np.sort(away, axis=1)[:, :2].T
    assert (nearest < 0.6 * next_one).all()


def labels_in(picture: np.ndarray) -> int:
    """Dark boxes on a white image."""
    dark = (picture.max(axis=2) < 100).astype(np.uint8)
    return int((cv2.connectedComponentsWithStats(dark)[2][1:, -1] > 100).sum())


@pytest.mark.parametrize("objects", [3, MOST_LABELS, MOST_LABELS + 1, 100])
def test_of_dozens_of_objects_one_of_each_class_is_labelled(two_classes, objects):
    image = np.full((800, 800, 3), 255, np.uint8)
    segments = np.zeros((800, 800), int)
    infos = []
    for number in range(objects):
        top, left = divmod(number, 10)
        segments[80 * top + 20 :, 80 * left :][:40, :40] = number + 1
        infos.append(thing(number + 1, number % 2))
    picture = draw_segments(image, segments, infos, two_classes, ObjectColours(two_classes))
    assert labels_in(picture) == (objects if objects <= MOST_LABELS else 2)


def test_what_stands_in_for_things_where_there_are_none_is_not_drawn(tmp_path):
    with registered(NAME, write_panoptic(tmp_path / "data", things=False).arguments()):
        metadata = MetadataCatalog.get(NAME)
        image = np.full((400, 400, 3), 200, np.uint8)
        segments = np.ones((400, 400), int)
        drawn = draw_segments(image, segments, [thing(1)], metadata, ObjectColours(metadata))
    assert (drawn == image).all()


def test_labels_stay_inside_and_apart_and_are_left_out_where_there_is_no_room(two_classes):
    segments = np.zeros((8, 1024), int)
    segments[:, :300] = 1
    image = np.full((8, 1024, 3), 255, np.uint8)
    picture = draw_segments(image, segments, [thing(1)], two_classes, ObjectColours(two_classes))
    assert picture.shape == image.shape and labels_in(picture) == 0


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((8, 4096), (2, 1024)), ((4096, 8), (1024, 2)), ((1, 256), (4, 1024)), ((1, 1), (384, 384)),
        ((1, 100_000), (1, 1024)), ((6000, 6000), (1024, 1024)), ((128, 128), (384, 384)),
        ((427, 640), (427, 640)), ((40, 60), (384, 576)), ((100, 500), (205, 1024)),
    ],
)  # fmt: skip
def test_the_size_of_a_picture_is_bounded_in_both_directions(size, drawn):
    assert drawn_size(*size) == drawn
    assert max(drawn_size(*size, 320)) <= 320


@pytest.mark.parametrize("size", [(8, 4096), (1, 256), (300, 1), (1500, 900)], ids=str)
def test_thin_and_large_images_are_drawn_in_bounds(size, tmp_path):
    data = write_halves(tmp_path / "data", *size)
    with registered(NAME, data.arguments()):
        assert_right_predictions_look_like_the_truth(NAME, tmp_path / "out")
        (path,) = (tmp_path / "out").iterdir()
        for panel in panels_of(path):
            assert panel.shape[:2] == drawn_size(*size) and max(panel.shape) <= LONGEST_SIDE
        # Nor are the true segments of a large image held in full.
        (truth,) = data.read()["annotations"]
        segments, infos = ground_truth(truth, MetadataCatalog.get(NAME))
        assert segments.shape == min(size, drawn_size(*size), key=max)
        assert set(np.unique(segments)) == {info["id"] for info in infos}


def test_a_model_answers_to_a_large_image_in_the_size_of_the_picture(tmp_path, monkeypatch):
    with registered(NAME, write_mixed(tmp_path / "data").arguments()):
        cfg, model = tiny_model(NAME, "INPUT.MIN_SIZE_TEST", 40)
        image = torch.zeros(3, 40, 60, dtype=torch.uint8)
        record = {"image": image, "height": 400, "width": 600}
        assert answer_as_drawn(model, record)["sem_seg"].shape[1:] == (400, 600)
        monkeypatch.setattr(drawing, "LONGEST_SIDE", 150)
        monkeypatch.setattr("crbp_d2.evaluation.pictures.LONGEST_SIDE", 150)
        seen = []
        least = model.combine_stuff_area_thresh
        answer = model.inference
        monkeypatch.setattr(
            model,
            "inference",
            lambda batch: (seen.append(model.combine_stuff_area_thresh), answer(batch))[1],
        )
        found = answer_as_drawn(model, record)
        assert found["sem_seg"].shape[1:] == (100, 150) == found["panoptic_seg"][0].shape
        assert seen == [least / 16] and model.combine_stuff_area_thresh == least


def test_thin_contours_are_drawn_in_bounds():
    for height, width in ((1, 256), (8, 4096), (40, 40), (150, 150)):
        mask = torch.zeros(height, width, dtype=torch.long)
        record = {"image": torch.zeros(1, height, width, dtype=torch.uint8), "sem_seg": mask}
        panels = contour_panels(record, {"sem_seg": torch.zeros(2, height, width)})
        assert len({picture.shape for _, picture in panels}) == 1
        assert max(panels[0][1].shape) <= LONGEST_SIDE
    assert panels[0][1].shape == (450, 450, 3)


def test_images_of_one_name_in_several_folders_have_pictures_of_their_own(tmp_path):
    data = write_panoptic(tmp_path / "data")
    content = data.read()
    for number, folder in enumerate(("a", "b", "c")):
        (data.images / folder).mkdir()
        (data.images / f"{number}.jpg").rename(data.images / folder / "same.jpg")
        content["images"][number]["file_name"] = f"{folder}/same.jpg"
    data.write(content)
    with registered(NAME, data.arguments()):
        written = pictures_of(NAME, tmp_path / "out")
    assert [path.name for path in written] == ["same.png", "same_2.png", "same_3.png"]
    assert len({path.read_bytes() for path in written}) == 3


def test_a_free_name_is_one_that_no_file_system_takes_for_another():
    taken: set[str] = set()
    found = [unused(name, taken) for name in ("a", "A", "a_2", "b", "a")]
    assert found == ["a", "A_2", "a_2_2", "b", "a_3"]


def test_images_may_be_identified_by_strings(tmp_path):
    data = write_panoptic(tmp_path / "data")
    content = data.read()
    for kind, key in (("images", "id"), ("annotations", "image_id")):
        for entry in content[kind]:
            entry[key] = f"case {entry[key]}"
    data.write(content)
    with registered(NAME, data.arguments()):
        names = [path.name for path in pictures_of(NAME, tmp_path / "out")]
    assert names == ["0.png", "1.png", "2.png"]
    assert image_name({"image_id": "case 7"}) == "case 7"
    assert image_name({"image_id": np.int64(7)}) == image_name({"image_id": 7}) == "000007"
    assert image_name({"image_id": "x", "file_name": "/data/b.tar/scene.jpg"}) == "scene"
