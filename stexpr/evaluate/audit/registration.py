"""Do the spots lie where the image says? A section whose coordinates are off by a spot trains and scores as if at random.

The color under a spot says something about its expression. So expression is predicted from color at the spot, and from color
up to two spot pitches away; where the coordinates are right, no other place predicts better.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Float32, Int, UInt8
from scipy.spatial import cKDTree

from stexpr.data.store import PreparedCohort
from stexpr.evaluate.audit.duplicates import CHUNK
from stexpr.evaluate.intervals import block_replicates, spatial_blocks
from stexpr.evaluate.metrics import constant_per_gene, pearson_per_gene
from stexpr.panel import ExpressionTransform

__all__ = ["Registration", "section_registration"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_HERE = (0.0, 0.0)
_STEPS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
SHIFTS = tuple((x, y) for x, y in itertools.product(_STEPS, _STEPS) if max(abs(x), abs(y)) <= 1 or not (x % 1 or y % 1))
"""In spot pitches, x then y: halves up to 1, whole ones up to 2."""
RADII = (1 / 8, 1 / 4, 1 / 2)
"""Of the discs whose color is measured, in spot pitches."""
CELLS_PER_PITCH = 8
OFF = 0.25
"""How far, in pitches, a disc may be from where it should be because its patch ends there."""
GENES = 200
ALPHA = 10.0
FOLDS = 5
MARGIN = 0.03
"""How much better than at the spots, in mean r, color elsewhere must predict, and how well it must do so at all."""
LEVEL = 0.01
REPLICATES = 500
MOTIONS = 60
"""Random turns and mirrorings of the section that say what r chance gives: expression keeps its shape and loses its place."""
CLEAR = 3.0
"""Standard deviations above chance by which color must predict somewhere, before a section can be judged.

With these limits no section of MOB and HER2ST is flagged, none gains anywhere. Coordinates moved by one to three pitches are
seen in 28 of 29 cases, but never in HER2ST A1, where color says next to nothing; of the nine sections turned by 90 or 180
degrees or mirrored, so that no shift is right, 1 of 27 is flagged."""
MIN_SPOTS = 40


@dataclass(frozen=True)
class Registration:
    """How well color predicts expression at the spots of a section and beside them.

    Attributes:
        section: Its name.
        pitch_um: Median distance of a spot to the nearest other one.
        here: Mean over genes of the cross-validated r with color at the spots; NaN where nothing could be compared.
        clear: The larger of `here` and `there`, in standard deviations of what chance gives.
        shift: The shift with the largest gain, in pitches, x then y; (0, 0) where no shift gains.
        gain: How much larger r is there than here, over the spots that have color at both places.
        low: Lower bound of the gain, 99 % one-sided, by a bootstrap over blocks of neighboring spots.
        there: Mean r at that shift.
        n_shifts: Shifts that could be tried.
        reason: Why nothing could be compared; empty otherwise.
    """

    section: str
    pitch_um: float = float("nan")
    here: float = float("nan")
    clear: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    gain: float = 0.0
    low: float = 0.0
    there: float = float("nan")
    n_shifts: int = 0
    reason: str = ""

    @property
    def judged(self) -> bool:
        """Whether color predicts expression clearly enough, at the spots or beside them, to tell where they lie."""
        return not self.reason and self.clear >= CLEAR

    @property
    def off(self) -> bool:
        """Whether another place predicts better, by a margin that chance does not explain."""
        return self.judged and min(self.gain, self.there) >= MARGIN and self.low > 0


def section_registration(cohort: PreparedCohort, section: str, patches: UInt8[Array, "S H W 3"] | None = None) -> Registration:
    """Compare the color at the spots of a section with the color beside them.

    Where a shifted disc leaves the patch of its spot it is read from the patch of the spot nearest to it, so small patches
    serve too; spots without one, at the rim of the tissue, are left out of that shift and of what it is compared with.
    The order of the spots does not matter.

    Args:
        cohort: The prepared cohort.
        section: Which of its sections.
        patches: Its patches, if they are in memory anyway.
    """
    spots = cohort.spots(section)
    if len(spots) < MIN_SPOTS:
        return Registration(section, reason=f"it has {len(spots)} spots, fewer than {MIN_SPOTS}")
    order = np.lexsort((spots["y_um"], spots["x_um"]))
    spots = spots.iloc[order]
    xy_um = spots[["x_um", "y_um"]].to_numpy()
    pitch_um = float(np.median(cKDTree(xy_um).query(xy_um, k=2)[0][:, 1]))
    expression = _expression(cohort.counts(section)[order], spots["library"].to_numpy())
    if pitch_um < cohort.mpp or not expression.shape[1]:
        reason = "its spots lie less than a pixel apart" if pitch_um < cohort.mpp else "no gene varies in it"
        return Registration(section, pitch_um, reason=reason)
    images = cohort.patches(section) if patches is None else patches
    field = _ColorField(images, order, xy_um / cohort.mpp, pitch_um / cohort.mpp)
    blocks = spatial_blocks(spots["x_um"].to_numpy(), spots["y_um"].to_numpy())
    return replace(_Comparison(section, field, expression, blocks).run(), pitch_um=pitch_um)


class _Comparison:
    """One section, its colors and its expression."""

    def __init__(self, section: str, field: "_ColorField", expression: Float[Array, "S G"], blocks: Int[Array, "S"]) -> None:
        self.section, self.field, self.expression, self.blocks = section, field, expression, blocks
        self.folds = np.random.default_rng(0).permutation(int(blocks.max()) + 1)[blocks] % FOLDS

    def run(self) -> Registration:
        own, everywhere = self.field.at(_HERE)
        here = self.mean_r(own, everywhere)
        gains: dict[tuple[float, float], float] = {}
        for shift in SHIFTS:
            features, rows = self.field.at(shift)
            if shift != _HERE and self.enough(rows):
                gains[shift] = self.mean_r(features, rows) - (here if rows.all() else self.mean_r(own, rows))
        chance = self._chance()
        if not gains or len(chance) < 2:
            return Registration(self.section, here=here, reason="too few of its spots have others beside them")
        middle, spread = float(np.mean(chance)), float(np.std(chance, ddof=1))
        best = max(gains, key=lambda shift: gains[shift])
        found = Registration(self.section, here=here, clear=(here - middle) / spread, n_shifts=len(gains))
        if gains[best] <= 0:
            return found
        features, rows = self.field.at(best)
        there = self.mean_r(features, rows)
        low = float(np.quantile(self._replicates(features, rows) - self._replicates(own, rows), LEVEL))
        clear = (max(here, there) - middle) / spread
        return replace(found, clear=clear, shift=best, gain=gains[best], low=low, there=there)

    def enough(self, rows: Bool[Array, "S"]) -> bool:
        """Whether these spots are half of all, enough for a correlation, and in two folds."""
        return bool(rows.sum() >= max(MIN_SPOTS, len(rows) / 2)) and len(np.unique(self.folds[rows])) > 1

    def mean_r(self, features: Float[Array, "S D"], rows: Bool[Array, "S"]) -> float:
        """Return the mean over genes of the r of a cross-validated prediction; a constant prediction counts as 0."""
        r = pearson_per_gene(self._predicted(features, rows), self.expression[rows])
        return float(np.nan_to_num(r).mean())

    def _predicted(self, features: Float[Array, "S D"], rows: Bool[Array, "S"]) -> Float[Array, "N G"]:
        return _predict(features[rows], self.expression[rows], self.folds[rows])

    def _replicates(self, features: Float[Array, "S D"], rows: Bool[Array, "S"]) -> Float[Array, "R"]:
        numbered = np.unique(self.blocks[rows], return_inverse=True)[1].astype(np.int64)
        names = [self.section] * int(rows.sum())
        r = block_replicates(self._predicted(features, rows), self.expression[rows], numbered, names, n=REPLICATES)
        return np.asarray(np.nan_to_num(r).mean(axis=0), dtype=float)

    def _chance(self) -> list[float]:
        """Return mean r with the section turned by 45 to 315 degrees, every other time mirrored too."""
        rng = np.random.default_rng(0)
        features, _ = self.field.at(_HERE)
        found = []
        for i in range(MOTIONS):
            angle = np.deg2rad(rng.uniform(45, 315))
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            nearest, rows = self.field.moved(turn @ np.diag([1, (-1) ** i]))
            if self.enough(rows):
                found.append(self.mean_r(features[nearest], rows))
        return found


class _ColorField:
    """Color in discs anywhere between the spots, from sums over small cells of the patches."""

    def __init__(self, patches: UInt8[Array, "S H W 3"], order: Int[Array, "S"], centers: Float[Array, "S 2"], pitch: float):
        self.centers, self.pitch = centers, pitch
        self.tree = cKDTree(centers)
        self.cell = max(1, round(pitch / CELLS_PER_PITCH))
        half = patches.shape[1] / 2
        # a disc that only fits at the patch's center would leave no shift but by whole pitches
        fitting = [radius for radius in RADII if half - radius * pitch + OFF * pitch >= pitch / 2]
        self.radii = [radius * pitch for radius in fitting] or [min(RADII[0] * pitch, half)]
        n_half = max(1, int(min(half, self.radii[-1] + pitch) / self.cell))
        self.cells = _cells(patches, self.cell, n_half)[order]
        self._known: dict[tuple[float, float], tuple[Array, Bool[Array, S]]] = {}

    def at(self, shift: tuple[float, float]) -> tuple[Float[Array, "S D"], Bool[Array, "S"]]:
        """Return color features of each spot, shifted, and which spots have them."""
        if shift not in self._known:
            self._known[shift] = self._measure(self.centers + np.array(shift) * self.pitch)
        return self._known[shift]

    def moved(self, motion: Float[Array, "2 2"]) -> tuple[Int[Array, "S"], Bool[Array, "S"]]:
        """Return the spot nearest to where each spot goes about the middle of the section, and whether one is there."""
        middle = self.centers.mean(axis=0)
        distance, nearest = self.tree.query((self.centers - middle) @ motion.T + middle)
        return nearest, distance <= 0.75 * self.pitch

    def _measure(self, wanted: Float[Array, "S 2"]) -> tuple[Float[Array, "S D"], Bool[Array, "S"]]:
        side = self.cells.shape[1]
        _, nearest = self.tree.query(wanted)
        offset = wanted - self.centers[nearest]
        missed = np.zeros(len(wanted))
        columns = []
        places = np.arange(side) - (side - 1) / 2
        for radius in self.radii:
            room = max(0.0, side * self.cell / 2 - radius)
            moved = np.clip(offset, -room, room)
            missed = np.maximum(missed, np.hypot(*(offset - moved).T))
            steps = np.rint(moved / self.cell).astype(int)
            y, x = np.nonzero(np.hypot(*np.meshgrid(places, places, indexing="ij")) * self.cell <= max(radius, self.cell))
            rows = np.clip(y + steps[:, 1:], 0, side - 1)
            sums = self.cells[nearest[:, None], rows, np.clip(x + steps[:, :1], 0, side - 1)].mean(axis=1)
            columns += [sums[:, :3], np.sqrt(np.maximum(sums[:, 3:] - np.square(sums[:, :3]), 0))]
        return np.hstack(columns).astype(np.float64), missed <= OFF * self.pitch


def _cells(patches: UInt8[Array, "S H W 3"], cell: int, n_half: int) -> Float32[Array, "S k k 6"]:
    """Return mean and mean square of RGB in square cells about the center of each patch."""
    k = 2 * n_half
    start = (patches.shape[1] - k * cell) // 2
    inner = slice(start, start + k * cell)
    cells = np.empty((len(patches), k, k, 6), dtype=np.float32)
    for first in range(0, len(patches), CHUNK):
        part = patches[first : first + CHUNK, inner, inner].astype(np.float32).reshape(-1, k, cell, k, cell, 3)
        cells[first : first + CHUNK, ..., :3] = part.mean(axis=(2, 4))
        cells[first : first + CHUNK, ..., 3:] = np.square(part).mean(axis=(2, 4))
    return cells


def _expression(counts: sp.csr_matrix, library: Float[Array, "S"]) -> Float[Array, "S G"]:
    """Return the expression of the section's genes with the highest counts, constant ones left out."""
    top = np.argsort(-np.asarray(counts.mean(axis=0)).ravel(), kind="stable")[:GENES]
    expression: Array = ExpressionTransform()(np.asarray(counts[:, top].toarray(), dtype=np.float64), library)
    return expression[:, ~constant_per_gene(expression)]


def _predict(features: Float[Array, "S D"], expression: Float[Array, "S G"], folds: Int[Array, "S"]) -> Float[Array, "S G"]:
    """Predict each fold by ridge regression on the others."""
    predicted = np.empty_like(expression)
    for fold in np.unique(folds):
        test = folds == fold
        mean, sd = features[~test].mean(axis=0), features[~test].std(axis=0) + 1e-9
        own, level = (features[~test] - mean) / sd, expression[~test].mean(axis=0)
        weights = np.linalg.solve(own.T @ own + ALPHA * np.eye(own.shape[1]), own.T @ (expression[~test] - level))
        predicted[test] = (features[test] - mean) / sd @ weights + level
    return predicted
