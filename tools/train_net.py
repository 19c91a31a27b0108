#!/usr/bin/env python3
"""Train and evaluate, with Detectron2's command line. `--help` shows examples."""

from crbp_d2.config import read_config
from crbp_d2.engine import argument_parser, main, prepare
from crbp_d2.launch import ending_with_message, launch
from crbp_d2.place import find_place

if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    with ending_with_message():
        place, gpu = find_place(arguments), False
        if place.world_size > 1:
            # A mistake is found here once, and not by each of the processes in its traceback.
            cfg = read_config(arguments.config_file, arguments.opts)
            prepare(cfg, eval_only=arguments.eval_only, world_size=place.world_size)
            gpu = cfg.MODEL.DEVICE.startswith("cuda")
        launch(main, arguments, place, gpu=gpu)
