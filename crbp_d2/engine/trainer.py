"""Detectron2's default trainer with this project's data, evaluators and optimizers."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm

import crbp_d2.modeling  # noqa: F401  registers heads and backbone
from crbp_d2.core import ConfigurationError
from crbp_d2.data import build_test_loader, build_train_loader
from crbp_d2.data.sampler import is_resumable, seek
from crbp_d2.evaluation import build_evaluator

from .checkpoint import Checkpointer

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
"""Beside Detectron2's own SGD."""


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
        devices: dict[str, Any] = {"device_ids": None} if on_cpu else {}
        model = create_ddp_model(model, broadcast_buffers=False, **devices)
        kind = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = kind(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
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
        hooks: list[HookBase] = super().build_hooks()
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
