"""Trainings that are killed: what is left is whole, and a resume ends as if nothing had been."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from tests.engine.runs import trainer_of
from tests.faults.run_faults import ITERATIONS, Aim, same, train, weights

KILLS = 24
"""Of the tests marked slow, aimed and random ones."""
SOAK = 5000
"""Iterations whose memory, open files and threads stay as they are."""
SEED = 20261128

AIMED = {
    "a checkpoint half written": Aim(".model_0000001.pth.part", half=20_000),
    "a checkpoint before it has its name": Aim("model_0000001.pth", "os.rename"),
    "the last one half written": Aim(".model_final.pth.part", half=20_000),
    "the last one before it has its name": Aim("model_final.pth", "os.rename"),
    "the best model half written": Aim(".model_best.pth.part", half=5_000),
    "a tag": Aim(".last_checkpoint.part", nth=2),
    "a tag before it has its name": Aim("last_checkpoint", "os.rename", nth=2),
    "the config": Aim("config.yaml", "os.rename"),
    "the metrics": Aim("metrics.json"),
    "the evaluation": Aim("model_final.pth", "os.rename", delay=0.3),
    "the results": Aim("results.json", "os.rename"),
    "the pictures": Aim("predictions/"),
}
SCORED = ("the best model half written", "the evaluation", "the results", "the pictures")
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM}
FAST = [
    ("the last one half written", "KILL"),
    ("the best model half written", "KILL"),
    ("a tag before it has its name", "KILL"),
    ("a checkpoint before it has its name", "TERM"),
]
SLOW = [(aim, sent) for aim in AIMED for sent in SIGNALS if (aim, sent) not in FAST]
SLOW = [(aim, sent) for aim, sent in SLOW if not (AIMED[aim].half and sent == "TERM")]
RANDOM = KILLS - len(SLOW)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, said = train(folder)
    assert code == 0, said
    return weights(folder)


def kill_and_resume(
    output: Path, aim: Aim, sent: str, options: tuple[object, ...], expected: dict
) -> None:
    code, said = train(output, *options, aim=aim, number=SIGNALS[sent])
    ends = {"KILL": (-9, -signal.SIGXFSZ), "TERM": (143,)}[sent]
    # A moment that is random, or later than the end, may have found it done.
    assert code in ends or (code == 0 and aim.delay), said
    if code == 143:
        assert "Interrupted by SIGTERM" in said.strip().splitlines()[-1]
    assert "Traceback" not in said
    code, said = train(output, "--resume", *options)
    assert code == 0, said
    assert same(weights(output), expected)
    assert not list(output.glob(".*.part"))
    for line in (output / "metrics.json").read_text().splitlines():
        assert json.loads(line)["iteration"] <= ITERATIONS
    json.loads((output / "results.json").read_text())


def options_of(aim: str) -> tuple[object, ...]:
    if aim not in SCORED:
        return ()
    scored = ("DATASETS.TEST", "('pathfinder_tiny_val',)", "TEST.PICTURES", 1)
    best = ("TEST.EVAL_PERIOD", 2, "TEST.BEST_METRIC", "pathfinder/precision")
    return (*scored, *best) if "best" in aim else scored


@pytest.mark.parametrize(("aim", "sent"), FAST)
def test_a_killed_training_resumes_to_the_same_model(aim, sent, tmp_path, uninterrupted):
    kill_and_resume(tmp_path / "run", AIMED[aim], sent, options_of(aim), uninterrupted)


@pytest.mark.faults
@pytest.mark.parametrize(("aim", "sent"), SLOW)
def test_so_it_does_whatever_it_was_writing(aim, sent, tmp_path, uninterrupted):
    kill_and_resume(tmp_path / "run", AIMED[aim], sent, options_of(aim), uninterrupted)


@pytest.mark.faults
@pytest.mark.parametrize("number", range(RANDOM))
def test_so_it_does_whenever_it_was_killed(number, tmp_path, uninterrupted):
    chance = random.Random(SEED + number)
    aim = Aim("metrics.json", delay=chance.uniform(0.001, 0.6))
    kill_and_resume(tmp_path / "run", aim, chance.choice(list(SIGNALS)), (), uninterrupted)


def test_the_kills_are_as_many_as_promised():
    assert len(SLOW) + RANDOM == KILLS >= 20 and RANDOM >= 3 and len(FAST) == 4


class _Watch(HookBase):
    """Memory, open files and threads, after some iterations each."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[tuple[int, int, int]] = []

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.every == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE")
            files = len(os.listdir("/proc/self/fd"))
            self.seen.append((memory, files, threading.active_count()))


@pytest.mark.faults
def test_a_long_training_holds_no_more_at_its_end_than_at_its_beginning(tmp_path):
    options = ("SOLVER.MAX_ITER", SOAK, "SOLVER.CHECKPOINT_PERIOD", SOAK // 10)
    trainer = trainer_of(tmp_path, *options, "CRBP.SOLVER.STEPS", 1)
    watch = _Watch(SOAK // 10)
    trainer.register_hooks([watch])
    trainer.train()
    # The first tenth fills caches and the windows of what is logged.
    (before, files, threads), *_, (after, files_after, threads_after) = watch.seen[1:]
    assert after - before < 16 * 2**20
    assert (files_after, threads_after) == (files, threads)
