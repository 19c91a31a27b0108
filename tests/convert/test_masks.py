"""A mask an object."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from crbp_d2.data import ensure_prepared, register_from_file
from tests.data.panoptic_data import HEIGHT, WIDTH, Written, write_panoptic
from tests.data.real_data import needs_real_data, real_arguments

from .apart import KINDS, convert, masks_of, of_data, of_output, result, segments, to


@pytest.fixture
def data(tmp_path: Path) -> Written:
    return write_panoptic(tmp_path / "data")


def take_apart(folder: Path, images: Path, masks: dict, *classes: str) -> None:
    """A folder an image, with images/ and masks/."""
    for file, found in masks.items():
        stem = Path(file).stem
        for kind in ("images", "masks"):
            (folder / stem / kind).mkdir(parents=True)
        (folder / stem / "images" / file).write_bytes((images / file).read_bytes())
        for number, (name, _, mask) in enumerate(found):
            if name in classes:
                target = folder / stem / "masks" / f"{number:03d}.png"
                Image.fromarray(np.uint8(255) * mask).save(target)


def test_a_folder_an_image_comes_back_and_trains(
    data: Written, tmp_path: Path, request: pytest.FixtureRequest, capsys
) -> None:
    masks = masks_of(data.read(), data.pngs)
    take_apart(tmp_path / "apart", data.images, masks, "dog")
    out, name = tmp_path / "out", request.node.name
    words = ["masks", tmp_path / "apart", "--class", "dog", "--fill", "the rest"]
    assert convert(*words, *to(out, name)) == 0
    assert "pixels filled: " in capsys.readouterr().out
    dogs = {
        image: {segment for segment in found if segment[0] == "dog"}
        for image, found in of_data(data).items()
    }
    found = of_output(out, name)
    assert {key: {one for one in value if one[0] == "dog"} for key, value in found.items()} == dogs
    assert {len(value) for value in found.values()} == {2}
    register_from_file(out / "datasets.yaml")
    ensure_prepared(name, workers=1)
    records = DatasetCatalog.get(name)
    assert [Path(record["file_name"]) for record in records] == [
        tmp_path / "apart" / f"{number}/images/{number}.jpg" for number in range(3)
    ]
    assert [len(record["annotations"]) for record in records] == [1, 1, 1]


@pytest.mark.parametrize("order", ["{class}/{id}_??", "{id}.{class}.*"])
def test_patterns_tell_images_and_classes(data: Written, tmp_path: Path, order: str) -> None:
    """Names with spaces and other letters; ids of which one begins like another."""
    names = ["scan 1", "scan 1_1", "Zürich"]
    folder = tmp_path / "flat ü"
    (folder / "img").mkdir(parents=True)
    for stem, (file, found) in zip(names, masks_of(data.read(), data.pngs).items(), strict=True):
        (folder / "img" / f"{stem}.jpg").write_bytes((data.images / file).read_bytes())
        for number, (name, _, mask) in enumerate(found):
            form = (
                order.replace("{id}", stem)
                .replace("{class}", name)
                .replace("*", f"a{number}")
                .replace("??", f"a{number}")
            )
            target = folder / "msk" / f"{form}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(target)
    patterns = ["--images", "img/{id}.jpg", "--masks", f"msk/{order}.png"]
    out = tmp_path / "out"
    assert convert("masks", folder, *patterns, *KINDS, *to(out)) == 0
    expected = of_data(data, crowds=False)
    found = of_output(out)
    assert {str(names.index(stem)): one for stem, one in found.items()} == expected


@needs_real_data
def test_microscope_images_come_back(tmp_path: Path) -> None:
    """Taken apart into a mask a nucleus, as users get them."""
    arguments = real_arguments("nuclei", tmp_path, images=3)
    panoptic = json.loads(arguments["panoptic_json"].read_text())
    masks = masks_of(panoptic, arguments["panoptic_pngs"])
    take_apart(tmp_path / "apart", arguments["images"], masks, "nucleus")
    out = tmp_path / "out"
    assert convert("masks", tmp_path / "apart", "--class", "nucleus", *to(out)) == 0
    expected = segments(panoptic, arguments["panoptic_pngs"])
    nuclei = {key: {one for one in found if one[0] == "nucleus"} for key, found in expected.items()}
    assert of_output(out) == nuclei
    assert sum(map(len, nuclei.values())) > 50


def palette(colours: list[int], mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette(colours)
    return image


INSIDE = np.zeros((HEIGHT, WIDTH), dtype=bool)
INSIDE[3:9, 30:50] = True
FORMS: dict[str, Callable[[], Image.Image]] = {
    "black and white": lambda: Image.fromarray(INSIDE),
    "1 for the object": lambda: Image.fromarray(INSIDE.astype(np.uint8)),
    "16 bits": lambda: Image.fromarray(INSIDE * np.uint16(65535)),
    "colour": lambda: Image.fromarray(INSIDE[..., None] * np.array([9, 0, 200], dtype=np.uint8)),
    "palette": lambda: palette([0, 0, 0, 128, 0, 0], INSIDE),
    "palette with black last": lambda: palette([255, 255, 255, 0, 0, 0], ~INSIDE),
    "opaque": lambda: Image.fromarray(INSIDE * np.uint8(255)).convert("RGBA"),
}


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_any_form_are_read(tmp_path: Path, form: str) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "apart" / "a" / kind).mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "apart/a/images/a.png")
    FORMS[form]().save(tmp_path / "apart/a/masks/1.png")
    out = tmp_path / "out"
    assert convert("masks", tmp_path / "apart", *to(out)) == 0
    ((name, _, mask),) = masks_of(result(out), out / "panoptic_back")["a/images/a.png"]
    assert name == "object"
    np.testing.assert_array_equal(mask, INSIDE)


def test_an_image_without_object_is_kept(data: Written, tmp_path: Path, capsys) -> None:
    masks = masks_of(data.read(), data.pngs)
    take_apart(tmp_path / "apart", data.images, masks, "dog")
    for path in (tmp_path / "apart" / "1" / "masks").iterdir():
        path.unlink()
    assert convert("masks", tmp_path / "apart", *to(tmp_path / "out")) == 0
    assert "3 images (1 without any segment)" in capsys.readouterr().out


def test_a_mask_without_pixel_is_counted(data: Written, tmp_path: Path, capsys) -> None:
    take_apart(tmp_path / "apart", data.images, masks_of(data.read(), data.pngs), "dog")
    path = tmp_path / "apart" / "1" / "masks" / "black.png"
    Image.new("L", (WIDTH, HEIGHT)).save(path)
    assert convert("masks", tmp_path / "apart", *to(tmp_path / "out")) == 0
    assert f"without a pixel, left out: 1: {path} (object)" in capsys.readouterr().out


def save(image: Image.Image, name: str = "000.png") -> Callable[[Path], None]:
    return lambda folder: image.save(folder / "1" / "masks" / name)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another size": (
        save(Image.new("L", (50, 40), 255)),
        "1/masks/000.png: is 50 x 40 pixels, but its image 60 x 40; export it in",
    ),
    "several objects": (
        save(Image.fromarray(np.tile(np.arange(60, dtype=np.uint16) * 300, (40, 1)))),
        "1/masks/000.png: 59 values beside 0, but a mask has one object",
    ),
    "JPEG": (
        save(Image.new("L", (60, 40), 255), "000.jpg"),
        "1/masks/000.jpg: a JPEG, which doesn't keep values",
    ),
    "cut": (
        lambda folder: (folder / "1/masks/000.png").write_bytes(
            (folder / "1/masks/000.png").read_bytes()[:60]
        ),
        "1/masks/000.png: can't be read",
    ),
    "image missing": (
        lambda folder: (folder / "1/images/1.jpg").unlink(),
        "1/masks/000.png: belongs to no image by '{id}/masks/*'; add the image",
    ),
    "masks missing": (
        lambda folder: [(folder / "1/masks/000.png").unlink(), (folder / "1/masks").rmdir()],
        "1/masks: no such folder of masks, for the image 1/images/1.jpg",
    ),
    "two images": (
        lambda folder: Image.new("L", (60, 40)).save(folder / "1/images/2.png"),
        "1/images/2.png: by '{id}/images/*' the image '1', as 1/images/1.jpg is",
    ),
    "cut image": (
        lambda folder: (folder / "1/images/1.jpg").write_text("hello"),
        "1/images/1.jpg: can't be read",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_masks_are_named(data: Written, tmp_path: Path, capsys, case: str) -> None:
    damage, message = BROKEN[case]
    folder = tmp_path / "apart"
    take_apart(folder, data.images, masks_of(data.read(), data.pngs), "dog")
    damage(folder)
    assert convert("masks", folder, *to(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{folder}/{message}")
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "img/*.png"], "the pattern 'img/*.png' lacks {id}"),
        (["--masks", "{class}/{id}.png", "--class", "x"], "--class x: the pattern of the masks"),
        (["--images", "img/{id}.png"], "apart/0/masks/000.png: belongs to no image"),
        (["--images", "img/{id}.png", "--masks", "m/{id}.png"], "apart: there is no image with"),
    ],
)
def test_patterns_that_do_not_fit_are_named(
    data: Written, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    take_apart(tmp_path / "apart", data.images, masks_of(data.read(), data.pngs), "dog")
    assert convert("masks", tmp_path / "apart", *options, *to(tmp_path / "out")) == 1
    assert message in capsys.readouterr().err


def test_a_mask_that_may_belong_to_two_images_is_named(tmp_path: Path, capsys) -> None:
    for name in ("1", "10"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{name}.bmp")
    Image.fromarray(INSIDE).save(tmp_path / "101.png")
    words = ["--images", "{id}.bmp", "--masks", "{id}*.png"]
    assert convert("masks", tmp_path, *words, *to(tmp_path / "out")) == 1
    assert "101.png: may belong to the image '1' or '10'; write '{id}*.png' so" in (
        capsys.readouterr().err
    )


def test_masks_may_lie_beside_their_images(tmp_path: Path) -> None:
    for name in ("a", "a 2"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{name}.png")
        Image.fromarray(INSIDE).save(tmp_path / f"{name}_mask_1.png")
    words = ["--images", "{id}.png", "--masks", "{id}_mask_*.png"]
    out = tmp_path / "out"
    assert convert("masks", tmp_path, *words, *to(out)) == 0
    assert {file: len(found) for file, found in masks_of(result(out), out / "panoptic_back").items()
            } == {"a.png": 1, "a 2.png": 1}  # fmt: skip
