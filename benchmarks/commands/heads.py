"""Mask heads alone, on the RoI features of a trained model: quality at every step, radius, time.

RUN is a feed-forward panoptic model or Mask R-CNN, whose backbone all heads share. The features of
its training data and of its first test data set, and the trained heads, are kept in its folder.
ARMS is a YAML file, as benchmarks/mask_heads.yaml. What is trained already is not trained again, to
be asked otherwise, too: an interrupted call is continued by calling again. Prints a Markdown table
and writes it to table.md.

Where does recurrence pay? --rois learns from fewer objects, --resolution takes finer features,
--ask-resolution scores on those of another one than was learned from, and --noise on noisy images.

examples:
  tools/benchmark.py heads outputs/nuclei_feedforward benchmarks/mask_heads.yaml --seeds 1 2 3
  tools/benchmark.py heads outputs/nuclei_feedforward benchmarks/mask_heads.yaml \\
      --arms feed-forward 'settling, one step'
  tools/benchmark.py heads outputs/nuclei_feedforward benchmarks/mask_heads.yaml \\
      --ask-resolution 28 --output outputs/mask_heads_asked_at_28
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from benchmarks.heads import markdown, outcome_of, read_bench
from benchmarks.measure import machine
from benchmarks.roi_features import Collection, cached_rois
from crbp_d2.analysis.arms import choose_arms, distinct_seeds
from crbp_d2.analysis.commands.arguments import at_least_one, require_folder
from crbp_d2.analysis.runs import load_run
from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import write_whole
from crbp_d2.output import say
from crbp_d2.progress import tqdm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `crbp_d2.engine.Command`."""
    parser.add_argument("run", metavar="RUN", help="OUTPUT_DIR of a training, or LABEL=RUN")
    parser.add_argument("file", metavar="ARMS", type=Path)
    parser.add_argument("--arms", nargs="+", metavar="LABEL", help="some of them (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument(
        "--rois", type=int, metavar="N", help="learn from the first N RoIs alone (default: all)"
    )
    parser.add_argument(
        "--resolution", type=int, metavar="S", help="of the RoI features (default: the model's)"
    )
    parser.add_argument(
        "--ask-resolution", type=int, metavar="S", help="of those scored on (default: the same)"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="SD",
        help="of the images scored on, of 255 (default: 0)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="default: outputs/NAME of the file"
    )
    parser.add_argument("--opts", metavar="KEY VALUE", nargs="+", default=[], help="for RUN")


def run(arguments: argparse.Namespace) -> None:
    """See `crbp_d2.engine.Command`."""
    for name in ("rois", "resolution", "ask_resolution"):
        at_least_one(f"--{name.replace('_', '-')}", getattr(arguments, name))
    if not 0 <= arguments.noise < math.inf:
        raise ConfigurationError(f"--noise {arguments.noise}: must be at least 0")
    bench = read_bench(arguments.file)
    arms = choose_arms(bench.arms, arguments.arms)
    output = arguments.output or Path("outputs") / arguments.file.stem
    require_folder(output)
    found = load_run(arguments.run, arguments.opts)
    taught = Collection(resolution=arguments.resolution)
    asked = Collection(
        resolution=arguments.ask_resolution or arguments.resolution, noise=arguments.noise
    )
    learning, scoring = (
        cached_rois(found, names, how, progress=tqdm)
        for names, how in (
            (tuple(found.cfg.DATASETS.TRAIN), taught),
            ((found.data_set,), asked),
        )
    )
    learning = learning.select(torch.arange(min(arguments.rois or len(learning), len(learning))))
    outcomes = []
    jobs = [(seed, arm) for seed in distinct_seeds(arguments.seeds) for arm in arms]
    for number, (seed, arm) in enumerate(jobs, start=1):
        title = f"{number} of {len(jobs)}: {arm.label}, seed {seed}"
        outcome = outcome_of(
            arm,
            bench,
            (learning, scoring),
            num_classes=found.cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            seed=seed,
            folder=output,
            heads=found.folder,
            conditions={"taught": asdict(taught), "asked": asdict(asked)},
            progress=partial(tqdm, desc=title),
        )
        outcomes.append(outcome)
        table = "\n".join(markdown(bench, outcomes)) + "\n"
        write_whole(output / "table.md", table.encode())
    made_on = ", ".join(f"{key} {value}" for key, value in machine().items())
    say(f"{table}\n{len(learning)} RoIs to learn from, {len(scoring)} to score on; {made_on}.\n")
