"""Convolution with long-range kernels in the Fourier domain.

Overlap-save (Stockham 1966; Helms 1967): the map is cut into tiles that overlap by the kernel's
size less one; for each frequency the convolution is one product of matrices over the channels; of a
tile's result the part is kept that nothing wraps around into. That part and the kernel's size less
one are the tile's side, so the result is that of the direct convolution, up to rounding.

The tiles are some 30 pixels wide. Their Fourier transforms are products with matrices of cosines
and sines: at that size as fast as `torch.fft`, they leave the values in the order that the product
over the channels needs, and their derivatives are products of the same cost (`torch.fft.rfft2` is
differentiated by a complex transform, half of it zeros). All of it is differentiable operations, so
the gradient of a state alone computes none of the kernel, and can itself be differentiated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crbp_d2.core.errors import ConfigurationError, choices
from crbp_d2.core.options import odd
from crbp_d2.core.state import at_least_float32

METHODS = ("auto", "direct", "fft")
GROUP_BYTES = 4 * 2**20
"""What the frequencies of the maps that are convolved together may take, to stay in a cache."""

# Where `auto` was measured to gain; see `LongRangeConv2d`.
LEAST_KERNEL = 9
MOST_CHANNELS = 64
LEAST_GAIN = 2.2


@dataclass(frozen=True)
class Axis:
    """How one axis of a map is cut into tiles.

    Attributes:
        size: pixels of the map.
        kernel: size of the kernel, odd.
        step: pixels of the result that a tile gives; tiles start that far apart.
    """

    size: int
    kernel: int
    step: int

    @property
    def tiles(self) -> int:
        """How many it takes."""
        return -(-self.size // self.step)

    @property
    def length(self) -> int:
        """Pixels of a tile, the fewest with which nothing wraps around into what is kept."""
        return self.step + self.kernel - 1

    @property
    def pieces(self) -> int:
        """Blocks of `step` pixels that a tile reaches over."""
        return -(-self.length // self.step)

    @property
    def padding(self) -> tuple[int, int]:
        """Zeros before and after the map, which make it whole blocks for all tiles."""
        before = self.kernel // 2
        return before, (self.tiles + self.pieces - 1) * self.step - before - self.size


@dataclass(frozen=True)
class Tiling:
    """How a map is cut along both axes."""

    rows: Axis
    columns: Axis

    @property
    def tiles(self) -> int:
        """Tiles of one map."""
        return self.rows.tiles * self.columns.tiles

    @property
    def values(self) -> int:
        """Real numbers that the frequencies of one map's channel take."""
        return 2 * self.half * self.columns.length * self.tiles

    @property
    def half(self) -> int:
        """Frequencies along the first axis; the others are conjugates, as maps are real."""
        return self.rows.length // 2 + 1

    def cost(self, channels: int) -> float:
        """Time of the convolution of one map, in multiplications of a large matrix product.

        The weights of what is not a large product were fitted to times on one core with AVX-512.
        """
        u, s, v = self.half, self.rows.length, self.columns.length
        kept_s, kept_v = self.rows.step, self.columns.step
        there = 2 * u * s * v + u * (2 * v) ** 2
        back = u * 4 * v * kept_v + 2 * u * kept_s * kept_v
        over_channels = 2 * (u * v * 4 * channels)
        moving_values = 60 * (s * v + kept_s * kept_v)
        reading_the_spectrum = 10 * (u * v * 4 * channels**2)
        a_tile = channels * (there + back + over_channels + moving_values)
        return self.tiles * a_tile + reading_the_spectrum


class Transforms(NamedTuple):
    """Matrices of the Fourier transforms of a tile. `r` counts real and imaginary part.

    Attributes:
        rows: `(u r, i)`, of real values.
        columns: `(v r, r j)`, of complex ones.
        columns_back: `(r j, v r)`, to those pixels that are kept.
        rows_back: `(i, u r)`, to real values of those pixels that are kept.
    """

    rows: Tensor
    columns: Tensor
    columns_back: Tensor
    rows_back: Tensor


@lru_cache(maxsize=64)
def tiling(height: int, width: int, kernel: int, channels: int) -> Tiling:
    """The tiles with which the convolution of one map takes the least time.

    The number of maps plays no part, so a kernel's spectrum serves every batch.

    Args:
        height: of the map.
        width: of the map.
        kernel: its size, odd.
        channels: of map and result.
    """

    def cuts(size: int) -> list[Axis]:
        most = max(2 * size // kernel, 1)
        steps = {-(-size // count) for count in range(1, most + 1)}
        return [Axis(size, kernel, step) for step in sorted(steps)]

    return min(
        (Tiling(rows, columns) for rows in cuts(height) for columns in cuts(width)),
        key=lambda cut: cut.cost(channels),
    )


@lru_cache(maxsize=64)
def transforms(cut: Tiling, dtype: torch.dtype, device: torch.device) -> Transforms:
    """The matrices for tiles cut so, computed in float64 and rounded."""
    # Made under inference mode they could never be recorded.
    with torch.inference_mode(False), torch.no_grad():
        angles = _angles(cut.rows.length)[: cut.half]
        cos, sin = angles.cos(), angles.sin()
        rows = torch.stack([cos, -sin], dim=1).flatten(0, 1)
        # Frequencies with a conjugate that is left out count for two.
        count = torch.full((cut.half, 1), 2.0, dtype=torch.float64)
        count[0] = 1
        if cut.rows.length % 2 == 0:
            count[-1] = 1
        kept = torch.stack([count * cos, -count * sin], dim=1)[..., : cut.rows.step]
        rows_back = kept.flatten(0, 1).T / cut.rows.length

        length, step = cut.columns.length, cut.columns.step
        angles = _angles(length)
        cos, sin = angles.cos(), angles.sin()
        # v, r, r, j: the real part of (cos - i sin)(re + i im), then the imaginary one.
        columns = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
        # The inverse, the conjugate transpose, is for real and imaginary parts the transpose.
        columns_back = columns[..., :step].flatten(0, 1).flatten(1, 2).T / length
        return Transforms(
            *(
                matrix.to(dtype=dtype, device=device).contiguous()
                for matrix in (
                    rows,
                    columns.flatten(2, 3).flatten(0, 1),
                    columns_back,
                    rows_back,
                )
            )
        )


def kernel_spectrum(weight: Tensor, cut: Tiling) -> Tensor:
    """What the kernels do to each frequency, real and imaginary parts apart.

    A complex product `(a + ib)(x + iy)` is the real one `[[a, -b], [b, a]] [x, y]`, whose
    derivatives need no conjugates. The kernels' own spectrum is conjugated, as convolutions of
    neural networks are correlations.

    Args:
        weight: `(C_out, C_in, E, E)`.
        cut: the tiling of the maps.

    Returns:
        `(F, 2 C_out, 2 C_in)`, `F` frequencies.
    """
    outputs, inputs, size, _ = weight.shape
    matrices = transforms(cut, weight.dtype, weight.device)
    length = cut.columns.length
    kernels = weight.permute(2, 3, 0, 1).reshape(size, size * outputs * inputs)
    lines = (matrices.rows[:, :size] @ kernels).view(cut.half, 2 * size, outputs * inputs)
    columns = matrices.columns.view(2 * length, 2, length)[..., :size].flatten(1, 2)
    values = (columns @ lines).view(cut.half * length, 2, outputs, inputs)
    real, imaginary = values.unbind(dim=1)
    return torch.cat(
        [torch.cat([real, imaginary], dim=2), torch.cat([-imaginary, real], dim=2)], dim=1
    )


def convolve(maps: Tensor, spectrum: Tensor, cut: Tiling) -> Tensor:
    """The convolution with zeros around the maps.

    Args:
        maps: `(N, C_in, H, W)`, `H` and `W` those of the tiling.
        spectrum: see `kernel_spectrum`, of the maps' type.
        cut: the tiling.

    Returns:
        `(N, C_out, H, W)`.
    """
    # What a group's tiles fill stays in the cache of a processor.
    size = max(maps.shape[1], spectrum.shape[1] // 2) * maps.element_size()
    groups = -(-len(maps) * size * cut.values // GROUP_BYTES)
    if groups <= 1:
        return _convolve(maps, spectrum, cut)
    parts = maps.chunk(min(groups, len(maps)))
    return torch.cat([_convolve(part, spectrum, cut) for part in parts])


def _convolve(maps: Tensor, spectrum: Tensor, cut: Tiling) -> Tensor:
    samples, inputs = maps.shape[:2]
    outputs = spectrum.shape[1] // 2
    rows, columns = cut.rows, cut.columns
    matrices = transforms(cut, maps.dtype, maps.device)
    many = samples * cut.tiles
    tiles = _overlapping(maps.transpose(0, 1), cut).flatten(0, 3).flatten(1)
    # Pixels first: transposing a matrix is fast, permuting more dimensions is not.
    pixels = tiles.T.reshape(rows.length, columns.length * inputs * many)
    lines = (matrices.rows @ pixels).view(cut.half, 2 * columns.length, inputs * many)
    values = torch.bmm(matrices.columns.expand(cut.half, -1, -1), lines)
    mixed = torch.bmm(spectrum, values.view(-1, 2 * inputs, many))
    mixed = mixed.view(cut.half, 2 * columns.length, outputs * many)
    lines = torch.bmm(matrices.columns_back.expand(cut.half, -1, -1), mixed)
    pixels = matrices.rows_back @ lines.view(2 * cut.half, columns.step * outputs * many)
    tiles = pixels.view(rows.step * columns.step, outputs * many).T
    tiles = tiles.reshape(outputs, samples, rows.tiles, columns.tiles, rows.step, columns.step)
    whole = tiles.permute(1, 0, 2, 4, 3, 5).reshape(
        samples, outputs, rows.tiles * rows.step, columns.tiles * columns.step
    )
    return whole[..., : rows.size, : columns.size]


class LongRangeConv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1 that keeps the size of its maps, without bias, direct or in the
    Fourier domain.

    Both ways have the same parameters, values and derivatives up to rounding. `auto` takes the
    Fourier domain for kernels from 9 pixels and up to 64 channels, on a CPU, in float32 and
    float64, where the direct way needs 2.2 times the multiplications (`Tiling.cost`): there it was
    measured to be faster. For kernels of 15 that is from maps of 18 pixels with 25 channels, of 28
    with 12; for kernels of 9 from 38 with 25, never with 12. All else is direct, half precision,
    autocast and GPUs among it; so is what `torch.compile` compiles, whatever the method.

    While nothing is recorded for the kernel its spectrum is kept, beside a copy of the kernel, and
    serves the next calls with a kernel of the same values. A recorded step saves the spectrum and
    the frequencies of its maps, two to three times the values of these.

    Args:
        in_channels: `C_in`.
        out_channels: `C_out`.
        kernel_size: `E`, odd.
        method: `auto`, `direct` or `fft`.

    Raises:
        ConfigurationError: an unknown method or an impossible size.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, method: str = "auto"
    ) -> None:
        if method not in METHODS:
            raise ConfigurationError(
                f"unknown convolution {method!r}; choose from {choices(METHODS)}",
                option="convolution",
            )
        size = odd("kernel_size", kernel_size)
        super().__init__(in_channels, out_channels, size, padding=size // 2, bias=False)
        self.method = method
        self._kept: _Kept | None = None

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C_in, H, W)` to `(N, C_out, H, W)`; `fft` computes half precision in float32."""
        if not self._in_fourier_domain(input):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            cut = self._tiling(input)
            found = convolve(at_least_float32(input), self._spectrum(cut), cut)
        return found.to(input.dtype)

    def extra_repr(self) -> str:
        """As of `nn.Conv2d`, with the method."""
        return f"{super().extra_repr()}, method={self.method}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _tiling(self, maps: Tensor) -> Tiling:
        height, width = maps.shape[-2:]
        channels = max(self.in_channels, self.out_channels)
        return tiling(height, width, self.kernel_size[0], channels)

    def _in_fourier_domain(self, maps: Tensor) -> bool:
        # Neither what is kept from call to call nor tiles of one size have a place in a graph.
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if self.method == "direct" or maps.dim() != 4 or not maps.numel():
            return False
        if self.method == "fft":
            return True
        channels, size = max(self.in_channels, self.out_channels), self.kernel_size[0]
        if (
            size < LEAST_KERNEL
            or channels > MOST_CHANNELS
            or maps.device.type != "cpu"
            or maps.dtype not in (torch.float32, torch.float64)
            or maps.dtype != self.weight.dtype
            or torch.is_autocast_enabled("cpu")
        ):
            return False
        direct = maps.shape[-2] * maps.shape[-1] * size**2 * self.in_channels * self.out_channels
        return direct >= LEAST_GAIN * self._tiling(maps).cost(channels)

    def _spectrum(self, cut: Tiling) -> Tensor:
        weight = at_least_float32(self.weight)
        recorded = weight.requires_grad and torch.is_grad_enabled()
        # Comparing would wait for a GPU.
        if recorded or weight.is_cuda:
            return kernel_spectrum(weight, cut)
        kept = self._kept
        if kept is None or not kept.serves(weight, cut):
            with torch.inference_mode(False), torch.no_grad():
                kept = _Kept(weight.detach().clone(), cut, kernel_spectrum(weight, cut))
            self._kept = kept
        return kept.spectrum


@dataclass(frozen=True)
class _Kept:
    """A spectrum and what it was computed from."""

    weight: Tensor
    cut: Tiling
    spectrum: Tensor

    def serves(self, weight: Tensor, cut: Tiling) -> bool:
        """The values are compared, as not every change of a tensor leaves a trace: an assignment to
        `weight.data` changes neither the parameter nor its version."""
        return (
            self.cut == cut
            and self.weight.dtype == weight.dtype
            and self.weight.device == weight.device
            and torch.equal(self.weight, weight)
        )


def _angles(length: int) -> Tensor:
    """`2 pi v j / length` of all frequencies `v` and pixels `j`, less whole turns."""
    numbers = torch.arange(length)
    return 2 * math.pi / length * (torch.outer(numbers, numbers) % length).double()


def _overlapping(maps: Tensor, cut: Tiling) -> Tensor:
    """`(C, N, H, W)` with zeros around as `(C, N, tiles, tiles, i, j)`."""
    padded = F.pad(maps, (*cut.columns.padding, *cut.rows.padding))
    lines = _cut(padded, 2, cut.rows)
    return _cut(lines, 4, cut.columns).transpose(3, 4)


def _cut(maps: Tensor, dim: int, axis: Axis) -> Tensor:
    """One dimension into tiles and their pixels. Blocks side by side are joined, as the derivative
    of `unfold` is slow."""
    blocks = maps.unflatten(dim, (-1, axis.step))
    pieces = [
        blocks.narrow(dim, i, axis.tiles).narrow(
            dim + 1, 0, min(axis.step, axis.length - i * axis.step)
        )
        for i in range(axis.pieces)
    ]
    return torch.cat(pieces, dim + 1)
