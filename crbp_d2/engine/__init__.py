"""Training and evaluation with Detectron2's engine."""

from .command_line import KeyValueParser
from .optimizers import OPTIMIZERS
from .run import EXAMPLES, argument_parser, main, prepare, save_config, setup
from .trainer import SeedIterations, Trainer
from .weights import load_model

__all__ = [
    "EXAMPLES",
    "KeyValueParser",
    "OPTIMIZERS",
    "SeedIterations",
    "Trainer",
    "argument_parser",
    "load_model",
    "main",
    "prepare",
    "save_config",
    "setup",
]
