"""A disk that fills up in the middle of a training: its line is the last one, and the only one."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from detectron2.engine import HookBase

from crbp_d2.engine.folder import release
from tests.engine.runs import train, trainer_of

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")

ROOT = Path(__file__).parents[2]
FULL = "No space left on device"
TRAINING = """
import sys
from pathlib import Path
from crbp_d2.engine import Trainer
from crbp_d2.launch import ending_with_message
from tests.engine.runs import train
from tests.engine.test_full_disk import FillUp

build = Trainer.build_hooks
folder = Path(sys.argv[1])
Trainer.build_hooks = lambda self: [*build(self), FillUp(folder)]
with ending_with_message():
    train(folder, "SOLVER.MAX_ITER", sys.argv[2])
"""


class FillUp(HookBase):
    """Lets the events of a training be on a full disk after 30 iterations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_step(self) -> None:
        if self.trainer.iter == 30:
            for path in self.folder.glob("events.out.tfevents.*"):
                path.unlink()
                path.symlink_to("/dev/full")


def test_a_full_disk_under_the_events_ends_a_training_without_a_traceback_of_their_thread(
    tmp_path, monkeypatch
):
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    trainer = trainer_of(tmp_path, "SOLVER.MAX_ITER", 60)
    trainer.register_hooks([FillUp(tmp_path)])
    with pytest.raises(OSError, match=f"{FULL}: '{tmp_path}'"):
        trainer.train()
    release(tmp_path)
    assert told == [] and threading.excepthook == told.append


def test_other_threads_keep_their_tracebacks(tmp_path, monkeypatch):
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    trainer = trainer_of(tmp_path)

    class Failing(HookBase):
        def after_step(self) -> None:
            thread = threading.Thread(target=open, args=("/no/such/file",))
            thread.start()
            thread.join()

    trainer.register_hooks([Failing()])
    trainer.train()
    release(tmp_path)
    assert [type(failure.exc_value) for failure in told] == [FileNotFoundError] * 2


@pytest.mark.parametrize("iterations", [3, 4])
def test_metrics_that_can_not_be_written_are_told_in_a_resumed_training(iterations, tmp_path):
    train(tmp_path)
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "metrics.json").symlink_to("/dev/full")
    # Detectron2 divides by the iterations since it last wrote.
    with pytest.raises(OSError, match=f"{FULL}: '{tmp_path}'"):
        train(tmp_path, "SOLVER.MAX_ITER", iterations, flags=("--resume",))
    release(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("iterations", "code"), [(2, 0), (60, 1)])
def test_the_line_is_the_last_one_and_there_is_no_traceback(iterations, code, tmp_path):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    words = [sys.executable, "-c", TRAINING, str(tmp_path), str(iterations)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code
    assert "Traceback" not in done.stdout + done.stderr and "ignored" not in done.stderr
    if code:
        assert done.stderr.splitlines()[-1].startswith(f"{tmp_path}: {FULL}; make room there")
    assert (tmp_path / "model_final.pth").is_file() == (not code)
