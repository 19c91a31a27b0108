#!/usr/bin/env python3
"""Scores of a Pathfinder model at several steps and on several data sets, in one pass over each.

Writes steps.csv to OUTPUT_DIR and prints F1 and the relative change of the state.

example, a model trained on contours of 14 dashes at N, 2N and 4N steps on 14, 20 and 25:
  tools/eval_steps.py --config-file configs/pathfinder/hgru_14.yaml --steps N,2N,4N \\
      MODEL.WEIGHTS outputs/pathfinder_14_hgru/model_final.pth \\
      DATASETS.TEST "('pathfinder_14_test', 'pathfinder_20_test', 'pathfinder_25_test')"
"""

import argparse
import sys
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from crbp_d2.analysis.steps import evaluate_steps, find_recurrence, parse_steps, write_csv
from crbp_d2.data import build_test_loader
from crbp_d2.data.loaders import is_pathfinder
from crbp_d2.engine import argument_parser, load_model, setup


def main() -> None:
    """Parse the arguments, evaluate, print."""
    parser = argument_parser()
    parser.description = __doc__
    parser.epilog = None
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--steps", default="N/2,N,2N,4N", help="such as 1-30, or N,2N,4N (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images (default: 16)")
    arguments = parser.parse_args()
    arguments.eval_only = True
    cfg = setup(arguments)
    other = [name for name in cfg.DATASETS.TEST if not is_pathfinder(name)]
    if other or not cfg.DATASETS.TEST:
        parser.error(f"DATASETS.TEST must name Pathfinder data, not {', '.join(other) or 'none'}")
    try:
        steps = parse_steps(arguments.steps, cfg.CRBP.STEPS)
        model = load_model(cfg, resume=arguments.resume).eval()
        find_recurrence(model)
    except ValueError as error:
        parser.error(str(error))
    found = {}
    for name in cfg.DATASETS.TEST:
        loader = build_test_loader(cfg, name, batch_size=arguments.batch_size)
        found[name] = evaluate_steps(model, tqdm(loader, name), steps)
    output = Path(cfg.OUTPUT_DIR) / "steps.csv"
    write_csv(output, found)
    rows = [[name, one.step, one.scores["F1"], one.change] for name in found for one in found[name]]
    table = tabulate(
        rows, ["data set", "step", "F1", "change"], "pipe", floatfmt=("", "d", ".4f", ".5f")
    )
    sys.stdout.write(f"{table}\n\nAll scores: {output}\n")


if __name__ == "__main__":
    main()
