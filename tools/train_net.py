#!/usr/bin/env python3
"""Train and evaluate, with Detectron2's command line. `--help` shows examples."""

from detectron2.engine import launch

from crbp_d2.engine import argument_parser, main

if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
