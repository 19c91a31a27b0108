"""Standard output that is closed, full, or read to no end."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crbp_d2.mistakes import told
from crbp_d2.output import say
from tests.analysis import test_curves
from tests.data.test_tools import tool

from .sources import sources

TWICE = "from crbp_d2.output import say; say('word\\n' * 10**5); say('more\\n')"

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def run(ending: str) -> subprocess.CompletedProcess[str]:
    line = f"{sys.executable} -c \"{TWICE}; import sys; sys.stderr.write('end')\" {ending}"
    return subprocess.run(line, shell=True, capture_output=True, text=True, check=False)


def test_a_reader_that_has_seen_enough_ends_nothing() -> None:
    done = run("| head -n 1")
    assert (done.stdout, done.stderr) == ("word\n", "end")
    whole = run("")
    assert whole.stdout.count("word\n") == 10**5 and whole.stdout.endswith("word\nmore\n")


def test_without_standard_output_nothing_is_written() -> None:
    done = run(">&-")
    assert (done.returncode, done.stderr) == (0, "end")


@needs_full
def test_a_full_disk_is_told_once_with_the_name_of_standard_output() -> None:
    done = run("> /dev/full")
    assert done.returncode == 1
    # As Python says of what it could not write at its end.
    assert "ignored" not in done.stderr
    assert done.stderr.endswith("[Errno 28] No space left on device: 'standard output'\n")


def draw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    run = test_curves.write(folder / "run", test_curves.LINES)
    test_curves.run_tool(monkeypatch, run)
    return run / "curves.csv"


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    arguments = ["--preset=tiny", "--images=1", "--workers=1", f"--output={folder / 'set'}"]
    tool("prepare_pathfinder")(arguments)
    return folder / "set" / "curv_contour_length_6.txt"


Tool = Callable[[Path, pytest.MonkeyPatch], Path]


@pytest.mark.parametrize("work", [draw, prepare])
def test_a_tool_does_its_work_without_standard_output(
    work: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert work(tmp_path, monkeypatch).is_file()


@needs_full
@pytest.mark.parametrize("work", [draw, prepare])
def test_a_tool_names_standard_output_that_is_full(
    work: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises((SystemExit, OSError)) as ended:
            work(tmp_path, monkeypatch)
    line = told(ended.value) or capsys.readouterr().err
    assert "standard output: No space left on device; make room there" in line


def test_what_is_said_is_written_at_once(capsys) -> None:
    say("one\n")
    assert capsys.readouterr().out == "one\n"


def test_all_that_a_tool_prints_goes_this_way() -> None:
    for path in sources("crbp_d2/output.py"):
        text = path.read_text()
        assert "sys.stdout" not in text and not re.search(r"^\s*print\(", text, re.M), path
