"""Command lines whose `KEY VALUE ...` may stand anywhere among the options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


class KeyValueParser(argparse.ArgumentParser):
    """A parser whose positional argument `opts` takes the rest of the line, but for options in it.

    By itself argparse would take `--resume` after `KEY VALUE` for another key.
    """

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> Any:
        """As of any parser; `opts` holds keys and values alone."""
        required = [action for action in self._actions if action.required and action.option_strings]
        # They may be anywhere in the line, of which one part is read after the other.
        for action in required:
            action.required = False
        try:
            parsed = super().parse_args(args, namespace)
            opts: list[str] = []
            while True:
                rest = list(parsed.opts or ())
                end = next((n for n, word in enumerate(rest) if word.startswith("--")), len(rest))
                opts += rest[:end]
                if end == len(rest):
                    break
                parsed = super().parse_args(rest[end:], parsed)
        finally:
            for action in required:
                action.required = True
        missing = [action for action in required if getattr(parsed, action.dest) is None]
        if missing:
            names = ", ".join("/".join(action.option_strings) for action in missing)
            self.error(f"the following arguments are required: {names}")
        parsed.opts = opts
        return parsed
