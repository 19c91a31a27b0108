"""Images and files that would take more memory than a machine has are refused by their headers."""

from __future__ import annotations

import re
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crbp_d2.data import DatasetError, PanopticSource, outlines, prepare, read_image, reading
from crbp_d2.data.fields import MAX_PIXELS
from crbp_d2.data.outlines import count_edges, mask_to_polygons
from crbp_d2.data.pathfinder.folder import read_pair

from .panoptic_data import HEIGHT, WIDTH, Written, write_panoptic

# Pixels on a side: over this limit, over the one at which Pillow warns, over the one at which it
# raises an error.
SIDES = (8200, 12_000, 60_000)


@pytest.fixture
def data(tmp_path: Path) -> Written:
    return write_panoptic(tmp_path / "data")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def write_black(path: Path, width: int, height: int) -> None:
    """A PNG of a few rows of 8-bit RGB, whatever size its header tells."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * width + 1) * 3)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))


def refusal(data: Written) -> str:
    """Why the data are refused, in next to no memory and without a warning."""
    source = PanopticSource.locate(**data.arguments(), cache=data.folder / "cache")
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DatasetError) as caught:
                prepare(source, workers=1)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    return str(caught.value)


@pytest.mark.parametrize("name", ["images/1.jpg", "pngs/1.png"])
def test_another_size_than_the_jsons_shows_before_the_pixels_are_read(
    data: Written, name: str
) -> None:
    write_black(data.folder / name, 6000, 5000)
    message = refusal(data)
    assert f"{data.folder / name}: is 6000 x 5000 pixels" in message
    assert f"says {WIDTH} x {HEIGHT}; correct the JSON or replace the file" in message


@pytest.mark.parametrize("name", ["images/1.jpg", "pngs/1.png"])
@pytest.mark.parametrize("side", SIDES)
def test_more_pixels_than_the_limit_are_refused(data: Written, name: str, side: int) -> None:
    write_black(data.folder / name, side, side)
    message = refusal(data)
    assert f"{data.folder / name}: " in message
    assert f"at most {MAX_PIXELS} are read; cut it into tiles" in message


def test_the_json_can_ask_for_no_more_pixels_either(data: Written) -> None:
    content = data.read()
    content["images"][1].update(width=10**9, height=10**9)
    data.write(content)
    assert f"image 1.jpg: 1000000000 x 1000000000 pixels are more than {MAX_PIXELS}" in refusal(
        data
    )


def test_single_images_have_the_same_limit(tmp_path: Path) -> None:
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    for path in (image, mask):
        write_black(path, 9000, 9000)
    for read in (lambda: read_image(str(image), "BGR"), lambda: read_pair(image, mask, 40)):
        with pytest.raises(DatasetError, match="image.png: 9000 x 9000 pixels, and at most"):
            read()


def test_files_have_a_limit(data: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_FILE_SIZE", 100)
    message = refusal(data)
    assert re.search(r"images/0.jpg: \d+ bytes, and at most 100 are read; save it as", message)


def test_a_png_with_an_id_in_every_pixel_gets_few_messages(data: Written) -> None:
    ids = np.arange(1, HEIGHT * WIDTH + 1).reshape(HEIGHT, WIDTH, 1)
    pixels = (ids // [1, 256, 65536] % 256).astype(np.uint8)
    Image.fromarray(pixels).save(data.pngs / "1.png")
    message = refusal(data)
    # All but those of dog, crowd and sky.
    assert f"{data.pngs / '1.png'}: 2397 ids are in one of JSON and PNG only" in message


def test_outlines_have_a_limit(data: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    board = (np.indices((9, 14)).sum(axis=0) % 2).astype(np.uint8)
    assert count_edges(board) == 9 * 13 + 8 * 14
    monkeypatch.setattr(outlines, "MAX_EDGES", count_edges(board))
    assert mask_to_polygons(board)
    monkeypatch.setattr(outlines, "MAX_EDGES", count_edges(board) - 1)
    with pytest.raises(ValueError, match="along 229 edges of pixels, and at most 228"):
        mask_to_polygons(board)


def test_outlines_of_an_image_have_the_limit_together(
    data: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A dog and a cup, of about 120 and 30 edges.
    monkeypatch.setattr("crbp_d2.data.derive.MAX_EDGES", 130)
    assert "pngs/0.png: outlines along 1" in refusal(data)


def test_values_of_large_images_are_converted_a_few_rows_at_a_time(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (600, 31), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    converted = read_image(str(tmp_path / "deep.png"), "L", (0, 4095))[..., 0]
    np.testing.assert_array_equal(converted, np.rint(values / 4095 * 255).astype(np.uint8))
