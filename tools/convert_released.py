#!/usr/bin/env python3
"""A checkpoint of the code that was released with the paper, as one of this project.

Of panoptic models (PyTorch file with the mask head RecurrentMaskRCNNConvUpsampleHead) and of the
hGRU of Pathfinder. Nothing that the file holds is run. It prints the config keys that the weights
call for; numbers of steps and classes, activation and groups of norms are not in a file.

examples:
  tools/convert_released.py released_R50.pth outputs/released/R50.pth
  tools/train_net.py --eval-only --config-file configs/R50_FPN_crbp_1x.yaml \\
      MODEL.ROI_MASK_HEAD.OUTPUT_NORM SyncBN MODEL.WEIGHTS outputs/released/R50.pth
  tools/convert_released.py model_fscore_9804_epoch_19_checkpoint.pth.tar outputs/pf14.pth
"""

import argparse
from pathlib import Path

import torch

from crbp_d2.core import ConfigurationError
from crbp_d2.data.storage import writing_whole
from crbp_d2.launch import run_alone
from crbp_d2.output import say
from crbp_d2.progress import tqdm
from crbp_d2.weights import convert_released, read_checkpoint


def main() -> None:
    """Parse the arguments, read, convert, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("released", metavar="IN", help="the checkpoint that was released")
    parser.add_argument("own", metavar="OUT", type=Path, help="a new file, .pth")
    arguments = parser.parse_args()
    if arguments.own.suffix != ".pth":
        parser.error(f"{arguments.own}: name a file that ends in .pth")
    if arguments.own.exists():
        parser.error(f"{arguments.own} exists; remove it or name another file")
    if not arguments.own.parent.is_dir():
        parser.error(f"{arguments.own.parent}: no such folder; make it or name another")
    with tqdm(total=3, desc="read, convert, write") as progress:
        try:
            weights = read_checkpoint(arguments.released)["model"]
            progress.update()
            converted = convert_released(weights)
        except ConfigurationError as error:
            lines = "\n".join(f"{arguments.released}: {line}" for line in str(error).splitlines())
            raise ConfigurationError(lines) from error
        progress.update()
        with writing_whole(arguments.own) as file:
            torch.save({"model": converted.weights}, file)
        progress.update()
    keys = " ".join(f"{key} {value!r}" for key, value in converted.keys.items())
    say(f"{len(converted.weights)} weights: {arguments.own}\nTheir config has {keys}\n")


if __name__ == "__main__":
    run_alone(main)
