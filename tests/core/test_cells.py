"""Cells: equations, parameters, initial values and state-dict keys."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from crbp_d2.core import CELLS, ConfigurationError, ConvLSTMCell, HGRUCell, MaskHGRUCell
from crbp_d2.core.cells.norms import build_norm
from crbp_d2.core.ops.activations import ACTIVATIONS, softplus


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("gate_kernel_size", [3, 5])
def test_the_mask_head_cell_follows_its_equations(gate_kernel_size, groups):
    torch.manual_seed(0)
    options = {"gate_kernel_size": gate_kernel_size, "norm_groups": groups}
    cell = MaskHGRUCell(channels=8, norm="GN", **options).double()
    for p in cell.parameters():
        torch.nn.init.normal_(p, std=0.3)
    z, h = torch.rand(2, 2, 8, 5, 5, dtype=torch.float64)
    w = dict(cell.named_parameters())

    def conv(name, value, bias=None):
        kernel = w[f"{name}.weight"]
        return F.conv2d(value, kernel, bias, padding=kernel.shape[-1] // 2)

    def group_norm(name, value):
        return F.group_norm(value, groups, w[f"{name}.weight"], w[f"{name}.bias"])

    gate = "suppression_gate"
    overall = F.softplus(conv(f"{gate}.global_in", h, w[f"{gate}.global_in.bias"]))
    overall = conv(f"{gate}.global_out", overall)
    local = F.softplus(conv(f"{gate}.local_in", h, w[f"{gate}.local_in.bias"]))
    local = conv(f"{gate}.local_out", local)
    g_s = torch.sigmoid(overall * local + w[f"{gate}.bias"].reshape(1, -1, 1, 1))
    c_s = group_norm("suppression_norm", conv("suppression", h * g_s))
    s = F.softplus(z - c_s * (w["alpha"] * h + w["mu"]))
    g_f = torch.sigmoid(conv("recurrent_gate.convolution", s, w["recurrent_gate.convolution.bias"]))
    c_f = group_norm("facilitation_norm", conv("facilitation", s))
    expected = (1 - g_f) * h + g_f * F.softplus(c_f)
    assert torch.allclose(cell(z, h), expected, rtol=1e-12)


@pytest.mark.parametrize("own_gamma", [False, True])
@pytest.mark.parametrize("rectify_state", [False, True])
def test_the_pathfinder_cell_follows_its_equations(rectify_state, own_gamma):
    torch.manual_seed(0)
    options = {"rectify_state": rectify_state, "own_gamma": own_gamma}
    cell = HGRUCell(channels=4, kernel_size=5, norm="", **options).double()
    if own_gamma:
        assert (cell.gamma == 1).all() and (cell.nu == 0.5).all()
    for p in cell.parameters():
        torch.nn.init.normal_(p, std=0.3)
    z, h = torch.rand(2, 2, 4, 6, 6, dtype=torch.float64)
    w = dict(cell.named_parameters())

    def gate(name, value):
        kernel, bias = w[f"{name}.convolution.weight"], w[f"{name}.convolution.bias"]
        return torch.sigmoid(F.conv2d(value, kernel, bias))

    c_s = F.conv2d(h * gate("suppression_gate", h), w["suppression.weight"], padding=2)
    s = F.softplus(z - F.softplus((w["alpha"] * h + w["mu"]) * c_s))
    c_f = F.conv2d(s, w["facilitation.weight"], padding=2)
    gamma = w["gamma"] if own_gamma else w["nu"]
    candidate = F.softplus(w["nu"] * s + gamma * c_f + w["omega"] * (c_f * s))
    g_f = gate("recurrent_gate", s)
    expected = (1 - g_f) * h + g_f * candidate
    if rectify_state:
        expected = F.softplus(expected)
    assert torch.allclose(cell(z, h), expected, rtol=1e-12)


def test_conv_lstm_equals_an_lstm_cell_at_one_pixel():
    torch.manual_seed(0)
    cell = ConvLSTMCell(channels=3, kernel_size=1).double()
    reference = torch.nn.LSTMCell(3, 3).double()
    order = torch.tensor([0, 1, 3, 2])  # torch keeps input, forget, cell, output

    def reordered(weight):
        return weight.detach().reshape(4, 3, -1)[order].reshape(12, -1)

    with torch.no_grad():
        reference.weight_ih.copy_(reordered(cell.from_drive.weight))
        reference.weight_hh.copy_(reordered(cell.from_state.weight))
        reference.bias_ih.copy_(reordered(cell.from_drive.bias).squeeze(1))
        reference.bias_hh.zero_()
    x, h, c = torch.randn(3, 2, 3, dtype=torch.float64)
    found = cell(x[..., None, None], (h[..., None, None], c[..., None, None]))
    expected = reference(x, (h, c))
    for f, e in zip(found, expected, strict=True):
        assert torch.allclose(f[..., 0, 0], e, rtol=1e-12)


def test_parameter_counts():
    # 1,576,768 with the output norm of the head (512): the published model's difference.
    assert parameters(MaskHGRUCell(channels=256)) == 1_576_768 - 512
    # Released, with GALA's kernel following the circuit's.
    assert parameters(MaskHGRUCell(channels=256, kernel_size=5, gate_kernel_size=5)) == 4_199_744
    channels, size = 25, 15
    expected = 2 * channels**2 * size**2 + 2 * (channels**2 + channels) + 4 * channels
    assert parameters(HGRUCell(channels=channels, kernel_size=size, norm="")) == expected
    assert parameters(HGRUCell(channels=channels, kernel_size=size)) == expected + 4 * channels
    assert parameters(ConvLSTMCell(channels=5, kernel_size=3)) == 2 * 9 * 5 * 20 + 20


def test_initial_values_of_the_mask_head_cell():
    torch.manual_seed(0)
    cell = MaskHGRUCell(channels=256, chrono_steps=20)
    assert (cell.alpha == 0.1).all() and (cell.mu == 1).all()
    assert (cell.suppression_norm.weight == 0.1).all() and not cell.suppression_norm.bias.any()
    for kernel in (cell.suppression, cell.facilitation, cell.recurrent_gate.convolution):
        fan_in = kernel.weight[0].numel()
        assert float(kernel.weight.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)


def test_the_first_bias_of_gala_starts_at_zero_or_uniform():
    for uniform in (False, True):
        torch.manual_seed(0)
        gate = MaskHGRUCell(channels=256, gate_uniform_bias=uniform).suppression_gate
        first = gate.global_in.bias.detach()
        assert not gate.local_in.bias.any()
        if not uniform:
            assert not first.any()
    assert 0.9 / 16 < float(first.abs().max()) <= 1 / 16
    assert float(first.std()) == pytest.approx(1 / 16 / 3**0.5, rel=0.2)


def test_a_conv_lstm_starts_orthogonal_or_uniform():
    torch.manual_seed(0)
    usual = ConvLSTMCell(channels=4, kernel_size=3, forget_bias=0.5)
    rows = usual.from_state.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16), atol=1e-5, rtol=0)
    assert usual.from_drive.bias.tolist() == [0.0] * 4 + [0.5] * 4 + [0.0] * 8
    cell = ConvLSTMCell(channels=16, kernel_size=5, start="uniform")
    limit = 1 / (16 * 25) ** 0.5
    for started in (cell.from_drive.weight, cell.from_state.weight, cell.from_drive.bias):
        started = started.detach()
        assert 0.9 * limit < float(started.abs().max()) <= limit
        # The forget gate's biases are as the others'.
        assert abs(float(started.mean())) < 0.2 * limit
        assert float(started.std()) == pytest.approx(limit / 3**0.5, rel=0.2)
    with pytest.raises(ConfigurationError, match="start is 'normal'; choose from orthogonal, unif"):
        ConvLSTMCell(channels=4, start="normal")


@pytest.mark.parametrize("build", [MaskHGRUCell, HGRUCell])
def test_gate_biases_are_chrono_or_as_released(build):
    torch.manual_seed(0)
    chrono = build(channels=64, chrono_steps=20)
    bias = chrono.suppression_gate.bias
    # log U(1, 19): between 0 and log 19, mean (19 log 19 - 18) / 18 = 2.108.
    assert float(bias.min()) >= 0 and float(bias.max()) <= 2.945
    assert float(bias.mean()) == pytest.approx(2.108, abs=0.3)
    assert torch.equal(chrono.recurrent_gate.bias, -bias)
    released = build(channels=64, chrono_steps=20, gate_bias="released")
    assert float(released.suppression_gate.bias.min()) >= 1
    assert float(released.suppression_gate.bias.max()) > 15
    assert torch.equal(released.recurrent_gate.bias, -released.suppression_gate.bias)
    zero = build(channels=64, chrono_steps=20, gate_bias="zero")
    assert not zero.suppression_gate.bias.any() and not zero.recurrent_gate.bias.any()
    # Of the released contour model, whatever its number of steps: U(1, 7).
    eight = build(channels=64, chrono_steps=8, gate_bias="released").suppression_gate.bias
    assert 1 <= float(eight.min()) < 1.5 and 6.5 < float(eight.max()) <= 7
    for steps in (1, 2):
        assert not build(channels=4, chrono_steps=steps).suppression_gate.bias.any()


def test_state_dict_keys_are_stable():
    assert sorted(HGRUCell(channels=4).state_dict()) == [
        "alpha",
        "facilitation.weight",
        "facilitation_norm.bias",
        "facilitation_norm.num_batches_tracked",
        "facilitation_norm.running_mean",
        "facilitation_norm.running_var",
        "facilitation_norm.weight",
        "mu",
        "nu",
        "omega",
        "recurrent_gate.convolution.bias",
        "recurrent_gate.convolution.weight",
        "suppression.weight",
        "suppression_gate.convolution.bias",
        "suppression_gate.convolution.weight",
        "suppression_norm.bias",
        "suppression_norm.num_batches_tracked",
        "suppression_norm.running_mean",
        "suppression_norm.running_var",
        "suppression_norm.weight",
    ]
    assert sorted(MaskHGRUCell(channels=8).state_dict()) == [
        "alpha",
        "facilitation.weight",
        "facilitation_norm.bias",
        "facilitation_norm.weight",
        "mu",
        "recurrent_gate.convolution.bias",
        "recurrent_gate.convolution.weight",
        "suppression.weight",
        "suppression_gate.bias",
        "suppression_gate.global_in.bias",
        "suppression_gate.global_in.weight",
        "suppression_gate.global_out.weight",
        "suppression_gate.local_in.bias",
        "suppression_gate.local_in.weight",
        "suppression_gate.local_out.weight",
        "suppression_norm.bias",
        "suppression_norm.weight",
    ]


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 9, 15])
@pytest.mark.parametrize("name", sorted(CELLS))
def test_every_cell_keeps_shapes_for_every_kernel(name, kernel_size):
    cell = CELLS[name](channels=4, kernel_size=kernel_size)
    drive = torch.rand(2, 4, 7, 9)
    state = cell.initial_state(drive) if name == "conv_lstm" else torch.zeros_like(drive)
    following = cell(drive, state)
    for part in following if isinstance(following, tuple) else (following,):
        assert part.shape == drive.shape


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("gate", ["gala", "pointwise"])
def test_variants_of_the_mask_head_cell(gate, activation):
    cell = MaskHGRUCell(channels=8, gate=gate, activation_name=activation, norm="IN")
    assert cell(torch.rand(1, 8, 4, 4), torch.rand(1, 8, 4, 4)).shape == (1, 8, 4, 4)


def test_group_norm_takes_what_divides_the_channels():
    assert build_norm("GN", 256, scale=1).num_groups == 32
    assert build_norm("GN", 48, scale=1).num_groups == 16
    assert build_norm("IN", 25, scale=1).num_groups == 25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": 0}, "odd"),
        ({"norm": "SyncBN"}, "'BN', 'GN', 'IN'"),
        ({"gate_bias": "open"}, "chrono, released, zero"),
        ({"gate": "global"}, "gala, pointwise"),
        ({"gate_kernel_size": 2}, "gate_kernel_size must be a positive odd"),
        ({"norm_groups": 0}, "norm_groups must be an integer of at least 1"),
        ({"activation_name": "gelu"}, "softplus"),
        ({"channels": 2}, "at least 4"),
    ],
)
def test_impossible_cells_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        MaskHGRUCell(**{"channels": 8, **options})


@pytest.mark.parametrize(
    ("dtype", "digits"),
    [
        (torch.float64, 1e-15),
        (torch.float32, 1e-6),
        (torch.float16, 2**-11),
        (torch.bfloat16, 2**-8),
    ],
)
def test_softplus_is_exact_to_the_last_digits(dtype, digits):
    special = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan])
    x = torch.cat([torch.linspace(-80, 80, 100_001), special]).to(dtype)
    expected = torch.logaddexp(x.double(), torch.zeros((), dtype=torch.float64)).to(dtype)
    # What float16 can't hold in full is as coarse as its smallest number.
    smallest = 6e-8 if dtype == torch.float16 else 0.0
    torch.testing.assert_close(softplus(x), expected, rtol=digits, atol=smallest, equal_nan=True)


def test_softplus_has_exact_derivatives_of_first_and_second_order():
    x = torch.linspace(-40, 40, 101, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(softplus(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    rise = 1 / (1 + torch.exp(-x))
    torch.testing.assert_close(first, rise, rtol=1e-12, atol=0)
    torch.testing.assert_close(second, rise * rise.flip(0), rtol=1e-12, atol=1e-15)


def test_softplus_goes_with_function_transforms():
    x = torch.linspace(-5, 5, 12, dtype=torch.float64).reshape(3, 4)
    torch.testing.assert_close(torch.func.vmap(softplus)(x), softplus(x))
    slope = torch.func.vmap(torch.func.grad(lambda row: softplus(row).sum()))(x)
    torch.testing.assert_close(slope, torch.sigmoid(x))
    _, forward = torch.func.jvp(softplus, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(forward, torch.sigmoid(x))
