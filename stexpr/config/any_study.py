"""Studies of spots and of slides, told apart by their `task`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from stexpr.config import StudyConfig, read_study, study_of
from stexpr.config.slides import SlideStudyConfig
from stexpr.config.values import find_config, validated
from stexpr.errors import ConfigError

__all__ = ["AnyStudy", "absolute", "any_study_of", "find_study", "is_of_slides", "load_any_study"]

AnyStudy: TypeAlias = StudyConfig | SlideStudyConfig
FOLDERS: Final = ("studies", "slides")
"""Of the studies that come with stexpr."""


def load_any_study(source: str | Path, overrides: Sequence[str] = ()) -> AnyStudy:
    """Read a study of either task, with `key=value` overrides on top.

    Args:
        source: A path, or a name such as `mob` or `mutation` of those that come with stexpr.
        overrides: Strings such as `training.lr=1e-3`.

    Raises:
        ConfigError: As for `load_study`.
    """
    path = find_study(source)
    return any_study_of(read_study(path, overrides), str(path))


def find_study(source: str | Path) -> Path:
    """Return the path given, or that of the named study.

    Raises:
        ConfigError: There is none.
    """
    for folder in FOLDERS[1:]:
        try:
            return find_config(source, folder)
        except ConfigError:
            continue
    return find_config(source, FOLDERS[0])


def any_study_of(values: Mapping[str, Any], source: str) -> AnyStudy:
    """Check the keys and values of a study.

    Raises:
        ConfigError: A key is unknown (the nearest known one is named), or a value is refused.
    """
    if is_of_slides(values):
        return cast(SlideStudyConfig, validated(SlideStudyConfig, dict(values), source))
    return study_of({key: value for key, value in values.items() if key != "task" or value != "spots"}, source)


def is_of_slides(values: Mapping[str, Any]) -> bool:
    """Whether these are the keys and values of a study of slides."""
    return values.get("task") == "slides"


def absolute(study: AnyStudy) -> AnyStudy:
    """Return a study that reads the same files wherever it is started."""
    if isinstance(study, StudyConfig):
        return study.model_copy(update={"cohort": study.cohort.resolve()})
    tables = study.tables
    sites = tables.sites
    if sites is not None and Path(sites).is_file():
        sites = str(Path(sites).resolve())
    placed = {"clinical": tuple(path.resolve() for path in tables.clinical), "slides": tables.slides.resolve(), "sites": sites}
    model, finetune = study.model, study.model.finetune
    if model.patch_labels is not None:
        model = model.model_copy(update={"patch_labels": model.patch_labels.resolve()})
    if finetune is not None:
        model = model.model_copy(update={"finetune": finetune.model_copy(update={"encoder": finetune.encoder.resolve()})})
    return study.model_copy(update={"bags": study.bags.resolve(), "tables": tables.model_copy(update=placed), "model": model})
