"""Trained models packed to be handed on: weights, what differs from the defaults, and a card."""

from __future__ import annotations

import datetime
import io
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.outputs import Batch, find_recurrence
from crbp_d2.analysis.runs import Run, load_run
from crbp_d2.analysis.steps import StepScores, asked_steps, evaluate_steps, step_evaluators
from crbp_d2.config import add_crbp_config, keys_of, read_config, value_of
from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import replacing, write_json, write_whole
from crbp_d2.zoo import CARD, CONFIG, WEIGHTS, Card

# They name files of the machine of the training.
_PATHS = (
    *("OUTPUT_DIR", "DATASETS.FILE", "MODEL.WEIGHTS", "MODEL.TIMM.WEIGHTS"),
    "MODEL.BACKBONE.FILTERS",
)
DIGITS = 4
"""Of the scores on a card."""

Progress = Callable[[Iterable[Batch]], Iterable[Batch]]


def pack(
    text: str,
    output: Path,
    name: str,
    *,
    about: str,
    command: str,
    machine: str,
    licence: str,
    progress: Progress = lambda batches: batches,
) -> Card:
    """Write a model without its training's state, measure its scores, and write its card.

    Args:
        text: see `load_run`.
        output: folder in which the one of the model is made, whole or not at all. A packed model of
            the name is replaced.
        name: of the model.
        about, command, machine, licence: see `Card`.
        progress: wraps the batches of images.

    Raises:
        ConfigurationError: the name is none, the folder holds something else, the training has not
            ended, or see `load_run`.
    """
    folder = _free_folder(output, name)
    run = load_run(text)
    if not run.cfg.MODEL.WEIGHTS:
        raise ConfigurationError(
            f"{text}: its training has not ended; wait for model_final.pth, or name a checkpoint"
        )
    find_recurrence(run.model)
    scores = [_row(one) for one in _evaluate(run, progress)]
    card = Card(
        about=about,
        command=command,
        seed=int(run.cfg.SEED),
        date=_date(run),
        machine=machine,
        torch=torch.__version__.partition("+")[0],
        licence=licence,
        data_set=run.data_set,
        trained_steps=run.trained_steps,
        parameters=sum(one.numel() for one in run.model.parameters()),
        scores=scores,
    )
    config = own_keys(read_config(str(run.folder / CONFIG))).dump().encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Without a lock, whose file would stay in the package.
    with replacing(folder) as fresh:
        write_whole(fresh / WEIGHTS, _bare_weights(run.model))
        write_whole(fresh / CONFIG, config)
        write_json(fresh / CARD, asdict(card))
    return card


def _free_folder(output: Path, name: str) -> Path:
    folder = output / name
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ConfigurationError(
            f"--name {name}: only small letters, digits and underscores, as in pathfinder_tiny_bptt"
        )
    if folder.exists() and not (folder / CARD).is_file():
        raise ConfigurationError(
            f"--output: {folder} is there and holds no packed model; name another folder"
        )
    return folder


def own_keys(cfg: CfgNode) -> CfgNode:
    """What a config has that differs from the defaults, but for paths of its training's machine.

    Detectron2 adds keys from version to version, and refuses those that it does not know.
    """
    default, own = get_cfg(), CfgNode()
    add_crbp_config(default)
    # In JSON a tuple is a list, as in the file.
    usual = {key: json.dumps(value_of(default, key)) for key in keys_of(default)}
    # Without its version a config is taken for an early one.
    del usual["VERSION"]
    for key in keys_of(cfg):
        value = value_of(cfg, key)
        if key in _PATHS or usual.get(key) == json.dumps(value):
            continue
        *nodes, last = key.split(".")
        node = own
        for name in nodes:
            node = node.setdefault(name, CfgNode())
        node[last] = value
    return own


def _evaluate(run: Run, progress: Progress) -> list[StepScores]:
    steps = sorted(set(asked_steps(run.trained_steps)))
    batches = progress(scoring_batches(run.cfg, run.data_set))
    return evaluate_steps(run.model, batches, steps, step_evaluators(run.data_set))


def _row(one: StepScores) -> dict[str, float | None]:
    """A step's scores, rounded; JSON has no NaN."""
    values = {
        name: round(value, DIGITS) if math.isfinite(value) else None
        for name, value in one.scores.items()
    }
    return {"step": one.step, **values, "change": round(one.change, DIGITS + 1)}


def _date(run: Run) -> str:
    """When the weights were written."""
    return datetime.date.fromtimestamp(Path(run.cfg.MODEL.WEIGHTS).stat().st_mtime).isoformat()


def _bare_weights(model: Any) -> bytes:
    """A file of the weights alone, in single precision."""
    weights = {
        name: value.detach().cpu().float() if value.is_floating_point() else value.cpu()
        for name, value in model.state_dict().items()
    }
    content = io.BytesIO()
    torch.save({"model": weights}, content)
    return content.getvalue()
