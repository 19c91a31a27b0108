"""The keys as Markdown, from the code: names and defaults as they are, meanings from the comments
over them and from the docstrings of the parts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg

from crbp_d2.config import defaults
from crbp_d2.config.reading import value_of
from crbp_d2.core import ADJOINTS, CELLS, PENALTIES, SOLVERS, Registry

HEAD = """# Every key

Made by `python -m crbp_d2.config > docs/config.md`. `CRBP.SOLVER`, `CRBP.ADJOINT`, `CRBP.CELL` and
the nodes of `CRBP.PENALTY` hold the options of the part that their `NAME` chooses. `None`, the
value of all that are not set, leaves an option to its part, whose default stands in the tables
below. An unknown key, or one that the chosen part does not take, is refused; but options that a
file has from its `_BASE_`, or the command line from the file, are left out where another
`ALGORITHM` or `NAME` is chosen in their place.

A penalty is used if the algorithm has it (`crbp` has `lcp`), if `CRBP.ALGORITHM` names it
(`rbp+lcp`, `crbp+spectral`), or, all but `lcp`, if its `WEIGHT` is set. The values that `lcp` has
in this first table are those of the released panoptic model; the tables of options below give the
defaults of the classes, which `build_recurrence` takes.

| to | set |
|---|---|
| train by another algorithm | `CRBP.ALGORITHM` |
| train faster | `CRBP.ADJOINT.NAME anderson`, `CRBP.ADJOINT.TERMS 7`, `PRECISION bf16` |
| use less memory with many RoIs | `CRBP.CHUNK_SAMPLES`, `CRBP.PENALTY.SAMPLES` |
| use less memory with `bptt` | `CRBP.ADJOINT.CHECKPOINTED` |
| evaluate at other steps | `CRBP.SOLVER.TEST_STEPS` |
| stop what has settled, in evaluation | `CRBP.SOLVER.TEST_TOLERANCE` |
| make a circuit settle | `CRBP.PENALTY.SPECTRAL.WEIGHT` |
| not evaluate after training | `DATASETS.TEST "()"` |
"""
BAR = r"\|"
"""A vertical bar within a cell of a table."""
NODES: Mapping[str, Registry[Any]] = {"SOLVER": SOLVERS, "ADJOINT": ADJOINTS, "CELL": CELLS}


def markdown() -> str:
    """All keys that `add_crbp_config` adds, as one document."""
    cfg = get_cfg()
    defaults.add_crbp_config(cfg)
    lines = [HEAD, "| key | default | meaning |", "|---|---|---|"]
    lines += [_row(key, value_of(cfg, key), text) for key, text in _commented(cfg)]
    for node, registry in NODES.items():
        for name in registry:
            lines += ["", f"## Options of `CRBP.{node}.NAME {name}`", "", *_options(registry, name)]
    for name in PENALTIES:
        lines += [
            "",
            f"## Options of `CRBP.PENALTY.{name.upper()}`, named `+{name}` in `CRBP.ALGORITHM`",
            "",
            *_options(PENALTIES, name),
        ]
    return "\n".join(lines) + "\n"


def _commented(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Full name and comment of every key that is assigned under one."""
    source = inspect.getsource(defaults.add_crbp_config)
    nodes = {"cfg": ""}
    comment: list[str] = []
    for line in map(str.strip, source.splitlines()):
        if line.startswith("# ---"):
            continue
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
            continue
        alias = re.match(r"(\w+) = (\w+)\.([A-Z_.]+) = ", line)
        if alias:
            nodes[alias[1]] = f"{nodes[alias[2]]}{alias[3]}."
        assigned = re.match(r"(\w+)\.([A-Z_.]+) = ", line)
        if assigned and not alias:
            yield nodes[assigned[1]] + assigned[2], " ".join(comment)
        comment = []


def _row(key: str, value: object, text: str) -> str:
    shown = "" if value == "" else f"`{value!r}`"
    return f"| `{key}` | {shown} | {text.replace('|', BAR)} |"


def _options(registry: Registry[Any], name: str) -> Iterator[str]:
    part, options = registry[name], registry.options(name)
    documented = _documented(inspect.getdoc(part) or "")
    yield "| option | default | meaning |"
    yield "|---|---|---|"
    for option, parameter in options.items():
        if option in defaults.NOT_OPTIONS:
            continue
        empty = parameter.default is inspect.Parameter.empty
        text = documented.get(option, "")
        yield _row(option.upper(), "" if empty else parameter.default, text)
    if not options:
        yield "| | | none |"


def _documented(docstring: str) -> dict[str, str]:
    """Option -> what the sections `Args` and `Attributes` say of it."""
    found: dict[str, str] = {}
    for section in re.findall(r"(?:Args|Attributes):\n((?:    .*\n?|\n)+)", docstring):
        for entry in re.split(r"\n(?=    \w)", section.rstrip()):
            names, _, text = entry.strip().partition(": ")
            for name in names.split(", "):
                found[name] = " ".join(text.split())
    return found
