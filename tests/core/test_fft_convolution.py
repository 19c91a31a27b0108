"""Long-range convolutions in the Fourier domain against the direct ones."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from crbp_d2.core import (
    ConfigurationError,
    HGRUCell,
    JacobianFrobeniusPenalty,
    LipschitzCoefficientPenalty,
    SpectralPenalty,
)
from crbp_d2.core.ops import fft_convolution
from crbp_d2.core.ops.fft_convolution import LongRangeConv2d, kernel_spectrum, tiling
from tests.core.built import built

pytestmark = pytest.mark.slow

# Input and output channels, kernel, height, width: one tile, several, maps below the kernel's size,
# tiles that reach over more than two blocks.
SHAPES = [
    (3, 2, 1, 6, 5),
    (2, 3, 5, 4, 23),
    (3, 3, 9, 40, 17),
    (2, 2, 15, 7, 9),
    (4, 3, 15, 64, 33),
    (2, 2, 21, 50, 70),
    (1, 1, 15, 1, 1),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)


def convolution(inputs=2, outputs=2, kernel=9, dtype=torch.float64) -> LongRangeConv2d:
    return LongRangeConv2d(inputs, outputs, kernel, method="fft").to(dtype)


def directly(layer: LongRangeConv2d, maps: Tensor) -> Tensor:
    return F.conv2d(maps, layer.weight, padding=layer.weight.shape[-1] // 2)


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).detach().norm() / exact.detach().norm())


def derivatives(result: Tensor, maps: Tensor, weight: Tensor) -> list[Tensor]:
    """The result, the derivatives of its square, and those of the squares of these."""
    first = torch.autograd.grad(result.square().sum(), [maps, weight], create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), [maps, weight])
    return [result, *first, *second]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_values_and_two_derivatives_are_those_of_the_direct_convolution(shape, dtype, limit):
    inputs, outputs, kernel, height, width = shape
    layer = convolution(inputs, outputs, kernel, dtype)
    maps = torch.randn(2, inputs, height, width, dtype=dtype, requires_grad=True)
    found = derivatives(layer(maps), maps, layer.weight)
    assert all(f.dtype == dtype for f in found)
    layer, maps = layer.double(), maps.detach().double().requires_grad_()
    exact = derivatives(directly(layer, maps), maps, layer.weight)
    for f, e in zip(found, exact, strict=True):
        assert f.shape == e.shape
        assert distance(f, e) < limit


def test_derivatives_agree_with_finite_differences():
    layer = convolution(2, 1, 3)
    maps = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)

    def call(maps, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (maps,))

    assert torch.autograd.gradcheck(call, (maps, layer.weight))
    assert torch.autograd.gradgradcheck(call, (maps, layer.weight))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_layout_and_no_samples(layout):
    layer = convolution(3, 2)
    maps = torch.randn(2, 3, 12, 10, dtype=torch.float64).contiguous(memory_format=layout)
    assert distance(layer(maps), directly(layer, maps)) < 1e-10
    assert distance(layer(maps[:, :, ::2]), directly(layer, maps[:, :, ::2])) < 1e-10
    assert distance(layer(maps[0]), directly(layer, maps[0])) < 1e-10
    assert layer(maps[:0]).shape == (0, 2, 12, 10)


def test_samples_in_groups_are_samples_at_once(monkeypatch):
    layer = convolution()
    maps = torch.randn(5, 2, 20, 20, dtype=torch.float64, requires_grad=True)
    exact = derivatives(directly(layer, maps), maps, layer.weight)
    calls = counted(monkeypatch, "_convolve")
    for limit, groups in [(2**40, 1), (1, 5)]:
        monkeypatch.setattr(fft_convolution, "GROUP_BYTES", limit)
        calls.clear()
        result = layer(maps)
        assert len(calls) == groups
        for f, e in zip(derivatives(result, maps, layer.weight), exact, strict=True):
            assert distance(f, e) < 1e-10


def test_a_sample_that_is_not_finite_leaves_the_others_alone():
    layer = convolution()
    maps = torch.randn(3, 2, 20, 20, dtype=torch.float64)
    maps[1, 0, 3, 4] = float("nan")
    found = layer(maps)
    assert found[1].isnan().any()
    assert distance(found[::2], directly(layer, maps[::2])) < 1e-10


# --- the kept spectrum --------------------------------------------------------------------------


def counted(monkeypatch, name: str) -> list[None]:
    """A list that grows with every call of a function of the module."""
    calls: list[None] = []
    function = getattr(fft_convolution, name)

    def call(*arguments):
        calls.append(None)
        return function(*arguments)

    monkeypatch.setattr(fft_convolution, name, call)
    return calls


def by_the_optimizer(layer):
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.Adam(layer.parameters(), lr=0.1).step()
    layer.weight.grad = None


def by_a_state_dict(layer):
    layer.load_state_dict(convolution().state_dict())


def by_type(layer):
    layer.float()


def by_type_and_back(layer):
    layer.half().double()


def by_new_data(layer):
    layer.weight.data = torch.randn_like(layer.weight)


def by_new_data_twice(layer):
    # The second one may lie where the first one was.
    for _ in range(2):
        layer.weight.data = torch.randn_like(layer.weight)
        gc.collect()


def through_data(layer):
    version = layer.weight._version
    layer.weight.data.mul_(2)
    assert layer.weight._version == version


def through_numpy(layer):
    layer.weight.detach().numpy()[...] *= 3


def by_a_new_parameter(layer):
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


@pytest.mark.parametrize(
    "change",
    [
        by_the_optimizer,
        by_a_state_dict,
        by_type,
        by_type_and_back,
        by_new_data,
        by_new_data_twice,
        through_data,
        through_numpy,
        by_a_new_parameter,
    ],
)
def test_a_changed_kernel_never_meets_an_old_spectrum(change):
    layer = convolution()
    maps = torch.randn(1, 2, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        before = layer(maps)
        change(layer)
        maps = maps.to(layer.weight.dtype)
        after, exact = layer(maps), directly(layer, maps)
        # In float32 an old spectrum, in float64, could not even be used.
        assert distance(after, exact) < (1e-5 if layer.weight.dtype == torch.float32 else 1e-10)
        if change not in (by_type, by_type_and_back):
            assert distance(after, before) > 0.01


def test_the_spectrum_is_kept_while_kernel_and_size_stay(monkeypatch):
    calls = counted(monkeypatch, "kernel_spectrum")
    layer = convolution()
    maps = torch.randn(3, 2, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        for samples in (3, 1, 2):
            layer(maps[:samples])
    with torch.inference_mode():
        layer(maps)
    assert len(calls) == 1
    with torch.no_grad():
        layer(maps[..., :15])
        layer(maps)
    assert len(calls) == 3
    layer(maps).sum().backward()
    layer(maps).sum().backward()
    assert len(calls) == 5
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    layer(maps.requires_grad_()).sum().backward()
    assert len(calls) == 5


def test_what_is_kept_from_inference_mode_can_be_recorded():
    layer = convolution()
    maps = torch.randn(1, 2, 20, 20, dtype=torch.float64)
    with torch.inference_mode():
        layer(maps)
        fft_convolution.transforms.cache_clear()
        layer(maps)
    layer.requires_grad_(False)
    maps.requires_grad_()
    (found,) = torch.autograd.grad(layer(maps).square().sum(), maps)
    (exact,) = torch.autograd.grad(directly(layer, maps).square().sum(), maps)
    assert distance(found, exact) < 1e-10


def test_a_kernel_made_in_inference_mode():
    with torch.inference_mode():
        layer = convolution()
    maps = torch.randn(1, 2, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2):
            assert distance(layer(maps), directly(layer, maps)) < 1e-10


def test_no_graph_outlives_its_result():
    layer = convolution()
    maps = torch.randn(1, 2, 20, 20, dtype=torch.float64)
    with torch.no_grad():
        layer(maps)
    leaf = maps.clone().requires_grad_()
    result = layer(leaf)
    alive = weakref.ref(leaf)
    del leaf
    gc.collect()
    assert alive() is not None
    del result
    gc.collect()
    assert alive() is None


def test_copies_and_files_go_without_the_spectrum():
    layer = convolution()
    maps = torch.randn(1, 2, 20, 20, dtype=torch.float64)
    new = len(pickle.dumps(layer))
    with torch.no_grad():
        expected = layer(maps)
    assert len(pickle.dumps(layer)) == new
    assert list(layer.state_dict()) == ["weight"]
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    for copied in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stored, weights_only=False),
    ):
        with torch.no_grad():
            assert torch.equal(copied(maps), expected)
            copied.weight.mul_(2)
            assert distance(copied(maps), 2 * expected) < 1e-10
            assert torch.equal(layer(maps), expected)


# --- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "kernel", "size", "dtype", "fourier"),
    [
        (25, 15, 64, torch.float32, True),
        (25, 15, 64, torch.float64, True),
        (12, 15, 40, torch.float32, True),
        (25, 9, 40, torch.float32, True),
        (12, 7, 40, torch.float32, False),
        (48, 7, 64, torch.float32, False),
        (12, 9, 40, torch.float32, False),
        (25, 15, 14, torch.float32, False),
        (65, 15, 20, torch.float32, False),
        (25, 15, 20, torch.bfloat16, False),
    ],
)
def test_auto_takes_the_fourier_domain_where_it_gains(
    monkeypatch, channels, kernel, size, dtype, fourier
):
    calls = counted(monkeypatch, "convolve")
    layer = LongRangeConv2d(channels, channels, kernel).to(dtype)
    maps = torch.rand(1, channels, size, size, dtype=dtype)
    with torch.no_grad():
        found, exact = layer(maps), directly(layer, maps)
    assert len(calls) == fourier
    assert torch.equal(found, exact) != fourier
    assert distance(found, exact) < 1e-5


def test_direct_is_direct_and_so_is_a_compiled_step(monkeypatch):
    layer = LongRangeConv2d(8, 8, 15, method="direct")
    maps = torch.rand(1, 8, 64, 64)
    assert torch.equal(layer(maps), directly(layer, maps))
    layer.method = "fft"
    assert not torch.equal(layer(maps), directly(layer, maps))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(layer(maps), directly(layer, maps))


def test_half_precision_is_direct_by_auto_and_wide_by_fft():
    layer = LongRangeConv2d(25, 25, 15)
    maps = torch.rand(1, 25, 20, 20)
    exact = directly(layer, maps)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(maps), directly(layer, maps))
        layer.method = "fft"
        assert layer(maps).dtype == torch.float32
        assert distance(layer(maps), exact) < 1e-5
        half = maps.bfloat16()
        assert layer(half).dtype == torch.bfloat16
        assert distance(layer(half).float(), exact) < 0.01


def test_unknown_methods_are_refused():
    with pytest.raises(ConfigurationError, match="'fast'.*auto, direct, fft") as refused:
        HGRUCell(channels=2, convolution="fast")
    assert refused.value.option == "convolution"
    with pytest.raises(ConfigurationError, match="odd"):
        LongRangeConv2d(2, 2, 4)


def test_tiles_are_wide_enough_and_cover_the_map():
    for size in (1, 7, 40, 63, 150, 334):
        for kernel in (1, 9, 15, 21):
            cut = tiling(size, 2 * size, kernel, 25)
            for axis, pixels in ((cut.rows, size), (cut.columns, 2 * size)):
                assert axis.length >= axis.step + kernel - 1
                assert (axis.tiles - 1) * axis.step < pixels <= axis.tiles * axis.step
                before, after = axis.padding
                assert before == kernel // 2 and after >= kernel // 2


# --- in the circuit -----------------------------------------------------------------------------


def cells() -> tuple[HGRUCell, HGRUCell]:
    """The same cell, direct and in the Fourier domain."""
    direct = HGRUCell(channels=3, kernel_size=9, norm="IN", convolution="direct").double()
    fourier = HGRUCell(channels=3, kernel_size=9, norm="IN", convolution="fft").double()
    fourier.load_state_dict(direct.state_dict())
    return direct, fourier


@pytest.mark.parametrize("algorithm", ["crbp", "bptt", "tbptt"])
def test_learning_is_the_same_with_all_penalties(algorithm):
    drive = torch.rand(2, 3, 12, 10, dtype=torch.float64)
    results = []
    for cell in cells():
        penalties = (
            LipschitzCoefficientPenalty(bound=0.1),
            JacobianFrobeniusPenalty(),
            SpectralPenalty(margin=0.1),
        )
        recurrence = built(cell, algorithm=algorithm, steps=5, penalties=penalties)
        leaf = drive.clone().requires_grad_()
        torch.manual_seed(1)
        result = recurrence(leaf)
        assert all(value > 0 for value in result.penalties.values())
        (result.state.sin().sum() + sum(result.penalties.values())).backward()
        results.append([result.state, leaf.grad, *(p.grad for p in cell.parameters())])
    for exact, found in zip(*results, strict=True):
        assert distance(found, exact) < 1e-9


class KernelGradients(TorchDispatchMode):
    """Counts batched products whose result has the shape of a spectrum."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.found, self.products = shape, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.bmm.default:
            self.products += 1
            self.found += result.shape == self.shape
        return result


@pytest.mark.parametrize("terms", [0, 4])
def test_the_series_computes_no_gradients_of_kernels(terms):
    cell = cells()[1]
    drive = torch.rand(2, 3, 12, 10, dtype=torch.float64)
    shape = kernel_spectrum(cell.suppression.weight, tiling(12, 10, 9, 3)).shape
    recurrence = built(cell, algorithm="rbp", steps=3, adjoint_terms=terms, adjoint_tolerance=0.0)
    state = recurrence(drive).state
    with KernelGradients(shape) as counted_:
        state.sum().backward()
    # Two kernels, once each, in the last backward pass.
    assert counted_.found == 2
    # In every pass three batched products for each kernel; the last one goes on into the kernels.
    assert counted_.products == 2 * 3 * (terms + 1) + 2 * 2
