"""Sweeps as data: a base study, the axes along which it changes, and the studies that come of them."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, cast

from pydantic import Field, StringConstraints, model_validator

from stexpr.config import StudyConfig, read_study
from stexpr.config.any_study import AnyStudy, any_study_of, find_study, is_of_slides
from stexpr.config.protocol import named_preset
from stexpr.config.slides import SlideStudyConfig
from stexpr.config.values import Strict, find_config, read_yaml, set_override, set_value, validated
from stexpr.errors import ConfigError, nearest

__all__ = ["MANY", "SweepConfig", "SweepStudies", "load_sweep"]

MANY: Final = 10_000
"""Studies a sweep makes without being asked twice."""
Axes: TypeAlias = dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]
Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class SweepConfig(Strict):
    """A grid of studies. Axes are named by the dotted keys of a study, such as `model.backbone`.

    The studies are every combination of the grid, with every row of the zip, with every entry of the list, with every seed.
    """

    name: Name = Field(description="names its folder among the runs, and its group of runs in Weights & Biases")
    study: str = Field(description="the base: a YAML file, or the name of one that comes with stexpr")
    overrides: dict[str, Any] = Field({}, description="keys of the base changed for all studies")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="none takes the base's own seed")
    grid: Axes = Field({}, description="every value of one key with every value of the others")
    zip: Axes = Field({}, description="values of several keys that change together, all of one length")
    list: tuple[dict[str, Any], ...] = Field((), description="keys and values of one combination each")
    exclude: tuple[dict[str, Any], ...] = Field((), description="combinations left out: studies that have all these values")

    @model_validator(mode="after")
    def _axes_fit(self) -> "SweepConfig":
        lengths = {key: len(values) for key, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise ValueError(f"the keys of zip need one number of values, here: {told}")
        for key, values in [*self.grid.items(), *self.zip.items()]:
            if key in self.grid and len({repr(value) for value in values}) < len(values):
                raise ValueError(f"the axis {key} names a value twice: {', '.join(map(repr, values))}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds names a seed twice: {', '.join(map(str, self.seeds))}")
        named = [*self.grid, *self.zip, *{key: None for entry in self.list for key in entry}]
        for key in dict.fromkeys(named):
            if named.count(key) > 1 or (key == "seed" and self.seeds):
                raise ValueError(f"{key} is an axis twice; give its values in one of seeds, grid, zip and list")
        return self

    @property
    def n_combinations(self) -> int:
        """Studies before exclusions."""
        rows = len(next(iter(self.zip.values()), (None,)))
        return math.prod(map(len, self.grid.values())) * rows * max(1, len(self.list)) * max(1, len(self.seeds))

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield the values of all axes, one study at a time; the seed changes slowest, then the grid's first axis.

        So that a sweep that is stopped early has compared all its models on the first seeds.
        """
        rows = [dict(zip(self.zip, row, strict=True)) for row in zip(*self.zip.values(), strict=True)] or [{}]
        for seed, values, row, entry in itertools.product(
            self.seeds or (None,), itertools.product(*self.grid.values()), rows, self.list or ({},)
        ):
            combination = {**dict(zip(self.grid, values, strict=True)), **row, **entry}
            yield combination if seed is None else {**combination, "seed": seed}


@dataclass(frozen=True)
class SweepStudies:
    """A sweep and the studies it stands for.

    Attributes:
        config: The sweep.
        source: Where it was read.
        base: Where its base study was read.
        studies: In the order of the combinations, without those excluded.
        n_excluded: Combinations left out.
    """

    config: SweepConfig
    source: str
    base: str
    studies: tuple[AnyStudy, ...]
    n_excluded: int


def load_sweep(source: str | Path, overrides: Sequence[str] = (), *, many: bool = False) -> SweepStudies:
    """Read a sweep and make its studies.

    Args:
        source: A path, or a name such as `ten_backbones` for `configs/sweeps/ten_backbones.yaml`.
        overrides: `key=value` strings over the base study, such as `training.epochs=2`.
        many: Whether more than `MANY` studies are meant.

    Raises:
        ConfigError: A file is missing or not YAML, an axis or a value no study has, or more than `MANY` studies.
    """
    path = find_config(source, "sweeps")
    config = cast(SweepConfig, validated(SweepConfig, read_yaml(path), str(path)))
    if config.n_combinations > MANY and not many:
        raise ConfigError(f"{path} makes {config.n_combinations:,} studies, each of several runs; add --yes if that is meant")
    base_path = _base_path(config, path)
    base = _base(config, base_path, overrides)
    _check_axes(config, base, str(path))
    studies, excluded = [], 0
    for combination in config.combinations():
        values = base
        for key, value in combination.items():
            values = dict(values)
            set_value(values, key, value)
            values = named_preset(values)
        study = any_study_of(values, f"{path}, {_in_words(combination)}")
        if any(_has(study, rule) for rule in config.exclude):
            excluded += 1
        else:
            studies.append(study)
    if not studies:
        raise ConfigError(f"{path} excludes all its {excluded} studies")
    return SweepStudies(config, str(path), str(base_path), tuple(studies), excluded)


def _base_path(config: SweepConfig, path: Path) -> Path:
    beside = path.parent / config.study
    return beside if beside.is_file() else find_study(config.study)


def _base(config: SweepConfig, path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    values = read_study(path)
    values["name"] = config.name
    for key, value in config.overrides.items():
        set_value(values, key, value)
        values = named_preset(values)
    for override in overrides:
        set_override(values, override)
        values = named_preset(values)
    return values


def _check_axes(config: SweepConfig, base: Mapping[str, Any], source: str) -> None:
    """Refuse a key that no study has before the first value is tried, and a rule that could exclude nothing."""
    axes = [*config.grid, *config.zip, *(key for entry in config.list for key in entry)]
    known = (SlideStudyConfig if is_of_slides(base) else StudyConfig).model_fields
    for key in [*axes, *config.overrides, *(key for rule in config.exclude for key in rule)]:
        if key.split(".")[0] not in known:
            raise ConfigError(f"{source}: no study has the key {key!r}; {nearest(key.split('.')[0], known)}")
    if "name" in axes or "runtime" in {key.split(".")[0] for key in axes}:
        raise ConfigError(f"{source}: name and runtime change no result, so they are no axes; set them with overrides")


def _has(study: AnyStudy, rule: Mapping[str, Any]) -> bool:
    values = study.model_dump(mode="json")
    for key, value in rule.items():
        found: Any = values
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found != value:
            return False
    return True


def _in_words(combination: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in combination.items()) or "the base study"
