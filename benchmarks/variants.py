"""What a variant is called: `feed-forward`, or an algorithm with its steps and levers.

`crbp 20/15, plain` is 20 steps, 15 Neumann terms and every lever off; others are `bptt 6, FFT` and
`crbp 20/7, Anderson adjoint, bf16, compiled, penalty on 8`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crbp_d2.core import ConfigurationError, parse_algorithm

FEED_FORWARD = "feed-forward"

_ANDERSON_ADJOINT = ("CRBP.ADJOINT.NAME", "anderson")
LEVERS: Mapping[str, tuple[Any, ...]] = {
    "Anderson adjoint": _ANDERSON_ADJOINT,
    "Anderson": (*_ANDERSON_ADJOINT, "CRBP.SOLVER.NAME", "anderson"),
    "bf16": ("CRBP.SOLVER.PRECISION", "bf16", "CRBP.ADJOINT.PRECISION", "bf16"),
    "compiled": ("CRBP.SOLVER.COMPILE", True),
    "FFT": ("CRBP.CELL.CONVOLUTION", "fft"),
    "penalty on N": ("CRBP.PENALTY.SAMPLES",),
    "chunks of N": ("CRBP.CHUNK_SAMPLES",),
    "tested at N": ("CRBP.SOLVER.TEST_STEPS",),
}
"""Name, with `N` for a number -> the config keys, which that number follows."""

_RECURRENCE = re.compile(r"(?P<algorithm>\S+) (?P<steps>[1-9]\d*)(?:/(?P<terms>[1-9]\d*))?")


@dataclass(frozen=True)
class Variant:
    """A model to measure.

    Attributes:
        label: for the table.
        config: file below `configs/`.
        overrides: `KEY VALUE ...`.
    """

    label: str
    config: str
    overrides: tuple[Any, ...] = ()


def parse_variant(
    label: str, *, feed_forward: str, recurrent: str, plain: tuple[Any, ...] = ()
) -> Variant:
    """The variant of a label: see the head of this module.

    Args:
        label: `feed-forward`, or `ALGORITHM STEPS[/TERMS]` and levers, parted by commas. `plain`
            says that there are none.
        feed_forward: config of the feed-forward rival.
        recurrent: config of the recurrent model.
        plain: overrides that pull no lever, `KEY VALUE ...`.

    Raises:
        ConfigurationError: not such a label; the message says which part and lists the levers.
    """
    if label == FEED_FORWARD:
        return Variant(label, feed_forward)
    head, *levers = (part.strip() for part in label.split(","))
    found = _RECURRENCE.fullmatch(head)
    if found is None:
        raise ConfigurationError(
            f"variant {label!r} begins with {head!r}; write {FEED_FORWARD!r}, or an algorithm with "
            "its steps and, after a slash, its Neumann terms, such as 'crbp 20/15'"
        )
    parse_algorithm(found["algorithm"])
    overrides = ["CRBP.ALGORITHM", found["algorithm"], "CRBP.SOLVER.STEPS", int(found["steps"])]
    if found["terms"]:
        overrides += ["CRBP.ADJOINT.TERMS", int(found["terms"])]
    for lever in levers if levers != ["plain"] else []:
        overrides += _lever(lever, label)
    return Variant(label, recurrent, (*plain, *overrides))


def _lever(name: str, label: str) -> tuple[Any, ...]:
    if name in LEVERS and not name.endswith(" N"):
        return LEVERS[name]
    kind, _, number = name.rpartition(" ")
    keys = LEVERS.get(f"{kind} N")
    if keys is None or not number.isdecimal() or int(number) < 1:
        raise ConfigurationError(
            f"variant {label!r} has {name!r}; choose levers from {', '.join(LEVERS)} (N a number "
            "from 1), or write plain for none"
        )
    return (*keys, int(number))
