"""Damaged checkpoints, tags, configs and logs: one line or what is documented, no traceback."""

from __future__ import annotations

import collections
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crbp_d2.analysis.curves import draw_curves, read_log
from crbp_d2.config import read_config
from crbp_d2.launch import ending_with_message
from tests.engine.runs import train

FAST, SLOW = 20, 160
"""Inputs of all kinds together."""
SEED = 20261128
LAST = "model_0000001.pth"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A training that was killed before its last checkpoint."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder)
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text(LAST)
    return folder


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Cut, flipped, filled with zeros, repeated, or something else in its place."""
    place = chance.randrange(len(content) + 1)
    end = min(len(content), place + chance.choice([1, 8, 512]))
    other = bytes(chance.randrange(256) for _ in range(end - place))
    return chance.choice(
        [
            content[:place],
            content[:place] + other + content[end:],
            content[:place] + bytes(end - place) + content[end:],
            content[:end] + content[place:],
            content[:place] + content[end:],
            b"",
            other,
        ]
    )


def spoilt(chance: random.Random) -> object:
    """Something that `torch.save` writes and no training does."""
    tensor = torch.ones(2)
    return chance.choice(
        [
            [1, 2],
            {"model": [tensor]},
            {"model": {"w": tensor}, "trainer": {}},
            {"model": {"w": 3}},
            {"model": {1: tensor}, "trainer": {"iteration": "x"}},
            tensor,
            {},
        ]
    )


def damage_checkpoint(run: Path, chance: random.Random) -> None:
    path = run / LAST
    if chance.random() < 0.3:
        torch.save(spoilt(chance), path)
    elif chance.random() < 0.2:
        stored = torch.load(path, weights_only=True)
        stored["trainer"][chance.choice(list(stored["trainer"]))] = chance.choice(
            [None, [], "x", -1, 1.5, {"a": 1}]
        )
        torch.save(stored, path)
    else:
        path.write_bytes(damaged(path.read_bytes(), chance))


def damage_tag(run: Path, chance: random.Random) -> None:
    names = [b"..", b"../run", b"a\0b", b"\xff" * 8, b"x" * 300, b"~nouser/a.pth", b"log.txt"]
    tag = run / "last_checkpoint"
    tag.write_bytes(chance.choice([*names, damaged(LAST.encode(), chance)]))


def damage_config(run: Path, chance: random.Random) -> None:
    path = run / "config.yaml"
    text = path.read_bytes()
    if chance.random() < 0.5:
        lines = text.splitlines()
        number = chance.randrange(len(lines))
        key = lines[number].partition(b":")[0]
        value = chance.choice([b"null", b"[1, [2]]", b"1e400", b"{a: 1}", b"'\\0'", b"&a [*a]"])
        lines[number] = (
            key + b": " + chance.choice([value, b"[" * 3000, b"!!python/name:os.system"])
        )
        path.write_bytes(b"\n".join(lines))
    else:
        path.write_bytes(damaged(text, chance))


def damage_metrics(run: Path, chance: random.Random) -> None:
    path = run / "metrics.json"
    value = chance.choice(["null", "[1]", "1e400", '"text"', "NaN", "true", "1" * 5000, "[" * 5000])
    line = chance.choice(
        [f'{{"iteration": 3, "total_loss": {value}}}', f'{{"iteration": {value}}}', value]
    )
    content = path.read_bytes()
    new = content + line.encode() + b"\n" if chance.random() < 0.6 else damaged(content, chance)
    path.write_bytes(new)


def resume(run: Path) -> None:
    train(run, "SOLVER.MAX_ITER", 3, flags=("--resume",))


KINDS: dict[str, tuple[Callable[[Path, random.Random], None], Callable[[Path], object]]] = {
    "checkpoint": (damage_checkpoint, resume),
    "tag": (damage_tag, resume),
    "config": (damage_config, lambda run: read_config(str(run / "config.yaml"))),
    "metrics": (damage_metrics, lambda run: draw_curves([read_log(str(run))])),
}


def outcome(use: Callable[[Path], object], run: Path) -> str:
    """`accepted`, `line`, or the error that a traceback would show."""
    try:
        with ending_with_message():
            use(run)
    except SystemExit as end:
        line = str(end.code).strip()
        return "line" if line and "\n" not in line else f"no single line: {line}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    return "accepted"


def fuzz(trained: Path, folder: Path, inputs: int) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    # What is logged about damage is not what is counted.
    logging.disable(logging.CRITICAL)
    try:
        for number in range(inputs):
            kind = list(KINDS)[number % len(KINDS)]
            damage, use = KINDS[kind]
            run = folder / "run"
            shutil.copytree(trained, run)
            damage(run, random.Random(SEED + number))
            result = outcome(use, run)
            assert result in ("line", "accepted"), f"input {number}, a {kind}: {result}"
            found[f"{kind}: {result}"] += 1
            shutil.rmtree(run)
    finally:
        logging.disable(logging.NOTSET)
    return found


def test_damaged_files_are_told_in_a_line_or_taken_as_documented(trained, tmp_path):
    found = fuzz(trained, tmp_path, FAST)
    assert found.total() == FAST and sum(found[f"{kind}: line"] for kind in KINDS) >= 3


@pytest.mark.faults
def test_so_are_many_more(trained, tmp_path, record_property):
    found = fuzz(trained, tmp_path, SLOW)
    record_property("counts", dict(found))
    assert found.total() == SLOW >= 150
    # Both happen: a fuzzer that damages nothing, or everything, would tell nothing.
    assert all(found[f"{kind}: line"] for kind in ("config", "metrics"))
    assert all(found[f"{kind}: accepted"] for kind in KINDS)
