"""The weights of a model, from a file or from the last checkpoint of a run."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode

from crbp_d2.core import ConfigurationError

from .checkpoint import Checkpointer
from .trainer import Trainer


def load_model(cfg: CfgNode, *, resume: bool) -> torch.nn.Module:
    """The model with the weights of `MODEL.WEIGHTS`, or with `resume` of the last checkpoint.

    Raises:
        ConfigurationError: there are none, they can't be read, are those of another architecture,
            so that random weights would be evaluated, or not finite.
    """
    model: torch.nn.Module = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, exact=True)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise ConfigurationError(
            "MODEL.WEIGHTS names no weights to evaluate: add MODEL.WEIGHTS "
            f"{cfg.OUTPUT_DIR}/model_final.pth, or --resume for the last checkpoint there"
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return model
