"""The null baselines and the reference of one fold: fitted on training spots, in seconds.

They read the protocol's window, or the whole prepared patch where it fixes none, so every study of a protocol shares them.
"""

from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float32

from stexpr import config as cf
from stexpr.data.datasets import SpotDataset
from stexpr.data.store import PreparedCohort
from stexpr.models import nulls
from stexpr.models.baselines import color_features, fitting_radii
from stexpr.models.ridge import GroupedRidge
from stexpr.train.results import Job, Predicted

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_COLORS: Final[WeakKeyDictionary[PreparedCohort, dict[Any, Array]]] = WeakKeyDictionary()
"""Color features by section, which three baselines of every fold read."""


def run_baseline(job: Job) -> Predicted:
    """Fit a baseline on the training spots of a fold and predict its test spots.

    Raises:
        ModelError: No disc of a color baseline fits the window.
    """
    return _Baseline(job).predicted()


class _Baseline:
    """One baseline of one fold."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.train = job.spots(job.fold.train_sections)
        self.test = job.spots(job.fold.test_sections)
        self.measured = job.expression(self.train)

    def predicted(self) -> Predicted:
        mean = self.measured.mean(axis=0).astype(np.float32)
        expression, note = self._expression(mean)
        return Predicted(expression, self.test, mean, (note,) if note else ())

    def _expression(self, mean: Float32[Array, "G"]) -> tuple[Float32[Array, "S G"], str]:
        model, train, test = self.job.config.model, self.train.spots, self.test.spots
        match model:
            case cf.TrainingMeanConfig():
                return np.tile(mean, (len(test), 1)), ""
            case cf.DepthOnlyConfig():
                fitted = nulls.DepthOnly().fit(_library(self.train), self.measured)
                return fitted.predict(_library(self.test)), "reads the library size of the test spots, which no image shows"
            case cf.SpotCoordinatesConfig():
                places = nulls.SpotCoordinates(model.alphas)
                places.fit(_xy(self.train), train["section"].to_numpy(), self.measured, self.job.groups(self.train))
                return places.predict(_xy(self.test), test["section"].to_numpy()), f"alpha {places.alpha:g}"
            case cf.ColorRidgeConfig():
                return self._color_ridge(model)
            case cf.NearestColorConfig():
                radii = self._radii(model.radii_px)
                nearest = nulls.NearestColor().fit(self._colors(self.train, radii), self.measured)
                return nearest.predict(self._colors(self.test, radii)), self._in_words(radii)
            case cf.PermutedGenesConfig():
                return self._permuted_genes(model, mean)
            case cf.NeighborOracleConfig():
                return self._neighbor_oracle(model.neighbors), "sees the measured expression of the test spots"
            case _:
                raise AssertionError(f"{model.kind} is no baseline")

    def _color_ridge(self, model: cf.ColorRidgeConfig) -> tuple[Float32[Array, "S G"], str]:
        radii = self._radii(model.radii_px)
        ridge = GroupedRidge(alphas=model.alphas).fit(
            self._colors(self.train, radii), self.measured, self.job.groups(self.train)
        )
        return ridge.predict(self._colors(self.test, radii)), f"{self._in_words(radii)}; alpha {ridge.alpha:g}"

    def _permuted_genes(self, model: cf.PermutedGenesConfig, mean: Float32[Array, "G"]) -> tuple[Float32[Array, "S G"], str]:
        genes, seed = self.job.panel.main, model.permutation_seed
        if len(genes) == 1:
            return np.tile(mean, (len(self.test), 1)), "one gene has no other to take a prediction from: the training mean"
        predicted, note = self._color_ridge(model.ridge)
        permuted = nulls.permuted_genes(predicted, genes, mean, self.measured.std(axis=0), seed=seed)
        return permuted, f"{note}; permutation seed {seed}"

    def _neighbor_oracle(self, k: int) -> Float32[Array, "S G"]:
        measured, predicted = self.job.expression(self.test), np.empty((len(self.test), len(self.job.panel.main)), np.float32)
        for rows in self.test.spots.groupby("section").indices.values():
            predicted[rows] = nulls.neighbor_oracle(measured[rows], _xy(self.test)[rows], k)
        return predicted

    def _radii(self, asked: tuple[int, ...]) -> tuple[int, ...]:
        return fitting_radii(asked, self.job.window_px)

    def _in_words(self, radii: tuple[int, ...]) -> str:
        return f"radii {', '.join(map(str, radii))} px at {self.job.cohort.mpp:g} um/px"

    def _colors(self, spots: SpotDataset, radii: tuple[int, ...]) -> Float32[Array, "S D"]:
        cohort, window = self.job.cohort, self.job.window_px
        known = _COLORS.setdefault(cohort, {})
        sections = list(dict.fromkeys(spots.spots["section"]))
        for section in sections:
            if (section, radii, window) not in known:
                known[section, radii, window] = color_features(cohort.patches(section, window), radii)
        return np.concatenate([known[section, radii, window] for section in sections])


def _library(spots: SpotDataset) -> Float32[Array, "S"]:
    return spots.spots["library"].to_numpy(dtype=np.float32)


def _xy(spots: SpotDataset) -> Array:
    return spots.spots[["x_um", "y_um"]].to_numpy(dtype=np.float64)
