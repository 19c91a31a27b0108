"""A trained model in a folder to be handed on: its weights alone, its config, and a card.

The checkpoint of a training loses its optimizer, the config what it has by default and its paths;
the scores at T/2, T, 2T and 4T steps on the test data are measured and written to card.json. The
folder is a RUN like any other. In crbp_d2/zoo it comes with the package, as crbp://NAME, and its
card stands in docs/zoo.md after `python -m crbp_d2.zoo > docs/zoo.md`.

example:
  tools/analyze.py pack outputs/pathfinder_tiny_bptt --name pathfinder_tiny_bptt \\
      --about 'Contours of six dashes at 40 pixels: BPTT over 6 steps.' \\
      --command 'tools/train_net.py --config-file configs/quick/pathfinder_bptt.yaml SEED 1' \\
      --machine 'one thread of an AMD EPYC' --output crbp_d2/zoo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from crbp_d2.analysis.commands.arguments import require_folder
from crbp_d2.analysis.packing import pack
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    parser.add_argument(
        "run", metavar="RUN", help="OUTPUT_DIR of a training or one of the checkpoints in it"
    )
    parser.add_argument("--name", required=True, help="small letters, digits and underscores")
    parser.add_argument(
        "--about", required=True, metavar="TEXT", help="what the model is, a sentence or two"
    )
    # Of the program itself, `command` is what it runs.
    parser.add_argument(
        "--command", required=True, metavar="TEXT", dest="training", help="that trained it"
    )
    parser.add_argument(
        "--machine", required=True, metavar="TEXT", help="kind of machine that trained it"
    )
    parser.add_argument(
        "--licence", default="Apache-2.0", metavar="SPDX", help="default: %(default)s"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="in which the folder NAME is made, or the packed model there replaced",
    )


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    card = pack(
        arguments.run,
        require_folder(arguments.output),
        arguments.name,
        about=arguments.about,
        command=arguments.training,
        machine=arguments.machine,
        licence=arguments.licence,
        progress=lambda batches: tqdm(batches, "scores"),
    )
    for row in card.scores:
        say(f"{', '.join(f'{name} {value}' for name, value in row.items())}\n")
    say(f"Weights, config and card: {arguments.output / arguments.name}\n")
