"""Label maps whose values are numbers of objects."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.panoptic_data import HEIGHT, WIDTH, Written, write_panoptic

from .apart import KINDS, convert, masks_of, of_data, of_output, result, to, write_labels

CITYSCAPES = {
    **{("dog", 0): 1002, ("cup", 0): 3001, ("cup", 1): 3},
    **{("sky", 0): 12, ("road", 0): 7},
}
NAMES = ["--values", "1=dog", "3=cup", "12=sky", "7=road"]


@pytest.fixture
def data(tmp_path: Path) -> Written:
    return write_panoptic(tmp_path / "data")


def test_cityscapes_ids_come_back_with_their_crowds(data: Written, tmp_path: Path) -> None:
    write_labels(data, tmp_path / "maps", CITYSCAPES)
    out = tmp_path / "out"
    words = [data.images, tmp_path / "maps", "--rule", "cityscapes", *NAMES]
    assert convert("labels", *words, *to(out)) == 0
    assert of_output(out) == of_data(data)
    assert {(one["id"], one["name"], one["isthing"]) for one in result(out)["categories"]} == {
        (3, "cup", 1), (1, "dog", 1), (12, "sky", 0), (7, "road", 0)
    }  # fmt: skip


def test_void_classes_of_cityscapes_are_left_unlabelled_with_their_objects(
    data: Written, tmp_path: Path
) -> None:
    write_labels(data, tmp_path / "maps", CITYSCAPES)
    out = tmp_path / "out"
    words = [data.images, tmp_path / "maps", "--rule", "cityscapes", "--void", "0", "3", "7"]
    assert convert("labels", *words, "--values", "1=dog", "12=sky", *to(out)) == 0
    assert of_output(out) == {
        image: {segment for segment in found if segment[0] in ("dog", "sky")}
        for image, found in of_data(data).items()
    }


def test_cityscapes_names_of_files_and_classes(data: Written, tmp_path: Path) -> None:
    """As they lie in the folders of a city; without names the classes are called by number."""
    write_labels(data, tmp_path / "maps", CITYSCAPES)
    for folder, kind, ending in (
        (data.images, "leftImg8bit", "_leftImg8bit.jpg"),
        (tmp_path / "maps", "gtFine", "_gtFine_instanceIds.png"),
    ):
        (tmp_path / kind / "ulm").mkdir(parents=True)
        for path in folder.iterdir():
            path.rename(tmp_path / kind / "ulm" / f"{path.stem}{ending}")
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "gtFine" / "ulm" / "0_gtFine_labelIds.png")
    out = tmp_path / "out"
    words = [tmp_path / "leftImg8bit", tmp_path / "gtFine", "--rule", "cityscapes"]
    patterns = ["--images", "{id}_leftImg8bit.jpg", "--labels", "{id}_gtFine_instanceIds.png"]
    assert convert("labels", *words, *patterns, *to(out)) == 0
    images = [image["file_name"] for image in result(out)["images"]]
    assert images == [f"ulm/{number}_leftImg8bit.jpg" for number in range(3)]
    names = {"dog": "class 1", "cup": "class 3", "sky": "class 12", "road": "class 7"}
    assert {
        stem.partition("_")[0]: found for stem, found in of_output(out).items()
    } == {
        stem: {(names[name], crowd, mask) for name, crowd, mask in found}
        for stem, found in of_data(data).items()
    }  # fmt: skip


def test_a_split_without_objects_of_a_class_takes_the_kinds_of_the_other(
    data: Written, tmp_path: Path
) -> None:
    """Alone, it would take the crowd of cups for stuff."""
    write_labels(data, tmp_path / "maps", CITYSCAPES)
    write_labels(data, tmp_path / "no cups", {**CITYSCAPES, ("cup", 0): 0})
    out = tmp_path / "out"
    for maps, name in (("maps", "train"), ("no cups", "val")):
        words = [data.images, tmp_path / maps, "--rule", "cityscapes", *NAMES]
        assert convert("labels", *words, *to(out, name)) == 0
    assert result(out, "val")["categories"] == result(out, "train")["categories"]
    cups = {segment[1] for segment in of_output(out, "val")["0"] if segment[0] == "cup"}
    assert cups == {1}


def test_a_table_tells_classes_and_joins_objects(data: Written, tmp_path: Path) -> None:
    values = {("dog", 0): 40000, ("cup", 0): 5, ("cup", 1): 6, ("sky", 0): 7, ("road", 0): 8}
    write_labels(data, tmp_path / "maps", values)
    table = tmp_path / "values.csv"
    out = tmp_path / "out"
    rows = "\ufeffvalue,class,object\r\n40000,dog,\r\n5, cup,x\r\n6, cup,x\r\n7,sky,\r\n8,road,\r\n"
    table.write_text(rows, encoding="utf-8")
    words = [data.images, tmp_path / "maps", "--csv", table]
    assert convert("labels", *words, *KINDS, *to(out)) == 0
    found = masks_of(result(out), out / "panoptic_back")
    for image, expected in masks_of(data.read(), data.pngs).items():
        cups = [mask for name, _, mask in found[image] if name == "cup"]
        assert len(cups) == 1
        np.testing.assert_array_equal(
            cups[0], np.any([mask for name, _, mask in expected if name == "cup"], axis=0)
        )
    table.write_text(rows.replace(",x", ",").lstrip("\ufeff"))
    assert convert("labels", *words, *KINDS, *to(tmp_path / "apart")) == 0
    assert of_output(tmp_path / "apart") == of_data(data, crowds=False)


def test_more_objects_than_a_byte_counts(tmp_path: Path) -> None:
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 4
    for kind, image in (
        ("images", Image.new("RGB", (WIDTH, HEIGHT))),
        ("maps", Image.fromarray(labels.astype(np.uint16))),
    ):
        (tmp_path / kind).mkdir()
        image.save(tmp_path / kind / "a b.png")
    out = tmp_path / "out"
    words = [tmp_path / "images", tmp_path / "maps", "--rule", "one-class", "cell"]
    assert convert("labels", *words, *to(out)) == 0
    found = masks_of(result(out), out / "panoptic_back")["a b.png"]
    assert len(found) == 599
    assert all(mask.sum() == 4 for _, _, mask in found)


def grey(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(labels.astype(np.uint8))


def paletted(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels.astype(np.uint8), mode="P")
    image.putpalette([255, 255, 255, 0, 0, 0, 0, 0, 0, 9, 9, 9])
    return image


FORMS: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "8 bits": grey,
    "16 bits": lambda labels: Image.fromarray(labels.astype(np.uint16)),
    "32 bits": lambda labels: Image.fromarray(labels.astype(np.int32)),
    # Colours of a palette mean nothing, and two may be alike.
    "palette": paletted,
    "grey stored as colour": lambda labels: grey(labels).convert("RGB"),
}


@pytest.mark.parametrize("form", FORMS)
def test_label_maps_of_any_form_are_read(tmp_path: Path, form: str) -> None:
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    labels[2:9, 3:50], labels[20:30, 3:9], labels[35:, 40:] = 1, 2, 3
    for kind in ("images", "maps"):
        (tmp_path / kind).mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "a.bmp")
    FORMS[form](labels).save(
        tmp_path / "maps" / "a.tif" if "32" in form else tmp_path / "maps/a.png"
    )
    out = tmp_path / "out"
    words = [tmp_path / "images", tmp_path / "maps", "--rule", "one-class", "cell"]
    assert convert("labels", *words, *to(out)) == 0
    found = masks_of(result(out), out / "panoptic_back")["a.bmp"]
    assert {mask.tobytes() for _, _, mask in found} == {
        (labels == value).tobytes() for value in (1, 2, 3)
    }


def write(values: np.ndarray, name: str = "1.png") -> Callable[[Path], None]:
    return lambda folder: Image.fromarray(values).save(folder / name)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown class": (
        write(np.full((HEIGHT, WIDTH), 5001, dtype=np.uint16)),
        "maps/1.png: the value 5001 has no meaning; name its class, or give it to --void",
    ),
    "another size": (
        write(np.ones((WIDTH, HEIGHT), dtype=np.uint8)),
        "maps/1.png: is 40 x 60 pixels, but its image 60 x 40; export it in the size of the image, "
        "or give --as-stored",
    ),
    "colours": (
        write(np.tile(np.array([1, 2, 3], dtype=np.uint8), (HEIGHT, WIDTH, 1))),
        "maps/1.png: colours (mode RGB), not one number a pixel",
    ),
    "fractions": (
        write(np.ones((HEIGHT, WIDTH), dtype=np.float32), "1.tif"),
        "maps/1.tif: values that are no whole numbers",
    ),
    "JPEG": (write(np.ones((HEIGHT, WIDTH), dtype=np.uint8), "1.jpg"), "maps/1.jpg: a JPEG, which"),
    "missing": (
        lambda folder: None,
        "data/images/1.jpg: no label map in {folder} is called '1.*'; add it, or remove the image",
    ),
    "two": (
        lambda folder: [write(np.zeros((HEIGHT, WIDTH), dtype=np.uint8), f"1.{ending}")(folder)
                        for ending in ("bmp", "png")],
        "maps/1.png: a second label map of 1.jpg, beside 1.bmp; remove one",
    ),
    "without image": (
        lambda folder: [write(np.zeros((HEIGHT, WIDTH), dtype=np.uint8), f"{name}.png")(folder)
                        for name in ("1", "11")],
        "maps/11.png: belongs to no image by '{{id}}.*'",
    ),
    "cut": (
        lambda folder: (folder / "1.png").write_bytes((folder / "0.png").read_bytes()[:50]),
        "maps/1.png: can't be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_label_maps_are_named(data: Written, tmp_path: Path, capsys, case: str) -> None:
    damage, message = BROKEN[case]
    maps = tmp_path / "maps"
    write_labels(data, maps, CITYSCAPES)
    (maps / "1.png").unlink()
    damage(maps)
    words = [data.images, maps, "--rule", "cityscapes", *NAMES]
    assert convert("labels", *words, *to(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{tmp_path}/{message.format(folder=maps)}")
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("value;class\n1;dog\n", "line 1 must be value,class or value,class,object; add it"),
        ("value,class\n1,dog\n1,cup\n", ", line 3: the value 1 was there before"),
        ("value,class\n1,dog\n\n-3,cup\n", ", line 4: the value is '-3', must be a whole number"),
        ("value,class\n1\n", ", line 2: the value 1 has no class"),
        ("value,class\n1,d\xf6g\n", ": not UTF-8"),
        (None, ": no such file"),
    ],
)
def test_mistakes_in_a_table_are_named(
    data: Written, tmp_path: Path, capsys, content: str | None, message: str
) -> None:
    write_labels(data, tmp_path / "maps", CITYSCAPES)
    table = tmp_path / "values.csv"
    if content is not None:
        table.write_text(content, encoding="latin-1")
    words = [data.images, tmp_path / "maps", "--csv", table]
    assert convert("labels", *words, *to(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert str(table) in error and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rule", "one-class"], "--rule one-class: must be 'cityscapes' or 'one-class NAME'"),
        (["--rule", "voc"], "--rule voc: must be"),
        (
            ["--rule", "one-class", "cell", "--values", "1=a"],
            "--values: belongs to --rule cityscap",
        ),
    ],
)
def test_mistakes_in_rules_are_named(
    data: Written, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    write_labels(data, tmp_path / "maps", CITYSCAPES)
    assert convert("labels", data.images, tmp_path / "maps", *options, *to(tmp_path / "o")) == 1
    assert message in capsys.readouterr().err


ONE_CLASS = ("--rule", "one-class", "cell")


@pytest.mark.parametrize("name", ["x\ny", "\n", "x\r", "x\x85"])
def test_no_image_is_left_out_for_a_line_break_in_its_name(
    data: Written, tmp_path: Path, capsys, name: str
) -> None:
    write_labels(data, tmp_path / "maps", CITYSCAPES)
    (data.images / "1.jpg").rename(data.images / f"{name}.jpg")
    (tmp_path / "maps" / "1.png").rename(tmp_path / "maps" / f"{name}.png")
    words = ["labels", data.images, tmp_path / "maps", *ONE_CLASS, *to(tmp_path / "out")]
    assert convert(*words) == 1
    error = capsys.readouterr().err
    assert f"{data.images}: {name + '.jpg'!r}: a name with line breaks or the like" in error
    assert error.count("\n") == 1 and not list((tmp_path / "out").glob("panoptic*"))


def test_images_that_fit_no_pattern_are_told(data: Written, tmp_path: Path, capsys) -> None:
    write_labels(data, tmp_path / "maps", CITYSCAPES)
    for folder in (data.images, tmp_path / "maps"):
        for path in list(folder.iterdir()):
            path.rename(data.folder / "images" / f"scan_{path.name}")
    for name in ("old\n1.png", "old 2.png"):
        Image.new("L", (WIDTH, HEIGHT)).save(data.images / name)
    words = ["labels", data.images, data.images, *ONE_CLASS]
    patterns = ["--images", "scan_{id}.jpg", "--labels", "scan_{id}.png"]
    assert convert(*words, *to(tmp_path / "out"), *patterns) == 0
    told = f"{data.images}: left out what fits no pattern: 2 images, as 'old\\n1.png'"
    assert told in capsys.readouterr().out
    assert len(result(tmp_path / "out")["images"]) == 3


def test_what_is_no_file_in_the_place_of_one_is_said_to_be_none(
    data: Written, tmp_path: Path, capsys
) -> None:
    write_labels(data, tmp_path / "maps", CITYSCAPES)
    words = ["labels", data.images, tmp_path / "maps", *ONE_CLASS, *to(tmp_path / "out")]
    for path in (tmp_path / "maps" / "1.png", data.images / "2.jpg"):
        content = path.read_bytes()
        for make in (os.mkdir, os.mkfifo, lambda place: os.symlink("nowhere", place)):
            path.unlink()
            make(path)
            assert convert(*words) == 1
            error = capsys.readouterr().err
            assert error == (
                f"{path}: no file (a folder, a pipe or a link that leads nowhere); put the file in "
                "its place\n"
            )
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(content)
