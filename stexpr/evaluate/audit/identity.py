"""Can the section be told from color alone? Where it can, a model may learn who is who instead of what tissue shows.

This is so in nearly every cohort, for sections are stained one by one, and it is no mistake. It says how much of a score that
pools sections may be recognition, and whether stain normalization is worth a try.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from stexpr.data.geometry import spatial_block
from stexpr.evaluate.intervals import spatial_blocks

__all__ = ["Identity", "SectionColors", "section_identity"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

PERMUTATIONS = 199
MIN_SPOTS = 16
_SHRINKAGE = 0.05


@dataclass(frozen=True)
class SectionColors:
    """What color says about the spots of one section.

    Attributes:
        features: Color features of each spot.
        xy_um: Centers.
    """

    features: Float32[Array, "S D"]
    xy_um: Float[Array, "S 2"]


@dataclass(frozen=True)
class Identity:
    """How well sections are told apart.

    Attributes:
        accuracy: Share of spots put into their own section, averaged over sections.
        chance: The same if sections could not be told apart: 1 / sections.
        null: Mean accuracy when blocks of spots change sections at random.
        p: Share of such permutations that do as well, the observed one counted in.
        recall: Accuracy in each section.
    """

    accuracy: float
    chance: float
    null: float
    p: float
    recall: Mapping[str, float]


def section_identity(colors: Mapping[str, SectionColors], *, seed: int = 0) -> Identity | None:
    """Tell sections apart from color features.

    A linear discriminant is fitted on one half of every section, cut across its longest axis, and tried on the other, and the
    reverse, so that few spots are tried beside neighbors that were fitted. The null exchanges whole blocks of neighboring
    spots between sections, each half by itself.

    Args:
        colors: The sections; those with fewer than 16 spots are left out.
        seed: Draws the permutations.

    Returns:
        What was found; None with fewer than two sections.
    """
    names = [section for section, own in colors.items() if len(own.features) >= MIN_SPOTS]
    if len(names) < 2:
        return None
    features = np.concatenate([colors[section].features for section in names]).astype(np.float64)
    section = np.repeat(np.arange(len(names)), [len(colors[name].features) for name in names])
    half = np.concatenate([spatial_block(colors[name].xy_um, 0.5) for name in names])
    blocks = _blocks([colors[name].xy_um for name in names], half)
    recall = _recall(features, section, half, len(names))
    rng = np.random.default_rng(seed)
    null = np.array(
        [_recall(features, _exchanged(section, half, blocks, rng), half, len(names)).mean() for _ in range(PERMUTATIONS)]
    )
    p = (1 + int((null >= recall.mean()).sum())) / (1 + PERMUTATIONS)
    by_section = {name: round(float(value), 4) for name, value in zip(names, recall, strict=True)}
    return Identity(float(recall.mean()), 1 / len(names), float(null.mean()), p, by_section)


def _blocks(places: list[Array], half: Bool[Array, "N"]) -> Int[Array, "N"]:
    """Number blocks of neighboring spots through all sections; no block lies in two halves."""
    numbered: list[Array] = []
    n = 0
    for xy in places:
        own = spatial_blocks(xy[:, 0], xy[:, 1])
        numbered.append(own + n)
        n += int(own.max()) + 1
    return np.unique(np.concatenate(numbered) * 2 + half, return_inverse=True)[1].astype(np.int64)


def _exchanged(
    section: Int[Array, "N"], half: Bool[Array, "N"], blocks: Int[Array, "N"], rng: np.random.Generator
) -> Int[Array, "N"]:
    """Give each block the section of another block of the same half."""
    n_blocks = int(blocks.max()) + 1
    of_block, half_of = np.empty(n_blocks, dtype=np.int64), np.empty(n_blocks, dtype=bool)
    of_block[blocks], half_of[blocks] = section, half
    for side in (False, True):
        own = np.flatnonzero(half_of == side)
        of_block[own] = of_block[rng.permutation(own)]
    return np.asarray(of_block[blocks])


def _recall(features: Float[Array, "N D"], section: Int[Array, "N"], half: Bool[Array, "N"], n: int) -> Float[Array, "P"]:
    """Return the share of each section's spots that are recognized, each half by a discriminant of the other."""
    right = np.zeros(n)
    for test in (half, ~half):
        fit = ~test
        sizes = np.maximum(np.bincount(section[fit], minlength=n), 1)
        sums = [np.bincount(section[fit], weights=column, minlength=n) for column in features[fit].T]
        centers = np.stack(sums, axis=1) / sizes[:, None]
        spread = features[fit] - centers[section[fit]]
        covariance = spread.T @ spread / len(spread)
        covariance += _SHRINKAGE * np.diag(np.maximum(np.diag(covariance), 1e-6))
        directions = np.linalg.solve(covariance, centers.T)
        scores = features[test] @ directions - 0.5 * np.einsum("pd,dp->p", centers, directions)
        hit = scores.argmax(axis=1) == section[test]
        right += np.bincount(section[test], weights=hit, minlength=n)
    return np.asarray(right / np.maximum(np.bincount(section, minlength=n), 1))
