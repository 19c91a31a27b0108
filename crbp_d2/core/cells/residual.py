"""The residual block of implicit feature refinement, the hGRU's rival in the mask head."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from crbp_d2.core.cells.base import CELLS
from crbp_d2.core.cells.norms import build_norm
from crbp_d2.core.options import integer, number, odd


@CELLS.register("residual")
class ResidualCell(nn.Module):
    """Residual block whose equilibrium refines features, after IFR (Ma et al. 2021, 2112.04709),
    which puts it in the place of the mask head's four convolutions.

    `Z` drive, `H` state, `*` convolution with weight norm, `[.]+` rectification; where norms,
    rectifications and the drive stand is as in the block of MDEQ (Bai et al. 2020):

        A  = [norm_1(V_1 * H)]+
        H' = norm_3([norm_2(Z + V_2 * A) + H]+)

    The norm comes last and the drive is added in every step, which lets it settle; see
    `settling_norm`.

    Args:
        channels: `C` of drive and state.
        kernel_size: of `V_1` and `V_2`, odd.
        groups: of the three group norms, or fewer: the greatest common divisor with the channels.
        norm_scale: initial scale of the norms.

    Raises:
        ConfigurationError: an impossible size.
    """

    def __init__(
        self, *, channels: int, kernel_size: int = 3, groups: int = 4, norm_scale: float = 1.0
    ) -> None:
        super().__init__()
        size, channels = odd("kernel_size", kernel_size), integer("channels", channels, 1)
        groups, norm_scale = integer("groups", groups, 1), number("norm_scale", norm_scale)
        self.inner, self.outer = (
            nn.Conv2d(channels, channels, size, padding=size // 2, bias=False) for _ in range(2)
        )
        self.inner_norm, self.outer_norm, self.last_norm = (
            build_norm("GN", channels, scale=norm_scale, groups=groups) for _ in range(3)
        )
        for convolution in (self.inner, self.outer):
            # As in MDEQ: small beside the drive at first.
            nn.init.normal_(convolution.weight, std=0.01)
            weight_norm(convolution)

    def forward(self, drive: Tensor, state: Tensor) -> Tensor:
        """The next state.

        Args:
            drive: `Z (N, C, H, W)`.
            state: `H (N, C, H, W)`; starts at zero.

        Returns:
            `H' (N, C, H, W)`.
        """
        inner = F.relu(self.inner_norm(self.inner(state)))
        refined = self.outer_norm(drive + self.outer(inner))
        return self.last_norm(F.relu(refined + state))
