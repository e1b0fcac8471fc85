"""From the studies of a sweep to its runs, each once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stexpr.config import content_hash
from stexpr.config.any_study import AnyStudy
from stexpr.config.files import write_whole
from stexpr.config.slides import SlideStudyConfig
from stexpr.config.sweep import SweepConfig, SweepStudies
from stexpr.data.splits import Fold
from stexpr.errors import ConfigError
from stexpr.train.opened import OpenedStudy
from stexpr.train.study import open_study

STATE: Final = ".sweeps"
"""Folder, among the runs, of what is known of each sweep; the leading dot tells it from a run."""
PLAN: Final = "plan.json"
STOP: Final = "stop"


@dataclass(frozen=True)
class PlannedRun:
    """One fold of one study.

    Attributes:
        key: Its config hash, the name of its folder.
        study: What is trained.
        fold: The partition.
        opened: The study of the sweep it belongs to, opened.
    """

    key: str
    study: AnyStudy
    fold: Fold
    opened: OpenedStudy[Any]

    @property
    def is_network(self) -> bool:
        """Whether it is of a model the sweep is about, not of a baseline."""
        return self.study.model.role == "network"

    @property
    def entry(self) -> dict[str, Any]:
        """What a status needs to name the run, as plain JSON values."""
        return {
            "key": self.key,
            "label": self.study.label,
            "kind": self.study.model.role,
            "fold": self.fold.index,
            "seed": self.study.seed,
        }


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep.

    Attributes:
        config: The sweep.
        runs: Baselines first, which every board needs and which take seconds, then the networks in the sweep's order.
        n_studies: Studies, without those excluded.
        n_excluded: Studies excluded.
        n_shared: Runs of networks left out because another study of the sweep has the very same.
        notes: What was found while looking for leakage.
    """

    config: SweepConfig
    runs: tuple[PlannedRun, ...]
    n_studies: int
    n_excluded: int
    n_shared: int
    notes: tuple[str, ...]

    @property
    def wandb_project(self) -> str | None:
        """Project of Weights & Biases that mirrors the sweep, None without one."""
        runtime = self.runs[-1].study.runtime
        return runtime.wandb_project if runtime.tracker == "wandb" else None

    def summary(self) -> str:
        """Say how many runs there are and of what."""
        networks = sum(run.is_network for run in self.runs)
        parts = [f"{self.config.name}: {len(self.runs):,} runs, {networks:,} of networks in {self.n_studies:,} studies"]
        parts += [f"{self.n_excluded:,} studies excluded"] if self.n_excluded else []
        parts += [f"{self.n_shared:,} runs asked for twice"] if self.n_shared else []
        return "; ".join(parts)

    def state_folder(self, runs: Path) -> Path:
        """Return where the state of the sweep is kept."""
        return runs / STATE / self.config.name

    def write(self, runs: Path) -> None:
        """Write what a status needs into the state folder."""
        content = {"sweep": self.config.model_dump(mode="json"), "runs": [run.entry for run in self.runs]}
        text = json.dumps(content, indent=1)
        write_whole(self.state_folder(runs) / PLAN, lambda path: path.write_text(text, encoding="utf-8"))


def plan_sweep(sweep: SweepStudies) -> Plan:
    """List the runs of a sweep, each once, after looking for leakage in every partition.

    Args:
        sweep: Its studies.

    Raises:
        ConfigError: A study asks for a fold or a window that there is not.
        DataError: A cohort is not prepared.
        LeakageError: A patient or a spot is on both sides of a fold.
    """
    opened = _Opened()
    planned: dict[str, PlannedRun] = {}
    n_networks = 0
    for study in sweep.studies:
        one = opened.of(study)
        for config, fold in one.jobs():
            key = one.folder(config, fold, Path()).name
            n_networks += config.model.role == "network"
            planned.setdefault(key, PlannedRun(key, config, fold, one))
    runs = sorted(planned.values(), key=lambda run: run.is_network)
    n_shared = n_networks - sum(run.is_network for run in runs)
    return Plan(sweep.config, tuple(runs), len(sweep.studies), sweep.n_excluded, n_shared, tuple(opened.notes))


class _Opened:
    """Studies opened, their data and folds read once for all that share them."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._first: dict[str, OpenedStudy[Any]] = {}

    def of(self, study: AnyStudy) -> OpenedStudy[Any]:
        key = partition_key(study)
        opened = open_study(study, self._first.get(key))
        if key not in self._first:
            self.notes += [f"{opened.cohort_name}: {note}" for note in opened.check()]
            self._first[key] = opened
        return opened


def partition_key(study: AnyStudy) -> str:
    """Identify what the folds of a study depend on: equal keys, equal data and folds."""
    if isinstance(study, SlideStudyConfig):
        return content_hash(study.model_dump(mode="json", include={"bags", "tables", "protocol"}))
    decisive = study.model_dump(mode="json", include={"protocol": {"split", "validation", "window_um", "stain", "min_counts"}})
    return content_hash({**decisive, "cohort": str(study.cohort), "window_px": study.input.asked_px})


def planned_entries(runs: Path, name: str) -> list[dict[str, Any]]:
    """Read the runs of a sweep as it was planned last.

    Raises:
        ConfigError: No such sweep ran in this folder.
    """
    path = runs / STATE / name / PLAN
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except FileNotFoundError:
        known = ", ".join(sweeps_in(runs)) or "none"
        raise ConfigError(f"no sweep {name!r} was started in {runs}; started there: {known}") from None
    except (ValueError, KeyError) as err:
        raise ConfigError(f"{path} cannot be read ({err}); start the sweep again, which writes it anew") from err
    return entries


def sweeps_in(runs: Path) -> list[str]:
    """Return the names of the sweeps that were started in a folder of runs."""
    return sorted(path.parent.name for path in runs.glob(f"{STATE}/*/{PLAN}"))
