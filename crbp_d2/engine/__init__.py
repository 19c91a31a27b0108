"""Training and evaluation with Detectron2's engine."""

import crbp_d2.zoo  # noqa: F401  registers crbp:// with Detectron2's PathManager

from .command_line import Command, KeyValueParser, run_command
from .optimizers import OPTIMIZERS
from .run import EXAMPLES, argument_parser, begin_training, main, prepare, save_config, setup
from .trainer import SeedIterations, Trainer
from .weights import load_model

__all__ = [
    "Command",
    "EXAMPLES",
    "KeyValueParser",
    "OPTIMIZERS",
    "SeedIterations",
    "Trainer",
    "argument_parser",
    "begin_training",
    "load_model",
    "main",
    "prepare",
    "run_command",
    "save_config",
    "setup",
]
