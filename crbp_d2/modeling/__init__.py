"""Detectron2 components.

Importing this package registers the mask head `RecurrentMaskHead` (`MODEL.ROI_MASK_HEAD.NAME`), the
semantic heads `RecurrentSemSegHead` and `FeedForwardSemSegHead` (`MODEL.SEM_SEG_HEAD.NAME`), and
the backbones `GaborStem`, `build_timm_backbone` and `build_timm_fpn_backbone`
(`MODEL.BACKBONE.NAME`).
"""

from crbp_d2.modeling.mask_head import RecurrentMaskHead  # registers RecurrentMaskHead
from crbp_d2.modeling.phases import Phase, Recipe
from crbp_d2.modeling.sem_seg_head import (  # registers both heads
    FeedForwardSemSegHead,
    RecurrentSemSegHead,
)
from crbp_d2.modeling.stem import GaborStem  # registers GaborStem
from crbp_d2.modeling.timm_backbone import (  # registers both builders
    TimmBackbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
)

__all__ = [
    "FeedForwardSemSegHead",
    "GaborStem",
    "Phase",
    "Recipe",
    "RecurrentMaskHead",
    "RecurrentSemSegHead",
    "TimmBackbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
]
