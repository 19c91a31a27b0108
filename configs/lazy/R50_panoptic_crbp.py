"""R50 Panoptic FPN with the hGRU mask head trained by C-RBP, for Detectron2's lazy configs.

The same model as configs/R50_FPN_crbp_1x.yaml, from constructors: nothing here is a CfgNode.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config

from crbp_d2.core import MaskHGRUCell, build_recurrence
from crbp_d2.modeling import RecurrentMaskHead

model = get_config("common/models/panoptic_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads.mask_head = L(RecurrentMaskHead)(
    input_shape=L(ShapeSpec)(
        channels="${....backbone.out_channels}", width="${...mask_pooler.output_size}"
    ),
    recurrence=L(build_recurrence)(
        algorithm="crbp",
        cell=L(MaskHGRUCell)(channels=256),
        steps=20,
        adjoint={"terms": 15},
        penalties={"lcp": {"weight": 0.001, "bound": 0.95, "reduction": "sum"}},
    ),
    channels=256,
    num_classes="${..num_classes}",
)
