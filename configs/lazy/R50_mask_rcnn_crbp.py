"""Mask R-CNN with the same head: any model with `StandardROIHeads` takes it."""

from detectron2.model_zoo import get_config

from .R50_panoptic_crbp import model as panoptic

model = get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads.mask_head = panoptic.roi_heads.mask_head
