#!/usr/bin/env python3
"""Does a trained model settle, and does its answer stay? One verdict, with the numbers behind it.

RUN is the output folder of a training. Writes stability.json, .png and .pdf there.

example:
  tools/stability.py outputs/pathfinder_tiny_crbp
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from crbp_d2.analysis.batches import scoring_batches
from crbp_d2.analysis.runs import load_run
from crbp_d2.analysis.stability import measure_dynamics, write_report
from crbp_d2.analysis.steps import evaluate_steps, scale_of, step_evaluators
from crbp_d2.launch import run_alone


def main() -> None:
    """Parse the arguments, measure, write, print the verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--output", type=Path, help="folder (default: that of the run)")
    parser.add_argument("--dataset", help="default: the first of the run's DATASETS.TEST")
    parser.add_argument(
        "--samples", type=int, default=32, help="images or RoIs for the dynamics (default: 32)"
    )
    parser.add_argument("--batch-size", type=int, help="contour images (default: 16)")
    arguments = parser.parse_args()
    try:
        run = load_run(arguments.run, data_set=arguments.dataset)
        trained = run.cfg.CRBP.SOLVER.STEPS
        name = run.data_set
        loader = scoring_batches(run.cfg, name, arguments.batch_size)
        dynamics = measure_dynamics(
            run.model,
            tqdm(islice(loader, arguments.samples), "dynamics"),
            trained_steps=trained,
            samples=arguments.samples,
            bound=run.cfg.CRBP.PENALTY.LCP.BOUND,
        )
        steps = [trained, 2 * trained, 4 * trained]
        found = evaluate_steps(run.model, tqdm(loader, "scores"), steps, step_evaluators(name))
    except (ValueError, KeyError) as error:
        parser.error(str(error))
    score = next(iter(found[0].scores))
    line = write_report(
        arguments.output or run.folder,
        dynamics,
        {one.step: one.scores[score] for one in found},
        score,
        scale_of(score),
    )
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    run_alone(main)
