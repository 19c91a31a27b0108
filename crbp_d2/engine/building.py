"""Models that Detectron2 can't build: which key is to blame, and whether one is."""

from __future__ import annotations

import itertools
import linecache
import re
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer

from crbp_d2.config import add_crbp_config, keys_of, value_of
from crbp_d2.mistakes import TRACEBACK
from crbp_d2.weights import said

_LIBRARIES = ("fvcore", "numpy", "timm", "torch", "torchvision")

Place = tuple[FrameType, int]
"""A frame of a traceback, and its line."""


def reason_not_built(error: Exception, cfg: CfgNode) -> str:
    """Why a config gives no model; empty where that may be a fault of this project, or of parts of
    a user's own.

    It lies in the config if none of their code took part, or if a value that the config has in the
    place of the default is seen where the failure is, below their code.

    Args:
        error: raised by Detectron2's `build_model`, in the function that catches it.
        cfg: of the model.
    """
    places = list(traceback.walk_tb(error.__traceback__))[1:]
    unnamed = _part_not_found(error, cfg)
    if unnamed or not places:
        return unnamed
    below = list(itertools.takewhile(_is_of_libraries, reversed(places)))
    blamed = _keys_seen(error, below, cfg)
    if not below or (len(below) < len(places) and not blamed):
        return ""
    reason = said(error)
    if reason == type(error).__name__:
        reason += f": {_line_of(places[-1])}"
    keys = " or ".join(f"{key} {value_of(cfg, key)!r}" for key in blamed)
    return (
        f"the model can't be built with this config: {reason}; "
        f"{f'look at {keys}' if blamed else 'look at the keys of MODEL'}, or set {TRACEBACK}=1 to "
        "see where it fails"
    )


def _part_not_found(error: Exception, cfg: CfgNode) -> str:
    if not isinstance(error, KeyError) or not error.args:
        return ""
    name = error.args[0]
    for key in keys_of(cfg):
        if key.endswith("IN_FEATURES") and name in value_of(cfg, key):
            return f"{key} has {name!r}: there is no map of that name; correct it"
    return f"a NAME or META_ARCHITECTURE: {name}" if "registry" in str(error) else ""


def _line_of(place: Place) -> str:
    frame, number = place
    return linecache.getline(frame.f_code.co_filename, number).strip()


def _is_of_libraries(place: Place) -> bool:
    name = str(place[0].f_globals.get("__name__"))
    root = name.partition(".")[0]
    detectron2 = DefaultTrainer.__module__.partition(".engine")[0]
    return (
        root in _LIBRARIES
        or root in sys.stdlib_module_names
        or name == detectron2
        or name.startswith(f"{detectron2}.")
    )


def _keys_seen(error: Exception, places: Sequence[Place], cfg: CfgNode) -> list[str]:
    """Keys of `MODEL` with another value than the default, which a variable of the same name has
    where the failure is; the line names the variable, or the error its value.

    Args:
        error: what was raised.
        places: innermost first, of which the first that shows some counts.
        cfg: of the model.
    """
    default = get_cfg()
    add_crbp_config(default)
    known = set(keys_of(default))
    changed = {
        key: value_of(cfg, key)
        for key in keys_of(cfg)
        if key.startswith("MODEL.")
        and (key not in known or value_of(cfg, key) != value_of(default, key))
    }
    for place in places:
        variables = place[0].f_locals
        words = set(re.findall(r"\w+", _line_of(place)))
        seen = []
        for key, value in changed.items():
            name = key.rpartition(".")[2].lower()
            is_named = name in words or re.search(
                rf"(?<!\w){re.escape(str(value))}(?!\w)", str(error)
            )
            # Not a tensor, which can't be compared with it.
            if is_named and type(variables.get(name)) is type(value) and variables[name] == value:
                seen.append(key)
        if seen:
            return seen
    return []
