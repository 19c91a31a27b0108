#!/usr/bin/env python3
"""Train and evaluate, with Detectron2's command line. `--help` shows examples."""

import sys

from detectron2.engine import launch

from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data import DatasetError
from crbp_d2.engine import argument_parser, main, prepare

if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    try:
        if arguments.num_gpus * arguments.num_machines > 1:
            # A mistake found by a process that was launched comes within its traceback.
            cfg = read_config(arguments.config_file, arguments.opts)
            prepare(cfg, eval_only=arguments.eval_only)
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
        )
    except (ConfigurationError, DatasetError) as error:
        sys.exit(f"\n{error}")
