"""The weights of a model, from a file or from the last checkpoint of a run."""

from __future__ import annotations

import pickle

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from crbp_d2.core import ConfigurationError

from .trainer import Trainer


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
