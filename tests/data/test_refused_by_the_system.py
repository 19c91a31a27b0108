"""What the operating system refuses ends a tool in one line that names the file and the cure."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crbp_d2.data import DatasetError, PanopticSource, register_from_file, shapes
from crbp_d2.data.files import absolute, explained, naming
from crbp_d2.data.pathfinder.folder import find_images
from crbp_d2.data.storage import write_whole

from .panoptic_data import write_panoptic
from .test_tools import panoptic_arguments, refusal

LONG = "x" * 300


@contextmanager
def full_disc(free: int) -> Iterator[None]:
    """Files can't grow beyond some bytes, which the system refuses as it does on a full disc."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def _file(folder: Path) -> Path:
    (folder / "file").write_text("content")
    return folder / "file" / "below"


PLACES: dict[str, tuple[Callable[[Path], Path | str], str]] = {
    "a file in the way": (_file, "file.*: .*is where a folder should be"),
    "a long name": (lambda folder: folder / LONG, "xxx.*: File name too long; shorten the name"),
    "a circle of links": (
        lambda folder: _loop(folder) / "below",
        "loop.*(in a circle|leads nowhere)",
    ),
    "nobody": (lambda folder: "~nobody-is-called-so/data", "'~nobody.*': no home folder is known"),
    "a NUL": (lambda folder: f"{folder}/a\0b", r"a\\x00b': a name can't hold the character NUL"),
    "no UTF-8": (lambda folder: f"{folder}/\udcff", r"\\udcff': the name isn't UTF-8"),
}


def calls(folder: Path, place: str) -> dict[str, list[str]]:
    """Arguments of each tool, which write to a place."""
    data = write_panoptic(folder / "data")
    panoptic = [one for one in panoptic_arguments(data.folder) if not one.startswith("--cache")]
    return {
        "prepare_panoptic": [*panoptic, f"--cache={place}"],
        "prepare_shapes": [f"--output={place}", "--scenes=1", "--size=128", "--workers=1"],
        "prepare_pathfinder": [
            *(f"--output={place}", "--preset=14@300", "--images=1", "--workers=1")
        ],
    }


@pytest.mark.parametrize("case", PLACES)
def test_a_place_that_cannot_be_is_named(tmp_path: Path, case: str) -> None:
    place, expected = PLACES[case]
    for name, arguments in calls(tmp_path, str(place(tmp_path))).items():
        message = refusal(name, arguments)
        assert re.search(expected, message) and "\n" not in message, (name, message)


@pytest.mark.parametrize("name", ["prepare_panoptic", "prepare_shapes", "prepare_pathfinder"])
def test_a_full_disc_is_named_and_leaves_nothing_half_written(tmp_path: Path, name: str) -> None:
    arguments = calls(tmp_path, str(tmp_path / "output"))[name]
    with full_disc(2000):
        message = refusal(name, arguments)
    assert re.fullmatch(rf"{tmp_path}/\S+: File too large; choose a place for .*", message), message
    left = [path for path in tmp_path.glob("output/**/*") if path.is_file()]
    if name == "prepare_pathfinder":  # It writes file by file, and goes on when called again.
        assert [path.name for path in left if path.suffix == ".png"] == ["sample_0.png"]
        assert left[-1].read_bytes()[-8:-4] == b"IEND"
    else:
        assert all(path.suffix == ".lock" for path in left), left


def test_a_file_that_is_not_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_whole(path, b"old")
    with pytest.raises(OSError, match="File too large") as caught, full_disc(100):
        write_whole(path, bytes(1000))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "make room there"),
        (errno.EROFS, "choose another place"),
        (errno.EACCES, "ask for the permission"),
        (errno.ENOENT, "check the path"),
    ],
)
def test_cures_are_told(number: int, cure: str) -> None:
    with pytest.raises(OSError) as caught, naming(Path("some/file")):
        raise OSError(number, os.strerror(number))
    message = explained(caught.value)
    assert message.startswith(f"some/file: {os.strerror(number)}; {cure}")


def test_a_folder_that_is_deleted_meanwhile_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = Path.cwd()
    os.chdir(gone)
    try:
        gone.rmdir()
        with pytest.raises(DatasetError, match="'data': the working directory has been deleted"):
            absolute("data")
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", [LONG, "a\0b", "~nobody-is-called-so", "loop"])
def test_sources_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    _loop(tmp_path)
    data = write_panoptic(tmp_path / "data")
    for key in data.arguments():
        given = {**data.arguments(), key: name if name[0] == "~" else tmp_path / name}
        with pytest.raises(DatasetError) as caught:
            PanopticSource.locate(**given).check_exists()
        assert ascii(name)[1:-1] in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[" * 2000, "not a YAML file"),
        ("- {name: 2020-13-45}", "not a YAML file .*month must be"),
        (r'- {name: a, images: "a\0b", panoptic_json: a, panoptic_pngs: a}', "NUL"),
        ("- {name: a, images: ~x, panoptic_json: ~nobody-x, panoptic_pngs: a}", "no home folder"),
        (f"- {{name: a, images: {LONG}, panoptic_json: a, panoptic_pngs: a}}", "no such folder"),
    ],
)
def test_lists_of_data_sets_are_read_with_the_same_care(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "sets.yaml"
    path.write_text(content)
    with pytest.raises(DatasetError, match=expected):
        register_from_file(path)


def test_a_list_of_images_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="list.txt: not a text file"):
        find_images(tmp_path, tmp_path / "list.txt")


def test_the_folder_of_data_sets_may_not_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "~nobody-is-called-so")
    with pytest.raises(DatasetError, match="no home folder is known"):
        shapes.shapes_root()
