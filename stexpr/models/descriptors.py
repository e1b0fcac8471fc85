"""Descriptors of a patch that need no training: color and texture in discs and rings about the spot.

They are functions of distance from the center alone, so turning or flipping a patch leaves them as they are.
"""

import math
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional

from stexpr.errors import ModelError
from stexpr.models.baselines import disc_masks, fitting_radii

__all__ = ["Descriptors", "Group"]

Group: TypeAlias = Literal["color", "texture"]

_HEMATOXYLIN: Final = (1.878, -1.008, -0.556)
"""Row of the inverse of Ruifrok and Johnston's stain matrix that gives hematoxylin from optical density."""
_LEVELS: Final = 5


class Descriptors(nn.Module):
    """Measures color and texture of patches at several distances from their center.

    Color: mean and standard deviation of red, green and blue in discs, in [0, 255]. Texture: the mean strength of each band of
    a pyramid (details of 1, 2, 4, 8 and 16 px) of the optical density and of hematoxylin, in the innermost disc and the rings
    between one disc and the next.

    Args:
        window_px: Side of the patches.
        radii_px: Radii of the discs; those that do not fit the window are left out.

    Raises:
        ModelError: No disc fits the window.

    Reference:
        Ruifrok & Johnston, Quantification of histochemical staining by color deconvolution, 2001.
    """

    discs: Tensor

    def __init__(self, window_px: int, radii_px: Sequence[int]) -> None:
        super().__init__()
        self.window_px = window_px
        self.radii_px = fitting_radii(sorted(set(radii_px)), window_px)  # a ring between equal discs has no pixel
        discs = torch.from_numpy(disc_masks(self.radii_px, window_px)).float()
        rings = torch.cat([discs[:1], discs[1:] - discs[:-1]]).view(-1, window_px, window_px)
        self.register_buffer("discs", discs / discs.sum(dim=1, keepdim=True), persistent=False)
        for level in range(_LEVELS):
            shares = rings.flatten(1)
            self.register_buffer(f"rings_{level}", shares / shares.sum(dim=1, keepdim=True), persistent=False)
            rings = _halved(rings)

    def width(self, group: Group) -> int:
        """Return the number of descriptors of a group."""
        return len(self.radii_px) * (6 if group == "color" else 2 * 2 * _LEVELS)

    def forward(self, patches: UInt8[Tensor, "B 3 H W"]) -> dict[Group, Float32[Tensor, "B _"]]:
        """Describe patches, in float32 whatever the precision around it.

        Raises:
            ModelError: The patches have another size than asked for.
        """
        if patches.shape[2:] != (self.window_px, self.window_px):
            raise ModelError(f"descriptors of {self.window_px} px got patches of {tuple(patches.shape[2:])} px")
        with torch.autocast(patches.device.type, enabled=False):
            pixels = patches.float()
            return {"color": self._color(pixels), "texture": self._texture(pixels)}

    def _color(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        # about the middle of the range, where the difference of squares loses less to rounding
        flat = pixels.flatten(2) - 128
        mean = flat @ self.discs.T  # (B, 3, K)
        spread = (flat.square() @ self.discs.T - mean.square()).clamp_min(0).sqrt()
        return torch.cat([mean + 128, spread], dim=1).transpose(1, 2).flatten(1)

    def _texture(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        density = -((pixels + 1) / 256).log()
        weights = density.new_tensor([[1 / 3] * 3, _HEMATOXYLIN])
        maps = torch.einsum("bchw,oc->bohw", density, weights)
        bands = []
        for level in range(_LEVELS):
            smooth = _halved(maps)
            size = maps.shape[-2:]
            detail = maps - functional.interpolate(smooth, size=size, mode="bilinear", align_corners=False)
            strength = torch.stack([detail.abs(), detail.clamp_min(0)], dim=2).flatten(1, 2)  # (B, 4, h, w)
            bands.append(strength.flatten(2) @ self.get_buffer(f"rings_{level}").T)
            maps = smooth
        return torch.cat(bands, dim=1).transpose(1, 2).flatten(1)


def _halved(images: Tensor) -> Tensor:
    """Average over cells of 2 x 2, which overlap where a side is odd, so that turning an image turns the result."""
    side = math.ceil(images.shape[-1] / 2)
    return functional.adaptive_avg_pool2d(images, side)
