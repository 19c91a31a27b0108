#!/usr/bin/env python3
"""What trained models do: scores at every step, states, stability, early stopping, curves, a page.

`tools/analyze.py COMMAND --help` explains a command, with examples.

example:
  tools/analyze.py steps C-RBP=outputs/crbp BPTT=outputs/bptt --steps 1-40 --output figures
"""

from crbp_d2.analysis.commands import COMMANDS
from crbp_d2.engine import run_command
from crbp_d2.launch import run_alone


def main() -> None:
    """Run the command that is asked for."""
    run_command(__doc__ or "", COMMANDS)


if __name__ == "__main__":
    run_alone(main)
