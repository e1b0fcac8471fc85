"""What the clinic knows of a patient, as numbers beside the output of a head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from stexpr.errors import DataError

__all__ = ["CovariateCoding"]


@dataclass(frozen=True)
class CovariateCoding:
    """How clinical columns become numbers, fitted on training patients.

    A column whose every cell is a number is standardized; any other has an entry for each of its classes but the first. A
    missing cell is 0, which is the training mean, and a column with missing training cells has an entry that says so.

    Attributes:
        columns: In the order of the study.
        numbers: Column of numbers -> its mean and SD.
        classes: Column of words -> its classes, in alphabetic order.
        with_missing: Columns that have an entry for missing cells.
    """

    columns: tuple[str, ...]
    numbers: Mapping[str, tuple[float, float]]
    classes: Mapping[str, tuple[str, ...]]
    with_missing: tuple[str, ...]

    @classmethod
    def fit(cls, columns: Sequence[str], cells: Mapping[str, Sequence[str | None]]) -> "CovariateCoding":
        """Fit on training patients.

        Args:
            columns: Columns to code.
            cells: Column -> cell of each training patient, None where missing.

        Raises:
            DataError: A column says the same of every patient.
        """
        numbers: dict[str, tuple[float, float]] = {}
        classes: dict[str, tuple[str, ...]] = {}
        for column in columns:
            known = [cell for cell in cells[column] if cell is not None]
            values = _numbers(known)
            if len(set(known)) < 2:
                raise DataError(
                    f"the covariate {column!r} is {known[0] if known else 'missing'} in all training patients; leave it out"
                )
            if values is not None:
                tensor = torch.tensor(values, dtype=torch.float64)
                numbers[column] = (float(tensor.mean()), float(tensor.std(correction=0)))
            else:
                classes[column] = tuple(sorted(set(known)))
        missing = tuple(column for column in columns if any(cell is None for cell in cells[column]))
        return cls(tuple(columns), numbers, classes, missing)

    @property
    def names(self) -> tuple[str, ...]:
        """What each entry says."""
        found: list[str] = []
        for column in self.columns:
            found += [column] if column in self.numbers else [f"{column} = {name}" for name in self.classes[column][1:]]
            found += [f"{column} is missing"] if column in self.with_missing else []
        return tuple(found)

    def __call__(self, cells: Mapping[str, Sequence[str | None]]) -> Float32[Tensor, "P C"]:
        """Code patients; a class that no training patient had counts as missing.

        Raises:
            DataError: A column is missing, or a cell of a column of numbers is none.
        """
        entries: list[list[float]] = []
        for column in self.columns:
            if column not in cells:
                raise DataError(f"there is no column {column!r}, a covariate of the head; add it to the clinical table")
            own = list(cells[column])
            if column in self.numbers:
                mean, sd = self.numbers[column]
                values = _numbers([cell for cell in own if cell is not None])
                if values is None:
                    raise DataError(
                        f"the covariate {column!r} was a number in training; a cell of {sorted(set(map(str, own)))[:3]} is none"
                    )
                found = iter(values)
                entries.append([0.0 if cell is None else (next(found) - mean) / sd for cell in own])
                absent = [cell is None for cell in own]
            else:
                known = self.classes[column]
                entries += [[float(cell == name) for cell in own] for name in known[1:]]
                absent = [cell not in known for cell in own]
            if column in self.with_missing:
                entries.append([float(one) for one in absent])
        n = len(next(iter(cells.values()), ()))
        return torch.tensor(entries, dtype=torch.float32).T.reshape(n, len(entries)).contiguous()

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values; `from_dict` reads them back."""
        return {
            "columns": list(self.columns),
            "numbers": {key: list(value) for key, value in self.numbers.items()},
            "classes": {key: list(value) for key, value in self.classes.items()},
            "with_missing": list(self.with_missing),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "CovariateCoding":
        """Read what `to_dict` wrote.

        Raises:
            DataError: It is something else.
        """
        try:
            numbers = {str(key): (float(mean), float(sd)) for key, (mean, sd) in dict(values["numbers"]).items()}  # type: ignore[call-overload]
            classes = {str(key): tuple(map(str, names)) for key, names in dict(values["classes"]).items()}  # type: ignore[call-overload]
            columns, missing = (tuple(map(str, values[key])) for key in ("columns", "with_missing"))  # type: ignore[call-overload]
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(f"not a coding of covariates written by stexpr: {err!r}") from err
        return cls(columns, numbers, classes, missing)


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        return None
    return values if all(abs(value) < float("inf") for value in values) else None
