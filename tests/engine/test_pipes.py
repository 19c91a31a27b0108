"""Pipes in the place of a run's files: each would be waited for without a word."""

from __future__ import annotations

import os

import pytest

from crbp_d2.core import ConfigurationError
from crbp_d2.engine.checkpoint import EARLIER, Checkpointer, earlier_in
from crbp_d2.weights import UnreadableError
from tests.engine.runs import train


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--eval-only", "--resume")])
@pytest.mark.parametrize(
    "name", ["last_checkpoint", ".earlier_checkpoints", "metrics.json", "log.txt", ".training.lock"]
)
def test_a_pipe_among_the_files_of_a_run_is_named(name, flags, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigurationError, match=f"^{tmp_path}/{name}: a pipe is where a file"):
        train(tmp_path, flags=flags)
    assert os.listdir(tmp_path) == [name]


def test_readers_of_checkpoints_wait_for_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "last_checkpoint")
    os.mkfifo(tmp_path / EARLIER)
    with pytest.raises(UnreadableError, match="last_checkpoint: a pipe is where a file"):
        Checkpointer(None, str(tmp_path)).get_checkpoint_file()
    assert earlier_in(tmp_path) == set()
