"""Checkpoints in the released format, against the released equations written out here.

The files are made here: names and shapes are those of the released code, the weights are random.
"""

from __future__ import annotations

import re
import runpy
import sys

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from crbp_d2.core import ConfigurationError
from crbp_d2.engine import load_model
from crbp_d2.weights import convert_released
from tests.modeling.conftest import CONFIGS, load_config  # noqa: F401  a fixture

HEAD = "roi_heads.mask_head."
STEPS, CLASSES = 4, 3


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Random weights of which none stands out, those of variances positive."""
    generator = torch.Generator().manual_seed(7)
    found = {}
    for name, shape in shapes.items():
        fan = max(torch.Size(shape[1:]).numel(), 1) if len(shape) == 4 else 4
        found[name] = torch.randn(shape, generator=generator) / fan**0.5
        if name.endswith("running_var"):
            found[name] = found[name].abs() + 0.5
    return found


def normed(name: str, channels: int, *, recorded: bool = False) -> dict[str, tuple[int, ...]]:
    kinds = ("weight", "bias", *(("running_mean", "running_var") if recorded else ()))
    return {f"{name}.{kind}": (channels,) for kind in kinds}


def mask_head(c: int, kernel: int, deconv: int, *, gala: bool, norm: str, recorded: bool = False):
    """The weights of a released mask head, by their names in it."""
    gate = {"u0_gate.weight": (c, c, 1, 1), "u0_gate.bias": (c,)}
    if gala:
        gate = {
            "u0_channel_gate_0.weight": (c // 4, c, 1, 1),
            "u0_channel_gate_0.bias": (c // 4,),
            "u0_channel_gate_1.weight": (c, c // 4, 1, 1),
            "u0_spatial_gate_0": (c // 2, c, kernel, kernel),
            "u0_spatial_bias": (c // 2, 1, 1),
            "u0_spatial_gate_1": (1, c // 2, kernel, kernel),
            "u0_combine_bias": (c, 1, 1),
        }
    cell = {
        **gate,
        **{"u1_gate.weight": (c, c, 1, 1), "u1_gate.bias": (c,)},
        **{"w_gate_inh": (c, c, kernel, kernel), "w_gate_exc": (c, c, kernel, kernel)},
        **{"alpha": (c, 1, 1), "mu": (c, 1, 1)},
        **normed("bn.0", c, recorded=recorded),
        **normed("bn.1", c, recorded=recorded),
    }
    norms = normed("horizontal_norm", c, recorded=norm == "SyncBN") if norm else {}
    weights = drawn(
        {
            **{f"recurrent.{name}": shape for name, shape in cell.items()},
            **norms,
            **{"deconv.weight": (c, deconv, 2, 2), "deconv.bias": (deconv,)},
            **{"predictor.weight": (CLASSES, deconv, 1, 1), "predictor.bias": (CLASSES,)},
        }
    )
    copies = {f"mask_fcn_rnn.{name}": weights[f"recurrent.{name}"].clone() for name in cell}
    counters = [
        f"{n.removesuffix('running_var')}num_batches_tracked" for n in weights if "_var" in n
    ]
    return {**weights, **copies, **{name: torch.tensor(9) for name in counters}}


def released_norm(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    scale, shift = w[f"{name}.weight"], w[f"{name}.bias"]
    if f"{name}.running_mean" in w:
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, scale, shift, eps=1e-5)
    return F.group_norm(x, 32, scale, shift, eps=1e-5)


def released_masks(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Logits of the released mask head in evaluation."""
    w = {name: value.double() for name, value in weights.items()}
    r = {n.removeprefix("recurrent."): v for n, v in w.items() if n.startswith("recurrent.")}
    kernel = r["w_gate_inh"].shape[-1]
    h = torch.zeros_like(x)
    for _ in range(STEPS):
        if "u0_gate.weight" in r:
            gate = F.conv2d(h, r["u0_gate.weight"], r["u0_gate.bias"])
        else:
            channel = F.softplus(
                F.conv2d(h, r["u0_channel_gate_0.weight"], r["u0_channel_gate_0.bias"])
            )
            space = F.conv2d(h, r["u0_spatial_gate_0"], padding=1) + r["u0_spatial_bias"]
            space = F.conv2d(F.softplus(space), r["u0_spatial_gate_1"], padding=1)
            gate = F.conv2d(channel, r["u0_channel_gate_1.weight"]) * space + r["u0_combine_bias"]
        inhibition = F.conv2d(h * gate.sigmoid(), r["w_gate_inh"], padding=kernel // 2)
        inhibition = released_norm(r, "bn.0", inhibition)
        s = F.softplus(x - inhibition * (r["alpha"] * h + r["mu"]))
        update = F.conv2d(s, r["u1_gate.weight"], r["u1_gate.bias"]).sigmoid()
        excitation = F.conv2d(s, r["w_gate_exc"], padding=kernel // 2)
        h = (1 - update) * h + update * F.softplus(released_norm(r, "bn.1", excitation))
    if "horizontal_norm.weight" in w:
        h = released_norm(w, "horizontal_norm", h)
    h = F.conv_transpose2d(h, w["deconv.weight"], w["deconv.bias"], stride=2).relu()
    return F.conv2d(h, w["predictor.weight"], w["predictor.bias"])


def contour_model(c: int, kernel: int, stem: int) -> dict[str, torch.Tensor]:
    """The weights of a released hGRU of Pathfinder, by their names."""
    norms = {k: v for number in range(4) for k, v in normed(f"unit1.bn.{number}", c).items()}
    return drawn(
        {
            **{"conv0.weight": (c, 1, stem, stem), "conv0.bias": (c,)},
            **{f"unit1.u{n}_gate.weight": (c, c, 1, 1) for n in (1, 2)},
            **{f"unit1.u{n}_gate.bias": (c,) for n in (1, 2)},
            **{f"unit1.w_gate_{kind}": (c, c, kernel, kernel) for kind in ("inh", "exc")},
            **{f"unit1.{name}": (c, 1, 1) for name in ("alpha", "gamma", "kappa", "w", "mu")},
            **norms,
            **normed("bn", c),
            **{"conv6.weight": (2, c, 1, 1), "conv6.bias": (2,)},
        }
    )


def released_contours(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Logits of the released hGRU, in evaluation, for images whose statistics it takes together."""
    w = {name: value.double() for name, value in weights.items()}

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, w[f"{name}.weight"], w[f"{name}.bias"], True, eps=1e-3)

    kernel, stem = w["unit1.w_gate_inh"].shape[-1], w["conv0.weight"].shape[-1]
    z = F.conv2d(images, w["conv0.weight"], w["conv0.bias"], padding=stem // 2) ** 2
    h = torch.zeros_like(z)
    for _ in range(STEPS):
        gate = F.conv2d(h, w["unit1.u1_gate.weight"], w["unit1.u1_gate.bias"]).sigmoid()
        c1 = norm("unit1.bn.1", F.conv2d(h * gate, w["unit1.w_gate_inh"], padding=kernel // 2))
        s = F.softplus(z - F.softplus(c1 * (w["unit1.alpha"] * h + w["unit1.mu"])))
        update = F.conv2d(s, w["unit1.u2_gate.weight"], w["unit1.u2_gate.bias"]).sigmoid()
        c2 = norm("unit1.bn.3", F.conv2d(s, w["unit1.w_gate_exc"], padding=kernel // 2))
        new = F.softplus(w["unit1.kappa"] * s + w["unit1.gamma"] * c2 + w["unit1.w"] * s * c2)
        h = F.softplus((1 - update) * h + update * new)
    return F.conv2d(norm("bn", h), w["conv6.weight"], w["conv6.bias"])


@pytest.fixture
def tool(monkeypatch, capsys):
    """Calls `tools/convert_released.py`; what it said, or the message it ended with."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["convert_released.py", *map(str, arguments)])
        path = str(CONFIGS.parent / "tools" / "convert_released.py")
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:
            said = capsys.readouterr().err
            return said if isinstance(ended.code, int) else str(ended.code)
        return capsys.readouterr().out

    return call


def keys_said(said: str) -> list[str]:
    """The config keys that the tool prints, with their values."""
    return said.strip().rpartition("Their config has ")[2].replace("'", "").split(" ")


@pytest.fixture
def around(load_config):  # noqa: F811
    """The weights of a panoptic model without its mask head: Detectron2's names have stayed."""
    cfg = load_config("quick/shapes_crbp.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES)
    state = build_model(cfg).state_dict()
    return {name: value for name, value in state.items() if not name.startswith(HEAD)}


@pytest.mark.parametrize(
    ("gala", "kernel", "norm", "recorded"),
    [(True, 3, "SyncBN", False), (True, 3, "GN", False), (False, 5, "", True)],
)
def test_a_released_mask_head_answers_by_its_equations(
    gala, kernel, norm, recorded, around, tool, tmp_path, load_config  # noqa: F811
):  # fmt: skip
    head = mask_head(64, kernel, 48, gala=gala, norm=norm, recorded=recorded)
    content = {"model": {**around, **{f"{HEAD}{n}": v for n, v in head.items()}}, "iteration": 9}
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=False)
    said = tool(tmp_path / "in.pth", tmp_path / "out.pth")
    keys = keys_said(said)
    assert keys[keys.index("MODEL.ROI_MASK_HEAD.OUTPUT_NORM") + 1] == norm
    assert keys[keys.index("CRBP.CELL.NORM") + 1] == ("BN" if recorded else "GN")
    more = ("MODEL.ROI_HEADS.NUM_CLASSES", CLASSES, "CRBP.SOLVER.STEPS", STEPS)
    cfg = load_config(
        "quick/shapes_crbp.yaml", *keys, *more, "MODEL.WEIGHTS", str(tmp_path / "out.pth")
    )
    cfg.OUTPUT_DIR = str(tmp_path)
    model = load_model(cfg, resume=False).double().eval()
    features = torch.randn(5, 64, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        found = model.roi_heads.mask_head.layers(features)
    expected = released_masks(head, features)
    assert found.shape == (5, CLASSES, 12, 14) and expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_released_contour_model_answers_by_its_equations(tool, tmp_path, load_config):  # noqa: F811
    weights = contour_model(6, 5, 7)
    stored = {f"module.{name}": value for name, value in weights.items()}
    content = {"epoch": 3, "state_dict": stored, "best_prec1": 0.98}
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    keys = keys_said(tool(tmp_path / "checkpoint.pth.tar", tmp_path / "out.pth"))
    cfg = load_config(
        "pathfinder/hgru_14.yaml", *keys, "CRBP.SOLVER.STEPS", STEPS,
        "MODEL.WEIGHTS", str(tmp_path / "out.pth"),
    )  # fmt: skip
    cfg.OUTPUT_DIR = str(tmp_path)
    model = load_model(cfg, resume=False).double().eval()
    images = torch.rand(2, 1, 13, 17, dtype=torch.float64)
    with torch.no_grad():
        found, _ = model.sem_seg_head(model.backbone(images))
        alone, _ = model.sem_seg_head(model.backbone(images[:1]))
    expected = released_contours(weights, images)
    assert found.shape == (2, 2, 13, 17) and expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    # As released, an image's answer depends on the others of its batch.
    assert (alone[0] - found[0]).abs().max() > 0.01


def test_a_circuit_that_is_saved_under_one_of_its_names_is_taken(around):
    head = mask_head(64, 3, 48, gala=True, norm="GN")
    found = []
    for left_out in ("recurrent.", "mask_fcn_rnn.", "none"):
        some = {f"{HEAD}{n}": v for n, v in head.items() if not n.startswith(left_out)}
        found.append(convert_released({**around, **some}).weights)
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


@pytest.mark.parametrize("suffix", ["", "?matching_heuristics=True"])
def test_statistics_of_the_released_output_norm_are_not_left_out(
    suffix, around, tmp_path, load_config  # noqa: F811
):  # fmt: skip
    head = mask_head(64, 3, 64, gala=True, norm="SyncBN")
    weights = {**around, **{f"{HEAD}{n}": v for n, v in head.items()}}
    torch.save({"model": convert_released(weights).weights}, tmp_path / "out.pth")
    cfg = load_config(
        "quick/shapes_crbp.yaml", "CRBP.CELL.CHANNELS", 64, "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES,
        "MODEL.WEIGHTS", f"{tmp_path}/out.pth{suffix}", "OUTPUT_DIR", str(tmp_path),
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="has besides 2 .*output_norm.running_mean"):
        load_model(cfg, resume=False)


@pytest.mark.slow
def test_all_of_detectron2s_panoptic_models_keep_their_names(load_config):  # noqa: F811
    head = {f"{HEAD}{n}": v for n, v in mask_head(64, 3, 48, gala=True, norm="GN").items()}
    for name in ("R50_FPN_crbp_1x.yaml", "R101_FPN_crbp_3x.yaml"):
        state = build_model(load_config(name)).state_dict()
        kept = {n: v for n, v in state.items() if not n.startswith(HEAD)}
        anchors = {"proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
        found = convert_released({**kept, **anchors, **head}).weights
        assert all(found[n] is v or torch.equal(found[n], v) for n, v in kept.items())
        assert found.keys() >= anchors.keys()


def without(*names: str):
    return lambda weights: [weights.pop(name) for name in names]


def with_(name: str, *shape: int):
    return lambda weights: weights.update({name: torch.ones(shape)})


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            without(f"{HEAD}recurrent.mu", f"{HEAD}mask_fcn_rnn.mu"),
            [f"{HEAD}recurrent.mu: is missing"],
        ),
        (
            with_(f"{HEAD}recurrent.w", 64, 1, 1),
            [f"{HEAD}recurrent.w: has no counterpart here"],
        ),
        (
            with_(f"{HEAD}recurrent.u0_spatial_gate_0", 32, 64, 5, 5),
            [
                r"recurrent.u0_spatial_gate_0: has the shape \(32, 64, 5, 5\), where .* "
                r"\(32, 64, 3, 3\)",
                "recurrent.u0_spatial_gate_0: differs from mask_fcn_rnn.u0_spatial_gate_0, which",
            ],
        ),
        (
            with_(f"{HEAD}mask_fcn_rnn.alpha", 64, 1, 1),
            [f"{HEAD}recurrent.alpha: differs from mask_fcn_rnn.alpha, which is the same"],
        ),
        (
            with_("backbone.recurrent0.w_gate_inh", 64, 64, 3, 3),
            ["backbone.recurrent0.w_gate_inh: Detectron2's panoptic FPN has no such weight"],
        ),
        (without(f"{HEAD}deconv.weight"), [f"{HEAD}deconv.weight: is missing"]),
        (
            without(f"{HEAD}recurrent.w_gate_inh", f"{HEAD}mask_fcn_rnn.w_gate_inh"),
            [r"neither a released panoptic model, .* nor the released hGRU .* unit1\.\*"],
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_key_by_key_and_nothing_is_written(
    change, messages, around, tool, tmp_path
):
    head = mask_head(64, 3, 48, gala=True, norm="SyncBN")
    weights = {**around, **{f"{HEAD}{n}": v for n, v in head.items()}}
    change(weights)
    torch.save({"model": weights}, tmp_path / "in.pth")
    lines = tool(tmp_path / "in.pth", tmp_path / "out.pth").strip().splitlines()
    assert len(lines) == len(messages)
    for message in messages:
        assert any(re.search(message, line) for line in lines), (message, lines)
    assert all(line.startswith(f"{tmp_path}/in.pth: ") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_a_released_contour_model_in_parts_is_refused():
    weights = contour_model(4, 3, 7)
    del weights["conv6.bias"]
    weights["unit1.mu"] = torch.ones(4)
    weights["outscale"] = torch.ones(1)
    with pytest.raises(ConfigurationError) as refused:
        convert_released(weights)
    assert str(refused.value).splitlines() == [
        "unit1.mu: has the shape (4,), where the others call for (4, 1, 1)",
        "conv6.bias: is missing",
        "outscale: has no counterpart here",
    ]


def test_the_tool_takes_no_file_that_is_there_already(tool, tmp_path):
    torch.save({"model": contour_model(4, 3, 7)}, tmp_path / "in.pth")
    for arguments, message in (
        (("in.pth", "in.pth"), "in.pth exists; remove it or name another file"),
        (("in.pth", "out.pkl"), "out.pkl: name a file that ends in .pth"),
        (("in.pth", "absent/out.pth"), "absent: no such folder"),
        (("absent.pth", "out.pth"), "absent.pth: no such file"),
    ):
        assert message in tool(*(tmp_path / one for one in arguments))
        assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
