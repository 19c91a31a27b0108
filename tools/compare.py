#!/usr/bin/env python3
"""Train the arms of a comparison over several seeds, and print one table.

ARMS is a YAML file; paths in it begin at its folder:

    data: pathfinder_tiny_val     # what all are scored on
    score: F1                     # which of their scores the table shows
    arms:
      bptt:
        config: ../configs/quick/pathfinder_bptt.yaml
      tbptt:
        config: ../configs/quick/pathfinder_bptt.yaml
        set: {CRBP.ALGORITHM: tbptt}

`set` beside `arms` is for all of them, `also: [PQ_th, box_AP]` shows more scores, and
`radius_samples` says of how many images or RoIs the spectral radius is taken.

What is trained already is not trained again: an interrupted call is continued by calling again,
from the last checkpoint of each model. Each has a folder below that of the comparison, with its
log.txt; the table is also written there, to table.md.

example, learning algorithms on the quick Pathfinder task:
  tools/compare.py benchmarks/pathfinder_tiny.yaml --arms bptt crbp --seeds 1 2 3 --jobs 2 \\
      --output outputs/pathfinder_comparison
and mask heads on data of your own:
  tools/compare.py benchmarks/nuclei.yaml --opts DATASETS.FILE data.yaml
"""

import argparse
import sys
from pathlib import Path

from crbp_d2.analysis.arms import distinct_seeds
from crbp_d2.analysis.commands.arguments import at_least_one, require_folder
from crbp_d2.analysis.comparison import Outcome, read_comparison, train_all
from crbp_d2.analysis.comparison_table import markdown
from crbp_d2.analysis.processes import Failed
from crbp_d2.data.storage import write_whole
from crbp_d2.launch import run_alone
from crbp_d2.mistakes import refuse
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def main() -> None:
    """Parse the arguments, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="ARMS", type=Path)
    parser.add_argument("--arms", nargs="+", metavar="LABEL", help="some of them (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument(
        "--jobs", type=int, default=2, help="models at a time, a core each (default: 2)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: outputs/NAME of the file"
    )
    parser.add_argument(
        "--opts", metavar="KEY VALUE", nargs="+", default=[], help="on top of all arms"
    )
    arguments = parser.parse_args()
    output = arguments.output or Path("outputs") / arguments.file.stem
    found: list[Outcome] = []
    failed: list[Failed] = []
    try:
        at_least_one("--jobs", arguments.jobs)
        comparison = read_comparison(arguments.file, arguments.opts)
        arms = comparison.chosen(arguments.arms)
        seeds = distinct_seeds(arguments.seeds)
        require_folder(output)
        outcomes = train_all(comparison, arms, seeds, output, jobs=arguments.jobs)
        for outcome in tqdm(outcomes, "models", len(arms) * len(seeds)):
            if isinstance(outcome, Failed):
                failed.append(outcome)
                # The others may take days.
                tqdm.tell(f"failed: {outcome.label}: {outcome.reason}")
            else:
                found.append(outcome)
    except (ValueError, KeyError, OSError) as error:
        refuse(parser, error)
    table = "\n".join(markdown(comparison, found)) + "\n"
    write_whole(output / "table.md", table.encode())
    say(table)
    if failed:
        sys.exit("\n".join(f"{one.label}: {one.reason}" for one in failed))


if __name__ == "__main__":
    run_alone(main)
