"""Detectron2 components.

Importing this package registers the mask head `RecurrentMaskHead` (`MODEL.ROI_MASK_HEAD.NAME`), the
semantic heads `RecurrentSemSegHead` and `FeedForwardSemSegHead` (`MODEL.SEM_SEG_HEAD.NAME`), and
the backbone `GaborStem` (`MODEL.BACKBONE.NAME`).
"""

from crbp_d2.modeling.mask_head import RecurrentMaskHead  # registers RecurrentMaskHead
from crbp_d2.modeling.phases import Phase, Recipe
from crbp_d2.modeling.sem_seg_head import (  # registers both heads
    FeedForwardSemSegHead,
    RecurrentSemSegHead,
)
from crbp_d2.modeling.stem import GaborStem  # registers GaborStem

__all__ = [
    "FeedForwardSemSegHead",
    "GaborStem",
    "Phase",
    "Recipe",
    "RecurrentMaskHead",
    "RecurrentSemSegHead",
]
