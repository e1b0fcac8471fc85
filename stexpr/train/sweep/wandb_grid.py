"""A sweep as Weights & Biases states one: its agents, anywhere, draw the runs and call `stexpr train`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from stexpr.config.sweep import SweepConfig, SweepStudies
from stexpr.errors import ConfigError
from stexpr.train.study import open_study

INSTEAD: Final = "; the engines local, ray and slurm run such a sweep"


def wandb_sweep_file(sweep: SweepStudies, runs: Path, overrides: Sequence[str]) -> str:
    """Write a sweep as the YAML file that `wandb sweep` takes.

    Args:
        sweep: Its base study has to lie at the same path on the agents' machines, as its cohort does.
        runs: Folder of all runs on the agents' machines.
        overrides: `key=value` strings over the base study.

    Raises:
        ConfigError: The sweep has something that a grid of Weights & Biases cannot say.
        DataError: Its cohort is not prepared.
    """
    study = sweep.studies[0]
    definition = wandb_sweep(
        sweep.config,
        study=str(Path(sweep.base).resolve()),
        n_folds=len(open_study(study).folds),
        project=study.runtime.wandb_project,
        runs=str(runs),
        overrides=tuple(overrides),
    )
    return yaml.safe_dump(definition, sort_keys=False)


def wandb_sweep(
    config: SweepConfig, *, study: str, n_folds: int, project: str, runs: str, overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Write a sweep as the definition that `wandb sweep` takes; one run of an agent trains one fold.

    Args:
        config: The sweep.
        study: Its base, a name or a path as the agents' machines find it.
        n_folds: Folds of each study.
        project: Of Weights & Biases.
        runs: Folder of all runs on the agents' machines.
        overrides: `key=value` strings over the base study.

    Returns:
        Plain values, ready for YAML: a grid over the sweep's axes, its seeds and the folds, with validation r as the metric.

    Raises:
        ConfigError: The sweep has something that a grid of Weights & Biases cannot say.
    """
    for part in ("zip", "list", "exclude"):
        if getattr(config, part):
            raise ConfigError(f"a grid of Weights & Biases has no {part}, the sweep {config.name} has one{INSTEAD}")
    axes: dict[str, tuple[Any, ...]] = dict(config.grid)
    if config.seeds:
        axes["seed"] = config.seeds
    if "folds" in axes:
        raise ConfigError(f"folds is an axis of its own in a sweep of Weights & Biases, and the grid has one{INSTEAD}")
    parameters: dict[str, Any] = {key: {"values": [_plain(key, value) for value in values]} for key, values in axes.items()}
    parameters["folds"] = {"values": [f"[{fold}]" for fold in range(n_folds)]}
    fixed = {**config.overrides, "name": config.name, "runtime.tracker": "wandb", "runtime.wandb_project": project}
    return {
        "name": config.name,
        "project": project,
        "program": "stexpr",
        "method": "grid",
        "metric": {"name": "val/pearson", "goal": "maximize"},
        "parameters": parameters,
        "command": [
            "${env}",
            "stexpr",
            "train",
            study,
            *(f"{key}={_text(value)}" for key, value in _without(fixed, overrides).items()),
            *overrides,
            "${args_no_hyphens}",
            "--runs",
            runs,
        ],
    }


def _plain(key: str, value: Any) -> Any:
    """Return a value as a grid can hold it and an agent writes it on a command line that reads it back the same.

    Raises:
        ConfigError: It is a mapping, which a grid takes for parameters of its own.
    """
    if isinstance(value, Mapping):
        raise ConfigError(f"a grid of Weights & Biases holds no keys and values, as the axis {key} does{INSTEAD}")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else _text(value)


def _text(value: Any) -> str:
    """Write a value as an override reads it: `null`, `true`, `[0, 1]`, `{a: 1}`, and text that looks like none of these."""
    if isinstance(value, str) and yaml.safe_load(value) == value:
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("\n").removesuffix("\n...")


def _without(fixed: Mapping[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """Leave out what an override says anew, and a name that would be said twice."""
    said = {override.partition("=")[0] for override in overrides}
    return {key: value for key, value in fixed.items() if key not in said}
