"""Small sweeps, an engine that stays in this process, and what must be equal between runs of one hash."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import psutil
import yaml

from stexpr.config.sweep import load_sweep
from stexpr.engines.tasks import Outcome, Task, perform
from stexpr.train.sweep.plan import Plan, plan_sweep

OF_THE_MOMENT = {"created", "wall_time_s", "study"}


def write_sweep(folder: Path, cohort: Path, **keys: Any) -> Path:
    """Write a sweep of the tiny network, of the base study beside it, and return its file."""
    base = {
        "cohort": str(cohort),
        "protocol": {"panel": {"n_main": 12, "min_detection": 0.05}, "validation": {"fraction": 0.5}},
        "input": {"window_px": 24},
        "model": {"backbone": "tiny"},
        "training": {"epochs": 2, "batch_size": 16, "lr": 3e-3, "warmup_epochs": 0.5},
        "runtime": {"device": "cpu"},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "study": "base.yaml", **keys}))
    return path


def plan_of(folder: Path, cohort: Path, *overrides: str, **keys: Any) -> Plan:
    return plan_sweep(load_sweep(write_sweep(folder, cohort, **keys), overrides))


class HereEngine:
    """Performs tasks one after the other in this process."""

    name, slots, threads = "here", 1, 1

    def __init__(self) -> None:
        self.performed: list[str] = []

    def run(self, tasks: Sequence[Task], stopped: Callable[[], bool]) -> Iterator[Outcome]:
        for task in tasks:
            if stopped():
                return
            self.performed.append(task.key)
            yield perform(task)


def workers_of(sweep: int) -> list[psutil.Process]:
    """Living worker processes of the local engine of a sweep, by its process id."""
    found = []
    for process in psutil.Process(sweep).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie counts as none
            found += [process] if "stexpr.engines.worker" in process.cmdline() else []
    return found


def results_of(run: Path) -> dict[str, Any]:
    """Everything of a run that its hash promises."""
    record = json.loads((run / "record.json").read_text())
    adata = anndata.read_h5ad(run / "predictions.h5ad")
    return {
        "record": {key: value for key, value in record.items() if key not in OF_THE_MOMENT},
        "predicted": np.asarray(adata.X),
        "metrics": (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else "",
    }


def assert_same_results(one: Path, other: Path) -> None:
    """Two folders hold the same runs with the same numbers, to the last bit."""
    names = sorted(path.parent.name for path in one.glob("*/record.json"))
    assert names
    assert names == sorted(path.parent.name for path in other.glob("*/record.json"))
    for name in names:
        a, b = results_of(one / name), results_of(other / name)
        assert a["record"] == b["record"], name
        assert a["metrics"] == b["metrics"], name
        np.testing.assert_array_equal(a["predicted"], b["predicted"], err_msg=name)
