"""The study that a prepared cohort is trained with where nobody says otherwise: the one that did best on real tissue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stexpr.config import StudyConfig, read_study, study_of
from stexpr.config.values import find_config, set_override
from stexpr.data.manifest import MANIFEST
from stexpr.data.store import PreparedCohort

__all__ = ["default_study", "is_prepared"]

STUDY: Final = "best_mob"
"""Whose settings are taken, all but its cohort and its fields of view."""
SMALLEST_PX: Final = 56


def is_prepared(folder: Path) -> bool:
    """Tell whether a folder is a prepared cohort."""
    return (folder / MANIFEST).is_file()


def default_study(folder: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Make the study of a prepared cohort.

    The network sees the whole prepared window and its middle: a quarter of its side, but at least 56 px. Colors are
    standardized section by section, unless the cohort was prepared with a stain normalization.

    Args:
        folder: The cohort.
        overrides: Strings such as `training.epochs=20`, over everything.

    Raises:
        DataError: It is no whole prepared cohort.
        ConfigError: As for `load_study`.
    """
    cohort = PreparedCohort.open(folder)
    window = cohort.window_px
    middle = max(SMALLEST_PX, window // 4)
    path = find_config(STUDY, "studies")
    values = read_study(path)
    values["name"], values["cohort"] = folder.resolve().name, str(folder)
    values["input"] = {**values["input"], "fields_px": [middle, window] if middle < window else None}
    if cohort.stain != "none":
        values["input"]["colors"] = "as_prepared"
    for override in overrides:
        set_override(values, override)
    return study_of(values, f"{path}, for {folder}")
