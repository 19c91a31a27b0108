"""YAML of all kinds that is broken: a line with the file's name, whoever reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from crbp_d2.analysis.arms import read_yaml
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data import DatasetError
from crbp_d2.data.from_file import read_entries
from crbp_d2.plain import PlainError, read_plain

BROKEN: dict[str, bytes] = {
    "a month that is none": b"a: 2026-13-45\n",
    "a date by its tag": b"a: !!timestamp x\n",
    "5,000 digits": b"a: " + b"9" * 5000 + b"\n",
    "a number by its tag": b"a: !!int ''\n",
    "a truth by its tag": b"a: !!bool perhaps\n",
    "nested without end": b"a: " + b"[" * 5000 + b"\n",
    "a list as a key": b"? [a, b]\n: c\n",
    "a mapping as a key": b"? {a: b}\n: c\n",
    "an open bracket": b"a: [1,\nb: 2\n",
    "a tab": b"a:\n\t- 1\n",
    "NUL": b"a: \0\n",
    "bytes": bytes(range(256)),
    "UTF-16": "a: 1\n".encode("utf-16"),
    "code": b"a: !!python/object/apply:os.getcwd []\n",
    "an alias that is none": b"a: *b\n",
}
READERS: list[tuple[Callable[[Path], object], type[Exception]]] = [
    (lambda path: read_config(str(path)), ConfigurationError),
    (read_yaml, ConfigurationError),
    (read_entries, DatasetError),
]


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize(("read", "kind"), READERS, ids=["config", "arms", "data sets"])
def test_broken_yaml_is_told_in_a_line_with_its_file(read, kind, content, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(kind, match="mine") as raised:
        read(path)
    line = str(raised.value)
    assert "\n" not in line and str(path) in line


def test_the_place_of_a_mistake_is_told_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: 1\nb: [1,\nc: 2\n")
    for read, kind in READERS:
        with pytest.raises(kind, match=r"line \d") as raised:
            read(path)
        assert "unicode string" not in str(raised.value)


def test_plain_values_are_read_with_a_mark_of_their_encoding(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: [1, x, 2026-01-02]\n")
    assert list(read_plain(path)) == ["a"]
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "absent.yaml")
    path.write_text("a: 2026-13-45\n")
    with pytest.raises(PlainError, match=r"^ValueError: month must be in 1\.\.12"):
        read_plain(path)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("SOLVER.MAX_ITER: 3\n", r"SOLVER\.MAX_ITER .*nest it: SOLVER: \{MAX_ITER: \.\.\.\}"),
        ("MODEL:\n  RPN.NMS_THRESH: 1\n", r"nest it: MODEL: \{RPN: \{NMS_THRESH: \.\.\.\}\}"),
    ],
)
def test_a_key_with_dots_is_answered_with_how_it_is_written(text, written, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=written) as raised:
        read_config(str(tmp_path / "mine.yaml"))
    assert "did you mean" not in str(raised.value)
    (tmp_path / "mine.yaml").write_text("SOLVER.MAX_ITERS: 3\n")
    with pytest.raises(ConfigurationError, match=r"did you mean SOLVER\.MAX_ITER "):
        read_config(str(tmp_path / "mine.yaml"))
