"""Which checkpoints fill a model, and which are refused."""

from __future__ import annotations

import functools
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from crbp_d2.core import ConfigurationError
from crbp_d2.engine import load_model
from crbp_d2.engine.checkpoint import Checkpointer
from crbp_d2.weights import read_checkpoint
from tests.engine.runs import change_weights, train
from tests.modeling.conftest import load_config  # noqa: F401  a fixture

pytestmark = pytest.mark.slow

EXACT = ("--eval-only",), ("--resume",), ("--eval-only", "--resume")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Finished trainings by their `MODEL.SEM_SEG_HEAD.OUTPUT_NORM`."""

    @functools.cache
    def folder(norm: str) -> Path:
        path = tmp_path_factory.mktemp("trained") / "run"
        train(path, "MODEL.SEM_SEG_HEAD.OUTPUT_NORM", norm)
        return path

    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of one, to be changed."""

    def made(norm: str) -> Path:
        return Path(shutil.copytree(trained(norm), tmp_path / "run"))

    return made


@pytest.fixture
def run(copy) -> Path:
    return copy("IN")


def used(run: Path, flags: tuple[str, ...], *overrides: object, norm: str = "IN") -> None:
    weights = () if "--resume" in flags else ("MODEL.WEIGHTS", run / "model_final.pth")
    train(run, "MODEL.SEM_SEG_HEAD.OUTPUT_NORM", norm, *weights, *overrides, flags=flags)


@pytest.mark.parametrize("flags", [*EXACT, ()])
def test_what_was_trained_can_be_used(flags, run):
    used(run, flags, "SOLVER.MAX_ITER", 3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_what_the_trainer_writes_holds_tensors_and_numbers_alone(optimizer, tmp_path):
    clipping = ("SOLVER.CLIP_GRADIENTS.ENABLED", True)
    train(tmp_path, "SOLVER.OPTIMIZER", optimizer, *clipping)
    stored = read_checkpoint(str(tmp_path / "model_final.pth"))
    assert {"model", "trainer", "iteration"} <= stored.keys()
    assert {"hooks", "_trainer"} <= stored["trainer"].keys()


@pytest.mark.parametrize("flags", EXACT[:2])
@pytest.mark.parametrize(
    ("saved", "used_with", "message"),
    [
        ("BN", "GN", r"has besides 2 \(sem_seg_head\.readout\.norm\.running_mean, "),
        ("SyncBN", "GN", "has besides 2 .*running_mean"),
        ("BN", "", "has besides 4 .*norm.bias"),
        ("GN", "BN", "lacks 2 .*norm.running_mean, .*norm.running_var"),
        ("GN", "SyncBN", "lacks 2 .*running_mean"),
        # Detectron2 takes it for an early FrozenBN, without statistics, and says nothing.
        ("GN", "FrozenBN", "lacks 2 .*running_mean"),
        ("", "GN", "lacks 2 .*norm.bias"),
    ],
)
def test_statistics_of_norms_have_to_fit_as_weights_do(saved, used_with, message, flags, trained):
    with pytest.raises(ConfigurationError, match=f"of another architecture .*{message}"):
        used(trained(saved), flags, norm=used_with)


def test_norms_of_the_same_statistics_take_each_others_place(trained):
    for norm in ("FrozenBN", "SyncBN"):
        used(trained("BN"), ("--eval-only",), norm=norm)


@pytest.mark.parametrize("flags", EXACT)
def test_weights_have_to_fit_in_name_and_shape(flags, run):
    with pytest.raises(ConfigurationError, match=r"has in another shape 2 \(.*suppression"):
        used(run, flags, "CRBP.CELL.KERNEL_SIZE", 5)

    def rename(weights):
        weights["more"] = weights.pop("backbone.filters.bias")

    change_weights(run / "model_final.pth", rename)
    message = r"lacks 1 \(backbone\.filters\.bias\), has besides 1 \(more\)\. Give the config file"
    with pytest.raises(ConfigurationError, match=message):
        used(run, flags)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("flags", [*EXACT, ()])
def test_weights_that_are_not_finite_are_refused_by_name(flags, value, run):
    def spoil(weights):
        bias = weights["backbone.filters.bias"].double()
        bias[2] = value
        weights["backbone.filters.bias"] = bias

    change_weights(run / "model_final.pth", spoil)
    with pytest.raises(ConfigurationError, match=r"pth: backbone\.filters\.bias is NaN or infinit"):
        used(run, flags)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
@pytest.mark.parametrize("flags", [*EXACT, ()])
def test_weights_of_another_kind_of_number_are_refused_by_name(flags, dtype, run):
    def convert(weights):
        weights["backbone.filters.bias"] = weights["backbone.filters.bias"].to(dtype)

    change_weights(run / "model_final.pth", convert)
    with pytest.raises(ConfigurationError, match=r"backbone\.filters\.bias is of type (int|comp)"):
        used(run, flags)


def test_statistics_that_are_not_finite_are_refused(copy):
    run, name = copy("BN"), "sem_seg_head.readout.norm.running_var"
    change_weights(run / "model_final.pth", lambda weights: weights[name].fill_(torch.nan))
    with pytest.raises(ConfigurationError, match=f"{name} is NaN or infinite"):
        used(run, ("--eval-only",), norm="BN")


def test_checkpoints_of_earlier_versions_still_load(copy):
    run = copy("BN")

    def age(weights):
        del weights["sem_seg_head.readout.norm.num_batches_tracked"]
        weights["pixel_mean"] = torch.zeros(1, 1, 1)
        weights["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
        for name in list(weights):
            weights[f"module.{name}"] = weights.pop(name)

    change_weights(run / "model_final.pth", age)
    used(run, ("--eval-only",), norm="BN")


def test_bare_weights_can_be_evaluated_but_not_resumed_from(run):
    path = run / "model_final.pth"
    torch.save(torch.load(path, weights_only=True)["model"], path)
    used(run, ("--eval-only",))
    with pytest.raises(ConfigurationError, match="no state of a training to resume; .*OUTPUT_DIR"):
        used(run, ("--resume",))


def test_weights_of_a_baseline_fill_all_but_the_mask_trunk(load_config, tmp_path, caplog):  # noqa: F811
    feedforward = build_model(load_config("quick/shapes_feedforward.yaml"))
    torch.save({"model": feedforward.state_dict()}, tmp_path / "baseline.pth")
    recurrent = build_model(load_config("quick/shapes_crbp.yaml", "CRBP.CELL.CHANNELS", 64))
    with caplog.at_level(logging.WARNING):
        Checkpointer(recurrent).resume_or_load(str(tmp_path / "baseline.pth"), resume=False)
    loaded = recurrent.state_dict()
    assert all(
        torch.equal(loaded[key], value)
        for key, value in feedforward.state_dict().items()
        if ".mask_fcn" not in key
    )
    assert "mask_head.recurrence.cell" in caplog.text and "mask_fcn1" in caplog.text


def test_weights_of_something_else_are_no_start(run):
    torch.save({"model": {"layer.weight": torch.ones(2)}}, run / "model_final.pth")
    with pytest.raises(ConfigurationError, match="holds no weight of the model"):
        used(run, ())


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays_are_read(protocol, tmp_path):
    arrays = {
        "rows": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(4, dtype=">i8"),
        "one": np.array(3, dtype=np.int32),
        "none": np.zeros((0, 2), dtype=bool),
    }
    content = {"model": arrays, "__author__": "a zoo", "rate": np.float64(0.5), "text": "é"}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_checkpoint(str(tmp_path / "a.pkl"))
    assert (found["__author__"], found["rate"], found["text"]) == ("a zoo", 0.5, "é")
    for name, value in arrays.items():
        np.testing.assert_array_equal(found["model"][name], value)
        torch.from_numpy(found["model"][name])


def test_arrays_that_python_2_pickled_are_read(tmp_path):
    # What its NumPy wrote for {"w": np.array([1, 2], np.float32)}, text as bytes.
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs."
    )
    assert read_checkpoint(str(tmp_path / "a.pkl"))["model"]["w"].tolist() == [1, 2]


def test_a_zoos_file_is_evaluated_if_it_fills_the_model(run, tmp_path):
    weights = torch.load(run / "model_final.pth", weights_only=True)["model"]
    arrays = {name: value.numpy() for name, value in weights.items()}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "a zoo"}))
    used(run, ("--eval-only",), "MODEL.WEIGHTS", path)
    del arrays["backbone.filters.bias"]
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "a zoo"}))
    with pytest.raises(ConfigurationError, match="lacks 1 .*filters"):
        used(run, ("--eval-only",), "MODEL.WEIGHTS", path)


def test_weights_of_a_backbone_are_a_start_but_not_evaluated(load_config, tmp_path):  # noqa: F811
    cfg = load_config("quick/shapes_crbp.yaml", "MODEL.RESNETS.NORM", "FrozenBN")
    names = {"conv1_w": (64, 3, 7, 7), "res_conv1_bn_s": (64,), "res_conv1_bn_b": (64,)}
    rng = np.random.default_rng(0)
    blobs = {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps({**blobs, "conv1_w_momentum": np.ones(1)}, protocol=2))
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(path), str(tmp_path)
    model = build_model(cfg)
    Checkpointer(model).resume_or_load(str(path), resume=False)
    loaded = model.backbone.bottom_up.stem.conv1
    np.testing.assert_array_equal(loaded.weight.detach(), blobs["conv1_w"])
    np.testing.assert_array_equal(loaded.norm.bias, blobs["res_conv1_bn_b"])
    with pytest.raises(ConfigurationError, match="of another architecture than the config"):
        load_model(cfg, resume=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "model_final.pth").unlink(), "model_final.pth: no such file"),
        (lambda run: (run / "model_final.pth").write_bytes(b""), "can't be read as a checkpoint"),
        (
            lambda run: (run / "model_final.pth").write_bytes(
                (run / "model_final.pth").read_bytes()[:999]
            ),
            "can't be read as a checkpoint",
        ),
        (lambda run: torch.save([1], run / "model_final.pth"), "holds a list, no weights"),
        (lambda run: torch.save({"model": 3}, run / "model_final.pth"), "holds something else"),
        (lambda run: torch.save({}, run / "model_final.pth"), "holds something else"),
    ],
)
@pytest.mark.parametrize("flags", [*EXACT, ()])
def test_what_is_no_checkpoint_is_named(flags, change, message, run):
    for earlier in run.glob("model_0*.pth"):
        earlier.unlink()
    change(run)
    with pytest.raises(ConfigurationError, match=message) as raised:
        used(run, flags)
    assert "\n" not in str(raised.value) and "model_final.pth" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"absent.pth", b"../", b"\xff\xfe", b"a\x00b"])
def test_a_last_checkpoint_that_names_none_is_named(content, run):
    (run / "last_checkpoint").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"last.checkpoint"):
        used(run, ("--eval-only", "--resume"))


@pytest.mark.parametrize("address", ["catalog://a", "http://[::1"])
def test_an_address_that_leads_nowhere_is_named(address, run):
    with pytest.raises(ConfigurationError, match="can't be fetched"):
        used(run, ("--eval-only",), "MODEL.WEIGHTS", address)


def test_of_a_query_only_matching_by_names_is_known(run):
    path = run / "model_final.pth"
    used(run, ("--eval-only",), "MODEL.WEIGHTS", f"{path}?matching_heuristics=True")
    with pytest.raises(ConfigurationError, match="question mark"):
        used(run, ("--eval-only",), "MODEL.WEIGHTS", f"{path}?heuristics=True")
