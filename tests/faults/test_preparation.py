"""Preparation of data that is killed at any moment: nothing waits for it, and nothing is lost."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.data.mixed_data import write_mixed
from tests.data.test_cache import contents
from tests.data.test_tools import tool

from .data_faults import Call, start

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="looks for the workers of a process in /proc"
)

KILLS = 24
"""Of the slow test, for each of the tools."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
SIZES = [(40 + 7 * number % 60, 50 + 11 * number % 80) for number in range(40)]


@dataclass(frozen=True)
class Kind:
    """A tool, and how its work goes on.

    Args:
        name: of the tool.
        arguments: for the folder of the data and the folder to write to.
        moments: patterns of files in the latter that appear one after the other.
    """

    name: str
    arguments: Callable[[Path, Path], list[str]]
    moments: tuple[str, ...]


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "prepare_panoptic",
            lambda data, output: [
                f"--images={data / 'images'}",
                f"--panoptic-json={data / 'panoptic.json'}",
                f"--panoptic-pngs={data / 'pngs'}",
                f"--cache={output}",
                "--workers=2",
            ],
            (
                ".*.lock",
                ".*.making-*/new/stuff/9.png",
                ".*.making-*/new/manifest.json",
                "panoptic-*",
            ),
        ),
        Kind(
            "prepare_shapes",
            lambda data, output: [
                *(f"--output={output / 'set'}", "--scenes=30", "--size=64", "--workers=2")
            ],
            (".set.lock", ".set.making-*/new/images/000009.jpg", "set"),
        ),
        Kind(
            "prepare_pathfinder",
            lambda data, output: [
                *(f"--output={output / 'set'}", "--preset=tiny", "--images=60", "--workers=2")
            ],
            (".set.lock", "set/pathfinder.json", "set/*/imgs/1/sample_9.png", "set/*.txt"),
        ),
    )
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed") / "data", SIZES).folder


def made(output: Path) -> dict[str, bytes]:
    """All that lies in a folder but locks, whose content is who held them."""
    files = contents(output)
    return {name: content for name, content in files.items() if not name.endswith(".lock")}


def reach(call: Call, output: Path, moment: str | float) -> None:
    """Waits for a file, or for a share of a second; or until the call ends."""
    end = time.monotonic() + (moment if isinstance(moment, float) else 60)
    while call.process.is_alive() and time.monotonic() < end:
        if isinstance(moment, str) and next(output.glob(moment), None):
            return
        time.sleep(0.001)


def kill_and_repeat(
    kind: Kind, data: Path, folder: Path, number: signal.Signals, moment: str | float
) -> dict[str, bytes]:
    """What a second call makes after the first was killed."""
    output = folder / "output"
    output.mkdir(parents=True)
    arguments = kind.arguments(data, output)
    call = start(kind.name, arguments, folder / "said")
    reach(call, output, moment)
    said = call.kill(number)
    assert "Traceback" not in said, said
    if call.process.exitcode == 128 + signal.SIGTERM:
        assert "SIGTERM" in said
    if number == signal.SIGTERM:
        assert not list(output.glob(".*.making-*")), said
    if kind.name != "prepare_shapes" or not (output / "set").exists():
        begun = time.monotonic()
        tool(kind.name)(arguments)
        assert time.monotonic() - begun < 30
    assert not list(output.glob("**/.*.making-*")) + list(output.glob("**/.*.part"))
    return made(output)


@pytest.fixture(params=KINDS)
def uninterrupted(
    request: pytest.FixtureRequest, data: Path, tmp_path: Path
) -> tuple[Kind, float, dict[str, bytes]]:
    """A tool, how long it takes, and what it makes when it isn't killed."""
    kind = KINDS[request.param]
    begun = time.monotonic()
    tool(kind.name)(kind.arguments(data, tmp_path / "whole"))
    return kind, time.monotonic() - begun, made(tmp_path / "whole")


def test_a_killed_preparation_is_repeated_at_once(
    uninterrupted: tuple[Kind, float, dict[str, bytes]], data: Path, tmp_path: Path
) -> None:
    kind, _, expected = uninterrupted
    assert len(expected) >= 40
    for number, moment in zip(SIGNALS, kind.moments[1:3], strict=True):
        assert kill_and_repeat(kind, data, tmp_path / number.name, number, moment) == expected


@pytest.mark.faults
def test_a_preparation_killed_at_any_moment_is_repeated_at_once(
    uninterrupted: tuple[Kind, float, dict[str, bytes]], data: Path, tmp_path: Path
) -> None:
    kind, seconds, expected = uninterrupted
    randomly = random.Random(kind.name)
    for number in range(KILLS):
        aimed = number < 2 * len(kind.moments)
        moment = kind.moments[number // 2] if aimed else randomly.uniform(0, seconds)
        folder = tmp_path / str(number)
        made_then = kill_and_repeat(kind, data, folder, SIGNALS[number % 2], moment)
        assert made_then == expected, (number, moment)
