"""The commands of `tools/benchmark.py`, by name."""

from . import arms, data, generator, gradients, heads, peers
from .step_time import CONTOUR, HEAD, MODEL

COMMANDS = {
    "head": HEAD,
    "model": MODEL,
    "contour": CONTOUR,
    "heads": heads,
    "arms": arms,
    "data": data,
    "generator": generator,
    "gradients": gradients,
    "peers": peers,
}
"""By name. To add one, enter its module here; `crbp_d2.engine.Command` says what that has."""

__all__ = ["COMMANDS"]
