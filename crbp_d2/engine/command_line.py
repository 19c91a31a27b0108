"""Command lines: `KEY VALUE ...` anywhere among the options, and programs of several commands."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from crbp_d2.mistakes import refuse


class Command(Protocol):
    """A command of a program. A module is one: its docstring explains it, with examples."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares what it takes."""

    def run(self, arguments: argparse.Namespace) -> None:
        """Does it.

        Raises:
            ValueError, KeyError: a mistake that a user can mend, with the cure as its message.
            OSError, FloatingPointError: see `crbp_d2.mistakes.told`.
        """


def run_command(
    description: str, commands: Mapping[str, Any], words: Sequence[str] | None = None
) -> None:
    """Runs `PROGRAM COMMAND ...`; a mistake ends it with its message and the code 2.

    Args:
        description: of the program.
        commands: name -> `Command`.
        words: of the command line; None takes those that the program was started with.
    """
    program = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parsers = program.add_subparsers(metavar="COMMAND", required=True)
    for name, command in commands.items():
        explanation = command.__doc__ or ""
        parser = parsers.add_parser(
            name,
            help=explanation.partition("\n")[0],
            description=explanation,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(parser)
        parser.set_defaults(command=command, parser=parser)
    arguments = program.parse_args(words)
    try:
        arguments.command.run(arguments)
    except (ValueError, KeyError, OSError, FloatingPointError, RecursionError) as error:
        refuse(arguments.parser, error)


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
