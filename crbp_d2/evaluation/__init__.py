"""Evaluation of panoptic, instance and semantic segmentation."""

from .build import build_evaluator, load_label_map
from .panoptic import PanopticEvaluator

__all__ = ["PanopticEvaluator", "build_evaluator", "load_label_map"]
