"""Models as files that PyTorch or ONNX Runtime run without this package.

Shape shorthand: images of H x W pixels in C channels, N objects with masks of S x S, K classes.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, SemanticSegmentor
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from crbp_d2.analysis.outputs import combined
from crbp_d2.core import ConfigurationError

Outputs: TypeAlias = tuple[Tensor, ...]
Loaded: TypeAlias = Callable[[Tensor], Outputs]
"""A file that was read again: an image `(C, H, W)` to what `output_names` lists."""

OPSET = 17
"""Of ONNX, the first with all that the models need."""
OBJECTS = ("boxes", "classes", "scores", "masks")


def output_names(model: nn.Module) -> tuple[str, ...]:
    """What the exported file of a model returns, in this order.

    `boxes` `(N, 4)` as x0, y0, x1, y1 in pixels, `classes` `(N,)`, `scores` `(N,)` in 0..1 and
    `masks` `(N, 1, S, S)`, probabilities within the box; `sem_seg` `(K, H, W)`, logits.

    Raises:
        ConfigurationError: it is no model with masks, nor a semantic one.
    """
    if isinstance(model, SemanticSegmentor):
        return ("sem_seg",)
    if isinstance(model, GeneralizedRCNN) and getattr(model.roi_heads, "mask_on", False):
        return (*OBJECTS, "sem_seg") if isinstance(model, PanopticFPN) else OBJECTS
    raise ConfigurationError(
        f"a {type(model).__name__} can't be exported, only a PanopticFPN, a GeneralizedRCNN with "
        "MODEL.MASK_ON and a SemanticSegmentor"
    )


class _Semantic(nn.Module):
    """A `SemanticSegmentor` of one image, padded by its shape and not by a value."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Outputs:
        model, (height, width) = self.model, image.shape[-2:]
        step = max(model.backbone.size_divisibility, 1)
        normal = (image - model.pixel_mean) / model.pixel_std
        padded = F.pad(normal, (0, -width % step, 0, -height % step))
        logits, _ = model.sem_seg_head(model.backbone(padded[None]), None)
        return (logits[0, :, :height, :width],)


class _Objects(nn.Module):
    """A `GeneralizedRCNN` of one image, up to where masks are laid into it."""

    def __init__(self, model: Any, image: Tensor) -> None:
        super().__init__()
        # It also lets Detectron2 count objects in a way that can be traced.
        self.adapter = TracingAdapter(model, [{"image": image}], objects_of)

    def forward(self, image: Tensor) -> Outputs:
        found: Outputs = self.adapter(image)
        return found


def objects_of(model: Any, batch: list[dict[str, Tensor]]) -> Outputs:
    """What `output_names` lists, of a `GeneralizedRCNN` and a batch of one image."""
    answer = model.inference(batch, do_postprocess=False)
    detections, *semantic = answer if isinstance(model, PanopticFPN) else (answer,)
    (found,) = detections
    objects = (found.pred_boxes.tensor, found.pred_classes, found.scores, found.pred_masks)
    # Without what the image was padded with.
    height, width = batch[0]["image"].shape[-2:]
    return (*objects, *(logits[0, :, :height, :width] for logits in semantic))


def finish(model: Any, outputs: Outputs, height: int, width: int) -> dict[str, Any]:
    """What a model itself returns of an image, from what its exported file does.

    Args:
        model: that was exported.
        outputs: see `output_names`.
        height, width: of the image that the file was given.

    Returns:
        `sem_seg`, `instances` and `panoptic_seg`, those of them that the model has.
    """
    if len(outputs) == 1:
        return {"sem_seg": outputs[0]}
    boxes, classes, scores, masks, *semantic = outputs
    found = Instances((height, width), pred_boxes=Boxes(boxes), pred_classes=classes, scores=scores)
    if semantic:
        record = {"image": semantic[0]}
        return combined(model, record, found, masks, semantic[0])
    found.pred_masks = masks
    return {"instances": detector_postprocess(found, height, width)}


def export(model: nn.Module, image: Tensor, form: str) -> tuple[bytes, Loaded]:
    """Write a model as a file, and read it again.

    Args:
        model: see `output_names`; in evaluation mode.
        image: `(C, H, W)` as the model takes it, on which it finds something; the file takes other
            sizes, too.
        form: one of `FORMATS`.

    Returns:
        The content of the file, and what reading it gives.

    Raises:
        ConfigurationError: the form is unknown, needs a package that is missing, or can't hold the
            model.
    """
    require_exportable(model, form)
    names, chosen = output_names(model), FORMATS[form]
    try:
        with quiet(), torch.no_grad():
            content = chosen.write(network_of(model, image), image, names)
            return content, chosen.read(content)
    except Exception as error:
        # What PyTorch raises depends on the form and on what it can't hold.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigurationError(
            f"--format {form}: PyTorch {torch.__version__} can't write this "
            f"{type(model).__name__} ({reason})"
            + ("" if form == "torchscript" else "; take --format torchscript")
        ) from error


def require_exportable(model: nn.Module, form: str) -> None:
    """Refuse what can't be written, before the minutes that trying takes.

    Raises:
        ConfigurationError: the form is unknown, needs a package that is missing, or does not hold
            models with boxes; see `output_names` for others.
    """
    names = output_names(model)
    if form not in FORMATS:
        raise ConfigurationError(f"unknown format {form!r}; choose from {', '.join(FORMATS)}")
    if names != ("sem_seg",) and not FORMATS[form].objects:
        others = " or ".join(name for name, other in FORMATS.items() if other.objects)
        raise ConfigurationError(
            f"--format {form}: only contour models go through it, no {type(model).__name__}, as "
            f"Detectron2 chooses proposals by their values; take --format {others}"
        )
    FORMATS[form].require()


def network_of(model: nn.Module, image: Tensor) -> nn.Module:
    """What is written of a model: it takes an image `(C, H, W)`, and gives what `output_names`
    lists.

    Args:
        model: see `output_names`.
        image: `(C, H, W)` as the model takes it.
    """
    is_semantic = output_names(model) == ("sem_seg",)
    return (_Semantic(model) if is_semantic else _Objects(model, image)).eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings about shapes that Python looks at, and the graphs that fail."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _write_torchscript(network: nn.Module, image: Tensor, names: Sequence[str]) -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, (image,), check_trace=False), content)
    return content.getvalue()


def _read_torchscript(content: bytes) -> Loaded:
    loaded: Loaded = torch.jit.load(io.BytesIO(content))
    return loaded


def _write_program(network: nn.Module, image: Tensor, names: Sequence[str]) -> bytes:
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        network, (image,), dynamic_shapes=({1: free, 2: free},), strict=False
    )
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def _read_program(content: bytes) -> Loaded:
    loaded: Loaded = torch.export.load(io.BytesIO(content)).module()
    return loaded


def _write_onnx(network: nn.Module, image: Tensor, names: Sequence[str]) -> bytes:
    free = dict.fromkeys(names, {0: "objects"})
    free.update(dict.fromkeys(("image", "sem_seg"), {1: "height", 2: "width"}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        # The newer exporter is torch.export's, which Detectron2's proposals don't go through.
        torch.onnx.export(
            network,
            (image,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(names),
            dynamic_axes={name: free[name] for name in ("image", *names)},
        )
        return path.read_bytes()


def _read_onnx(content: bytes) -> Loaded:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Outputs:
        found = session.run(None, {"image": image.cpu().numpy()})
        return tuple(torch.from_numpy(one).to(image.device) for one in found)

    return run


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401  by PyTorch's exporter
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"--format onnx needs {error.name}, which is not installed: pip install "
            "onnx onnxruntime"
        ) from error


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        write: a network, an image and the names of the outputs to the content of the file.
        read: the content to what runs it.
        require: raises a `ConfigurationError` where a package is missing.
        objects: whether models with boxes go through it.
    """

    write: Callable[[nn.Module, Tensor, Sequence[str]], bytes]
    read: Callable[[bytes], Loaded]
    require: Callable[[], None] = lambda: None
    objects: bool = True


FORMATS = {
    "torchscript": Format(_write_torchscript, _read_torchscript),
    "torch-export": Format(_write_program, _read_program, objects=False),
    "onnx": Format(_write_onnx, _read_onnx, _require_onnx),
}
"""By name."""
