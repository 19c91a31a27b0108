"""Images on disk: written, continued, read in the original layout, and refused when bad."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from crbp_d2.data import DatasetError
from crbp_d2.data.pathfinder import (
    TINY,
    PathfinderMapper,
    generate,
    preset,
    register_pathfinder_folder,
    write_images,
)
from crbp_d2.data.pathfinder.folder import find_images, read_pair

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_pathfinder.py"


@pytest.fixture
def folder(tmp_path) -> Path:
    write_images(tmp_path / "data", TINY, seed=2, count=5, workers=1)
    return tmp_path / "data"


@pytest.fixture
def name():
    yield "pathfinder_on_disk"
    DatasetCatalog.remove("pathfinder_on_disk")
    MetadataCatalog.remove("pathfinder_on_disk")


def _files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _pair(folder: Path) -> tuple[Path, Path]:
    parts = (
        folder / "curv_contour_length_6" / kind / "1" / "sample_3.png" for kind in ("imgs", "seg")
    )
    return tuple(parts)


def test_files_lie_in_the_original_layout(folder):
    assert (folder / "curv_contour_length_6.txt").read_text().splitlines() == [
        f"curv_contour_length_6/imgs/1/sample_{index}.png 0" for index in range(5)
    ]
    image, mask, _ = generate(TINY, 2, 3)
    for path, pixels in zip(_pair(folder), (image, mask * np.uint8(255)), strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), pixels)


def test_files_do_not_depend_on_the_number_of_processes(folder, tmp_path):
    write_images(tmp_path / "more", TINY, seed=2, count=5, workers=2)
    assert _files(tmp_path / "more") == _files(folder)


@pytest.mark.parametrize("which", [0, 1])
def test_images_that_are_damaged_anywhere_are_drawn_anew(folder, which):
    whole, path = _files(folder), _pair(folder)[which]
    content = path.read_bytes()
    middle = len(content) // 2
    for damaged in (
        b"",
        content[:middle],
        content[:-1],
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        content[:60] + bytes(len(content) - 120) + content[-60:],
        # Of the header, and of the last chunk.
        content[:20] + b"\1" + content[21:],
        content[:-1] + b"\0",
        b"GIF89a" + content[6:],
    ):
        path.write_bytes(damaged)
        write_images(folder, TINY, seed=2, count=5, workers=1)
        assert _files(folder) == whole


def test_an_interrupted_call_is_continued(folder):
    whole = _files(folder)
    image, mask = _pair(folder)
    image.unlink()
    image.with_name(f".{image.name}.part").write_bytes(b"half a file")
    mask.with_name("sample_1.png").unlink()
    (folder / "curv_contour_length_6.txt").unlink()
    untouched = image.with_name("sample_0.png")
    written_at = untouched.stat().st_mtime_ns
    write_images(folder, TINY, seed=2, count=5, workers=1)
    assert _files(folder) == whole
    assert untouched.stat().st_mtime_ns == written_at
    write_images(folder, TINY, seed=2, count=7, workers=1)
    assert whole.items() - _files(folder).items() == {
        ("curv_contour_length_6.txt", whole["curv_contour_length_6.txt"])
    }


def test_a_folder_with_other_content_is_refused(folder, tmp_path):
    before = _files(folder)
    with pytest.raises(DatasetError, match=r"seed=2 \(asked for 3\).*another folder"):
        write_images(folder, TINY, seed=3, count=5, workers=1)
    with pytest.raises(DatasetError, match=r"size=40 \(asked for 64\)"):
        write_images(folder, preset("small"), seed=2, count=5, workers=1)
    assert _files(folder) == before
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.png").touch()
    with pytest.raises(DatasetError, match="not written by this tool"):
        write_images(tmp_path / "holiday", TINY, seed=2, count=5, workers=1)
    with pytest.raises(ValueError, match="count=0"):
        write_images(folder, TINY, seed=2, count=0)


def test_folder_is_read_as_it_was_drawn(folder, name):
    register_pathfinder_folder(name, folder, image_size=None)
    records = DatasetCatalog.get(name)
    assert len(records) == 5 and MetadataCatalog.get(name).evaluator_type == "pathfinder"
    sample = PathfinderMapper(is_train=False)(records[3])
    image, mask, _ = generate(TINY, 2, 3)
    assert np.array_equal(sample["image"][0], image) and np.array_equal(sample["sem_seg"], mask)
    assert (sample["height"], sample["width"], sample["image_id"]) == (40, 40, 3)


def test_reference_images_are_reduced_as_the_authors_do(tmp_path, name):
    listing = write_images(tmp_path, preset("14@300"), seed=1, count=2, workers=1)
    register_pathfinder_folder(name, tmp_path, list_file=listing)
    for record in DatasetCatalog.get(name):
        sample = PathfinderMapper(is_train=False)(record)
        image, mask, _ = generate(preset("14@150"), 1, record["image_id"])
        assert np.array_equal(sample["image"][0], image) and np.array_equal(sample["sem_seg"], mask)


def test_list_file_chooses_and_orders(folder):
    listing = folder / "some.txt"
    lines = [f"curv_contour_length_6/imgs/1/sample_{index}.png" for index in (4, 1)]
    listing.write_text("\n".join([lines[0] + " 0", "", lines[1]]))
    pairs = find_images(folder, listing)
    assert [image.name for image, _ in pairs] == ["sample_4.png", "sample_1.png"]
    assert [mask.parent.parent.name for _, mask in pairs] == ["seg", "seg"]


def test_without_a_list_images_come_in_natural_order(folder):
    write_images(folder, TINY, seed=2, count=12, workers=1)
    names = [image.stem for image, _ in find_images(folder)]
    assert names == [f"sample_{index}" for index in range(12)]


def test_missing_lists_and_folders_are_named(folder, tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.txt: no such list"):
        find_images(folder, folder / "nowhere.txt")
    with pytest.raises(DatasetError, match="prepare_pathfinder"):
        find_images(tmp_path / "nothing")
    (folder / "flat.txt").write_text("sample_1.png 0\n")
    with pytest.raises(DatasetError, match=r"flat\.txt.*no folder 'imgs'"):
        find_images(folder, folder / "flat.txt")


def _save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


BLACK = np.zeros((40, 40), np.uint8)
BAD_FILES = {
    "no such file": lambda image, mask: mask.unlink(),
    "not a readable image": lambda image, mask: image.write_bytes(image.read_bytes()[:60]),
    "not a readable": lambda image, mask: image.write_bytes(b"text"),
    "of another data set": lambda image, mask: _save(mask, BLACK[:30, :30]),
    "square of at least": lambda image, mask: [_save(path, BLACK[:30]) for path in (image, mask)],
    "multiply it by 255": lambda image, mask: _save(mask, BLACK + np.eye(40, dtype=np.uint8)),
    "no target pixel": lambda image, mask: _save(mask, BLACK),
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_files_are_named_with_the_cure(folder, message):
    image, mask = _pair(folder)
    BAD_FILES[message](image, mask)
    with pytest.raises(DatasetError, match=f"sample_3.png.*{message}"):
        read_pair(image, mask, 40)


def test_command_writes_a_data_set_and_explains_refusals(tmp_path, monkeypatch, capsys):
    def call(seed: int) -> None:
        arguments = ["--preset", "tiny", "--images", "3", "--workers", "1", "--seed", str(seed)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output", str(tmp_path / "a"), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    call(1)
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "curv_contour_length_6.txt")
    assert len(find_images(tmp_path / "a")) == 3
    with pytest.raises(SystemExit, match="choose another folder"):
        call(2)
