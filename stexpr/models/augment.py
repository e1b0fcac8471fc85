"""What may be done to a patch without changing its expression: eight symmetries, and jitter of its colors.

Everything runs on the device of the patches, for a whole batch at once, and every random number comes from the generator
given.
"""

import dataclasses

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from stexpr.config import InputConfig
from stexpr.types import SpotBatch

N_SYMMETRIES = 8

# Optical densities of hematoxylin, eosin and a residual in red, green and blue: Ruifrok & Johnston 2001.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


def apply_symmetry(patches: UInt8[Tensor, "B C H W"], index: int) -> UInt8[Tensor, "B C H W"]:
    """Apply one of the eight symmetries of a square to every patch.

    The index is a sum: 4 to transpose, then 2 to flip upside down, then 1 to flip left to right; 0 is the identity.

    Args:
        patches: Square patches.
        index: 0 to 7.

    Example:
        >>> patch = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
        >>> apply_symmetry(patch, 4).flatten().tolist(), apply_symmetry(patch, 3).flatten().tolist()
        ([1, 3, 2, 4], [4, 3, 2, 1])
    """
    if index & 4:
        patches = patches.transpose(2, 3)
    axes = [axis for bit, axis in ((2, 2), (1, 3)) if index & bit]
    return patches.flip(axes) if axes else patches


def apply_symmetries(patches: UInt8[Tensor, "B C H W"], indices: Int64[Tensor, "B"]) -> UInt8[Tensor, "B C H W"]:
    """Apply to each patch its own symmetry, without a look at the indices that would stall a GPU."""
    bits = indices[:, None, None, None]
    patches = torch.where((bits & 4).bool(), patches.transpose(2, 3), patches)
    patches = torch.where((bits & 2).bool(), patches.flip(2), patches)
    return torch.where((bits & 1).bool(), patches.flip(3), patches)


def augment(batch: SpotBatch, inputs: InputConfig, *, generator: torch.Generator) -> SpotBatch:
    """Change the patches of a batch at random, each spot in its own way; counts are untouched.

    Args:
        batch: Spots, patches uint8.
        inputs: What is changed and by how much.
        generator: Source of all random numbers, on the device of the batch.

    Returns:
        The batch with other patches, uint8 again, so what a network sees passes through one preprocessing.
    """
    patches = batch.patches
    if inputs.symmetries:
        indices = torch.randint(N_SYMMETRIES, (len(patches),), generator=generator, device=patches.device)
        patches = apply_symmetries(patches, indices)
    if any((inputs.brightness, inputs.contrast, inputs.saturation, inputs.stain_jitter)):
        images = _jitter(patches.float() / 255, inputs, generator)
        patches = (images * 255).round().to(torch.uint8)
    return dataclasses.replace(batch, patches=patches)


def _jitter(images: Float32[Tensor, "B 3 H W"], inputs: InputConfig, generator: torch.Generator) -> Float32[Tensor, "B 3 H W"]:
    size, device = (len(images),), images.device

    def around_one(width: float) -> Tensor:
        return 1 + width * (2 * torch.rand(size, generator=generator, device=device) - 1)

    if inputs.stain_jitter:
        logs = inputs.stain_jitter * torch.randn((len(images), 2), generator=generator, device=device)
        images = scale_stains(images, logs.exp())
    if inputs.brightness:
        images = adjust_brightness(images, around_one(inputs.brightness))
    if inputs.contrast:
        images = adjust_contrast(images, around_one(inputs.contrast))
    if inputs.saturation:
        images = adjust_saturation(images, around_one(inputs.saturation))
    return images


def scale_stains(images: Float32[Tensor, "B 3 H W"], factors: Float32[Tensor, "B 2"]) -> Float32[Tensor, "B 3 H W"]:
    """Multiply the densities of hematoxylin and eosin; a white background stays white.

    Args:
        images: RGB in [0, 1].
        factors: Of hematoxylin and eosin, one pair per image.

    Returns:
        RGB clipped to [0, 1].

    Reference:
        Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291; Tellez et al. 2018, doi:10.1109/TMI.2018.2820199.
    """
    stains = torch.tensor(STAINS, device=images.device)
    density = -images.clamp(min=1 / 255).log()
    amounts = torch.einsum("bchw,cs->bshw", density, torch.linalg.inv(stains))
    change = (factors - 1)[:, :, None, None] * amounts[:, :2]  # the residual keeps its amount
    return (-density - torch.einsum("bshw,sc->bchw", change, stains[:2])).exp().clamp(0, 1)


def adjust_brightness(images: Float32[Tensor, "B 3 H W"], factors: Float32[Tensor, "B"]) -> Float32[Tensor, "B 3 H W"]:
    """Multiply each image by its factor and clip to [0, 1]."""
    return (images * factors[:, None, None, None]).clamp(0, 1)


def adjust_contrast(images: Float32[Tensor, "B 3 H W"], factors: Float32[Tensor, "B"]) -> Float32[Tensor, "B 3 H W"]:
    """Move each image away from (or to, below 1) its mean gray and clip to [0, 1]."""
    return _blend(images, _gray(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def adjust_saturation(images: Float32[Tensor, "B 3 H W"], factors: Float32[Tensor, "B"]) -> Float32[Tensor, "B 3 H W"]:
    """Move each pixel away from (or to, below 1) its own gray and clip to [0, 1]."""
    return _blend(images, _gray(images), factors)


def _gray(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    weights = torch.tensor([0.2989, 0.587, 0.114], device=images.device)  # ITU-R BT.601
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


def _blend(images: Tensor, toward: Tensor, factors: Tensor) -> Tensor:
    share = factors[:, None, None, None]
    return (share * images + (1 - share) * toward).clamp(0, 1)
