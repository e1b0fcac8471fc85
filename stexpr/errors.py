"""What can go wrong, as one tree.

    StexprError
    ├── ConfigError      a configuration file, an override or a command-line argument   (ValueError)
    ├── DataError        a file, a table, an image or a cohort                          (ValueError)
    │   ├── CardError        a data card
    │   ├── GeneError        gene names: duplicated, missing, too few
    │   ├── ScaleError       microns per pixel: absent, absurd, contradictory
    │   └── LeakageError     a patient, section or spot on both sides of a split
    ├── ModelError       a backbone, a head, an exported model                          (ValueError)
    ├── TrainingError    a loss that is not finite, a run that cannot be resumed        (RuntimeError)
    ├── MetricError      a metric that is undefined for the whole input                 (ValueError)
    └── ProtocolError    records that must not be compared                              (ValueError)

    DomainWarning        a model used outside of what it was trained on                 (UserWarning)
    DataWarning          part of the data could not be used                             (UserWarning)

A message says what is wrong, the value, what is allowed and what to do. At the command line a `StexprError` is one line
on stderr and exit code 2; anything else is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "CardError",
    "ConfigError",
    "DataError",
    "DataWarning",
    "DomainWarning",
    "GeneError",
    "LeakageError",
    "MetricError",
    "ModelError",
    "ProtocolError",
    "ScaleError",
    "StexprError",
    "TrainingError",
    "nearest",
]


MOST_NAMED = 30
"""Names listed in a message; a panel has hundreds."""


class StexprError(Exception):
    """Anything stexpr refuses on purpose."""

    def __str__(self) -> str:
        notes = getattr(self, "__notes__", [])
        return " ".join([super().__str__(), *(f"({note})" for note in notes)])


class ConfigError(StexprError, ValueError):
    """A configuration file, an override or a command-line argument is wrong."""


class DataError(StexprError, ValueError):
    """A file, a table, an image or a cohort is wrong."""


class CardError(DataError):
    """A data card is wrong."""


class GeneError(DataError):
    """Gene names are duplicated, missing or too few."""


class ScaleError(DataError):
    """Microns per pixel are absent, absurd or contradictory."""


class LeakageError(DataError):
    """A patient, section or spot stands on both sides of a split."""


class ModelError(StexprError, ValueError):
    """A backbone, a head or an exported model is wrong."""


class TrainingError(StexprError, RuntimeError):
    """Training cannot go on."""


class MetricError(StexprError, ValueError):
    """A metric is undefined for the whole input."""


class ProtocolError(StexprError, ValueError):
    """Records were made under protocols that must not be compared."""


class DomainWarning(UserWarning):
    """A model is used on another kind of image than it was trained on; a warning, since only the user can judge."""


class DataWarning(UserWarning):
    """Part of the data could not be used as asked for; a warning, since the rest could."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant.

    Args:
        name: What was written.
        known: What is allowed.

    Returns:
        A clause to append to a message: the nearest name, or the first thirty of them when none is near.

    Example:
        >>> nearest("backbon", ["backbone", "seed"])
        "did you mean 'backbone'?"
        >>> nearest("qqq", ["backbone", "seed"])
        'known: backbone, seed'
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"known: {', '.join(names[:MOST_NAMED])}{more}"
