"""What a run of a slide study leaves beside its record, from which every score of a board is computed.

Three tables and a file of numbers that were fitted without the test patients. One run is one fold; repeats of a
cross-validation are runs of other folds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import pandas as pd

from stexpr.config.files import write_whole
from stexpr.errors import DataError

__all__ = ["RESULT_FILES", "SlideResults", "TargetInfo", "TargetKind"]

TargetKind: TypeAlias = Literal["binary", "multiclass", "ordinal", "fraction", "continuous", "survival"]

OUTPUTS: Final = "outputs.parquet"
LABELS: Final = "labels.parquet"
PATIENTS: Final = "patients.parquet"
FITTED: Final = "fitted.json"
RESULT_FILES: Final = (OUTPUTS, LABELS, PATIENTS, FITTED)
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    OUTPUTS: ("patient", "part", "target", "output", "value", "raw"),
    LABELS: ("patient", "part", "target", "label", "value", "time", "event"),
    PATIENTS: ("patient", "part", "n_slides", "n_patches"),
}


@dataclass(frozen=True)
class TargetInfo:
    """One thing that is predicted of a patient.

    Attributes:
        name: Its column, or that of the event.
        kind: What its values are.
        classes: Of a multi-class or ordinal target, in their order; empty else.
        temperature: Fitted on inner folds: `raw` divided by it is calibrated; None where it could not be fitted.
        threshold: Of a binary target, the calibrated probability above which a patient is called positive, chosen on inner
            folds (Youden); of survival, the median log hazard of the training patients. None where there is none.
        horizons: Of survival, the times at which survival is predicted.
        notes: Why something could not be fitted.
    """

    name: str
    kind: TargetKind
    classes: tuple[str, ...] = ()
    temperature: float | None = None
    threshold: float | None = None
    horizons: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SlideResults:
    """Predictions and labels of one fold.

    Attributes:
        outputs: A row per patient and output. `part` is `test`, or `inner` for training patients as predicted by the inner
            training that held them out. `output` is the empty string where a target has one number; else the class, or the
            time (`"365"`) of a predicted survival. `value` is what a person reads: a probability (calibrated where
            `temperature` is known), fraction, number, log hazard (`output` empty) or survival; `raw` is the head's own
            output (logit, log hazard), NaN for a survival.
        labels: A row per patient with a label and target. `part` is `test` or `train`. `label` is the cell as text; `value` is
            1 or 0, the place among the classes, the fraction or number; NaN for survival, which has `time` and `event` (1
            observed).
        patients: A row per patient of the fold, `part` as in `labels`; after the columns above `site` (where known) and the
            clinical columns of confounders, subgroups and covariates as text, missing cells empty.
        targets: By name, in the order of the protocol.
    """

    outputs: pd.DataFrame
    labels: pd.DataFrame
    patients: pd.DataFrame
    targets: Mapping[str, TargetInfo]

    def __post_init__(self) -> None:
        for name, table in self._tables().items():
            if lacking := [column for column in COLUMNS[name] if column not in table]:
                raise DataError(f"{name} lacks {', '.join(lacking)}; it has {', '.join(map(str, table.columns))}")

    def write(self, folder: Path) -> None:
        """Write the three tables and the fitted numbers into a run folder.

        Raises:
            DataError: The folder cannot be written.
        """
        for name, table in self._tables().items():
            write_whole(folder / name, lambda path, table=table: table.to_parquet(path, index=False))  # type: ignore[misc]
        text = json.dumps([_plain(target) for target in self.targets.values()], indent=1, allow_nan=False)
        write_whole(folder / FITTED, lambda path: path.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, folder: Path) -> "SlideResults":
        """Read what `write` wrote.

        Raises:
            DataError: A file is missing or damaged.
        """
        try:
            tables = {name: pd.read_parquet(folder / name) for name in COLUMNS}
            fitted = json.loads((folder / FITTED).read_text(encoding="utf-8"))
            targets = [TargetInfo(**{key: _tupled(value) for key, value in values.items()}) for values in fitted]
        except Exception as err:  # pyarrow raises many kinds for a damaged file
            raise DataError(f"the results in {folder} cannot be read ({err}); delete the folder and train again") from err
        return cls(tables[OUTPUTS], tables[LABELS], tables[PATIENTS], {target.name: target for target in targets})

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {OUTPUTS: self.outputs, LABELS: self.labels, PATIENTS: self.patients}


def _plain(target: TargetInfo) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(target).items()}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
