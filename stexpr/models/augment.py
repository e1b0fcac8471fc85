"""Symmetries of the square and color jitter, for a whole batch at once on its device.

Tissue has no up and no left, so all eight flips and rotations of a patch are equally likely; a measured expression holds
for each.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from stexpr.config import InputConfig
from stexpr.types import SpotBatch

N_SYMMETRIES = 8
HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of hematoxylin, eosin and a residual in red, green and blue (Ruifrok and Johnston 2001)."""


class Share(NamedTuple):
    """Which rows of a whole batch are here; several processes share a batch.

    Random numbers are drawn for the whole batch, so that a spot gets those it would get from one process.
    """

    start: int
    total: int


def augment(config: InputConfig, batch: SpotBatch, generator: torch.Generator, share: Share | None = None) -> SpotBatch:
    """Change each patch of a batch at random, as the study says; counts stay as they are.

    Args:
        config: Which changes, and how strong.
        batch: One step's spots.
        generator: The only source of randomness, on the batch's device.
        share: Which rows of the step they are, None for all.
    """
    patches = batch.patches
    if config.symmetries:
        patches = apply_symmetries(patches, _drawn(len(patches), share, partial(torch.randint, N_SYMMETRIES), generator))
    if config.brightness or config.contrast or config.saturation or config.stain_jitter:
        patches = jitter_colors(patches, config, generator=generator, share=share)
    return replace(batch, patches=patches)


def apply_symmetries(patches: UInt8[Tensor, "B 3 H W"], which: Int64[Tensor, "B"]) -> UInt8[Tensor, "B 3 H W"]:
    """Apply to each patch the symmetry of its number.

    The bits of a number say: 4 transpose, then 2 flip top to bottom, then 1 flip left to right. Together they make every
    element of the dihedral group once, and 0 is the identity.

    Args:
        patches: Square patches.
        which: Numbers in [0, 8).
    """
    if patches.device.type != "cpu":
        return _turned_at_once(patches, which)
    turned = torch.empty_like(patches)
    for own, patch, number in zip(turned, patches, which.tolist(), strict=True):  # a tenth of the time all at once takes
        patch = patch.transpose(1, 2) if number & 4 else patch
        own.copy_(patch.flip([axis for bit, axis in ((2, 1), (1, 2)) if number & bit]) if number & 3 else patch)
    return turned


def _turned_at_once(patches: UInt8[Tensor, "B 3 H W"], which: Int64[Tensor, "B"]) -> UInt8[Tensor, "B 3 H W"]:
    """Turn patches without a branch that a value decides, so that a GPU is never waited for."""
    bits = which.view(-1, 1, 1, 1)
    patches = torch.where(bits & 4 > 0, patches.transpose(2, 3), patches)
    patches = torch.where(bits & 2 > 0, patches.flip(2), patches)
    return torch.where(bits & 1 > 0, patches.flip(3), patches)


def symmetry_mean(compute: Callable[[Tensor], Tensor], patches: UInt8[Tensor, "B 3 H W"]) -> Tensor:
    """Average what is computed of each patch over its eight flips and rotations.

    Args:
        compute: From patches to one row for each.
        patches: Square patches.
    """
    total: Any = 0
    for which in range(N_SYMMETRIES):
        total = total + compute(apply_symmetries(patches, torch.full((len(patches),), which, device=patches.device)))
    mean: Tensor = total / N_SYMMETRIES
    return mean


def jitter_colors(
    patches: UInt8[Tensor, "B 3 H W"], config: InputConfig, *, generator: torch.Generator, share: Share | None = None
) -> UInt8[Tensor, "B 3 H W"]:
    """Change stain densities, brightness, contrast and saturation of each patch by factors of its own.

    Args:
        patches: Square patches.
        config: Half-widths of the factors about 1, and the SD of the log stain factors.
        generator: Source of the factors, on the patches' device.
        share: Which rows of the whole batch they are, None for all.
    """
    images = patches.float() / 255

    def factor(width: float) -> Float[Tensor, "B 1 1 1"]:
        return 1 + width * (2 * _drawn(len(images), share, torch.rand, generator, 1, 1, 1) - 1)

    if config.stain_jitter:
        logs = _drawn(len(images), share, torch.randn, generator, 2) * config.stain_jitter
        images = scale_stains(images, logs.exp())
    if config.brightness:
        images = images * factor(config.brightness)
    if config.contrast:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = mean + (images - mean) * factor(config.contrast)
    if config.saturation:
        gray = (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        images = gray + (images - gray) * factor(config.saturation)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _drawn(n: int, share: Share | None, draw: Callable[..., Tensor], generator: torch.Generator, *shape: int) -> Tensor:
    start, total = share or Share(0, n)
    return draw((total, *shape), generator=generator, device=generator.device)[start : start + n]


def scale_stains(images: Float[Tensor, "B 3 H W"], factors: Float[Tensor, "B 2"]) -> Float[Tensor, "B 3 H W"]:
    """Multiply the amounts of hematoxylin and eosin of each image; factors of 1 change nothing.

    Args:
        images: In [0, 1].
        factors: For hematoxylin and eosin, above 0.
    """
    stains = (HED / HED.norm(dim=1, keepdim=True)).to(images)
    densities = -torch.log(images.clamp_min(1 / 255))
    change = torch.cat([factors - 1, torch.zeros_like(factors[:, :1])], dim=1)  # (B, 3)
    mixing = torch.linalg.inv(stains) @ (change[:, :, None] * stains)  # (B, 3, 3): added density per density
    added = torch.einsum("bchw,bcd->bdhw", densities, mixing)
    return images * torch.exp(-added)
