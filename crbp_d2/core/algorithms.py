"""Learning algorithms by the names that papers give them: presets of solver, adjoint, penalties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from crbp_d2.core.adjoints import ADJOINTS
from crbp_d2.core.errors import ConfigurationError, choices, did_you_mean
from crbp_d2.core.penalties import PENALTIES
from crbp_d2.core.recurrence import Recurrence
from crbp_d2.core.registry import Part, Registry
from crbp_d2.core.solvers import SOLVERS

Options = Mapping[str, Any]
"""Options of a part: keyword arguments of its class, and `name` for another part than the
algorithm's."""


@dataclass(frozen=True)
class Algorithm:
    """A preset.

    Attributes:
        adjoint: its name and options.
        solver: its name and options.
        penalties: names of those that belong to it.
    """

    adjoint: Options
    solver: Options = field(default_factory=lambda: {"name": "steps"})
    penalties: tuple[str, ...] = ()


ALGORITHMS: dict[str, Algorithm] = {
    # Back-propagation through time, all of it and truncated.
    "bptt": Algorithm({"name": "unroll"}),
    "tbptt": Algorithm({"name": "unroll", "length": 3}),
    # Recurrent back-propagation (Almeida 1987, Pineda 1987), and with a penalty that makes the map
    # contract (Linsley et al. 2020).
    "rbp": Algorithm({"name": "neumann"}),
    "crbp": Algorithm({"name": "neumann"}, penalties=("lcp",)),
    # Jacobian-free back-propagation (Fung et al. 2103.12803).
    "jfb": Algorithm({"name": "one_step"}),
    # The phantom gradient (Geng et al. 2111.05177).
    "phantom": Algorithm({"name": "unroll", "length": 3, "damping": 0.5}),
    # The exact gradient of the equilibrium: the reference for the others.
    "implicit": Algorithm({"name": "gmres"}),
    # Deep equilibrium models (Bai et al. 2019).
    "deq": Algorithm(
        {"name": "anderson", "terms": 40, "tolerance": 1e-6}, solver={"name": "torchdeq"}
    ),
}


def parse_algorithm(text: str) -> Algorithm:
    """The preset of a name such as `crbp`, `bptt+lcp` or `crbp+spectral`.

    Raises:
        ConfigurationError: the name or a penalty is unknown.
    """
    name, *added = text.split("+")
    if name not in ALGORITHMS:
        meant = did_you_mean(name, ALGORITHMS, cutoff=0.6)
        raise ConfigurationError(
            f"unknown algorithm {text!r}; {meant or 'choose from ' + choices(ALGORITHMS)}, each "
            "also with penalties, as bptt+lcp",
            option="algorithm",
        )
    for penalty in added:
        if penalty not in PENALTIES:
            meant = did_you_mean(penalty, PENALTIES)
            raise ConfigurationError(
                f"algorithm {text!r}: unknown penalty {penalty!r}; "
                f"{meant or 'choose from ' + choices(PENALTIES)}",
                option="algorithm",
            )
    preset = ALGORITHMS[name]
    return Algorithm(
        preset.adjoint, preset.solver, tuple(dict.fromkeys([*preset.penalties, *added]))
    )


def build_recurrence(
    algorithm: str,
    cell: nn.Module,
    *,
    solver: Options | None = None,
    adjoint: Options | None = None,
    penalties: Mapping[str, Options] | None = None,
    **options: Any,
) -> Recurrence:
    """A recurrence from names and options, as they stand in a file.

        build_recurrence("crbp", cell, steps=20)
        build_recurrence("crbp+spectral", cell, penalties={"spectral": {"margin": 0.8}})
        build_recurrence("crbp", cell, adjoint={"name": "anderson", "terms": 7})

    Args:
        algorithm: a key of `ALGORITHMS`; `+` adds penalties.
        cell: see `Recurrence`.
        solver: its options, and its `name` for another than the algorithm's; likewise `adjoint`.
        penalties: name -> options, of penalties that the algorithm has.
        options: further arguments of `Recurrence`.

    Raises:
        ConfigurationError: an unknown name or option, or a combination that can't work.
    """
    preset = parse_algorithm(algorithm)
    given = penalties or {}
    for name in given:
        if name not in preset.penalties:
            raise ConfigurationError(
                f"options of the penalty {name!r}, which {algorithm} does not have; say "
                f"{algorithm}+{name}, or leave them out",
                option="penalties",
            )
    return Recurrence(
        cell,
        solver=_build(SOLVERS, preset.solver, solver or {}),
        adjoint=_build(ADJOINTS, preset.adjoint, adjoint or {}),
        penalties=[PENALTIES.build(name, **given.get(name, {})) for name in preset.penalties],
        **options,
    )


def _build(registry: Registry[Part], preset: Options, given: Options) -> Part:
    """What is given wins over the preset; of another part, the preset's options don't count."""
    if given.get("name", preset["name"]) == preset["name"]:
        given = {**preset, **given}
    options = dict(given)
    return registry.build(options.pop("name"), **options)
