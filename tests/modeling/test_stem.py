"""The stem of the contour models: what its filters start as."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from crbp_d2.core import ConfigurationError
from crbp_d2.engine.run import make_paths_absolute
from crbp_d2.modeling import GaborStem
from crbp_d2.modeling.stem import file_bank, gabor_bank

SHAPE = (5, 1, 3, 3)


def filters() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE)


@pytest.mark.parametrize(
    "form",
    [
        lambda array: array,
        lambda array: array.astype(np.float32),
        lambda array: np.asfortranarray(array),
        lambda array: array.astype(">f8"),
        lambda array: (127 * array).astype(np.int8),
    ],
)
def test_filters_of_a_file_are_taken_in_every_form_of_numpys(form, tmp_path):
    array = form(filters())
    np.save(tmp_path / "bank.npy", array)
    stem = GaborStem(in_channels=1, channels=5, kernel_size=3, filters=str(tmp_path / "bank.npy"))
    expected = torch.from_numpy(np.ascontiguousarray(array.astype(np.float32)))
    assert torch.equal(stem.filters.weight, expected) and not stem.filters.bias.any()
    # Trainable, and the file's no longer.
    (tmp_path / "bank.npy").unlink()
    stem(torch.rand(2, 1, 6, 8))["stem"].sum().backward()
    assert stem.filters.weight.grad.abs().sum() > 0


def save_pickle(path):
    path.write_bytes(pickle.dumps(filters()))


def save_objects(path):
    np.save(path, np.array([{"a": 1}, None]), allow_pickle=True)


def save_archive(path):
    with path.open("wb") as file:
        np.savez(file, filters=filters())


def save_cut(path):
    np.save(path, filters())
    path.write_bytes(path.read_bytes()[:-40])


def save_infinite(path):
    array = filters()
    array[2, 0, 1, 1] = np.inf
    np.save(path, array)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.write_bytes(b""), "no array of numbers"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00 cut"), "no array of numbers"),
        (save_pickle, "no array of numbers"),
        (save_objects, "no array of numbers"),
        (save_archive, "no array of numbers"),
        (save_cut, "no array of numbers"),
        (save_infinite, "NaN or infinite"),
        (lambda path: np.save(path, filters().astype(complex)), "no array of numbers"),
        (lambda path: np.save(path, filters().astype(str)), "no array of numbers"),
        (lambda path: np.save(path, filters()[:, 0]), r"\(5, 3, 3\).*has \(5, 1, 3, 3\)"),
        (lambda path: np.save(path, filters()[:4]), r"\(4, 1, 3, 3\).*CRBP.CELL.CHANNELS"),
        (lambda path: np.save(path, filters().T), r"\(3, 3, 1, 5\).*KERNEL_SIZE"),
    ],
)
def test_what_are_no_filters_of_the_stem_is_told_in_a_line(write, message, tmp_path):
    path = tmp_path / "bank.npy"
    write(path)
    with pytest.raises(ConfigurationError, match=message) as raised:
        file_bank(str(path), SHAPE)
    said = str(raised.value)
    assert said.startswith(f"MODEL.BACKBONE.FILTERS {path}: ") and "\n" not in said
    assert any(cure in said for cure in ("choose gabor, random or", "make them", "replace them"))


def test_biases_are_zero_uniform_or_none():
    torch.manual_seed(0)
    zero, uniform, none = (
        GaborStem(in_channels=1, channels=400, bias=bias).filters.bias
        for bias in ("zero", "uniform", "none")
    )
    assert not zero.any() and none is None
    assert 0.95 / 7 < float(uniform.detach().abs().max()) <= 1 / 7
    assert float(uniform.detach().std()) == pytest.approx(1 / 7 / 3**0.5, rel=0.1)


def test_a_random_stem_with_a_norm_need_not_square():
    torch.manual_seed(0)
    options = {"filters": "random", "norm": "BN", "squared": False, "bias": "none"}
    stem = GaborStem(in_channels=1, channels=6, kernel_size=5, **options)
    assert (stem.filters.weight.detach() - gabor_bank(6, 5)).abs().max() > 0.1
    responses = stem(torch.rand(4, 1, 9, 12))["stem"].detach()
    assert responses.shape == (4, 6, 9, 12) and (responses < 0).any()
    torch.testing.assert_close(responses.mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    squared = GaborStem(in_channels=1, channels=6, kernel_size=5, norm="BN")
    assert (squared(torch.rand(4, 1, 9, 12))["stem"] >= 0).all()
    assert sum(p.numel() for p in squared.parameters()) == 6 * 25 + 6 + 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": "one"}, "MODEL.BACKBONE.BIAS is 'one'; choose from none, uniform, zero"),
        ({"norm": "Batch"}, "unknown norm 'Batch'"),
        ({"squared": 1}, "MODEL.BACKBONE.SQUARED must be True or False"),
        ({"filters": "gabr"}, "MODEL.BACKBONE.FILTERS gabr: No such file.*choose gabor, random"),
        ({"filters": ""}, "MODEL.BACKBONE.FILTERS : No such file.*choose gabor, random"),
    ],
)
def test_impossible_stems_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        GaborStem(in_channels=1, channels=5, **options)


def test_a_config_names_the_file_and_its_path_is_kept_from_the_root(
    load_config, tmp_path, monkeypatch
):
    np.save(tmp_path / "bank.npy", np.full((4, 1, 7, 7), 0.25))
    monkeypatch.chdir(tmp_path)
    small = ("CRBP.CELL.CHANNELS", 4, "CRBP.CELL.KERNEL_SIZE", 3)
    cfg = load_config("pathfinder/hgru_14.yaml", *small, "MODEL.BACKBONE.FILTERS", "bank.npy")
    make_paths_absolute(cfg)
    assert str(tmp_path / "bank.npy") == cfg.MODEL.BACKBONE.FILTERS
    assert (build_model(cfg).backbone.filters.weight == 0.25).all()
    usual = load_config("pathfinder/hgru_14.yaml", *small)
    make_paths_absolute(usual)
    assert usual.MODEL.BACKBONE.FILTERS == "gabor"
