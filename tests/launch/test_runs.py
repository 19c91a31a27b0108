"""The training command in two processes, started in each of the three ways."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import multiprocessing as mp

from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.engine import Trainer, argument_parser, main
from crbp_d2.launch import ending_with_message, join, launch
from crbp_d2.place import Place
from tests.data.mixed_data import write_mixed
from tests.distributed import ROOT, python_path
from tests.modeling.conftest import CONFIGS

pytestmark = pytest.mark.slow

TRAIN = str(ROOT / "tools" / "train_net.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# What a single machine's two tasks of srun have alike.
SRUN = {
    **{"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    **{"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0"},
}
NOISE = "deprecated|No CUDA runtime|torch.meshgrid|is_fx_tracing"


def start(folder: Path, *command: object, **environment: str) -> subprocess.Popen[str]:
    """`python COMMAND`, from a folder, on the CPU."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            **{"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            "PYTHONPATH": python_path(),
            **environment,
        },
    )


def end(*processes: subprocess.Popen[str]) -> list[str]:
    """Their standard errors, once all have succeeded."""
    ended = [process.communicate(timeout=200) for process in processes]
    for process, (output, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, output[-3000:] + errors[-3000:]
    return [errors for _, errors in ended]


def srun(folder: Path, *command: object) -> list[subprocess.Popen[str]]:
    return [start(folder, *command, **SRUN, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in "01"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=False)["model"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A training by torchrun, the same by --num-gpus and, from its half on, by srun; the folder of
    both and all that went to the standard error."""
    folder = tmp_path_factory.mktemp("runs")
    options = [
        *(
            "SOLVER.IMS_PER_BATCH",
            2,
            "CRBP.SOLVER.STEPS",
            6,
            "TEST.PICTURES",
            0,
            "SOLVER.WARMUP_ITERS",
            0,
        ),
        *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
    ]
    command = [TRAIN, "--config-file", CONFIGS / "quick" / "pathfinder_crbp.yaml"]
    whole = ["SOLVER.MAX_ITER", 4, "OUTPUT_DIR", "whole", "DATALOADER.NUM_WORKERS", 1]
    whole += ["TEST.EVAL_PERIOD", 2, "TEST.BEST_METRIC", "pathfinder/precision"]
    half = ["SOLVER.MAX_ITER", 2, "OUTPUT_DIR", "halves", "DATASETS.TEST", "()"]
    second = ["SOLVER.MAX_ITER", 4, "OUTPUT_DIR", "halves", "DATALOADER.NUM_WORKERS", 2]
    errors = end(
        start(folder, *TORCHRUN, *command, *options, *whole),
        start(folder, *command, "--num-gpus", 2, "--dist-url", "auto", *options, *half),
    )
    errors += end(*srun(folder, *command, "--resume", *options, *second))
    return folder, errors


def test_all_three_ways_train_the_same_model_and_go_on_where_another_stopped(runs):
    folder, _ = runs
    whole, halves = weights(folder / "whole"), weights(folder / "halves")
    assert all(torch.equal(value, halves[key]) for key, value in whole.items())
    for name in ("whole", "halves"):
        assert "World size: 2" in (folder / name / "log.txt").read_text()


def test_two_processes_score_the_model_that_they_write(runs, tmp_path):
    # Its running statistics are those of the main process alone.
    folder, _ = runs
    model = folder / "whole" / "model_final.pth"
    options = ["OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", model, "TEST.PICTURES", 0]
    config = folder / "whole" / "config.yaml"
    arguments = ["--config-file", config, "--eval-only", *options]
    alone = main(argument_parser().parse_args(list(map(str, arguments))))["pathfinder"]
    both = json.loads((folder / "whole" / "results.json").read_text())["pathfinder"]
    assert both == pytest.approx(alone, abs=1e-9)


def test_two_processes_keep_one_best_model(runs):
    folder = runs[0] / "whole"
    kept = torch.load(folder / "model_best.pth", weights_only=True)
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    scores = {line["pathfinder/precision"] for line in lines if "pathfinder/precision" in line}
    assert kept["score"] == {"pathfinder/precision": max(scores)}
    assert kept["model"].keys() == weights(folder).keys()
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_nothing_but_the_runs_own_messages_comes_before_them(runs):
    _, errors = runs
    assert not re.search(NOISE, "".join(errors))


def test_panoptic_training_with_fewer_test_images_than_processes(tmp_path):
    """One image for two processes, of a data set that a file registers."""
    write_mixed(tmp_path / "data", ((96, 61), (57, 140), (48, 75)))
    write_mixed(tmp_path / "one", ((57, 140),))
    sets = [
        {"name": name, **{"images": f"{name}/images", "panoptic_pngs": f"{name}/pngs"}}
        | {"panoptic_json": f"{name}/panoptic.json"}
        for name in ("data", "one")
    ]
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    (errors,) = end(
        start(
            tmp_path,
            *(TRAIN, "--config-file", CONFIGS / "quick" / "shapes_crbp.yaml"),
            *("--num-gpus", 2, "--dist-url", "auto", "OUTPUT_DIR", "run"),
            *("DATASETS.FILE", "sets.json", "DATASETS.TRAIN", "('data',)"),
            *("DATASETS.TEST", "('one',)", "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "CRBP.SOLVER.STEPS", 4),
            *("TEST.PICTURES", 1, "DATALOADER.NUM_WORKERS", 0),
        )
    )
    assert not re.search(NOISE, errors)
    run = tmp_path / "run"
    assert "World size: 2" in (run / "log.txt").read_text()
    lines = map(json.loads, (run / "metrics.json").read_text().splitlines())
    assert all(line["loss_mask"] > 0 for line in lines if "loss_mask" in line)
    assert json.loads((run / "results.json").read_text())["panoptic_seg"]["PQ"] >= 0
    assert len(list((run / "predictions").iterdir())) == 1


def test_a_failure_in_the_last_iteration_evaluates_nothing(tmp_path):
    # The processes that have not failed would be waited for.
    class FailingTrainer(Trainer):
        def run_step(self):
            if self.iter == self.max_iter - 1:
                raise KeyError("in the last iteration")
            super().run_step()

    options = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 1]
    cfg = read_config(
        str(CONFIGS / "quick" / "pathfinder_crbp.yaml"),
        list(map(str, [*options, "CRBP.SOLVER.STEPS", 6, "OUTPUT_DIR", tmp_path])),
    )
    trainer = FailingTrainer(cfg)
    with pytest.raises(KeyError, match="in the last iteration"):
        trainer.train()
    assert not trainer.storage.histories().keys() & {"pathfinder/F1"}


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there are GPUs for two processes")
def test_more_processes_than_gpus_are_refused():
    with pytest.raises(ConfigurationError, match=r"2 processes on this machine need as many GPUs"):
        launch(main, argument_parser().parse_args([]), Place(0, 2, 0, 2), gpu=True)


def test_the_error_of_the_process_that_fails_ends_all_and_is_told(tmp_path):
    program = str(Path(__file__).with_name("failing.py"))
    processes = [
        start(tmp_path, program, "--num-gpus", 2, "--dist-url", "auto", KIND="mistake"),
        start(tmp_path, *TORCHRUN, program, KIND="fault"),
    ]
    by_itself, by_torchrun = (process.communicate(timeout=200)[1] for process in processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert "\n3.jpg: not an image\n" in by_itself and "Traceback" not in by_itself
    cause = by_torchrun.split("Root Cause")[1]
    assert "rank      : 1" in cause and "KeyError: 'of rank 1'" in cause


def test_an_address_where_nobody_can_meet_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=rf"rank 0 of 2 .* at {url} .*--dist-url"):
            join(Place(0, 2, 0, 2, url), gpu=False)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (mp.ProcessRaisedException("\n-- Process 1: KeyError", 1, 99), "-- Process 1: KeyError"),
        # It has told its reason itself.
        (mp.ProcessExitedException("exit code 3", 1, 99, 3), 3),
        (mp.ProcessExitedException("", 1, 99, -9, "SIGKILL"), "Process 1 was ended by SIGKILL"),
    ],
)
def test_the_process_that_starts_others_ends_without_a_traceback_of_its_own(failure, told):
    with pytest.raises(SystemExit) as ended, ending_with_message():
        raise failure
    code = ended.value.code
    assert (code.strip() if isinstance(code, str) else code) == told
