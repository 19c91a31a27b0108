"""Configurations read from files and command lines."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from crbp_d2.config.defaults import COMMON, add_crbp_config, options_of
from crbp_d2.config.limits import require_limits
from crbp_d2.core import (
    ADJOINTS,
    CELLS,
    SOLVERS,
    ConfigurationError,
    Registry,
    did_you_mean,
    parse_algorithm,
)
from crbp_d2.plain import position_of, reason_of

logger = logging.getLogger(__name__)

# Detectron2 then takes the usual decay, and the usual rate.
_MAY_BE_NONE = ("SOLVER.BIAS_LR_FACTOR", "SOLVER.WEIGHT_DECAY_NORM")


def read_config(config_file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The configuration that a file and `KEY VALUE ...` describe, not frozen.

    Files are read as plain data: Detectron2 itself would run what a YAML tag as `!!python/object`
    asks for. Where a file chooses another algorithm or part than its base, or the command line than
    the file, inherited options that this one does not take are left out; those that are given with
    it are refused when the model is built. A `DATASETS.FILE` of a file begins at the working
    directory, or where it is not there, beside the file that names it.

    Raises:
        ConfigurationError: there is no such file, it can't be read, or a key or value can't be, as
            more steps than `MOST_STEPS`.
    """
    if not os.path.isfile(config_file):
        raise ConfigurationError(
            f"config file {config_file or '(none given)'}: no such file; name one, as "
            "configs/quick/shapes_crbp.yaml"
        )
    cfg = get_cfg()
    add_crbp_config(cfg)
    with _naming(f"config file {config_file}", cfg):
        cfg.merge_from_file(config_file, allow_unsafe=False)
        own = list(keys_of(CfgNode(_content(config_file))))
        _take_file_beside(cfg, config_file)
    _leave_out_options_of_others(cfg, own)
    with _naming("KEY VALUE on the command line", cfg):
        cfg.merge_from_list(list(overrides))
    _require_values(cfg)
    require_limits(cfg.CRBP)
    _leave_out_options_of_others(cfg, overrides[::2])
    cfg.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS or ""
    return cfg


def _take_file_beside(cfg: CfgNode, config_file: str) -> None:
    """Let `DATASETS.FILE` be found from any folder where it lies beside the config that names it.

    What the working directory has comes first, as other paths of a config begin there, too.
    """
    path = cfg.DATASETS.FILE
    if not path or not isinstance(path, str) or path.startswith("~") or os.path.isfile(path):
        return
    origin = _naming_file(config_file)
    beside = os.path.abspath(os.path.join(os.path.dirname(origin or ""), path))
    if origin is not None and os.path.isfile(beside):
        cfg.DATASETS.FILE = beside


def _naming_file(config_file: str) -> str | None:
    """The one of a config and its bases whose `DATASETS.FILE` holds, if one has it."""
    content = _content(config_file)
    if "FILE" in (content.get("DATASETS") or ()):
        return config_file
    bases = content.get("_BASE_") or []
    # Of several the last holds. Addresses are no files.
    for base in reversed([bases] if isinstance(bases, str) else bases):
        path = os.path.join(os.path.dirname(config_file), os.path.expanduser(base))
        origin = _naming_file(path) if os.path.isfile(path) else None
        if origin is not None:
            return origin
    return None


def _content(config_file: str) -> dict[str, Any]:
    """The keys of a file alone, without those of its bases."""
    content: dict[str, Any] = yaml.safe_load(Path(config_file).read_text("utf-8"))
    return content


def _leave_out_options_of_others(cfg: CfgNode, given: Sequence[str]) -> None:
    """Leave out options of parts that keys which are given have replaced."""
    node = cfg.CRBP
    named = {"SOLVER": node.SOLVER.NAME, "ADJOINT": node.ADJOINT.NAME, "CELL": node.CELL.NAME}
    registries: dict[str, Registry[Any]] = {"SOLVER": SOLVERS, "ADJOINT": ADJOINTS, "CELL": CELLS}
    for part, name in named.items():
        try:
            preset = parse_algorithm(node.ALGORITHM)
            usual = {"SOLVER": preset.solver, "ADJOINT": preset.adjoint}.get(part, {})
            options = registries[part].options(name or usual.get("name", ""))
        except ConfigurationError:
            continue  # of an unknown name; building the model says so
        if not {"CRBP.ALGORITHM", f"CRBP.{part}.NAME"} & set(given):
            continue
        for option in options_of(node[part], *COMMON):
            key = f"CRBP.{part}.{option.upper()}"
            if option not in options and key not in given:
                logger.info("%s is left out, as what was chosen in its place has none", key)
                node[part][option.upper()] = None


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key by its full name."""
    return functools.reduce(lambda node, name: node[name], key.split("."), cfg)


@contextmanager
def _naming(place: str, cfg: CfgNode) -> Iterator[None]:
    """Whatever merging raises says in one line where, and which key may have been meant."""
    try:
        yield
    except yaml.constructor.ConstructorError as error:
        raise ConfigurationError(
            f"{place}: {error.problem}{position_of(error)}; only plain values are read, for others "
            "could run code: write the value itself"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{place}: {reason_of(error)}; correct the YAML") from error
    except (
        *(AttributeError, IndexError, MemoryError, OverflowError, RecursionError),
        *(TypeError, UnicodeDecodeError),
    ) as error:
        raise ConfigurationError(
            f"{place}: not keys with plain values ({type(error).__name__}: {error})"
        ) from error
    except (AssertionError, KeyError, OSError, ValueError) as error:
        raise ConfigurationError(f"{place}: {_said(error, cfg)}") from error


def _require_values(cfg: CfgNode) -> None:
    """Refuse `None`, which Detectron2 takes for a value of any key, where nothing can use it."""
    default = get_cfg()
    add_crbp_config(default)
    for key in keys_of(default):
        usual = value_of(default, key)
        if value_of(cfg, key) is not None or usual is None or key in _MAY_BE_NONE:
            continue
        # In models a norm of `None` is none, and of a penalty it is the part's own default.
        if not key.startswith(("MODEL.", "CRBP.PENALTY.")):
            raise ConfigurationError(
                f"{key}: None is no value of it; leave the key out for the default, {usual!r}"
            )


def _said(error: Exception, cfg: CfgNode) -> str:
    """The message of an error, with the keys that an unknown one may have been meant to be."""
    message = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    if message.split()[-1:] == ["CRBP.CELL"]:
        return "the name of a cell is CRBP.CELL.NAME, and CRBP.CELL a group of keys"
    if "\n" in message:
        return f"{message.split()[-1]} is a group of keys; give values to single ones of them"
    unknown = re.search(r"Non-existent (?:config )?key: (\S+)", message)
    known = [*keys_of(cfg), *_nodes_of(cfg)]
    if unknown and unknown[1] in known:
        *groups, last = unknown[1].split(".")
        nested = "".join(f"{group}: {{" for group in groups)
        return (
            f"{unknown[1]} is written as one key; nest it: {nested}{last}: ...{'}' * len(groups)}"
        )
    meant = _meant(unknown[1], known) if unknown else ""
    return f"{message}; {meant}" if meant else message


def _meant(key: str, known: Sequence[str]) -> str:
    """What an unknown key may have been meant to be: one of a like name, or of one in a node of the
    same root."""
    root, last = key.split(".")[0], key.split(".")[-1]
    inside = {name.split(".")[-1]: name for name in known if name.split(".")[0] == root}
    near = did_you_mean(last, inside)
    for name in sorted(inside, key=len, reverse=True):
        near = near.replace(f" {name}", f" {inside[name]}")
    return did_you_mean(key, known) or near


def _nodes_of(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """The full names of all groups of keys."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield f"{prefix}{name}"
            yield from _nodes_of(value, f"{prefix}{name}.")


def keys_of(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """The full names of all keys of a config."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
