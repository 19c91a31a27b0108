"""One training at a time in a folder, and what is told of earlier ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from detectron2.engine import HookBase

from crbp_d2.core import ConfigurationError
from crbp_d2.engine.checkpoint import EARLIER, earlier_in, is_of_earlier
from crbp_d2.engine.folder import (
    LOCK,
    begin_anew,
    beginning,
    begun_by,
    claim,
    end_cut_line,
    release,
)
from crbp_d2.place import launch_by_torchrun
from crbp_d2.weights import UnreadableError
from tests.engine.runs import train, trainer_of


def _hold(folder: str, ready, worker: bool) -> None:
    claim(folder)
    if worker and os.fork() == 0:
        # As a data worker, which outlives it.
        time.sleep(30)
        os._exit(0)
    ready.set()
    time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in a folder, and has started a worker."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / "run"), ready, True))
    process.start()
    assert ready.wait(120)
    yield process
    process.kill()
    process.join()


def test_a_second_training_is_refused_until_the_first_has_ended_however(holder, tmp_path):
    with pytest.raises(ConfigurationError, match=rf"process {holder.pid} on .* trains there"):
        train(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == [LOCK]
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    claim(tmp_path / "run")
    release(tmp_path / "run")


def test_a_new_training_tells_of_an_earlier_one_and_keeps_its_log(tmp_path, caplog):
    train(tmp_path)
    logged = (tmp_path / "metrics.json").read_text()
    train(tmp_path, "SOLVER.MAX_ITER", 1)
    log = (tmp_path / "log.txt").read_text()
    assert "holds 3 checkpoints of an earlier training" in log
    assert (tmp_path / "metrics.1.json").read_text() == logged
    assert (tmp_path / "metrics.json").read_text().count("\n") == 1


def test_nothing_is_told_where_nothing_was_left(tmp_path, caplog):
    begin_anew(tmp_path)
    assert not caplog.text and not os.listdir(tmp_path)


def killed(folder: Path, *options: object) -> None:
    """A training that begins in a folder, and leaves no checkpoint."""

    class Killed(HookBase):
        def before_step(self) -> None:
            raise KeyboardInterrupt

    trainer = trainer_of(folder, *options)
    with beginning(folder):
        trainer.resume_or_load(resume=False)
    trainer.register_hooks([Killed()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_a_restart_takes_no_checkpoint_of_an_earlier_training(tmp_path, monkeypatch):
    train(tmp_path)
    assert not is_of_earlier(tmp_path)
    killed(tmp_path)
    assert is_of_earlier(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    train(tmp_path, "SOLVER.MAX_ITER", 3)
    log = (tmp_path / "log.txt").read_text()
    assert log.count("Starting training from iteration 0") == 3
    train(tmp_path, "SOLVER.MAX_ITER", 4)
    assert "Starting training from iteration 3" in (tmp_path / "log.txt").read_text()


def test_a_restart_of_a_launch_that_never_began_takes_no_checkpoint_either(tmp_path, monkeypatch):
    train(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    train(tmp_path, "SOLVER.MAX_ITER", 3)
    assert (tmp_path / "log.txt").read_text().count("Starting training from iteration 0") == 2
    # Now it has begun.
    train(tmp_path, "SOLVER.MAX_ITER", 4)
    assert "Starting training from iteration 3" in (tmp_path / "log.txt").read_text()
    assert begun_by(tmp_path) == launch_by_torchrun() != ""
    with pytest.raises(ConfigurationError), beginning(tmp_path, "a third"):
        raise ConfigurationError("refused")
    assert begun_by(tmp_path) == launch_by_torchrun()


@pytest.mark.parametrize("flags", [("--resume",), ("--resume", "--eval-only")])
def test_a_training_that_left_no_checkpoint_goes_not_on_from_an_earlier_ones(flags, tmp_path):
    train(tmp_path)
    killed(tmp_path, "SEED", 2)
    with pytest.raises(ConfigurationError, match="are of an earlier training, .* delete .earlier"):
        train(tmp_path, flags=flags)
    (tmp_path / EARLIER).unlink()
    train(tmp_path, flags=flags)


def test_a_damaged_checkpoint_is_not_replaced_by_an_earlier_trainings(tmp_path):
    train(tmp_path, "SOLVER.MAX_ITER", 3)
    train(tmp_path, "SOLVER.MAX_ITER", 1, "SEED", 2)
    assert earlier_in(tmp_path) == {"model_0000001.pth", "model_0000002.pth"}
    for name in ("model_0000000.pth", "model_final.pth"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnreadableError, match="No other checkpoint"):
        train(tmp_path, flags=("--resume",))


def test_a_training_that_is_refused_leaves_an_earlier_one_to_be_resumed(tmp_path):
    train(tmp_path, "SOLVER.MAX_ITER", 1)
    with pytest.raises(ConfigurationError):
        train(tmp_path, "MODEL.WEIGHTS", tmp_path / "absent.pth")
    assert not is_of_earlier(tmp_path)
    train(tmp_path, flags=("--resume",))


@pytest.mark.parametrize("content", [b"abc", b"[1, 2]", b"a: [", b"\xff", b"1: 2", b""])
def test_a_damaged_config_is_told_and_written_anew(content, tmp_path):
    train(tmp_path, "SOLVER.MAX_ITER", 1)
    config = tmp_path / "config.yaml"
    whole = config.read_bytes()
    config.write_bytes(content)
    train(tmp_path, flags=("--resume",))
    told = "config.yaml can't be read" in (tmp_path / "log.txt").read_text()
    assert told == (content not in (b"1: 2", b""))
    assert config.read_bytes() == whole.replace(b"MAX_ITER: 1\n", b"MAX_ITER: 2\n")


@pytest.mark.parametrize("name", ["what?", "two\nlines"])
def test_a_folder_whose_checkpoints_could_not_be_read_is_refused(name, tmp_path):
    with pytest.raises(ConfigurationError, match="OUTPUT_DIR .*choose a folder without"):
        train(tmp_path / name)
    assert not os.listdir(tmp_path)


def test_a_log_that_was_cut_goes_on_in_a_line_of_its_own(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\n{"iter')
    end_cut_line(tmp_path)
    end_cut_line(tmp_path)
    assert path.read_text() == '{"iteration": 1}\n{"iter\n'
    path.write_text("")
    end_cut_line(tmp_path)
    assert path.read_text() == ""


def test_a_full_disk_ends_a_training_by_the_name_of_its_folder(tmp_path):
    trainer = trainer_of(tmp_path)
    Path(tmp_path / ".model_0000000.pth.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*model_0000000\.pth"):
        trainer.train()
    release(tmp_path)
