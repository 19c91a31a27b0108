"""Detectron2's default trainer with this project's data, evaluators and optimizers."""

from __future__ import annotations

import inspect
import logging
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
    EvalHook,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger

import crbp_d2.modeling  # noqa: F401  registers heads and backbone
from crbp_d2.core import ConfigurationError
from crbp_d2.data import build_test_loader, build_train_loader
from crbp_d2.data.sampler import is_resumable, seek
from crbp_d2.evaluation import build_evaluator
from crbp_d2.evaluation.pictures import draw_predictions
from crbp_d2.evaluation.rare import tell_of_rare_classes
from crbp_d2.interruption import deferring, handling
from crbp_d2.mistakes import told
from crbp_d2.modeling.timm_backbone import TimmBackbone
from crbp_d2.weights import UnreadableError, read_checkpoint, said

from .best import KeepBest
from .building import reason_not_built
from .checkpoint import FINAL, Checkpointer
from .duration import EstimateDuration
from .keys import require_norms_used_once, require_trainable
from .optimizers import build_optimizer, kept_settings, require_same_kind, slow_down
from .stall import Stall
from .state import StateError, require_same_form, require_sound
from .stopping import EvaluateTrained, StopWhenAsked, batches, evaluated
from .writing import end_after_failure, failing_once

logger = logging.getLogger(__name__)

# PyTorch is about to call it otherwise.
_BUFFERS = "forward_sync_buffers"
if _BUFFERS not in inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters:
    _BUFFERS = "broadcast_buffers"


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


class Trainer(DefaultTrainer):
    """Detectron2's default trainer, with this project's evaluators, also on several CPU processes.

    Args:
        cfg: a config with the node `CRBP`.

    Raises:
        ConfigurationError: a key can't be as it is on this device, with this number of processes
            or for this model.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer gives every distributed model a CUDA device, so its construction is spelled
        # out here: the same parts in the same order.
        TrainerBase.__init__(self)
        package = DefaultTrainer.__module__.partition(".engine")[0]
        if not logging.getLogger(package).isEnabledFor(logging.INFO):
            setup_logger(name=package)
        processes = comm.get_world_size()
        cfg = self.auto_scale_workers(cfg, processes)
        device = torch.device(cfg.MODEL.DEVICE)
        require_trainable(cfg, device, processes)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        devices = [torch.cuda.current_device()] if device.type == "cuda" else None
        model = create_ddp_model(model, device_ids=devices, **{_BUFFERS: False})
        kind = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._loader, self._batches = data_loader, batches(data_loader)
        self._trainer = kind(model, self._batches, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._last_eval_results: Mapping[str, Any] = {}
        self._stall = Stall()
        # Of other processes than the main one none.
        self._writers: list[EventWriter] = []
        self.register_hooks(self.build_hooks())

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Detectron2's scaling by `SOLVER.REFERENCE_WORLD_SIZE`, also of `CRBP.PENALTY.SCHEDULE`.

        Args:
            cfg: unchanged.
            num_workers: number of processes.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        scaled: CfgNode = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is cfg:
            return cfg
        scaled.defrost()
        scaled.SOLVER.CHECKPOINT_PERIOD = max(1, scaled.SOLVER.CHECKPOINT_PERIOD)
        scaled.CRBP.PENALTY.SCHEDULE = tuple(
            (round(iteration * reference / num_workers), factor)
            for iteration, factor in cfg.CRBP.PENALTY.SCHEDULE
        )
        scaled.freeze()
        return scaled

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Detectron2's model of a config.

        Raises:
            ConfigurationError: a part of an unknown name is asked for, or one that can't be with a
                value that the config has.
        """
        try:
            model: torch.nn.Module = super().build_model(cfg)
        except ConfigurationError:
            raise
        # What is raised depends on the part.
        except Exception as error:
            reason = "" if told(error) else reason_not_built(error, cfg)
            if not reason:
                raise
            raise ConfigurationError(reason) from error
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """See `crbp_d2.engine.optimizers.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Detectron2's schedule of the learning rate.

        Raises:
            ConfigurationError: the keys of SOLVER give none.
        """
        try:
            return super().build_lr_scheduler(cfg, optimizer)
        except (AssertionError, IndexError, ValueError) as error:
            raise ConfigurationError(
                f"SOLVER gives no schedule of the learning rate ({said(error)}); correct STEPS, "
                "which ascend, or WARMUP_ITERS, fewer than MAX_ITER"
            ) from error

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

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> Any:
        """Detectron2's evaluation, which also tells of classes that are too rare to be scored."""
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            tell_of_rare_classes(cfg, results)
        return results

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's, with a `SEED` random numbers that follow from the iteration, with a
        `TEST.BEST_METRIC` the checkpoint of the best model, an estimate of the time, and an end in
        order when a signal asks for it.

        Raises:
            ConfigurationError: statistics of a norm are asked for that every step uses.
        """
        if self.cfg.TEST.PRECISE_BN.ENABLED:
            require_norms_used_once(self.model)

        def evaluate() -> Mapping[str, Any]:
            share_buffers(self.model)
            self._last_eval_results = evaluated(self, self._score_and_draw)
            return self._last_eval_results

        period, metric = self.cfg.TEST.EVAL_PERIOD, self.cfg.TEST.BEST_METRIC
        hooks: list[HookBase] = []
        for hook in super().build_hooks():
            if not isinstance(hook, EvalHook):
                hooks.append(hook)
                continue
            hooks.append(EvaluateTrained(period, evaluate))
            if metric and comm.is_main_process():
                hooks.append(KeepBest(period, self.checkpointer, metric))
        if self.cfg.SEED >= 0:
            hooks.insert(0, SeedIterations(self.cfg.SEED))
        if comm.is_main_process():
            hooks.append(EstimateDuration(has_phases=bool(self.cfg.CRBP.PHASES)))
        return [*hooks, StopWhenAsked(self._stall)]

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, of the console, `metrics.json` and TensorBoard."""
        self._writers = super().build_writers()
        return self._writers

    def _score_and_draw(self) -> Mapping[str, Any]:
        """The scores of the model as it is, whose pictures go to `predictions` and TensorBoard."""
        results: Mapping[str, Any] = self.test(self.cfg, self.model)
        if comm.is_main_process():
            draw_predictions(self.cfg, self.model, self.storage)
        return results

    def resume_or_load(self, resume: bool = True) -> None:
        """Load weights, or with `resume` all of the last checkpoint and its place in the data.

        Raises:
            ConfigurationError: see `Checkpointer.load` and `load_state_dict`.
        """
        if resume and not self.checkpointer.has_checkpoint():
            logger.warning(
                "--resume: there is no checkpoint in %s, the training starts anew",
                self.cfg.OUTPUT_DIR,
            )
        super().resume_or_load(resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise ConfigurationError(
                f"--resume: the processes would go on from iterations {starts}; let all of them "
                f"read the same files in OUTPUT_DIR {self.cfg.OUTPUT_DIR}"
            )
        if self.cfg.SOLVER.PRETRAINED_FACTOR != 1 and not self.start_iter:
            self._slow_down_pretrained()
        if is_resumable(self._loader):
            seek(self._loader, self.start_iter)

    def _slow_down_pretrained(self) -> None:
        """See `SOLVER.PRETRAINED_FACTOR`."""
        factor, model = self.cfg.SOLVER.PRETRAINED_FACTOR, self.checkpointer.model
        given = set(self.checkpointer.given)
        if self.cfg.MODEL.TIMM.WEIGHTS:
            for place, module in model.named_modules():
                if isinstance(module, TimmBackbone):
                    given.update(f"{place}.{name}" for name, _ in module.named_parameters())
        weights = [weight for name, weight in model.named_parameters() if name in given]
        count = slow_down(self.optimizer, self.scheduler, weights, factor)
        logger.info(
            "SOLVER.PRETRAINED_FACTOR %s: for %d of %d trained weights and biases",
            factor,
            count,
            len(self.optimizer.param_groups),
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over optimizer, schedule and iteration of a checkpoint.

        Raises:
            StateError: they are none.
            ConfigurationError: they are of a training that this one can't go on with.
        """
        own = self.state_dict()
        try:
            stored = state_dict["_trainer"]
            if own["_trainer"].keys() - stored.keys() == {"grad_scaler"}:
                raise ConfigurationError(
                    "the checkpoint was written without SOLVER.AMP.ENABLED: resume without it"
                )
            require_same_kind(stored["optimizer"], self.optimizer)
            require_sound(stored["optimizer"], self.optimizer)
            own["_trainer"].pop("optimizer")
            require_same_form(state_dict, own, "trainer")
            factor = self.cfg.SOLVER.PRETRAINED_FACTOR
            kept = kept_settings(stored["optimizer"], self.optimizer, factor)
            super().load_state_dict(state_dict)
        except StateError as error:
            raise StateError(f"holds no state of such a training ({error})") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"--resume: {error}") from error
        # Of whatever form the file is.
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StateError(f"holds no state of such a training ({said(error)})") from error
        if kept:
            logger.warning("The resumed training keeps %s of its checkpoint", ", ".join(kept))

    def run_step(self) -> None:
        """One iteration; of one that waits for another process all say so, see `Stall`."""
        with self._stall.told(self.iter):
            super().run_step()

    def train(self) -> Mapping[str, Any]:
        """Train to the last iteration; the results of the evaluation that ends it.

        A signal (Ctrl-C, SIGTERM) lets it write a checkpoint and end after the iteration.

        Raises:
            Interrupted: a signal came.
            OSError: what is logged or saved can't be written.
        """
        try:
            with failing_once(), handling(), deferring():
                if self.start_iter >= self.max_iter and not self._is_final_whole():
                    self.checkpointer.save(FINAL, iteration=self.iter)
                super().train()
        except OSError as error:
            if error.filename is not None or error.errno is None:
                raise
            raise OSError(error.errno, error.strerror, self.cfg.OUTPUT_DIR) from error
        finally:
            self._batches.close()
        if not self._is_final_whole():
            raise ConfigurationError(
                f"{self._final}: can't be read back, or is of another training; is the disk sound, "
                "and does nobody else write there? --resume writes it anew"
            )
        return self._last_eval_results

    def after_train(self) -> None:
        """Detectron2's, of which nothing hides a failure of the training."""
        if self.iter >= self.max_iter:
            super().after_train()
            return
        self.storage.iter = self.iter
        end_after_failure(self._hooks, self._writers)

    @property
    def _final(self) -> str:
        return os.path.join(self.cfg.OUTPUT_DIR, f"{FINAL}.pth")

    def _is_final_whole(self) -> bool:
        """Whether the file of the trained model can be read and is of the last iteration."""
        if not comm.is_main_process():
            return True
        try:
            stored = read_checkpoint(self._final)
        except UnreadableError as error:
            logger.warning("%s: %s", self._final, error)
            return False
        return bool(stored.get("iteration") == max(self.start_iter, self.max_iter) - 1)
