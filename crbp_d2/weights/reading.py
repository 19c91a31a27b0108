"""Reading checkpoints without running what they hold."""

from __future__ import annotations

import os
import pickle
import re
import tarfile
import warnings
import zipfile
from typing import Any

import numpy as np
import torch

from crbp_d2.core import ConfigurationError

from .arrays import load_arrays


class UnreadableError(ConfigurationError):
    """A checkpoint that is missing, damaged or none."""


def read_checkpoint(path: str) -> dict[str, Any]:
    """A checkpoint with the weights in `model`; nothing that the file holds is run.

    Args:
        path: of a local file, of PyTorch with the weights by themselves, in `model` or in
            `state_dict`, or with the ending `.pkl` one of Detectron2's or
            Detectron's model zoo, or with `.pyth` one of pycls.

    Returns:
        Besides `model`, a dictionary of arrays or tensors, what else was saved with it. Weights
        under other names than the model's have `matching_heuristics`, as in Detectron2.

    Raises:
        UnreadableError: there is no such file, it can't be read, or it holds no weights.
        ConfigurationError: it holds anything but tensors, arrays, numbers and names.
    """
    if not os.path.isfile(path):
        raise UnreadableError("no such file; check the path")
    read = load_arrays if path.endswith(".pkl") else _load_tensors
    try:
        stored = read(path)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error}, and so might run code when it is loaded: refused. If you trust it, save its "
            "weights alone, as tensors"
        ) from error
    # What is raised depends on the format and on what is broken.
    except Exception as error:
        raise UnreadableError(
            f"can't be read as a checkpoint ({said(error)}); take another one"
        ) from error
    if not isinstance(stored, dict):
        raise UnreadableError(f"holds a {type(stored).__name__}, no weights by their names")
    checkpoint = _converted(stored, path)
    weights = checkpoint["model"]
    if not isinstance(weights, dict) or not weights or not all(map(_is_weight, weights.items())):
        raise UnreadableError("holds something else than weights by their names")
    return checkpoint


def _load_tensors(path: str) -> Any:
    # PyTorch before 2.6 runs code of these in spite of `weights_only`.
    if tarfile.is_tarfile(path):
        raise ConfigurationError("it is an archive of PyTorch before 0.2")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(os.path.basename(name) == "constants.pkl" for name in archive.namelist()):
                raise ConfigurationError("it is a TorchScript program")
            # PyTorch loads what a damaged disk made of a weight.
            damaged = archive.testzip()
            if damaged:
                raise zipfile.BadZipFile(f"it is damaged: the checksum of {damaged} is wrong")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The rest of PyTorch's message advises to load it anyway.
        reason = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise ConfigurationError(f"it holds {refused[1]} beside tensors") from error
        raise pickle.UnpicklingError(reason[1] if reason else "no tensors") from error


def _converted(stored: dict[str, Any], path: str) -> dict[str, Any]:
    """The checkpoint as Detectron2's checkpointer makes it of each format."""
    if path.endswith(".pkl"):
        if "model" in stored and "__author__" in stored:
            return stored
        blobs = stored.get("blobs", stored)
        weights = {name: blobs[name] for name in blobs if not str(name).endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    if path.endswith(".pyth"):
        state = stored.get("model_state", {})
        weights = {name: state[name] for name in state if not is_counter(name)}
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    if "model" not in stored and isinstance(stored.get("state_dict"), dict):
        return {"model": stored["state_dict"]}
    return stored if "model" in stored else {"model": stored}


def _is_weight(item: tuple[Any, Any]) -> bool:
    name, value = item
    return isinstance(name, str) and isinstance(value, (np.ndarray, torch.Tensor))


def is_counter(name: str) -> bool:
    """Whether a buffer only counts batches, which no norm of a finished model reads."""
    return name.endswith("num_batches_tracked")


def said(error: Exception) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
