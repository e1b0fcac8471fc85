"""Prediction intervals that travel with a model: how far measured expression may lie from the predicted one, per gene."""

import csv
import io
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Float32

from stexpr.errors import ModelError

__all__ = ["COVERAGES", "IntervalLevel", "PredictionIntervals"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
IntervalLevel: TypeAlias = Literal["patient", "spot"]

COVERAGES: Final = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class PredictionIntervals:
    """Half-widths of the intervals around a prediction; `evaluate.conformal` fits them.

    They concern single noisy measurements of a spot, not the mean expression of a place.

    Attributes:
        genes: In the order of the model.
        coverages: Nominal shares of measurements inside.
        half_width: In the unit of expression; infinite where too few patients were seen for that coverage, NaN for a gene
            that was never measured beside a prediction.
        level: `patient`: holds for spots of new patients, exchangeable with those seen. `spot`: with fewer patients than the
            coverage asks for it holds for further spots of the patients seen only.
        n_patients: Patients calibrated on.
        n_spots: Spots calibrated on.
    """

    genes: tuple[str, ...]
    coverages: tuple[float, ...]
    half_width: Float32[Array, "G C"]
    level: IntervalLevel
    n_patients: int
    n_spots: int

    @property
    def label(self) -> str:
        """What the intervals hold for, in words."""
        calibrated = f"calibrated on {self.n_spots:,} held-out spots of {self.n_patients} patient{'s' * (self.n_patients > 1)}"
        if self.level == "patient":
            return f"for spots of new patients, {calibrated}"
        return f"spot-level, not valid for new patients; {calibrated}"

    def around(
        self, expression: Float[Array, "S G"], coverage: float, *, lowest: float = -np.inf
    ) -> tuple[Float32[Array, "S G"], Float32[Array, "S G"]]:
        """Return the lower and upper ends of the intervals around predictions.

        Args:
            expression: Predictions.
            coverage: One of `coverages`.
            lowest: What no measurement is below: `ExpressionTransform.lowest`. Ends below it are moved there.

        Raises:
            ModelError: The intervals were not made for this coverage.
        """
        if coverage not in self.coverages:
            known = ", ".join(f"{value:g}" for value in self.coverages)
            raise ModelError(f"the model has no {coverage:g} intervals; take one of {known}")
        half = self.half_width[:, self.coverages.index(coverage)]
        low, high = (np.maximum(end, lowest).astype(np.float32) for end in (expression - half, expression + half))
        return low, high

    def to_csv(self) -> bytes:
        """Write one row per gene."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["gene", *(f"{coverage:g}" for coverage in self.coverages)])
        rows = zip(self.genes, self.half_width.tolist(), strict=True)
        writer.writerows([gene, *(f"{np.float32(width):.9g}" for width in widths)] for gene, widths in rows)
        return text.getvalue().encode()

    @classmethod
    def from_csv(
        cls, content: bytes, genes: tuple[str, ...], *, level: IntervalLevel, n_patients: int, n_spots: int
    ) -> "PredictionIntervals":
        """Read what `to_csv` wrote.

        Raises:
            ModelError: It is not such a table, or of other genes.
        """
        try:
            header, *rows = csv.reader(io.StringIO(content.decode()), strict=True)
            coverages = tuple(float(name) for name in header[1:])
            widths = np.array([[float(value) for value in row[1:]] for row in rows], dtype=np.float32)
            if header[0] != "gene" or tuple(row[0] for row in rows) != genes or widths.shape != (len(genes), len(coverages)):
                raise ValueError("its genes are not those of the model")
            if not all(0 < coverage < 1 for coverage in coverages) or (widths < 0).any():
                raise ValueError("coverages lie between 0 and 1, half-widths from 0")
        except (ValueError, IndexError, csv.Error) as err:
            raise ModelError(f"the table of prediction intervals cannot be read: {err}; export the model again") from err
        return cls(genes, coverages, widths, level, n_patients, n_spots)
