"""What a user decides about the classes."""

from pathlib import Path

import pytest

from tests.data.panoptic_data import Written, write_panoptic

from .apart import KINDS, convert, of_output, result, to, write_instances


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
    ],
)
def test_other_choices_than_those_of_the_other_split_are_named(
    data: Written, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    out = tmp_path / "out"
    convert("instances", tmp_path / "instances.json", data.images, *KINDS, *to(out, "train"))
    words = ["instances", tmp_path / "instances.json", data.images, *to(out, "val"), *options]
    assert convert(*words) == 1
    assert message.format(out) in capsys.readouterr().err
    assert not (out / "panoptic_val").exists()


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
