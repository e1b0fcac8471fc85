"""Features of the color ridge: mean color and its spread about the spot, which know nothing of morphology."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from stexpr.errors import ModelError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def fitting_radii(radii_px: Sequence[int], window_px: int) -> tuple[int, ...]:
    """Return the radii whose disc fits the window and holds a pixel, in order.

    Raises:
        ModelError: None fits.
    """
    fitting = tuple(sorted(radius for radius in radii_px if 1 <= radius <= window_px / 2))
    if not fitting:
        raise ModelError(f"no disc of radius {', '.join(map(str, radii_px))} px fits a window of {window_px} px")
    return fitting


def disc_masks(radii_px: Sequence[int], window_px: int) -> Bool[Array, "K p"]:
    """Return for each radius which pixels of a window lie in the disc about its center."""
    distance = _distances(window_px)
    return np.stack([distance <= radius for radius in radii_px])


def color_features(patches: UInt8[Array, "S H W 3"], radii_px: Sequence[int]) -> Float32[Array, "S D"]:
    """Measure the mean and the standard deviation of red, green and blue in discs about each patch's center.

    Args:
        patches: Square patches.
        radii_px: Radii of the discs, each at most half the window.

    Returns:
        For each radius three means, then three standard deviations, in [0, 255].

    Raises:
        ModelError: A disc does not fit the window.
    """
    n, side = patches.shape[:2]
    if len(fitting_radii(radii_px, side)) != len(radii_px):
        raise ModelError(f"discs of radius {max(radii_px)} px do not fit patches of {side} px")
    n_pixels = disc_masks(radii_px, side).sum(axis=1)
    # from the center outwards each disc is a stretch of pixels from the first, so that a sum over rings serves all discs
    ends, place = np.unique(n_pixels, return_inverse=True)
    outwards = np.argsort(_distances(side), kind="stable")[: ends[-1]]
    starts = np.concatenate([[0], ends[:-1]])
    features = np.empty((n, len(radii_px), 6), dtype=np.float32)
    for own, patch in zip(features, patches, strict=True):
        # sums of integers below 2^53 are exact, whatever their order
        pixels = patch.reshape(-1, 3).take(outwards, axis=0).astype(np.float64)
        first, second = (np.add.reduceat(x, starts, axis=0).cumsum(axis=0)[place] for x in (pixels, np.square(pixels)))
        own[:, :3] = mean = first / n_pixels[:, None]
        own[:, 3:] = np.sqrt(np.maximum(second / n_pixels[:, None] - np.square(mean), 0))
    return features.reshape(n, 6 * len(radii_px))


def _distances(window_px: int) -> Float64[Array, "p"]:
    """Return how far each pixel of a window lies from its center, px."""
    offsets = np.arange(window_px) - (window_px - 1) / 2
    distances: Array = np.hypot(offsets[:, None], offsets[None, :]).ravel()
    return distances
