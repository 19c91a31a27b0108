"""What a user decides about the classes."""

import shutil
from pathlib import Path

import pytest

from tests.data.panoptic_data import Written, write_panoptic

from .apart import KINDS, convert, of_output, result, to, write_instances, write_labels


@pytest.fixture
def data(tmp_path: Path) -> Written:
    data = write_panoptic(tmp_path / "data")
    write_instances(data, tmp_path / "instances.json")
    return data


CHOICES: dict[str, tuple[list[str], str]] = {
    "unknown stuff": (["--stuff", "clouds"], "--stuff clouds: no such class; there is 'cup', "),
    "unknown thing": (["--things", "cat"], "--things cat: no such class"),
    "unknown order": (["--order", "cat"], "--order cat: no such class"),
    "both kinds": (["--things", "sky", "--stuff", "sky"], "'sky' is in --stuff and in --things"),
    "fill with things": (["--fill", "dog"], "--fill dog: a class of things, of which each is one"),
    "twice": (["--classes", "dog", "dog"], "--classes names 'dog' twice; take one out"),
    "left out and above": (["--leave-out", "cup", "--order", "cup"], "--leave-out cup: named by"),
    "all left out": (["--leave-out", "cup", "dog", "sky", "road"], "there is no class; give --cl"),
    "not among the classes": (
        ["--classes", "dog", "sky", "road"],
        "unknown class 'cup', there is 'dog', 'sky', 'road'; correct it, or give it to --classes",
    ),
    "stuff called things": (["--fill", "things"], "the classes: stuff category 13 is called 'thi"),
    "name with folders": (["--name", "a/b"], "--name 'a/b': must be a name for a file"),
    "name of nothing": (["--name", " "], "--name ' ': must be a name for a file"),
    "name of a dot": (["--name", "."], "--name '.': must be a name for a file"),
    "name above": (["--name", ".."], "--name '..': must be a name for a file"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_choices_that_cannot_be_are_named(data: Written, tmp_path: Path, capsys, case: str) -> None:
    options, message = CHOICES[case]
    out = tmp_path / "out"
    kinds = [] if "--stuff" in options else KINDS
    kinds = [] if case in ("both kinds", "all left out") else kinds
    words = ["instances", tmp_path / "instances.json", data.images, *kinds, *to(out), *options]
    assert convert(*words) == 1
    assert message in capsys.readouterr().err
    assert not list(out.glob("*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stuff", "dog"], "'dog' is things in {}/panoptic_train.json; one model needs the same"),
        (["--things", "sky"], "'sky' is stuff in"),
        (["--fill", "void"], "--fill void: {}/panoptic_train.json has 'cup', 'dog', 'sky', 'road'"),
        (["--classes", "dog", "cup"], "--classes: {}/panoptic_train.json has"),
        (["--leave-out", "dog"], "--leave-out dog: is a class of {}/panoptic_train.json; one mod"),
        (
            ["--semantic", "{}/../maps", "--values", "1=sky", "3=dog"],
            "--values: 'dog' is things in {}/panoptic_train.json; one model needs the same classes",
        ),
        (
            ["--semantic", "{}/../maps", "--values", "1=sky", "9=moon"],
            "--values moon: {}/panoptic_train.json has 'cup', 'dog', 'sky', 'road'; one model",
        ),
    ],
)
def test_other_choices_than_those_of_the_other_split_are_named(
    data: Written, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    out = tmp_path / "out"
    convert("instances", tmp_path / "instances.json", data.images, *KINDS, *to(out, "train"))
    write_labels(data, tmp_path / "maps", {("sky", 0): 1, ("dog", 0): 3})
    options = [option.format(out) for option in options]
    words = ["instances", tmp_path / "instances.json", data.images, *to(out, "val"), *options]
    assert convert(*words) == 1
    error = capsys.readouterr().err
    assert message.format(out) in error and error.count("\n") == 1
    assert not (out / "panoptic_val").exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["masks", "{}/apart", "--class", "cell"], "--class cell"),
        (
            ["labels", "{}/data/images", "{}/maps", "--rule", "one-class", "cell"],
            "--rule one-class",
        ),
        (
            ["labels", "{}/data/images", "{}/maps", "--rule", "cityscapes", "--values", "1=cell"],
            "--values cell",
        ),
    ],
)
def test_an_option_that_names_a_class_which_the_other_split_lacks_is_named_once(
    data: Written, tmp_path: Path, capsys, words: list[str], option: str
) -> None:
    out = tmp_path / "out"
    convert("instances", tmp_path / "instances.json", data.images, *to(out, "train"))
    write_labels(data, tmp_path / "maps", {("sky", 0): 1})
    for image in data.images.iterdir():
        for kind in ("images", "masks"):
            (tmp_path / "apart" / image.stem / kind).mkdir(parents=True)
        shutil.copy(image, tmp_path / "apart" / image.stem / "images")
    given = [word.format(tmp_path) for word in words]
    assert convert(*given, *to(out, "val")) == 1
    error = capsys.readouterr().err
    assert error.startswith(option) and error.count("\n") == 1
    assert f"{out}/panoptic_train.json has 'cup', 'dog', 'sky', 'road'; one model" in error
    assert not (out / "panoptic_val").exists()
    # Left out, it is no class that the model would need.
    assert convert(*given, "--leave-out", "cell", "--fill", "sky", *to(out, "val")) == 1
    assert "--fill: 'sky' is things" in capsys.readouterr().err


def test_things_of_maps_of_stuff_are_things_again(data: Written, tmp_path: Path) -> None:
    write_labels(data, tmp_path / "maps", {("sky", 0): 1, ("dog", 0): 3})
    given = ["instances", tmp_path / "instances.json", data.images, "--semantic", tmp_path / "maps"]
    given += ["--values", "1=sky", "3=dog", "--things", "dog"]
    for name in ("train", "val"):
        assert convert(*given, *to(tmp_path / "out", name)) == 0


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (["--fill", "sky"], [], "no --fill here, but --fill sky in {}/panoptic_train.json, so one"),
        ([], ["--fill", "road"], "--fill road here, but no --fill in {}/panoptic_train.json"),
        (["--fill", "sky"], ["--fill", "road"], "--fill road here, but --fill sky in"),
        (["--fill", "sky"], ["--fill", "sky"], None),
        ([], [], None),
    ],
)
def test_another_fill_than_that_of_the_other_split_is_told(
    data: Written, tmp_path: Path, capsys, before: list[str], now: list[str], told: str | None
) -> None:
    """Both can be right: a split may have no pixel without a class."""
    out = tmp_path / "out"
    words = ["instances", tmp_path / "instances.json", data.images, *KINDS]
    assert convert(*words, *before, *to(out, "train")) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert convert(*words, *now, *to(out, "val")) == 0
    said = capsys.readouterr().out
    assert said.count("WARNING") == bool(told) and (told or "").format(out) in said


def test_chosen_classes_and_those_left_out(data: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--classes", "road", "dog", "lake", "--leave-out", "cup", "sky"]
    words = ["instances", tmp_path / "instances.json", data.images, "--stuff", "road", *to(out)]
    assert convert(*words, *options) == 0
    assert [
        (category["id"], category["name"], category["isthing"])
        for category in result(out)["categories"]
    ] == [(7, "road", 0), (1, "dog", 1), (8, "lake", 1)]
    names = {segment[0] for found in of_output(out).values() for segment in found}
    assert names == {"road", "dog"}
