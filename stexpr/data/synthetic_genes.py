"""Made-up genes: which of them follow what a spot shows, how strongly, and how counts scatter around that."""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from stexpr.data.synthetic_tissue import MORPHOLOGY

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# What planted genes follow in the first place, in the order of MORPHOLOGY. Mean colors do not show the size of nuclei, so
# much of the signal is there for networks to find.
_SHARE = np.array([0.15, 0.15, 0.14, 0.08, 0.30, 0.08, 0.10])
_TYPICAL = np.array([0.30, 0.35, 0.18, 0.16, 0.0, 0.19, 0.0])
_SPREAD = np.array([0.37, 0.38, 0.30, 0.28, 0.75, 0.09, 0.80])
_DARKNESS = "nuclear_darkness"
_STRENGTH = (0.45, 0.85)  # change of log expression per spread of the feature followed
_LOG_MEAN_SD = 0.8
PROLIFERATION = "MKI67"
"""Of the genes that rise with the darkness of nuclei, the one of the highest mean: mitosis-like nuclei are dark."""


@dataclass(frozen=True)
class GenePrograms:
    """How every gene's expression follows morphology.

    Attributes:
        names: Unique, in the order of the counts files.
        planted: False for null genes, which follow nothing.
        log_mean: Log expression at typical morphology, up to a constant.
        loading: Change of log expression per spread of each feature of `MORPHOLOGY`; 0 for null genes.
    """

    names: tuple[str, ...]
    planted: Bool[Array, "G"]
    log_mean: Float[Array, "G"]
    loading: Float[Array, "G 7"]

    @property
    def follows(self) -> list[str]:
        """Name the feature each gene follows most, empty for null genes."""
        first = np.abs(self.loading).argmax(axis=1)
        return [MORPHOLOGY[i] if planted else "" for i, planted in zip(first, self.planted, strict=True)]

    def rates(self, morphology: Float[Array, "S 7"], shift: Float[Array, "G"]) -> Float[Array, "S G"]:
        """Share out the expected counts of each spot.

        Planted genes share a fixed part among themselves and null genes the rest, so that a null gene does not give way
        where planted ones rise.

        Args:
            morphology: What `measure_spots` found.
            shift: Change of each gene's log expression in this patient.

        Returns:
            Fractions that add to 1 in every spot.
        """
        rate: Array = np.exp(self.log_mean + shift + ((morphology - _TYPICAL) / _SPREAD) @ self.loading.T)
        total = np.exp(self.log_mean).sum()
        for group in (self.planted, ~self.planted):
            if not group.any():
                continue
            rate[:, group] *= np.exp(self.log_mean[group]).sum() / total / rate[:, group].sum(axis=1, keepdims=True)
        return rate


def plan_genes(rng: np.random.Generator, n: int, null_fraction: float) -> GenePrograms:
    """Draw what each gene follows; planted and null genes come in random order, with means of one distribution.

    Where a gene rises with the darkness of nuclei, one is called `PROLIFERATION`.
    """
    planted = rng.permutation(n) >= round(n * null_fraction)
    first = rng.choice(len(MORPHOLOGY), size=n, p=_SHARE)
    loading = rng.normal(0, 0.12, size=(n, len(MORPHOLOGY)))
    loading[np.arange(n), first] = rng.uniform(*_STRENGTH, size=n) * rng.choice([-1.0, 1.0], size=n)
    loading[~planted] = 0
    rank = np.where(planted, planted.cumsum(), (~planted).cumsum())
    names = [f"{'PLANT' if p else 'NULL'}{i:0{len(str(n))}d}" for p, i in zip(planted, rank, strict=True)]
    genes = GenePrograms(tuple(names), planted, rng.normal(0, _LOG_MEAN_SD, size=n), loading)
    rises = (np.array(genes.follows) == _DARKNESS) & (loading[:, MORPHOLOGY.index(_DARKNESS)] > 0)
    if not rises.any():
        return genes
    names[int(np.where(rises, genes.log_mean, -np.inf).argmax())] = PROLIFERATION
    return replace(genes, names=tuple(names))


def draw_counts(rng: np.random.Generator, expected: Float[Array, "S G"], dispersion: float) -> Int[Array, "S G"]:
    """Draw negative binomial counts of variance mean + dispersion * mean^2; Poisson where the dispersion is 0."""
    scatter = rng.gamma(1 / dispersion, dispersion, size=expected.shape) if dispersion else 1.0
    counts: Array = rng.poisson(expected * scatter)
    return counts
