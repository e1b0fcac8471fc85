"""Patches that are in a cohort twice, also turned, mirrored, brightened or compressed again.

Each patch is hashed by the signs of its low frequencies (a perceptual hash of 99 bits), and sections are searched for
hashes that nearly agree in one of the eight orientations. What is found is compared pixel by pixel before it counts.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from stexpr.data.store import PreparedCohort
from stexpr.evaluate.audit.findings import Overlap
from stexpr.types import Progress, silent

__all__ = ["Thumbnails", "duplicate_patches", "perceptual_bits", "textured", "thumbnails"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

CHUNK = 16
"""Patches converted to float at a time; 25 MB at 256 px."""
SIDE = 32
FREQUENCIES = 10
MAX_BITS = 20
"""Bits in which two hashes may differ, of 99. Noise, brightness and JPEG compression at quality 50 change at most 8 in MOB
and HER2ST; the closest patches of different sections there differ in 17."""
SAME = 0.5
"""Correlation of local contrast that confirms a pair: at least 0.92 after the same changes, at most 0.27 between sections."""
TEXTURE = 1.5
TEXTURED = 0.25
"""A patch is blank, and looked at no further, unless a quarter of its thumbnail varies by 1.5 gray levels around a pixel."""
_GRAY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_CANDIDATES = 2048


class Thumbnails(NamedTuple):
    """The patches of one section, 32 x 32 px in gray."""

    section: str
    images: Float32[Array, "S 32 32"]


def thumbnails(patches: UInt8[Array, "S H W 3"]) -> Float32[Array, "S 32 32"]:
    """Reduce patches to 32 x 32 gray values by averaging; smaller patches are repeated instead."""
    side = patches.shape[1]
    edges = np.linspace(0, side, SIDE + 1)
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.maximum(overlap, 0).astype(np.float32) / np.float32(side / SIDE)
    small = np.empty((len(patches), SIDE, SIDE), dtype=np.float32)
    for start in range(0, len(patches), CHUNK):
        small[start : start + CHUNK] = weights @ (patches[start : start + CHUNK] @ _GRAY) @ weights.T
    return small


def perceptual_bits(images: Float32[Array, "S 32 32"]) -> Float32[Array, "S K"]:
    """Hash images by the signs of their 10 x 10 lowest cosine frequencies, the mean left out.

    Brightness and contrast do not matter.

    Returns:
        Values of -1 and 1, so that the product of two hashes is 99 minus twice the bits in which they differ.
    """
    from scipy.fft import dctn

    low = dctn(images, axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES].reshape(len(images), -1)[:, 1:]
    return np.where(low > 0, np.float32(1), np.float32(-1))


def textured(images: Float32[Array, "S 32 32"]) -> Bool[Array, "S"]:
    """Tell patches that show something from blank ones, which are all alike."""
    _, variance = _local(images)
    return np.asarray((variance > TEXTURE**2).mean(axis=(1, 2)) >= TEXTURED)


def duplicate_patches(
    cohort: PreparedCohort, shown: Sequence[Thumbnails], *, progress: Progress = silent
) -> tuple[list[Overlap], int]:
    """Find patches that two sections share; patches of one section may overlap and are not compared with each other.

    Args:
        cohort: Names the spots.
        shown: Thumbnails of the sections to compare.
        progress: Shows the sections done.

    Returns:
        One entry for each pair of sections with a patch in common, and the number of blank patches that were passed over.
    """
    kept = [np.flatnonzero(textured(part.images)) for part in shown]
    images = [part.images[rows] for part, rows in zip(shown, kept, strict=True)]
    owner = np.repeat(np.arange(len(shown)), [len(rows) for rows in kept])
    n_blank = sum(len(part.images) for part in shown) - len(owner)
    if not len(owner):
        return [], n_blank
    pixels = np.concatenate(images)
    bits = perceptual_bits(pixels)
    rows_of = np.concatenate(kept)
    first_row = np.searchsorted(owner, np.arange(len(shown) + 1))
    found: list[Overlap] = []
    for a in progress(range(len(shown)), "comparing patches", len(shown)):
        later = first_row[a + 1]
        pairs = set(_matches(images[a], pixels[later:], bits[later:]))
        partners: dict[int, list[tuple[int, int]]] = {}
        for i, j in sorted(pairs):
            partners.setdefault(int(owner[later + j]), []).append((int(kept[a][i]), int(rows_of[later + j])))
        for b, rows in sorted(partners.items()):
            names = [cohort.spots(shown[k].section).index.astype(str) for k in (a, b)]
            barcodes = [(str(names[0][i]), str(names[1][j])) for i, j in rows]
            n = min(len({i for i, _ in rows}), len({j for _, j in rows}))
            found.append(Overlap(shown[a].section, shown[b].section, n, sum(x == y for x, y in barcodes), barcodes[0]))
    return found, n_blank


def _matches(
    first: Float32[Array, "S 32 32"], others: Float32[Array, "N 32 32"], bits: Float32[Array, "N K"]
) -> Iterator[tuple[int, int]]:
    """Yield pairs whose hashes nearly agree in some orientation and whose pixels then do too."""
    if not len(first) or not len(others):
        return
    for turned in _orientations(first):
        close = perceptual_bits(turned) @ bits.T >= bits.shape[1] - 2 * MAX_BITS
        i, j = np.nonzero(close)
        for start in range(0, len(i), _CANDIDATES):
            part = slice(start, start + _CANDIDATES)
            same = _agreement(turned[i[part]], others[j[part]]) >= SAME
            yield from zip(i[part][same].tolist(), j[part][same].tolist(), strict=True)


def _orientations(images: Float32[Array, "S 32 32"]) -> Iterator[Float32[Array, "S 32 32"]]:
    for quarter in range(4):
        turned = np.rot90(images, quarter, axes=(1, 2))
        yield np.ascontiguousarray(turned)
        yield np.ascontiguousarray(turned[:, :, ::-1])


def _agreement(first: Float32[Array, "N 32 32"], second: Float32[Array, "N 32 32"]) -> Float[Array, "N"]:
    """Correlate two images in units of their local contrast.

    So every part of a patch counts alike, and two patches that merely are dark and bright in the same places, as at a rim
    of tissue, do not agree. A mask painted over two images with the very same outline would.
    """
    a, b = (_contrast(images) for images in (first, second))
    norm = np.sqrt(np.einsum("np,np->n", a, a) * np.einsum("np,np->n", b, b))
    return np.asarray(np.einsum("np,np->n", a, b) / np.maximum(norm, 1e-6))


def _contrast(images: Float32[Array, "N 32 32"]) -> Float32[Array, "N p"]:
    detail, variance = _local(images)
    flat = (detail / np.sqrt(variance + 4)).reshape(len(images), -1)
    centered: Array = flat - flat.mean(axis=1, keepdims=True)
    return centered


def _local(images: Float32[Array, "S 32 32"]) -> tuple[Float32[Array, "S 32 32"], Float32[Array, "S 32 32"]]:
    """Return what differs from the mean around each pixel, and the variance of that around it."""
    from scipy.ndimage import uniform_filter

    detail = images - uniform_filter(images, size=(1, 5, 5))
    return detail, uniform_filter(np.square(detail), size=(1, 7, 7))
