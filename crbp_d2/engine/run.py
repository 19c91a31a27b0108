"""Training and evaluation: what every process of a run executes."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase, default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from crbp_d2.config import keys_of, read_config, value_of
from crbp_d2.core import ConfigurationError
from crbp_d2.data import (
    DatasetError,
    ensure_prepared,
    register_from_file,
    require_even_batches,
    require_fraction,
    require_registered,
    require_same_classes,
    set_num_classes,
)
from crbp_d2.data.files import absolute
from crbp_d2.data.loaders import is_pathfinder
from crbp_d2.data.storage import write_json, write_whole
from crbp_d2.evaluation.pictures import draw_predictions
from crbp_d2.modeling.stem import NAMED_FILTERS
from crbp_d2.place import is_restarted, launch_by_torchrun
from crbp_d2.weights import said

from .best import require_best_metric
from .checkpoint import is_of_earlier
from .command_line import KeyValueParser
from .expected import require_expected_tasks
from .folder import begin_anew, beginning, begun_by, claim, end_cut_line, release
from .keys import check_keys, require_device, require_scored
from .trainer import Trainer
from .weights import load_model
from .writing import close_failed_logs, require_no_pipes

logger = logging.getLogger(__name__)

NO_PATHS = ("timm", "package", *NAMED_FILTERS)
"""Words that keys take in the place of a path."""

EXAMPLES = """examples:
  train on one GPU (or, without any, on the CPU):
    tools/train_net.py --config-file configs/R50_FPN_crbp_1x.yaml
  train on eight GPUs:
    tools/train_net.py --config-file configs/R101_FPN_crbp_3x.yaml --num-gpus 8
  go on after an interruption:
    tools/train_net.py --config-file configs/R50_FPN_crbp_1x.yaml --resume
  evaluate, here with twice the steps of training:
    tools/train_net.py --config-file configs/R50_FPN_crbp_1x.yaml --eval-only \\
        MODEL.WEIGHTS output/model_final.pth CRBP.SOLVER.TEST_STEPS 40
  change anything else:
    tools/train_net.py --config-file configs/R50_FPN_crbp_1x.yaml \\
        CRBP.ALGORITHM bptt CRBP.SOLVER.STEPS 3

on several machines run on each of them, with its rank:
    tools/train_net.py --config-file configs/R101_FPN_crbp_3x.yaml --num-gpus 8 \\
        --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
torchrun and SLURM's srun start all processes themselves, without --num-gpus and --num-machines:
    torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/R101_FPN_crbp_3x.yaml
    srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --kill-on-bad-exit \\
        tools/train_net.py --config-file configs/R101_FPN_crbp_3x.yaml
"""


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command line; its options may also follow `KEY VALUE ...`.

    `--dist-url` is `auto`, a free port. That of Detectron2 is the same for all runs of a user.
    """
    parser = KeyValueParser(
        parents=[default_argument_parser(epilog=EXAMPLES)],
        add_help=False,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(dist_url="auto")
    return parser


def prepare(cfg: CfgNode, *, eval_only: bool, world_size: int | None = None) -> None:
    """Make a configuration's data sets ready, fill in what follows from them, and freeze it.

    Numbers of classes are those of the data sets. Without a GPU the model goes to the CPU. Paths
    become absolute, so that the config that is saved can be used from any folder.

    Args:
        cfg: changed in place.
        eval_only: the training data are not needed.
        world_size: processes that will train, those that run if None.

    Raises:
        ConfigurationError: a key can't be as it is, see `crbp_d2.engine.keys`; or processes can't
            share a batch evenly.
        DatasetError: a data set is not registered, or can't be used.
    """
    require_device(cfg.MODEL.DEVICE)
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
        logger.warning("no GPU is available: running on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        # Processes that all take all cores are several times slower than ones that share them.
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    make_paths_absolute(cfg)
    if cfg.DATASETS.FILE:
        register_from_file(cfg.DATASETS.FILE)
    check_keys(cfg, eval_only=eval_only)
    if not eval_only:
        require_even_batches(cfg, world_size or comm.get_world_size())
    names = []
    for key in ("TEST",) if eval_only else ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            require_registered(name, f"DATASETS.{key}")
            names.append(name)
    if not eval_only:
        require_fraction(cfg)
    require_scored(
        cfg, [name for name in names if name in cfg.DATASETS.TEST or is_pathfinder(name)]
    )
    require_expected_tasks(cfg)
    for name in names:
        ensure_prepared(name)
    # Also of training data that aren't needed: the model has their classes.
    require_same_classes((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    for name in names[:1]:
        set_num_classes(cfg, name)
    if not eval_only:
        require_best_metric(cfg)
    cfg.freeze()


def make_paths_absolute(cfg: CfgNode) -> None:
    """Let the paths of a config no longer depend on the folder it is used from.

    Args:
        cfg: changed in place. Addresses, as `detectron2://...`, and `NO_PATHS` stay as they are.

    Raises:
        ConfigurationError: one can't be a path, as `~` with the name of no user, or no checkpoint
            could be read of `OUTPUT_DIR`.
    """
    if not cfg.OUTPUT_DIR:
        raise ConfigurationError("OUTPUT_DIR is '': nothing would be saved; name a folder")
    for node, key in (
        (cfg, "OUTPUT_DIR"),
        (cfg.MODEL, "WEIGHTS"),
        (cfg.MODEL.TIMM, "WEIGHTS"),
        (cfg.MODEL.BACKBONE, "FILTERS"),
        (cfg.DATASETS, "FILE"),
    ):
        path = node[key]
        if path and "://" not in path and path not in NO_PATHS:
            try:
                node[key] = os.path.normpath(absolute(path))
            except DatasetError as error:
                raise ConfigurationError(f"{key} {error}") from error
    if not re.fullmatch(r"[^?\x00-\x1f]*", cfg.OUTPUT_DIR):
        raise ConfigurationError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR!r}: Detectron2 takes a question mark for the end of a "
            "checkpoint's name, and leaves out line breaks; choose a folder without"
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen configuration of a run, with its data sets ready and its log open.

    A training claims its `OUTPUT_DIR`, see `crbp_d2.engine.folder`. A `config.yaml` there stays as
    it is; see `save_config`.

    Args:
        args: of `argument_parser`.

    Raises:
        ConfigurationError, DatasetError: see `read_config` and `prepare`; another process trains in
            `OUTPUT_DIR`.
        OSError: `OUTPUT_DIR` can't be made or written to.
    """
    cfg = read_config(args.config_file, args.opts)
    make_paths_absolute(cfg)
    require_no_pipes(cfg.OUTPUT_DIR)
    if not args.eval_only and comm.is_main_process():
        claim(cfg.OUTPUT_DIR)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="crbp_d2")
    prepare(cfg, eval_only=args.eval_only)
    begin_log(cfg, args)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return cfg


def begin_log(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Open the logs of Detectron2, and begin them with what runs where.

    Its own `default_setup` would write `config.yaml` over that of another run.
    """
    rank = comm.get_rank()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore")
    log = setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)
    log.info("Rank of current process: %s. World size: %s", rank, comm.get_world_size())
    log.info("Environment info:\n%s", collect_env_info())
    log.info("Command line arguments: %s", args)
    log.info("Running with full config:\n%s", cfg.dump())


def report_changes(cfg: CfgNode) -> None:
    """Warn of what a resumed training learns by or from that is not as in its `config.yaml`."""
    saved = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if not saved.is_file():
        return
    now = CfgNode(yaml.safe_load(cfg.dump()))
    try:
        # As it is in a file, where a tuple is a list.
        earlier = CfgNode(yaml.safe_load(saved.read_text("utf-8")))
    # What is raised depends on what is broken.
    except Exception as error:
        logger.warning(
            "--resume: %s can't be read (%s), and is written anew; whether the training goes on "
            "with other values is not known",
            saved,
            said(error),
        )
        return
    known = set(keys_of(earlier))
    changed = [
        f"{key} {value_of(now, key)!r} (was {value_of(earlier, key)!r})"
        for key in keys_of(now)
        if key.startswith(
            ("CRBP.", "DATASETS.FRACTION", "DATASETS.TRAIN", "INPUT.", "MODEL.", "SOLVER.")
        )
        and key not in ("MODEL.WEIGHTS", "MODEL.DEVICE", "SOLVER.MAX_ITER")
        and key in known
        and value_of(now, key) != value_of(earlier, key)
    ]
    if changed:
        logger.warning("--resume: goes on with other values: %s", "; ".join(changed))


def save_config(cfg: CfgNode) -> None:
    """Let `config.yaml` in `OUTPUT_DIR` be that of a training, once it can begin.

    An evaluation there, and a training that is refused, leave it to the model it belongs to.
    """
    if comm.is_main_process():
        write_whole(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump().encode())


def main(args: argparse.Namespace) -> Mapping[str, Any]:
    """Train, or evaluate with `--eval-only`: what every process of a run executes.

    Writes `metrics.json`, checkpoints and TensorBoard events while training, `predictions/*.png`
    after every evaluation, and at the end `results.json`, all under `OUTPUT_DIR`.

    Args:
        args: of `argument_parser`.

    Returns:
        The evaluation's results (on the main process).
    """
    cfg = setup(args)
    try:
        return _evaluate(cfg, args) if args.eval_only else _train(cfg, args)
    finally:
        close_failed_logs()
        release(cfg.OUTPUT_DIR)


def _evaluate(cfg: CfgNode, args: argparse.Namespace) -> Mapping[str, Any]:
    model = load_model(cfg, resume=args.resume)
    if not (Path(cfg.OUTPUT_DIR) / "config.yaml").is_file():
        save_config(cfg)
    results: Mapping[str, Any] = Trainer.test(cfg, model)
    _write_results(cfg, results)
    if comm.is_main_process():
        draw_predictions(cfg, model)
        verify_results(cfg, results)
    return results


def _train(cfg: CfgNode, args: argparse.Namespace) -> Mapping[str, Any]:
    resume = args.resume or _goes_on(cfg.OUTPUT_DIR)
    results = begin_training(cfg, resume=resume).train()
    _write_results(cfg, results)
    return results


def _goes_on(folder: str) -> bool:
    """Whether torchrun has started this training again, and not for the first time, as where a
    process has failed before it began. The same in all processes."""
    launch = launch_by_torchrun()
    mine = is_restarted() and begun_by(folder) == launch and not is_of_earlier(folder)
    # The main process will change what the others may not have looked at yet.
    return bool(comm.all_gather(mine)[0])


def begin_training(cfg: CfgNode, *, resume: bool, hooks: Sequence[HookBase] = ()) -> Trainer:
    """A trainer that begins a training in its `OUTPUT_DIR`, or goes on with the last one there.

    Args:
        cfg: see `setup`.
        resume: go on, from the last checkpoint of that training, if it has left one.
        hooks: further ones, whose state belongs to the training's.

    Raises:
        ConfigurationError: the model can't be built, or weights don't fit.
    """
    anew = not resume and comm.is_main_process()
    launch = launch_by_torchrun()
    with beginning(cfg.OUTPUT_DIR, launch) if anew else contextlib.nullcontext():
        trainer = Trainer(cfg)
        trainer.register_hooks(list(hooks))
        trainer.resume_or_load(resume=resume)
    if comm.is_main_process():
        if trainer.start_iter:
            report_changes(cfg)
            end_cut_line(cfg.OUTPUT_DIR)
        else:
            begin_anew(cfg.OUTPUT_DIR)
    save_config(cfg)
    return trainer


def _write_results(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    if not comm.is_main_process():
        return
    output = Path(cfg.OUTPUT_DIR)
    write_json(output / "results.json", results)
    logger.info("Results, checkpoints and pictures are in %s", output.resolve())
