"""Checkpoints of the code that was released with the paper, under this project's names.

Of the panoptic models (mask head `RecurrentMaskRCNNConvUpsampleHead`) and the hGRU of Pathfinder.
Weights get other names, and two biases another shape; none is computed.

Symbols of shapes: C channels of the state, E kernel of the circuit, F kernel of the stem, K
classes, D channels after the deconvolution; Q is C / 4, H is C / 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crbp_d2.core import ConfigurationError

Weights = Mapping[str, Tensor]
Shape = tuple[str | int, ...]


@dataclass(frozen=True)
class Converted:
    """A checkpoint under this project's names.

    Attributes:
        weights: by name.
        keys: of the configuration, with the values that the weights call for. Numbers of steps and
            classes, activation and groups of norms are not in a file.
    """

    weights: dict[str, Tensor]
    keys: dict[str, object]


@dataclass(frozen=True)
class _Rule:
    """A weight: its released name, its own, its released shape and, where it is flattened, its
    own."""

    released: str
    own: str
    shape: Shape
    flat: Shape | None = None


def _layer(released: str, own: str, shape: Shape, *, bias: Shape | None = None) -> list[_Rule]:
    """A layer's `weight` and, with the shape of one, its `bias`."""
    rules = [_Rule(f"{released}.weight", f"{own}.weight", shape)]
    return rules if bias is None else [*rules, _Rule(f"{released}.bias", f"{own}.bias", bias)]


def _norm(released: str, own: str, channels: str = "C") -> list[_Rule]:
    return _layer(released, own, (channels,), bias=(channels,))


def _statistics(released: str, own: str) -> list[_Rule]:
    kinds: dict[str, Shape]
    kinds = {"running_mean": ("C",), "running_var": ("C",), "num_batches_tracked": ()}
    return [_Rule(f"{released}.{kind}", f"{own}.{kind}", shape) for kind, shape in kinds.items()]


_KERNELS = [
    _Rule("w_gate_inh", "suppression.weight", ("C", "C", "E", "E")),
    _Rule("w_gate_exc", "facilitation.weight", ("C", "C", "E", "E")),
    _Rule("alpha", "alpha", ("C", 1, 1)),
    _Rule("mu", "mu", ("C", 1, 1)),
]
_POINTWISE: Shape = ("C", "C", 1, 1)
_PLAIN_GATE = _layer("u0_gate", "suppression_gate.convolution", _POINTWISE, bias=("C",))
_GALA = [
    *_layer("u0_channel_gate_0", "suppression_gate.global_in", ("Q", "C", 1, 1), bias=("Q",)),
    *_layer("u0_channel_gate_1", "suppression_gate.global_out", ("C", "Q", 1, 1)),
    _Rule("u0_spatial_gate_0", "suppression_gate.local_in.weight", ("H", "C", 3, 3)),
    _Rule("u0_spatial_bias", "suppression_gate.local_in.bias", ("H", 1, 1), ("H",)),
    _Rule("u0_spatial_gate_1", "suppression_gate.local_out.weight", (1, "H", 3, 3)),
    _Rule("u0_combine_bias", "suppression_gate.bias", ("C", 1, 1), ("C",)),
]
_MASK_CELL = [
    *_KERNELS,
    *_layer("u1_gate", "recurrent_gate.convolution", _POINTWISE, bias=("C",)),
    *_norm("bn.0", "suppression_norm"),
    *_norm("bn.1", "facilitation_norm"),
]
_MASK_CELL_STATISTICS = [
    *_statistics("bn.0", "suppression_norm"),
    *_statistics("bn.1", "facilitation_norm"),
]
_MASK_READOUT = [
    *_layer("deconv", "deconv", ("C", "D", 2, 2), bias=("D",)),
    *_layer("predictor", "predictor", ("K", "D", 1, 1), bias=("K",)),
]
_CONTOUR_CELL = [
    *_KERNELS,
    *_layer("u1_gate", "suppression_gate.convolution", _POINTWISE, bias=("C",)),
    *_layer("u2_gate", "recurrent_gate.convolution", _POINTWISE, bias=("C",)),
    *_norm("bn.1", "suppression_norm"),
    *_norm("bn.3", "facilitation_norm"),
    _Rule("kappa", "nu", ("C", 1, 1)),
    _Rule("gamma", "gamma", ("C", 1, 1)),
    _Rule("w", "omega", ("C", 1, 1)),
]
_CONTOUR_MODEL = [
    *_layer("conv0", "backbone.filters", ("C", 1, "F", "F"), bias=("C",)),
    *_norm("bn", "sem_seg_head.readout.norm"),
    *_layer("conv6", "sem_seg_head.readout.predictor", ("K", "C", 1, 1), bias=("K",)),
]

_HEAD = "roi_heads.mask_head."
_CELL = "recurrence.cell."
_DUPLICATE = "mask_fcn_rnn."
_HEAD_CELLS = {f"{_HEAD}recurrent.w_gate_inh", f"{_HEAD}{_DUPLICATE}w_gate_inh"}
# What is left of Detectron2's PanopticFPN without its mask head. Its names have stayed.
_DETECTRON2 = re.compile(
    r"(?:backbone\.(?:bottom_up\.(?:stem|res\d\.\d+)\.\w+|fpn_(?:lateral|output)\d)"
    r"|proposal_generator\.(?:rpn_head|anchor_generator\.cell_anchors)"
    r"|roi_heads\.box_head\.(?:conv|fc)\d+|roi_heads\.box_predictor\.(?:cls_score|bbox_pred)"
    r"|sem_seg_head\.(?:p\d\.\d+|predictor))"
    r"(?:\.(?:conv|objectness_logits|anchor_deltas|norm|\d+))?"
    r"(?:\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?"
)
_COMPUTED = ("pixel_mean", "pixel_std")


def convert_released(weights: Mapping[str, Any]) -> Converted:
    """A released panoptic model or hGRU of Pathfinder under this project's names.

    Args:
        weights: tensors or arrays of a checkpoint, also of one that several GPUs wrote
            (`module.`).

    Raises:
        ConfigurationError: a line for each weight that is missing, of another shape or has no
            counterpart here.
    """
    weights = {name: torch.as_tensor(value) for name, value in weights.items()}
    if all(name.startswith("module.") for name in weights):
        weights = _below(weights, "module.")
    if "unit1.w_gate_inh" in weights:
        return _contour_model(weights)
    if not _HEAD_CELLS.isdisjoint(weights):
        return _panoptic_model(weights)
    raise ConfigurationError(
        "neither a released panoptic model, with weights roi_heads.mask_head.recurrent.*, nor the "
        f"released hGRU of Pathfinder, with unit1.*; the first here is {next(iter(weights))}"
    )


def _panoptic_model(weights: Weights) -> Converted:
    kept = {n: v for n, v in weights.items() if not n.startswith(_HEAD) and n not in _COMPUTED}
    head, problems = _without_copies(_below(weights, _HEAD))
    cell = _below(head, "recurrent.")
    gala = "u0_gate.weight" not in cell
    recorded = "bn.0.running_mean" in cell
    rules = _prefixed(
        [
            *_MASK_CELL,
            *(_GALA if gala else _PLAIN_GATE),
            *(_MASK_CELL_STATISTICS if recorded else ()),
        ],
        "recurrent.",
        _CELL,
    )
    rules += _MASK_READOUT
    norm = _output_norm(head)
    rules += _norm("horizontal_norm", "output_norm") if norm else []
    rules += _statistics("horizontal_norm", "output_norm") if norm == "SyncBN" else []
    sizes = _sizes(cell, deconv=head.get("deconv.weight"))
    own, unfitting = _renamed(head, rules, sizes)
    foreign = (
        f"{name}: Detectron2's panoptic FPN has no such weight"
        for name in kept
        if not _DETECTRON2.fullmatch(name)
    )
    _require_none([*foreign, *(f"{_HEAD}{line}" for line in (*problems, *unfitting))])
    keys = {
        "CRBP.CELL.NAME": "mask_hgru",
        "CRBP.CELL.CHANNELS": sizes["C"],
        "CRBP.CELL.KERNEL_SIZE": sizes["E"],
        "CRBP.CELL.GATE": "gala" if gala else "pointwise",
        "CRBP.CELL.NORM": "BN" if recorded else "GN",
        "MODEL.ROI_MASK_HEAD.OUTPUT_NORM": norm,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": sizes["D"],
    }
    return Converted({**kept, **{f"{_HEAD}{n}": v for n, v in own.items()}}, keys)


def _contour_model(weights: Weights) -> Converted:
    # Of the cell's four norms two are never used.
    unused = re.compile(r"unit1\.bn\.[02]\.(weight|bias)")
    used = {name: value for name, value in weights.items() if not unused.fullmatch(name)}
    prefix = f"sem_seg_head.{_CELL}"
    rules = [*_prefixed(_CONTOUR_CELL, "unit1.", prefix), *_CONTOUR_MODEL]
    sizes = _sizes(_below(used, "unit1."), stem=used.get("conv0.weight"))
    own, problems = _renamed(used, rules, sizes)
    _require_none(problems)
    keys = {
        "CRBP.CELL.NAME": "hgru",
        "CRBP.CELL.CHANNELS": sizes["C"],
        "CRBP.CELL.KERNEL_SIZE": sizes["E"],
        "CRBP.CELL.NORM": "BatchBN",
        "CRBP.CELL.NORM_EPS": 1e-3,
        "CRBP.CELL.OWN_GAMMA": True,
        "CRBP.CELL.RECTIFY_STATE": True,
        "MODEL.BACKBONE.KERNEL_SIZE": sizes["F"],
        "MODEL.SEM_SEG_HEAD.OUTPUT_NORM": "BatchBN",
        "MODEL.SEM_SEG_HEAD.OUTPUT_NORM_EPS": 1e-3,
        "TEST.IMS_PER_BATCH": 128,
    }
    return Converted(own, keys)


def _output_norm(head: Weights) -> str:
    if "horizontal_norm.running_mean" in head:
        return "SyncBN"
    return "GN" if "horizontal_norm.weight" in head else ""


def _below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}


def _prefixed(rules: Iterable[_Rule], released: str, own: str) -> list[_Rule]:
    return [
        _Rule(f"{released}{rule.released}", f"{own}{rule.own}", rule.shape, rule.flat)
        for rule in rules
    ]


def _sizes(cell: Weights, **layers: Tensor | None) -> dict[str, int]:
    """What the symbols of shapes are in a checkpoint, by its first weights."""
    kernel = tuple(cell["w_gate_inh"].shape)
    channels = kernel[0] if kernel else 0
    sizes = {"C": channels, "E": kernel[-1] if kernel else 0, "Q": channels // 4}
    sizes["H"] = channels // 2
    deconv, stem = layers.get("deconv"), layers.get("stem")
    if deconv is not None and deconv.dim() > 1:
        sizes["D"] = deconv.shape[1]
    if stem is not None and stem.dim() > 0:
        sizes["F"] = stem.shape[-1]
    return sizes


def _renamed(
    weights: Weights, rules: Iterable[_Rule], sizes: dict[str, int]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights by their own names, and what does not fit, a line each."""
    own, problems, rest = {}, [], dict(weights)
    for rule in rules:
        value = rest.pop(rule.released, None)
        if value is None:
            problems.append(f"{rule.released}: is missing")
        elif not _fits(tuple(value.shape), rule.shape, sizes):
            wanted = tuple(sizes.get(s, s) if isinstance(s, str) else s for s in rule.shape)
            problems.append(
                f"{rule.released}: has the shape {tuple(value.shape)}, where the others call for "
                f"{wanted}"
            )
        else:
            own[rule.own] = value if rule.flat is None else value.flatten()
    problems += [f"{name}: has no counterpart here" for name in rest]
    return own, problems


def _fits(shape: tuple[int, ...], wanted: Shape, sizes: dict[str, int]) -> bool:
    """Whether a shape is that of a rule; a symbol that nothing has set takes its first value."""
    if len(shape) != len(wanted):
        return False
    for size, symbol in zip(shape, wanted, strict=True):
        if isinstance(symbol, str) and symbol not in sizes:
            sizes[symbol] = size
        if size != (symbol if isinstance(symbol, int) else sizes[symbol]):
            return False
    return True


def _without_copies(head: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """A mask head with each weight of its circuit once, which was saved under two names, and what
    differs between the two, a line each."""
    copies = {f"recurrent.{name}": value for name, value in _below(head, _DUPLICATE).items()}
    once = {name: value for name, value in head.items() if not name.startswith(_DUPLICATE)}
    problems = [
        f"{name}: differs from mask_fcn_rnn{name.removeprefix('recurrent')}, which is the same"
        for name, value in copies.items()
        if name in once and not torch.equal(value, once[name])
    ]
    return {**copies, **once}, problems


def _require_none(problems: Iterable[str]) -> None:
    lines = list(problems)
    if lines:
        raise ConfigurationError("\n".join(lines))
