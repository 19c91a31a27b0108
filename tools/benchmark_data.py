#!/usr/bin/env python3
"""Images a second that one worker process of a config's training data makes.

Drawing, reading, augmentation and targets, without the model. A model does not wait for its data
where DATALOADER.NUM_WORKERS times this rate exceeds SOLVER.IMS_PER_BATCH times its iterations a
second.

examples:
  tools/benchmark_data.py --config-file configs/pathfinder/hgru_14.yaml
  tools/benchmark_data.py --config-file configs/R50_FPN_crbp_1x.yaml DATASETS.TEST "()"
"""

import argparse
import statistics
import sys
import time

import cv2
import torch
from tqdm import tqdm

from crbp_d2.analysis.benchmark.measure import machine
from crbp_d2.config import read_config
from crbp_d2.data import build_train_loader
from crbp_d2.engine import KeyValueParser, prepare
from crbp_d2.launch import run_alone


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = KeyValueParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--batches", type=int, default=10, help="of each round (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="the median counts (default: 5)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    arguments = parser.parse_args()
    if min(arguments.batches, arguments.rounds) < 1:
        parser.error("--batches and --rounds must be at least 1")
    try:
        cfg = read_config(
            arguments.config_file, [*arguments.opts, "DATALOADER.NUM_WORKERS", 0, "SEED", 1]
        )
        prepare(cfg, eval_only=False)
        # What a worker process has.
        cv2.setNumThreads(0)
        torch.set_num_threads(1)
        batches = iter(build_train_loader(cfg))
        next(batches)
    except (ValueError, KeyError) as error:
        parser.error(str(error))
    rates = []
    for _ in tqdm(range(arguments.rounds), "rounds"):
        begin = time.perf_counter()
        images = sum(len(next(batches)) for _ in range(arguments.batches))
        rates.append(images / (time.perf_counter() - begin))
    sys.stdout.write(
        f"{', '.join(cfg.DATASETS.TRAIN)}: {statistics.median(rates):.1f} images a second "
        f"({min(rates):.1f}-{max(rates):.1f}) by one worker, in batches of "
        f"{cfg.SOLVER.IMS_PER_BATCH}; {machine()['processor']}\n"
    )


if __name__ == "__main__":
    run_alone(main)
