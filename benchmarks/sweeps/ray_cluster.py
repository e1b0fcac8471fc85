"""Kill a node of a Ray cluster in the middle of a sweep: `python benchmarks/sweeps/ray_cluster.py [--quick]`.

Two nodes on this machine, one CPU each. The sweep runs once on the local engine and once on the cluster; as soon as a worker of
the second node has finished an epoch, that node and its workers are killed. Every run has to have the same record (but for
times and versions) and the same predictions as without Ray.

Writes benchmarks/results/sweep-ray.json, or what `--result` names; `--quick` trains less.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch
import yaml
from cluster import TwoNodes, descendants, environment, two_nodes

from stexpr.config.sweep import load_sweep
from stexpr.engines.local import LocalEngine
from stexpr.engines.ray import RayEngine
from stexpr.engines.tasks import Engine
from stexpr.evaluate.records import PREDICTIONS, RECORD
from stexpr.train.folder import LOCK, METRICS
from stexpr.train.sweep.plan import Plan, plan_sweep
from stexpr.train.sweep.run import run_sweep

RESULTS = Path(__file__).resolve().parents[1] / "results" / "sweep-ray.json"
TIMES = ("created", "wall_time_s", "versions")
BEGUN_LINES = 2
"""Epochs of a run on the second node after which that node is killed."""
STUDY: dict[str, Any] = {
    "protocol": {"panel": {"n_main": 12, "min_detection": 0.05}, "validation": {"fraction": 0.5}},
    "model": {"kind": "network", "backbone": "tiny"},
    "runtime": {"device": "cpu"},
}


class Killer(threading.Thread):
    """Kills the second node once one of its workers is in the middle of a training."""

    def __init__(self, nodes: TwoNodes, runs: Path) -> None:
        super().__init__(daemon=True)
        self.nodes, self.runs = nodes, runs
        self.began = time.monotonic()
        self.said: dict[str, Any] = {}
        self.left = threading.Event()

    def run(self) -> None:
        while not self.left.wait(0.02):
            there = set(descendants(self.nodes.second))
            for run in self._begun(there):
                when = time.monotonic() - self.began
                lines = len((run / METRICS).read_text().splitlines())
                self.said = {"after_s": round(when, 1), "run": run.name, "epochs_done": lines}
                self.said["processes"] = len(self.nodes.kill_second())
                return

    def _begun(self, there: set[int]) -> list[Path]:
        found = []
        for metrics in self.runs.glob(f"*/{METRICS}"):
            try:
                holder = json.loads((metrics.parent / LOCK).read_text())["process"]
            except (OSError, ValueError):
                continue
            if holder in there and len(metrics.read_text().splitlines()) >= BEGUN_LINES:
                found.append(metrics.parent)
        return found


def timed(plan: Plan, runs: Path, engine: Engine) -> tuple[float, int]:
    """Run the sweep; return the seconds and the number of runs done."""
    began = time.monotonic()
    result = run_sweep(plan, runs, engine, report=lambda line: print(line, flush=True))
    assert result.is_complete, result
    return round(time.monotonic() - began, 1), result.n_done


def differences(plan: Plan, one: Path, other: Path) -> list[str]:
    """Say in what the runs of two folders differ: records but for times and versions, and predictions."""
    found = []
    for run in plan.runs:
        records = [json.loads((runs / run.key / RECORD).read_text()) for runs in (one, other)]
        keys = {key for record in records for key in record} - set(TIMES)
        found += [f"{run.key}: {key}" for key in sorted(keys) if records[0].get(key) != records[1].get(key)]
        predictions = [anndata.read_h5ad(runs / run.key / PREDICTIONS).X for runs in (one, other)]
        if not np.array_equal(*predictions):
            found.append(f"{run.key}: predictions")
    return found


def synthetic_cohort(folder: Path) -> Path:
    """Write and prepare a small synthetic cohort."""
    from stexpr.data.cards import load_card
    from stexpr.data.prepare import prepare
    from stexpr.data.synthetic import write_synthetic

    card_path = write_synthetic(folder / "raw", patients=3, sections_per_patient=1, spots_per_section=100, genes=60)
    card = load_card(card_path)
    assert card.prepare is not None
    prepare(card, card_path.parent, folder / "cohort", card.prepare)
    return folder / "cohort"


def written_sweep(folder: Path, cohort: Path, seeds: int, epochs: int) -> Path:
    """Write the study and the sweep, which is the more runs the more seeds."""
    study = {
        "name": "killed",
        "cohort": str(cohort),
        **STUDY,
        "training": {"epochs": epochs, "batch_size": 16, "patience": epochs},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    sweep = {"name": "killed", "study": "study.yaml", "seeds": list(range(seeds)), "grid": {"model.auxiliary.weight": [1]}}
    (folder / "killed.yaml").write_text(yaml.safe_dump(sweep))
    return folder / "killed.yaml"


def main() -> None:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--cohort", type=Path, help="prepared; by default a synthetic one is made")
    parser.add_argument("--result", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sx-") as at:
        folder = Path(at)
        cohort = (given.cohort or synthetic_cohort(folder)).resolve()
        sweep = written_sweep(folder, cohort, *((1, 8) if given.quick else (2, 8)))
        plan = plan_sweep(load_sweep(sweep))
        local_s, n_local = timed(plan, folder / "local", LocalEngine(folder / "logs", workers=2, threads=1))
        for run in plan.runs:
            if not run.is_network:  # seconds each, and nothing in them can be interrupted
                shutil.copytree(folder / "local" / run.key, folder / "ray" / run.key)
        began = time.monotonic()
        with two_nodes(folder / "c") as nodes:
            started_s = round(time.monotonic() - began, 1)
            os.environ.update(environment(folder / "c"))
            began = time.monotonic()
            with closing(RayEngine(folder / "logs-ray", threads=1, address=nodes.address)) as engine:
                joined_s = round(time.monotonic() - began, 1)
                assert engine.slots == 2, engine.slots
                killer = Killer(nodes, folder / "ray")
                killer.start()
                ray_s, n_ray = timed(plan, folder / "ray", engine)
                killer.left.set()
                killer.join()
        found = differences(plan, folder / "local", folder / "ray")
    result = {
        "networks": sum(run.is_network for run in plan.runs),
        "runs_done": {"local": n_local, "ray": n_ray},
        "seconds": {"local": local_s, "cluster_start": started_s, "join": joined_s, "ray": ray_s},
        "killed": killer.said,
        "equal": not found,
        "differences": found,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("stexpr", "ray", "torch", "numpy")}
        | {"python": platform.python_version()},
    }
    text = json.dumps(result, indent=1) + "\n"
    given.result.write_text(text)
    print(text)
    sys.exit(0 if result["equal"] and killer.said else 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
