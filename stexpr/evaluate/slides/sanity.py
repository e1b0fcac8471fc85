"""Is predicted expression what it is called? Predicted MKI67 beside the Ki67 index, predicted ERBB2 beside HER2 status.

An encoder whose MKI67 does not rise with the Ki67 index of the pathologist has no say in what the gene does for a head.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd

from stexpr.data.targets import FALSE, TRUE
from stexpr.errors import MetricError
from stexpr.evaluate.slides.agreement import spearman
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.held_out import HeldOut, score_folds
from stexpr.evaluate.slides.resampling import bootstrap_interval

__all__ = ["MARKERS", "Marker", "sanity_table"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Cells: TypeAlias = Mapping[str, str]
"""Patient -> cell, missing ones left out."""

COHORT: Final = "cohort"


@dataclass(frozen=True)
class Marker:
    """A gene whose protein or amplification clinics measure.

    Attributes:
        genes: Its names: symbol, Ensembl id.
        what: Of columns, as letters and digits in their names.
        numbers: Whether cells are numbers; else they are yes or no.
    """

    genes: tuple[str, ...]
    what: str
    numbers: bool

    def reads(self, column: str) -> bool:
        """Whether a column is about it, by its name."""
        return self.what in re.sub(r"[^a-z0-9]", "", column.lower())


MARKERS: Final = (
    Marker(("MKI67", "ENSG00000148773"), "ki67", numbers=True),
    Marker(("ERBB2", "ENSG00000141736"), "her2", numbers=False),
)


def sanity_table(
    genes: Sequence[str], predicted: Mapping[str, Mapping[str, float]], clinical: Mapping[str, Cells]
) -> pd.DataFrame:
    """Compare predicted markers with clinical columns of their name.

    Args:
        genes: Of the predicted expression.
        predicted: Gene -> patient -> mean over the patches of the slides.
        clinical: Column -> patient -> cell.

    Returns:
        A row per gene and column: `gene`, `column`, `measure` (spearman or auroc), `value`, `low`, `high`, `interval`,
        `patients`, `left_out` (cells without such a meaning) and `sentence`. Without gene or column there is a row that says
        so in its sentence; scores that are undefined are NaN, with the reason.
    """
    rows = []
    for marker in MARKERS:
        name = next((gene for gene in marker.genes if gene in genes), None)
        columns = [column for column in clinical if marker.reads(column)]
        if name is None:
            rows.append(_nothing(marker.genes[0], "", f"{marker.genes[0]} is not among the predicted genes."))
        elif not columns:
            rows.append(_nothing(name, "", f"No clinical column is called like {marker.what}, to compare {name} with."))
        else:
            rows += [_compare(marker, name, predicted[name], column, clinical[column]) for column in columns]
    return pd.DataFrame(rows)


def _compare(marker: Marker, gene: str, predicted: Mapping[str, float], column: str, cells: Cells) -> dict[str, Any]:
    read = _number if marker.numbers else _truth
    meant = {patient: read(cell) for patient, cell in cells.items() if patient in predicted}
    patients = [patient for patient, value in meant.items() if value is not None]
    left_out = len(meant) - len(patients)
    kind = "numbers" if marker.numbers else "positive or negative"
    if not patients:
        return _nothing(gene, column, f"{column} holds no cells that are {kind}.", left_out)
    values = np.array([predicted[patient] for patient in patients], dtype=np.float64)
    measured = np.array([meant[patient] for patient in patients], dtype=np.float64 if marker.numbers else bool)
    held_out = HeldOut(tuple(patients), (COHORT,) * len(patients))
    metric: Callable[..., float] = spearman if marker.numbers else auroc
    try:
        value = score_folds(metric, held_out, values, measured).values[COHORT]
        if np.isnan(value):
            metric(values, measured)  # says why, unless the prediction is constant
            raise MetricError("the predictions are all alike")
    except MetricError as err:
        return _nothing(gene, column, f"{gene} and {column} cannot be compared over {len(patients)} patients: {err}.", left_out)
    strata = None if marker.numbers else [str(one) for one in measured.tolist()]
    interval = bootstrap_interval(metric, held_out, values, measured, strata=strata)
    known = not np.isnan(interval.low)
    within = f" ({interval.low:.2f} to {interval.high:.2f})" if known else ""
    chance = 0.0 if marker.numbers else 0.5
    said = f"{'Spearman' if marker.numbers else 'AUROC'} {value:.2f}{within} over {len(patients):,} patients"
    return {
        **_nothing(gene, column, f"{_verdict(gene, column, chance, value, interval.low, interval.high)}: {said}.", left_out),
        "measure": "spearman" if marker.numbers else "auroc",
        "value": value,
        "low": interval.low,
        "high": interval.high,
        "interval": interval.kind,
        "patients": len(patients),
    }


def _verdict(gene: str, column: str, chance: float, value: float, low: float, high: float) -> str:
    if low > chance:
        return f"Predicted {gene} rises with {column}, as it should"
    if high < chance:
        return f"Predicted {gene} FALLS with {column}: do not read it as {gene}"
    away = "" if value > chance else ", nor does it point that way"
    return f"Predicted {gene} is not shown to rise with {column}{away}"


def _nothing(gene: str, column: str, sentence: str, left_out: int = 0) -> dict[str, Any]:
    return {
        "gene": gene,
        "column": column,
        "measure": "",
        "value": np.nan,
        "low": np.nan,
        "high": np.nan,
        "interval": "",
        "patients": 0,
        "left_out": left_out,
        "sentence": sentence,
    }


def _number(cell: str) -> float | None:
    try:
        value = float(cell.strip().rstrip("%"))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _truth(cell: str) -> bool | None:
    word = cell.strip().lower()
    return True if word in TRUE else False if word in FALSE else None
