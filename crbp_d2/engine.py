"""Training and evaluation with Detectron2's engine."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import pickle
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    EvalHook,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    default_argument_parser,
    default_setup,
)
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.solver import build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

import crbp_d2.modeling  # noqa: F401  registers heads and backbone
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data import (
    build_test_loader,
    build_train_loader,
    ensure_prepared,
    register_from_file,
    require_even_batches,
    require_registered,
    require_same_classes,
    set_num_classes,
)
from crbp_d2.data.sampler import is_resumable, seek
from crbp_d2.data.storage import write_json
from crbp_d2.evaluation import build_evaluator
from crbp_d2.evaluation.pictures import write_pictures

logger = logging.getLogger(__name__)

# Newer releases of PyTorch warn of the older name.
_BUFFERS = "forward_sync_buffers"
if _BUFFERS not in inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters:
    _BUFFERS = "broadcast_buffers"

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""Beside Detectron2's own SGD."""

EXAMPLES = """examples:
  train on one GPU (or, without any, on the CPU):
    tools/train_net.py --config-file configs/R50_FPN_crbp_1x.yaml
  train on eight GPUs:
    tools/train_net.py --config-file configs/R101_FPN_crbp_3x.yaml --num-gpus 8
  go on after an interruption:
    tools/train_net.py --config-file configs/R50_FPN_crbp_1x.yaml --resume
  evaluate, here with twice the steps of training:
    tools/train_net.py --config-file configs/R50_FPN_crbp_1x.yaml --eval-only \\
        MODEL.WEIGHTS output/model_final.pth CRBP.TEST_STEPS 40
  change anything else:
    tools/train_net.py --config-file configs/R50_FPN_crbp_1x.yaml CRBP.ALGORITHM bptt CRBP.STEPS 3

on several machines run on each of them, with its rank:
    tools/train_net.py --config-file configs/R101_FPN_crbp_3x.yaml --num-gpus 8 \\
        --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
torchrun and SLURM's srun start all processes themselves, without --num-gpus and --num-machines:
    torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/R101_FPN_crbp_3x.yaml
    srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --kill-on-bad-exit \\
        tools/train_net.py --config-file configs/R101_FPN_crbp_3x.yaml
"""


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command line."""
    return default_argument_parser(epilog=EXAMPLES)


class SeedIterations(HookBase):
    """Seeds PyTorch's generators anew in every iteration, so that a resumed run samples proposals
    as an uninterrupted one.

    Args:
        seed: of the run, at least 0.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        entropy = np.random.SeedSequence([self.seed, comm.get_rank(), self.trainer.iter])
        torch.manual_seed(int(entropy.generate_state(1)[0]))


def share_buffers(model: torch.nn.Module) -> None:
    """Give every process the buffers of the main one, which are those in its checkpoints.

    Running statistics of batch norms are of the images that a process has seen: several processes
    would evaluate several models.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


class EvaluateTrained(EvalHook):
    """Detectron2's, but for what it does after a failure in the last iteration: there it evaluates
    the model, which waits for processes that have not failed and train on."""

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class Trainer(DefaultTrainer):
    """Detectron2's default trainer, with this project's evaluators, also on several CPU processes.

    Args:
        cfg: a config with the node `CRBP`.

    Raises:
        ConfigurationError: mixed precision is asked for on a CPU.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer gives every distributed model a CUDA device, so its construction is spelled
        # out here: the same parts in the same order.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
        if on_cpu and cfg.SOLVER.AMP.ENABLED:
            raise ConfigurationError("SOLVER.AMP.ENABLED needs MODEL.DEVICE cuda; set it to False")
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
        devices = [torch.cuda.current_device()] if on_gpu else None
        model = create_ddp_model(model, device_ids=devices, **{_BUFFERS: False})
        kind = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = kind(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._last_eval_results: Mapping[str, Any] = {}
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimizer that `CRBP.OPTIMIZER` names, with gradient clipping as SOLVER says.

        Raises:
            ConfigurationError: an unknown name.
        """
        if cfg.CRBP.OPTIMIZER == "sgd":
            return build_optimizer(cfg, model)
        if cfg.CRBP.OPTIMIZER not in OPTIMIZERS:
            allowed = ", ".join(sorted([*OPTIMIZERS, "sgd"]))
            raise ConfigurationError(
                f"CRBP.OPTIMIZER is {cfg.CRBP.OPTIMIZER!r}; choose from {allowed}"
            )
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        kind = maybe_add_gradient_clipping(cfg, OPTIMIZERS[cfg.CRBP.OPTIMIZER])
        return kind(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """See `crbp_d2.data.build_train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """See `crbp_d2.data.build_test_loader`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluators of a data set, writing to `OUTPUT_DIR/inference/<data set>`."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, folder)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's, and with a `SEED` random numbers that follow from the iteration."""

        def evaluate() -> Mapping[str, Any]:
            share_buffers(self.model)
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        hooks: list[HookBase] = [
            EvaluateTrained(self.cfg.TEST.EVAL_PERIOD, evaluate)
            if isinstance(hook, EvalHook)
            else hook
            for hook in super().build_hooks()
        ]
        if self.cfg.SEED >= 0:
            hooks.insert(0, SeedIterations(self.cfg.SEED))
        return hooks

    def resume_or_load(self, resume: bool = True) -> None:
        """Load weights, or with `resume` all of the last checkpoint and its place in the data."""
        super().resume_or_load(resume)
        if is_resumable(self.data_loader):
            seek(self.data_loader, self.start_iter)

    def train(self) -> Mapping[str, Any]:
        """Train to the last iteration; the results of the evaluation that ends it."""
        super().train()
        return self._last_eval_results


def prepare(cfg: CfgNode, *, eval_only: bool, world_size: int | None = None) -> None:
    """Make a configuration's data sets ready, fill in what follows from them, and freeze it.

    Numbers of classes are those of the data sets. Without a GPU the model goes to the CPU.

    Args:
        cfg: changed in place.
        eval_only: the training data are not needed.
        world_size: processes that will train, those that run if None.

    Raises:
        ConfigurationError: they can't share a batch evenly.
        DatasetError: a data set is not registered, or can't be used.
    """
    if not eval_only:
        require_even_batches(cfg, world_size or comm.get_world_size())
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
        logger.warning("no GPU is available: running on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        # Processes that all take all cores are several times slower than ones that share them.
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    if cfg.CRBP.DATASETS_FILE:
        register_from_file(cfg.CRBP.DATASETS_FILE)
    names = []
    for key in ("TEST",) if eval_only else ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            require_registered(name, f"DATASETS.{key}")
            names.append(name)
    for name in names:
        ensure_prepared(name)
    require_same_classes(names)
    for name in names[:1]:
        set_num_classes(cfg, name)
    cfg.freeze()


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen configuration of a run, with its data sets ready and its log open.

    Args:
        args: of `argument_parser`.

    Raises:
        ConfigurationError, DatasetError: see `read_config` and `prepare`.
    """
    cfg = read_config(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="crbp_d2")
    prepare(cfg, eval_only=args.eval_only)
    default_setup(cfg, args)
    return cfg


def load_model(cfg: CfgNode, *, resume: bool) -> torch.nn.Module:
    """The model with the weights of `MODEL.WEIGHTS`, or with `resume` of the last checkpoint.

    Raises:
        ConfigurationError: there are none, or they are those of another architecture, so that
            random weights would be evaluated.
    """
    model: torch.nn.Module = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    resumed = resume and checkpointer.has_checkpoint()
    if not cfg.MODEL.WEIGHTS and not resumed:
        raise ConfigurationError(
            "MODEL.WEIGHTS names no weights to evaluate: add MODEL.WEIGHTS "
            f"{cfg.OUTPUT_DIR}/model_final.pth, or --resume for the last checkpoint there"
        )
    path = checkpointer.get_checkpoint_file() if resumed else cfg.MODEL.WEIGHTS
    # Other formats name their weights otherwise; Detectron2 matches them and says what it found.
    if path.endswith(".pth"):
        _require_weights(model, path)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return model


def _require_weights(model: torch.nn.Module, path: str) -> None:
    """Refuse a checkpoint that lacks weights of the model, or has them in other shapes."""
    try:
        with PathManager.open(path, "rb") as file:
            stored = torch.load(file, map_location="cpu", weights_only=False)
    except (OSError, pickle.UnpicklingError) as error:
        raise ConfigurationError(
            f"MODEL.WEIGHTS {path}: can't be read as a checkpoint ({error})"
        ) from error
    weights = stored.get("model", stored)
    wrong = [
        name
        for name, parameter in model.named_parameters()
        if name not in weights or tuple(weights[name].shape) != tuple(parameter.shape)
    ]
    if wrong:
        raise ConfigurationError(
            f"MODEL.WEIGHTS {path}: of another architecture than the config; it lacks "
            f"{len(wrong)} weights of the model, or has them in other shapes: "
            f"{', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}. Give the config file the "
            "model was trained with (config.yaml beside the checkpoint)"
        )


def main(args: argparse.Namespace) -> Mapping[str, Any]:
    """Train, or evaluate with `--eval-only`: what every process of a run executes.

    Writes `metrics.json`, checkpoints and TensorBoard events while training, and at the end
    `results.json` and `predictions/*.png`, all under `OUTPUT_DIR`.

    Args:
        args: of `argument_parser`.

    Returns:
        The evaluation's results (on the main process).
    """
    cfg = setup(args)
    results: Mapping[str, Any]
    if args.eval_only:
        model = load_model(cfg, resume=args.resume)
        results = Trainer.test(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        results = trainer.train()
        model = trainer.model
    if comm.is_main_process():
        output = Path(cfg.OUTPUT_DIR)
        write_json(output / "results.json", results)
        if cfg.CRBP.PICTURES and cfg.DATASETS.TEST:
            bare = getattr(model, "module", model)
            write_pictures(cfg, bare, cfg.DATASETS.TEST[0], output / "predictions")
        if args.eval_only:
            verify_results(cfg, results)
        logger.info("Results, checkpoints and pictures are in %s", output.resolve())
    return results
