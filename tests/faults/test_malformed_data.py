"""Malformed data sets: each is refused in clear lines, or accepted and then complete."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crbp_d2.data import DatasetError, PanopticSource, prepare
from tests.data.panoptic_data import Written, write_panoptic

INPUTS, INPUTS_OF_THE_FAST_TEST = 400, 24
LONGEST_LINE = 700

# What takes the place of any value of a JSON.
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, 1e308, float("nan"), "", "a\0b", "x" * 300, "\ud800", "~nobody"),
    *("../..", "/", [], {}, [[[]]], {"id": 1}, 8193 * 8193, "0.jpg", 3, "things"),
)


def _places(content: Any) -> list[tuple[Any, Any]]:
    """All containers in a JSON's content, each with each of its keys."""
    if not isinstance(content, (dict, list)):
        return []
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    return [(content, key) for key in keys] + [
        place for key in keys for place in _places(content[key])
    ]


def _value(chance: random.Random, data: Written) -> None:
    content = data.read()
    container, key = chance.choice(_places(content))
    container[key] = chance.choice(VALUES)
    data.write(content)


def _missing(chance: random.Random, data: Written) -> None:
    content = data.read()
    container, key = chance.choice(_places(content))
    del container[key]
    data.write(content)


def _twice(chance: random.Random, data: Written) -> None:
    content = data.read()
    container = chance.choice([c for c, _ in _places(content) if isinstance(c, list)])
    container.append(chance.choice(container))
    data.write(content)


def _nested(chance: random.Random, data: Written) -> None:
    depth = chance.choice((10, 1000, 100_000))
    data.json.write_text('{"images": ' + "[" * depth + "]" * depth + "}")


def _any_file(chance: random.Random, data: Written) -> Path:
    return chance.choice([data.json, *data.images.iterdir(), *data.pngs.iterdir()])


def _cut(chance: random.Random, data: Written) -> None:
    path = _any_file(chance, data)
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def _bytes(chance: random.Random, data: Written) -> None:
    path = _any_file(chance, data)
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 5, 50))):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


def _header(chance: random.Random, data: Written) -> None:
    """Another size or kind of pixels in the header of a PNG, with a fitting checksum."""
    path = chance.choice(list(data.pngs.iterdir()))
    content = bytearray(path.read_bytes())
    sizes = (0, 1, 39, 60, 9000, 70_000, 2**31 - 1)
    content[16:24] = struct.pack(">II", chance.choice(sizes), chance.choice(sizes))
    content[24:26] = bytes((chance.choice((1, 8, 16, 77)), chance.choice((0, 2, 3, 6, 9))))
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def _other_image(chance: random.Random, data: Written) -> None:
    """An image of another format, mode or size in the place of one."""
    path = chance.choice([*data.images.iterdir(), *data.pngs.iterdir()])
    mode = chance.choice(("RGB", "RGBA", "L", "P", "1", "I;16", "F", "CMYK"))
    image = Image.new(mode, chance.choice(((60, 40), (40, 60), (1, 1))))
    kind = chance.choice(("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"))
    content = io.BytesIO()
    try:
        image.save(content, kind, save_all=True, append_images=[image] * chance.choice((0, 2)))
    except (OSError, ValueError, KeyError):
        # Not every format has every mode.
        content.write(b"GIF89a")
    path.write_bytes(content.getvalue())


def _noise(chance: random.Random, data: Written) -> None:
    pixels = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (40, 60, 3))
    path = chance.choice(list(data.pngs.iterdir()))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _no_file(chance: random.Random, data: Written) -> None:
    path = _any_file(chance, data)
    path.unlink()
    kind = chance.choice(("nothing", "folder", "loop", "nowhere"))
    if kind == "folder":
        path.mkdir()
    elif kind != "nothing":
        path.symlink_to(path if kind == "loop" else path.with_name("nowhere"))


CHANGES: tuple[Callable[[random.Random, Written], None], ...] = (
    *(_value, _missing, _twice, _nested, _cut, _bytes, _header, _other_image, _noise, _no_file),
)


def outcome(data: Written) -> str:
    """How `prepare` takes data: "one line", "lines", "accepted", or the kind of another error."""
    source = PanopticSource.locate(**data.arguments(), cache=data.folder.parent / "cache")
    try:
        manifest = prepare(source, workers=1)
    except DatasetError as error:
        lines = str(error).splitlines()
        assert str(data.folder) in lines[0], error
        assert str(error).isprintable() or len(lines) > 1, ascii(error)
        assert all(len(line) < LONGEST_LINE and line.isprintable() for line in lines), error
        assert not source.derived.exists(), error
        return "one line" if len(lines) <= 2 else "lines"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    measured = json.loads(source.measured_json.read_text())
    assert len(measured["annotations"]) == len(manifest.files) > 0
    for _, _, png in manifest.files:
        assert Image.open(source.stuff_maps / png).size == (60, 40)
    return "accepted"


def count_outcomes(folder: Path, inputs: int) -> Counter[str]:
    """Outcomes of that many inputs, each kind of change as often; the same in every run."""
    counts: Counter[str] = Counter()
    for number in range(inputs):
        data = write_panoptic(folder / str(number) / "data")
        change = CHANGES[number % len(CHANGES)]
        change(random.Random(number), data)
        found = outcome(data)
        known = found in ("one line", "lines", "accepted")
        assert known, f"input {number}, {change.__name__}: {found}"
        counts[found] += 1
    return counts


def test_some_malformed_data_are_refused_in_words(tmp_path: Path) -> None:
    counts = count_outcomes(tmp_path, INPUTS_OF_THE_FAST_TEST)
    assert counts["one line"] > counts["accepted"] > 0


@pytest.mark.faults
def test_many_malformed_data_are_refused_in_words(tmp_path: Path) -> None:
    counts = count_outcomes(tmp_path, INPUTS)
    assert sum(counts.values()) == INPUTS
    assert counts["one line"] > counts["accepted"] > 0
