"""Arms of a comparison: a config and overrides each, named in a YAML file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from crbp_d2.analysis.forms import require_form
from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.core.errors import did_you_mean
from crbp_d2.plain import PlainError, read_plain

_OWN = ("SEED", "OUTPUT_DIR", "DATASETS.TEST")
"""Keys that a comparison sets itself."""


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        label: its name.
        config: file.
        overrides: key of the config -> value.
    """

    label: str
    config: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def opts(self) -> list[Any]:
        """The overrides as `KEY VALUE ...`."""
        return [word for pair in self.overrides.items() for word in pair]

    def settings(self) -> dict[str, Any]:
        """What tells it from another arm of its name: overrides, and all that its config says."""
        content = read_config(str(self.config), self.opts).dump()
        return {
            "config": self.config.name,
            "set": dict(self.overrides),
            "digest": hashlib.sha256(content.encode()).hexdigest()[:16],
        }

    def folder(self, output: Path, seed: int) -> Path:
        """The `OUTPUT_DIR` of its training with a seed, below that of the comparison."""
        name = "".join(letter if letter.isalnum() else "_" for letter in self.label)
        return output / f"{name}_{seed}"


def choose_arms(arms: Mapping[str, Arm], labels: Sequence[str] | None) -> list[Arm]:
    """Some of the arms, or all, in the order of the file.

    Raises:
        ConfigurationError: there is none of such a label.
    """
    for label in labels or ():
        if label not in arms:
            raise ConfigurationError(
                f"there is no arm {label!r}; choose from {', '.join(map(repr, arms))}"
            )
    return [arm for label, arm in arms.items() if not labels or label in labels]


def read_arms(
    content: Mapping[str, Any],
    path: Path,
    common: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Arm]:
    """The arms of a file, by label.

    Args:
        content: label -> `config`, whose path begins at the folder of the file, and `set`.
        path: of the file.
        common: what is set in all of them, where they don't say otherwise.
        overrides: `KEY VALUE ...`, set in all of them whatever they say.

    Raises:
        ConfigurationError: an arm has another form, or a config or a key of one is unknown.
    """
    if not content:
        raise ConfigurationError(f"{path}: arms is empty; name one at least")
    if len(overrides) % 2:
        raise ConfigurationError(f"--opts {' '.join(overrides)}: give pairs of KEY VALUE")
    last = dict(zip(overrides[::2], overrides[1::2], strict=True))
    arms: dict[str, Arm] = {}
    folders: dict[str, str] = {}
    for label, entry in content.items():
        place = f"{path}, arm {label!r}"
        if not isinstance(label, str):
            raise ConfigurationError(f"{place}: a label must be a string; put it in quotes")
        require_keys(entry, {"config": str}, place, optional={"set": dict})
        settings = {**(common or {}), **entry.get("set", {}), **last}
        for key in _OWN:
            if key in settings:
                raise ConfigurationError(f"{place}: {key} is set for all arms; leave it out")
        arm = Arm(label, path.parent / entry["config"], settings)
        try:
            read_config(str(arm.config), arm.opts)
        except (ConfigurationError, KeyError) as error:
            raise ConfigurationError(f"{place}: {error.args[0]}") from error
        other = folders.setdefault(arm.folder(Path(), 0).name, label)
        if other != label:
            raise ConfigurationError(
                f"{place}: would be trained in the folder of {other!r}; choose a label that "
                "differs in letters or digits"
            )
        arms[label] = arm
    return arms


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigurationError: there is no such file, it is none of YAML, or a key stands twice.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file; name one of arms")
    try:
        return read_plain(path, _UniqueKeys)
    except PlainError as error:
        raise ConfigurationError(f"{path}: can't be read as YAML ({error}); correct it") from error


class _UniqueKeys(yaml.SafeLoader):
    """Plain values, and no key twice, of which the last would count in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} stands twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


def distinct_seeds(seeds: Sequence[int]) -> list[int]:
    """Seeds of a comparison.

    Raises:
        ConfigurationError: one stands twice, or is below 0.
    """
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigurationError(
            f"--seeds {' '.join(map(str, seeds))}: give different numbers from 0"
        )
    return list(seeds)


Kept = TypeVar("Kept")


def read_outcome(
    path: Path,
    kind: type[Kept],
    settings: Mapping[str, Any],
    *,
    label: str,
    seed: int,
    names: Mapping[str, Collection[str]],
) -> Kept:
    """What was kept of a trained arm.

    Args:
        path: of its JSON file.
        kind: dataclass of the outcome, with `settings`, `label` and `seed`; see `require_form`.
        settings: of the arm as it is now.
        label: of the arm now; it may have had another one.
        seed: that it was trained with.
        names: of scores that it must have; see `require_form`.

    Raises:
        ConfigurationError: the file holds something else, or what was trained otherwise.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        require_form(content, kind, names)
        if content["seed"] != seed:
            raise ValueError(f"of the seed {content['seed']}, not {seed}")
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path}: not the outcome of this arm ({error}); remove it, and the arm is scored again"
        ) from error
    _require_same(path, content["settings"], settings)
    return kind(**{**content, "label": label})


def require_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """What a folder holds is of the arm as it is now.

    Args:
        path: of a JSON file with `settings` of the arm as it was trained.
        settings: of the arm as it is now.

    Raises:
        ConfigurationError: it was trained otherwise, or the file holds something else.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigurationError(
            f"{path}: not of an arm ({error!r}); remove {path.parent}, or name another --output"
        ) from error
    _require_same(path, kept, settings, remove=str(path.parent))


def _require_same(path: Path, kept: Any, settings: Mapping[str, Any], remove: str = "it") -> None:
    # As JSON keeps them.
    wanted = json.loads(json.dumps(settings))
    if kept != wanted:
        raise ConfigurationError(
            f"{path}: was trained with {kept}, but the arm is {wanted} now; remove {remove}, or "
            "name another --output"
        )


def require_keys(
    content: Any, needed: Mapping[str, type], place: str, optional: Mapping[str, type] | None = None
) -> None:
    """Refuse keys of a file that are missing, unknown or of another type.

    Args:
        content: what stands there.
        needed: key -> type of its value.
        place: for the message.
        optional: likewise.

    Raises:
        ConfigurationError: naming place, key and cure.
    """
    allowed = {**needed, **(optional or {})}
    if not isinstance(content, dict):
        raise ConfigurationError(f"{place}: must have the keys {', '.join(allowed)}")
    for key in content:
        if key not in allowed:
            raise ConfigurationError(
                f"{place}: unknown key {key!r}; {did_you_mean(str(key), allowed) or 'remove it'}"
            )
    for key, kind in allowed.items():
        if key in needed and key not in content:
            raise ConfigurationError(f"{place}: lacks the key {key!r}; add it")
        if not isinstance(content.get(key, kind()), kind):
            raise ConfigurationError(
                f"{place}: {key} is {content[key]!r}, must be a {_KINDS[kind]}"
            )


_KINDS = {str: "string", dict: "mapping", list: "list", int: "whole number", float: "number"}
