"""Fields of view: centered squares of a patch, brought to the size a network takes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional

__all__ = ["cut_fields"]


def cut_fields(patches: UInt8[Tensor, "B 3 H W"], fields_px: Sequence[int], input_px: int) -> Float32[Tensor, "N 3 P P"]:
    """Cut centered squares out of patches, scale them to [0, 1] and resize them.

    A single field is resized by antialiased bilinear interpolation. Of several, one whose side is a whole multiple of
    `input_px` is averaged over squares of pixels instead, which takes a third of the time and turns and flips exactly as the
    patch does. A square whose parity differs from that of the patch lies half a pixel off center, up and left, as the crops
    of a prepared cohort do.

    Args:
        patches: RGB.
        fields_px: Sides of the squares, none larger than the patch.
        input_px: Side they are resized to.

    Returns:
        All patches of the first field, then all of the next: (F * B, 3, P, P), channels last in memory.
    """
    if len(fields_px) == 1:
        return _interpolated(_center(patches, fields_px[0]), input_px)
    parts = [_center(patches, side) for side in fields_px]
    return torch.cat([(_averaged if _ratio(part, input_px) > 1 else _interpolated)(part, input_px) for part in parts])


def _center(patches: UInt8[Tensor, "B 3 H W"], side: int) -> UInt8[Tensor, "B 3 S S"]:
    start = (patches.shape[2] - side) // 2
    return patches[:, :, start : start + side, start : start + side]


def _ratio(patches: UInt8[Tensor, "B 3 S S"], input_px: int) -> int:
    """Return how many times as large as the input a field is, 0 where it is no whole multiple."""
    times, rest = divmod(patches.shape[2], input_px)
    return 0 if rest else times


def _interpolated(patches: UInt8[Tensor, "B 3 S S"], input_px: int) -> Float32[Tensor, "B 3 P P"]:
    # in place, which gives the same bits in a third of the time: fresh memory costs more than the arithmetic
    images = patches.float().contiguous(memory_format=torch.channels_last).div_(255)
    if patches.shape[2] == input_px:
        return images
    return functional.interpolate(images, size=(input_px, input_px), mode="bilinear", antialias=True, align_corners=False)


def _averaged(patches: UInt8[Tensor, "B 3 S S"], input_px: int) -> Float32[Tensor, "B 3 P P"]:
    ratio = _ratio(patches, input_px)
    # sums of whole rows of pixels, then of pixels: as in memory, four times as fast as avg_pool2d; all of them exact
    rows = torch.unflatten(patches.permute(0, 2, 3, 1).flatten(2), 1, (input_px, ratio))
    sums = rows[:, :, 0].int()
    for row in range(1, ratio):
        sums += rows[:, :, row]
    pixels = torch.unflatten(sums, 2, (input_px, ratio, 3))
    totals = pixels[:, :, :, 0].float()
    for column in range(1, ratio):
        totals += pixels[:, :, :, column]
    return totals.div_(255 * ratio**2).permute(0, 3, 1, 2)
