"""What a training resumes from where its last checkpoint was lost or damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import remove_parts, writing_whole
from crbp_d2.weights import UnreadableError, read_checkpoint
from tests.engine.runs import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A training of three iterations, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder, "SOLVER.MAX_ITER", 3)
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """Its copy, as if it had been killed before the end."""
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    # Their order is told by when they were written.
    for number in range(3):
        os.utime(folder / f"model_{number:07d}.pth", (number, number))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(str(folder / "model_final.pth"))["model"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


LAST = "model_0000002.pth"
DAMAGE = {
    "an empty tag": (lambda run: (run / "last_checkpoint").write_bytes(b""), 2),
    "a binary tag": (lambda run: (run / "last_checkpoint").write_bytes(b"\xff\xfe\0"), 2),
    "a dangling tag": (lambda run: (run / "last_checkpoint").write_bytes(b"gone.pth"), 2),
    "no tag": (lambda run: (run / "last_checkpoint").unlink(), 2),
    "an empty file": (lambda run: (run / LAST).write_bytes(b""), 1),
    "a cut file": (lambda run: os.truncate(run / LAST, 20000), 1),
    "a flipped bit": (lambda run: flip(run / LAST), 1),
    "a list": (lambda run: torch.save([1], run / LAST), 1),
    "no weights": (lambda run: torch.save({"model": 3}, run / LAST), 1),
    "a folder": (lambda run: ((run / LAST).unlink(), (run / LAST).mkdir()), 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_training_goes_on_from_the_newest_that_can_be_read(damage, run, trained):
    change, newest = DAMAGE[damage]
    change(run)
    if damage == "a folder":
        with pytest.raises(OSError, match="model_0000002"):
            train(run, "SOLVER.MAX_ITER", 3, flags=("--resume",))
        return
    train(run, "SOLVER.MAX_ITER", 3, flags=("--resume",))
    log = (run / "log.txt").read_text()
    assert f"goes on from {run}/model_{newest:07d}.pth in its place" in log
    found = weights(run)
    assert all(torch.equal(value, found[name]) for name, value in weights(trained).items())


def test_without_any_that_can_be_read_the_damaged_one_is_named(run):
    for path in run.glob("model_*.pth"):
        path.write_bytes(b"")
    message = rf"the last checkpoint, {run}/{LAST}: can't be read .*No other checkpoint in {run} "
    with pytest.raises(UnreadableError, match=message) as raised:
        train(run, flags=("--resume",))
    assert "\n" not in str(raised.value)


def test_an_evaluation_takes_no_other_checkpoint_than_the_one_it_says(run):
    flip(run / LAST)
    wrong = f"{LAST}: .*the checksum of .* is wrong.*: model_0000001.pth beside it can be read"
    with pytest.raises(UnreadableError, match=wrong):
        train(run, flags=("--eval-only", "--resume"))
    with pytest.raises(UnreadableError, match=wrong):
        train(run, "MODEL.WEIGHTS", run / LAST, flags=("--eval-only",))
    for path in run.glob("model_*.pth"):
        path.write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"take another one$"):
        train(run, flags=("--eval-only", "--resume"))


@pytest.mark.parametrize("left", ["nothing", "half", "another"])
def test_the_end_writes_a_final_checkpoint_that_the_kill_left_out(left, run, trained):
    final = run / "model_final.pth"
    if left == "half":
        final.write_bytes((trained / "model_final.pth").read_bytes()[:5000])
    elif left == "another":
        shutil.copy(run / "model_0000000.pth", final)
    train(run, "SOLVER.MAX_ITER", 3, flags=("--resume",))
    assert read_checkpoint(str(final))["iteration"] == 2
    found = weights(run)
    assert all(torch.equal(value, found[name]) for name, value in weights(trained).items())


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"before")
    with pytest.raises(KeyError), writing_whole(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["a.pth"]
    with writing_whole(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"


def test_a_full_disk_is_told_by_the_name_of_the_file(tmp_path):
    (tmp_path / ".a.pth.part").symlink_to("/dev/full")
    message = r"No space left on device: .*/a\.pth"
    with pytest.raises(OSError, match=message), writing_whole(tmp_path / "a.pth") as file:
        torch.save({"model": {"w": torch.ones(300, 300)}}, file)
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_half_written_is_removed_when_a_training_begins(run):
    part = run / ".model_0000001.pth.part"
    part.write_bytes(b"half")
    train(run, flags=("--resume",))
    assert not part.exists()
    (run / "own.part").touch()
    remove_parts(run)
    assert (run / "own.part").exists()


def test_weights_that_are_not_there_are_named_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigurationError, match=r"MODEL\.WEIGHTS .*absent\.pth: no such file"):
        train(tmp_path / "run", "MODEL.WEIGHTS", "absent.pth")
    assert not list((tmp_path / "run").glob("*.pth"))
    assert not (tmp_path / "run" / "config.yaml").exists()
