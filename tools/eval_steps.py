#!/usr/bin/env python3
"""Scores of a model at several steps and on several data sets, in one pass over each.

Backbone, proposals and boxes are computed once an image, and the recurrent head runs once, to the
last step. Panoptic models: PQ, PQ of things and of stuff, mask AP; Pathfinder models: F1, balanced
accuracy, precision, recall, IoU. Writes steps.csv, .png and .pdf to OUTPUT_DIR.

examples:
  tools/eval_steps.py --config-file configs/R50_FPN_crbp_1x.yaml --steps 1-30 \\
      --published panoptic_R50 MODEL.WEIGHTS output/model_final.pth
  a model trained on contours of 14 dashes at N, 2N and 4N steps on 14, 20 and 25:
  tools/eval_steps.py --config-file configs/pathfinder/hgru_14.yaml --steps N,2N,4N \\
      MODEL.WEIGHTS outputs/pathfinder_14_hgru/model_final.pth \\
      DATASETS.TEST "('pathfinder_14_test', 'pathfinder_20_test', 'pathfinder_25_test')"
  another run, already evaluated, in the same figure; and runs that all are:
  tools/eval_steps.py ... --plot-with BPTT=outputs/bptt/steps.csv
  tools/eval_steps.py --plot-only figures/steps \
      --plot-with C-RBP=outputs/crbp/steps.csv BPTT=outputs/bptt/steps.csv
"""

import argparse
import sys
import time
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.outputs import find_recurrence
from crbp_d2.analysis.published import per_step
from crbp_d2.analysis.runs import require_different_labels, split_label
from crbp_d2.analysis.steps import (
    DifferingScoresError,
    evaluate_at_each,
    evaluate_steps,
    parse_steps,
    read_csv,
    require_alike,
    scale_of,
    step_evaluators,
    write_csv,
)
from crbp_d2.analysis.steps_figure import curves_of, write_figure
from crbp_d2.engine import argument_parser, load_model, setup
from crbp_d2.launch import run_alone


def main() -> None:
    """Parse the arguments, evaluate, write, print."""
    parser = argument_parser()
    parser.description = __doc__
    parser.epilog = None
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--steps", default="N/2,N,2N,4N", help="such as 1-30, or N,2N,4N (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, help="contour images (default: 16)")
    parser.add_argument("--label", default="this run", help="in the figure")
    parser.add_argument(
        "--plot-with", nargs="+", default=[], metavar="LABEL=CSV", help="steps.csv of other runs"
    )
    parser.add_argument(
        "--plot-only", type=Path, metavar="FIGURE", help="draw --plot-with alone, evaluate nothing"
    )
    parser.add_argument(
        "--published", metavar="NAME", help="the paper's curves: pathfinder_14 or panoptic_R50"
    )
    parser.add_argument(
        "--check-repeated",
        action="store_true",
        help="also evaluate every step by itself; scores that differ by more than rounding are an "
        "error; prints the ratio of the times",
    )
    arguments = parser.parse_args()
    if arguments.num_gpus > 1 or arguments.num_machines > 1:
        parser.error("--num-gpus, --num-machines: this works in one process; leave them out")
    try:
        given = [split_label(text) for text in arguments.plot_with]
        own = [] if arguments.plot_only is not None else [arguments.label]
        require_different_labels([*own, *(label for label, _ in given)], "LABEL=CSV")
        others = {label: read_csv(path) for label, path in given}
        published = per_step(arguments.published) if arguments.published else None
    except ValueError as error:
        parser.error(str(error))
    if arguments.plot_only is not None:
        if not others:
            parser.error("--plot-only needs --plot-with LABEL=CSV ...")
        write_figure(arguments.plot_only, curves_of(others), published)
        sys.stdout.write(f"{arguments.plot_only}.png, .pdf\n")
        return
    arguments.eval_only = True
    try:
        cfg = setup(arguments)
    except ValueError as error:
        parser.error(str(error))
    if not cfg.DATASETS.TEST:
        parser.error("DATASETS.TEST names no data set to evaluate on")
    output = Path(cfg.OUTPUT_DIR)
    found, lines = {}, []
    try:
        steps = parse_steps(arguments.steps, cfg.CRBP.SOLVER.STEPS)
        model = load_model(cfg, resume=arguments.resume).eval()
        find_recurrence(model)
        for name in cfg.DATASETS.TEST:
            evaluators = step_evaluators(name)
            loader = scoring_batches(cfg, name, arguments.batch_size)
            begin = time.perf_counter()
            found[name] = evaluate_steps(model, tqdm(loader, name), steps, evaluators)
            taken = time.perf_counter() - begin
            if arguments.check_repeated:
                begin = time.perf_counter()
                repeated = evaluate_at_each(model, loader, tqdm(steps, "repeated"), evaluators)
                ratio = (time.perf_counter() - begin) / taken
                worst = require_alike(name, found[name], repeated)
                lines.append(
                    f"{name}: one pass took {taken:.1f} s, an evaluation for every step "
                    f"{ratio:.1f} times as long; largest difference of a score "
                    f"{worst.size * scale_of(worst.score):.2g}"
                )
    except DifferingScoresError as error:
        sys.exit(f"\n{error}")
    except ValueError as error:
        parser.error(str(error))
    write_csv(output / "steps.csv", found, cfg.CRBP.SOLVER.STEPS)
    runs = {arguments.label: (found, cfg.CRBP.SOLVER.STEPS), **others}
    write_figure(output / "steps", curves_of(runs), published)
    names = list(next(iter(found.values()))[0].scores)
    rows = [
        [name, one.step, *one.scores.values(), one.change] for name in found for one in found[name]
    ]
    forms = ("", "d", *[".4f" if "F1" in names else ".2f"] * len(names), ".5f")
    table = tabulate(rows, ["data set", "step", *names, "change"], "pipe", floatfmt=forms)
    sys.stdout.write("\n".join([table, "", *lines, f"Scores and figure: {output}/steps.*"]) + "\n")


if __name__ == "__main__":
    run_alone(main)
