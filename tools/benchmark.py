#!/usr/bin/env python3
"""What the project measures of itself: time, memory, gradients, and the making of its data.

`tools/benchmark.py COMMAND --help` explains a command; benchmarks/README.md says which question
each answers.

examples:
  tools/benchmark.py head --rounds 5
  tools/benchmark.py gradients outputs/shapes_settling --samples 16
"""

import sys
from pathlib import Path

# Not installed, as it measures this checkout.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.commands import COMMANDS
from crbp_d2.engine import run_command
from crbp_d2.launch import run_alone


def main() -> None:
    """Run the command that is asked for."""
    run_command(__doc__ or "", COMMANDS)


if __name__ == "__main__":
    run_alone(main)
