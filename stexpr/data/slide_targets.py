"""The targets of a protocol, read from a clinical table."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stexpr.config.slides import BinaryTarget, ContinuousTarget, FractionTarget, OrdinalTarget, SurvivalTarget, TargetConfig
from stexpr.data.slide_cohort import Target
from stexpr.data.tables import ClinicalTable, named
from stexpr.data.targets import Labels, read_labels, read_survival
from stexpr.errors import DataError, nearest

__all__ = ["read_targets"]


def read_targets(
    configs: Sequence[TargetConfig], table: ClinicalTable, site_of: Mapping[str, str]
) -> tuple[list[list[Target]], dict[str, str]]:
    """Read every target of a protocol.

    Args:
        configs: As the protocol has them.
        table: All clinical columns.
        site_of: Patient -> site; times in unlike units are also looked for between sites.

    Returns:
        The targets of each entry; and those of several columns that cannot be read, with the reason.

    Raises:
        DataError: A column is missing, or the only one of a target cannot be read.
    """
    refused: dict[str, str] = {}
    return [_targets(config, table, site_of, refused) for config in configs], refused


def _targets(config: TargetConfig, table: ClinicalTable, site_of: Mapping[str, str], refused: dict[str, str]) -> list[Target]:
    if isinstance(config, SurvivalTarget):
        return [read_survival(table, config.event, config.time, group_of=site_of)]
    if isinstance(config, BinaryTarget | ContinuousTarget):
        names = _matching(config.columns, table)
        found: list[Target] = []
        for name in names:
            try:
                if isinstance(config, BinaryTarget):
                    found.append(read_labels(table, name, "binary", positive=config.positive, missing=config.missing))
                else:
                    found.append(read_labels(table, name, "continuous", missing=config.missing))
            except DataError as err:
                if len(names) == 1:
                    raise
                refused[name] = str(err)
        return found
    missing = config.missing
    if isinstance(config, FractionTarget):
        return [_fraction(read_labels(table, config.column, "continuous", missing=missing), config, table)]
    labels = read_labels(table, config.column, "multiclass", missing=missing)
    return [_ordered(labels, config, table) if isinstance(config, OrdinalTarget) else labels]


def _matching(patterns: Sequence[str], table: ClinicalTable) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        own = fnmatch.filter(table.columns, pattern) if set(pattern) & set("*?[") else [pattern]
        if not own:
            raise DataError(f"no column of {table.path} is like {pattern!r}; {nearest(pattern, table.columns)}")
        found |= dict.fromkeys(own)
    return list(found)


def _fraction(labels: Labels, config: FractionTarget, table: ClinicalTable) -> Labels:
    scale = 100.0 if config.percent else 1.0
    values = {patient: value / scale for patient, value in labels.values.items()}
    wrong = [patient for patient, value in values.items() if not 0 <= value <= 1]
    if wrong:
        few = f"{labels.values[wrong[0]]:g} in {named('patient', wrong)}"
        unit = "percentage" if config.percent else "fraction; set percent: true if it is a percentage"
        raise DataError(f"{config.column} of {table.path} is {few}, which is no {unit}")
    return replace(labels, values=values)


def _ordered(labels: Labels, config: OrdinalTarget, table: ClinicalTable) -> Labels:
    strange = {value for value in labels.values.values() if value not in config.order}
    if strange:
        few = ", ".join(sorted(strange)[:3])
        order = ", ".join(config.order)
        raise DataError(
            f"{config.column} of {table.path} has {few}, which is not in order ({order}); add it, or name it missing"
        )
    return labels
