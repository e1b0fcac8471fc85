"""Features of the color ridge: mean color and its spread about the spot, which know nothing of morphology."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from stexpr.errors import ModelError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
CHUNK = 16
"""Patches converted to float at a time; 25 MB at 256 px."""


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
    offsets = np.arange(window_px) - (window_px - 1) / 2
    distance = np.hypot(offsets[:, None], offsets[None, :]).ravel()
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
    masks = disc_masks(radii_px, side)
    inside = masks.any(axis=0)
    discs = masks[:, inside].astype(np.float64)
    n_pixels = masks.sum(axis=1)[:, None]
    features = np.empty((n, len(radii_px), 6), dtype=np.float32)
    for start in range(0, n, CHUNK):
        # sums of integers below 2^53 are exact, whatever order and number of threads BLAS takes
        pixels = patches[start : start + CHUNK].reshape(-1, side * side, 3)[:, inside].astype(np.float64)
        mean = discs @ pixels / n_pixels
        spread = np.sqrt(np.maximum(discs @ np.square(pixels) / n_pixels - np.square(mean), 0))
        features[start : start + CHUNK] = np.concatenate([mean, spread], axis=2)
    return features.reshape(n, 6 * len(radii_px))
