"""The commands of `tools/analyze.py`, a module each."""

from . import curves, pack, page, stability, states, steps, stopping

COMMANDS = {
    "steps": steps,
    "states": states,
    "stability": stability,
    "stopping": stopping,
    "curves": curves,
    "page": page,
    "pack": pack,
}
"""By name. To add one, enter its module here; `crbp_d2.engine.Command` says what that has."""

__all__ = ["COMMANDS"]
