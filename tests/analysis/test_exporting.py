"""Exported files answer as their models do, to images of other sizes and in other processes."""

from __future__ import annotations

import io
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from torch import Tensor, nn

from crbp_d2.analysis import exported
from crbp_d2.analysis.exported import compare, turned_and_cut
from crbp_d2.analysis.exporting import FORMATS, export, network_of, output_names
from crbp_d2.config import add_crbp_config, read_config
from crbp_d2.core import ConfigurationError
from crbp_d2.data import ensure_prepared, register_panoptic
from tests.data.panoptic_data import write_panoptic
from tests.evaluation.models import tiny_config
from tests.modeling.conftest import CONFIGS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TOOL = CONFIGS.parent / "tools" / "export.py"
NAME = "test_exporting_panoptic"
SIZES = [(64, 96), (90, 51), (120, 130)]
HEADS = {"crbp": "RecurrentMaskHead", "feed-forward": "MaskRCNNConvUpsampleHead"}


def has_onnx() -> bool:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        return False
    return True


needs_onnx = pytest.mark.skipif(not has_onnx(), reason="onnx or onnxruntime is not installed")
FORMS = [
    form if form != "onnx" else pytest.param(form, marks=needs_onnx)
    for form in FORMATS
    if FORMATS[form].objects
]


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    written = write_panoptic(tmp_path_factory.mktemp("exporting") / "data")
    register_panoptic(NAME, **written.arguments())
    ensure_prepared(NAME)
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def config(kind: str, head: str = "crbp", *overrides: object) -> CfgNode:
    """A small Panoptic FPN, Mask R-CNN (`GeneralizedRCNN`) or Cascade R-CNN."""
    cfg = tiny_config(NAME)
    add_crbp_config(cfg)
    cascade = kind == "cascade"
    cfg.merge_from_list(
        [
            *["MODEL.META_ARCHITECTURE", "GeneralizedRCNN" if cascade else kind],
            *["MODEL.ROI_MASK_HEAD.NAME", HEADS[head], "MODEL.RPN.POST_NMS_TOPK_TEST", 8],
            *["MODEL.ROI_HEADS.NAME", "CascadeROIHeads" if cascade else "StandardROIHeads"],
            *["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", cascade],
            *["TEST.DETECTIONS_PER_IMAGE", 5, "CRBP.CELL.CHANNELS", 8, "CRBP.SOLVER.STEPS", 2],
            *overrides,
        ]
    )
    return cfg


def model_of(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    # Objects differ in class and score, and masks are no noise.
    nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=1.0)
    predictors = model.roi_heads.box_predictor
    for one in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
        nn.init.normal_(one.cls_score.weight, std=0.1)
    return model


def photograph(height: int, width: int, channels: int = 3) -> Tensor:
    random = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (channels, height, width), generator=random).float()


def written(folder: Path, cfg: CfgNode) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model_of(cfg).state_dict()}, folder / "model_final.pth")
    return folder


@pytest.fixture
def tool(monkeypatch, capsys):
    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("PanopticFPN", "crbp"),
        pytest.param("PanopticFPN", "feed-forward", marks=pytest.mark.slow),
        pytest.param("GeneralizedRCNN", "crbp", marks=pytest.mark.slow),
        pytest.param("GeneralizedRCNN", "feed-forward", marks=pytest.mark.slow),
        pytest.param("cascade", "crbp", marks=pytest.mark.slow),
    ],
)
def test_models_with_masks_answer_the_same_to_other_sizes(kind, head, form):
    model = model_of(config(kind, head))
    _, loaded = export(model, photograph(*SIZES[0]), form)
    for size in SIZES:
        found = compare(model, loaded, photograph(*size))
        assert found.size == size and found.objects == 5
        exact = form == "torchscript"
        assert found.differing <= (0 if exact else 1e-3)
        assert found.largest <= (0 if exact else 1e-3)


@pytest.mark.parametrize("form", [*FORMS, pytest.param("torch-export", marks=pytest.mark.slow)])
def test_contour_models_answer_the_same_to_other_sizes(form):
    torch.manual_seed(0)
    overrides = [
        *["CRBP.CELL.CHANNELS", 8, "CRBP.SOLVER.STEPS", 2, "MODEL.SEM_SEG_HEAD.PRIOR", 0.5],
        *["MODEL.DEVICE", "cpu"],
    ]
    cfg = read_config(str(CONFIGS / "quick" / "pathfinder_bptt.yaml"), overrides)
    model = build_model(cfg).eval()
    _, loaded = export(model, photograph(40, 48, 1), form)
    for size in [(40, 48), (64, 33), (20, 70)]:
        found = compare(model, loaded, photograph(*size, 1))
        assert found.objects is None and found.differing <= 1e-3 and found.largest < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMATS if not FORMATS[form].objects])
@pytest.mark.parametrize("kind", ["PanopticFPN", "GeneralizedRCNN"])
def test_what_is_refused_beforehand_cannot_be_written_indeed(kind, form):
    """Where it can, with another PyTorch, the format holds objects, and the docs say so."""
    model, image = model_of(config(kind, "feed-forward")), photograph(*SIZES[0])
    with pytest.raises(ConfigurationError, match=f"--format {form}: only contour models"):
        export(model, image, form)
    with pytest.raises(Exception, match="Could not guard on data-dependent"), torch.no_grad():
        FORMATS[form].write(network_of(model, image), image, output_names(model))


class Masks(nn.Module):
    """A mask head alone, `(R, C, S, S)` to logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        return self.head.layers(features)


@pytest.mark.slow
def test_the_mask_head_alone_goes_through_torch_export():
    head = Masks(model_of(config("GeneralizedRCNN")).roi_heads.mask_head).eval()
    free = torch.export.Dim.DYNAMIC
    regions = torch.rand(3, 16, 14, 14)
    program = torch.export.export(head, (regions,), dynamic_shapes=({0: free},), strict=False)
    for count in (0, 1, 5):
        regions = torch.rand(count, 16, 14, 14)
        with torch.no_grad():
            assert torch.equal(program.module()(regions), head(regions))


@needs_onnx
def test_onnx_takes_an_image_without_any_object():
    import onnxruntime

    content = io.BytesIO()
    head = Masks(model_of(config("GeneralizedRCNN")).roi_heads.mask_head).eval()
    torch.onnx.export(
        head,
        (torch.rand(3, 16, 14, 14),),
        content,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "regions"}},
    )
    session = onnxruntime.InferenceSession(content.getvalue())
    for count in (0, 1, 5):
        regions = torch.rand(count, 16, 14, 14)
        (found,) = session.run(None, {"x": regions.numpy()})
        with torch.no_grad():
            assert found.shape == head(regions).shape
            assert np.allclose(found, head(regions), atol=1e-4)


def test_a_difference_is_seen():
    model, other = model_of(config("PanopticFPN")), model_of(config("PanopticFPN"))
    nn.init.normal_(other.roi_heads.mask_head.predictor.weight, std=1.0)
    _, loaded = export(other, photograph(*SIZES[0]), "torchscript")
    found = compare(model, loaded, photograph(*SIZES[0]))
    assert found.differing > 1e-3 and found.largest > 0.01
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.1)
    assert compare(model, loaded, photograph(*SIZES[0])).differing > 0.9


@pytest.mark.parametrize("form", ["torchscript", "onyx"])
def test_other_models_and_formats_are_refused(form):
    model = nn.Linear(1, 1) if form == "torchscript" else model_of(config("PanopticFPN"))
    with pytest.raises(ConfigurationError, match="a Linear can't be exported|choose from torchs"):
        export(model, photograph(*SIZES[0]), form)


def test_the_other_image_is_turned_and_smaller():
    image = torch.arange(24.0).reshape(1, 4, 6)
    found = turned_and_cut(image)
    assert found.shape == (1, 5, 4) and found[0, :, 0].tolist() == [5, 4, 3, 2, 1]


def test_the_tool_writes_what_it_has_compared(tmp_path, tool):
    folder = written(tmp_path / "run", config("PanopticFPN"))
    output = tmp_path / "new" / "model.pt"
    said = tool(folder, "--format", "torchscript", "--output", output)
    assert said.count("5 objects: as the model but for 0.00% of the pixels") == 2
    assert said.endswith(f"{output}: boxes, classes, scores, masks, sem_seg\n")
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.slow
def test_the_file_needs_torch_and_torchvision_alone(tmp_path, tool):
    # Without test data: an image is enough.
    folder = written(tmp_path / "run", config("GeneralizedRCNN", "crbp", "DATASETS.TEST", ()))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    tool(
        *(folder, "--format", "torchscript", "--output", tmp_path / "model.pt"),
        *("--image", tmp_path / "one.png"),
    )
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["crbp_d2", "detectron2", "LabGym"]))
import torch, torchvision
boxes, classes, scores, masks = torch.jit.load({str(tmp_path / "model.pt")!r})(
    torch.full((3, 70, 50), 90.0))
print(*boxes.shape, *classes.shape, *scores.shape, *masks.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["5", "4", "5", "5", "5", "1", "28", "28"]


@pytest.mark.parametrize(
    ("form", "overrides", "message"),
    [
        (
            *("torch-export", ()),
            r"--format torch-export: only contour models go through it, no PanopticFPN, as Detectr"
            r"on2 chooses proposals by their values; take --format torchscript or onnx$",
        ),
        (
            *("torchscript", ("CRBP.SOLVER.TEST_TOLERANCE", 0.1)),
            r"--format torchscript: .*a tolerance stops steps by their values.*test_tolerance None",
        ),
        (
            *("torchscript", ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.9999999)),
            "run finds no object on the image; name one that has some with --image$",
        ),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_line(
    form, overrides, message, tmp_path, tool, capsys
):
    folder = written(tmp_path / "run", config("PanopticFPN"))
    output = tmp_path / "new" / "model.pt"
    with pytest.raises(SystemExit):
        tool(folder, "--format", form, "--output", output, "--opts", *overrides or ("SEED", 1))
    said = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, said[-1].strip()) and said[-1].startswith("export.py: error: ")
    assert not output.parent.exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigurationError, match="--format onnx needs onnx,.* pip install onnx"):
        export(model_of(config("GeneralizedRCNN")), photograph(*SIZES[0]), "onnx")


def test_a_file_that_answers_otherwise_is_not_written(tmp_path, tool, capsys, monkeypatch):
    folder = written(tmp_path / "run", config("PanopticFPN"))
    monkeypatch.setattr(exported, "MOST_DIFFERING", -1.0)
    output = tmp_path / "model.pt"
    output.write_text("before")
    with pytest.raises(SystemExit):
        tool(folder, "--format", "torchscript", "--output", output)
    assert "model.pt: not written, as the torchscript file answers" in capsys.readouterr().err
    assert output.read_text() == "before"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "{tmp}"), "--output {tmp}: is a folder; name a file"),
        (("--output", "{tmp}/run/config.yaml/a.pt"), "{tmp}/run/config.yaml is a file"),
        (("--output", "a.pt", "--image", "absent.png"), "--image absent.png: there is no such"),
        (("--output", "a.pt", "--image", "{tmp}/run/config.yaml"), "config.yaml: not a readable"),
    ],
)
def test_a_wrong_path_is_named(arguments, message, tmp_path, tool, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = written(tmp_path / "run", config("PanopticFPN"))
    with pytest.raises(SystemExit):
        given = [one.format(tmp=tmp_path) for one in arguments]
        tool(folder, "--format", "torchscript", *given)
    assert message.format(tmp=tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "a.pt").exists()
