"""Images a second that one worker process of a config's training data makes.

Drawing, reading, augmentation and targets, without the model. A model does not wait for its data
where DATALOADER.NUM_WORKERS times this rate exceeds SOLVER.IMS_PER_BATCH times its iterations a
second.

examples:
  tools/benchmark.py data configs/pathfinder/hgru_14.yaml
  tools/benchmark.py data configs/R50_FPN_crbp_1x.yaml --opts DATASETS.TEST "()"
"""

from __future__ import annotations

import argparse
import statistics
import time

import cv2
import torch

from benchmarks.measure import processor
from crbp_d2.analysis.commands.arguments import at_least_one
from crbp_d2.config import read_config
from crbp_d2.data import build_train_loader
from crbp_d2.engine import prepare
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    parser.add_argument("config", metavar="CONFIG", help="a config file")
    parser.add_argument("--batches", type=int, default=10, help="of each round (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="the median counts (default: 5)")
    parser.add_argument(
        "--opts", metavar="KEY VALUE", nargs="+", default=[], help="on top of the config"
    )


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    at_least_one("--batches", arguments.batches)
    at_least_one("--rounds", arguments.rounds)
    cfg = read_config(
        arguments.config, [*arguments.opts, "DATALOADER.NUM_WORKERS", "0", "SEED", "1"]
    )
    prepare(cfg, eval_only=False)
    # What a worker process has.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    batches = iter(build_train_loader(cfg))
    next(batches)
    rates = []
    for _ in tqdm(range(arguments.rounds), "rounds"):
        begin = time.perf_counter()
        images = sum(len(next(batches)) for _ in range(arguments.batches))
        rates.append(images / (time.perf_counter() - begin))
    say(
        f"{', '.join(cfg.DATASETS.TRAIN)}: {statistics.median(rates):.1f} images a second "
        f"({min(rates):.1f}-{max(rates):.1f}) by one worker, in batches of "
        f"{cfg.SOLVER.IMS_PER_BATCH}; {processor()}\n"
    )
