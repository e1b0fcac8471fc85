"""What the local engine costs over the same runs made by hand, with `stexpr train`, one study after the other.

    .venv/bin/python benchmarks/sweeps/overhead.py [--rounds 3] [--work FOLDER]

Both sides use one worker of one thread and make the same runs from nothing; they take turns, and each keeps its best time.
Processor seconds of all processes stand beside the clock, because they hang less on what else the machine does. Also: the time
to plan, deduplicate and list a sweep of 1,000 runs. Writes benchmarks/results/sweep-overhead.json.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stexpr.config.sweep import load_sweep
from stexpr.config.versions import versions
from stexpr.data.cards import load_card
from stexpr.data.prepare import prepare
from stexpr.data.synthetic import write_synthetic
from stexpr.train.sweep.plan import plan_sweep
from stexpr.train.sweep.run import missing_runs
from stexpr.train.sweep.states import sweep_status

ROOT = Path(__file__).resolve().parents[2]
BASE = """
cohort: {cohort}
protocol: {{panel: {{n_main: 50}}}}
model: {{backbone: tiny}}
folds: [0, 1]
training: {{epochs: 20, batch_size: 16}}
"""
SWEEP = "name: overhead\nstudy: base.yaml\ngrid: {model.auxiliary.weight: [0, 1]}\n"
THOUSAND = "name: thousand\nstudy: base.yaml\nseeds: %s\ngrid: {model.auxiliary.weight: [0, 1]}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="stexpr-overhead-"))
    card = load_card(write_synthetic(work / "raw", seed=0))
    assert card.prepare is not None
    prepare(card, work / "raw", work / "cohort", card.prepare)
    (work / "base.yaml").write_text(BASE.format(cohort=work / "cohort"))
    (work / "sweep.yaml").write_text(SWEEP)
    result = {**thousand(work), **overhead(work, options.rounds)}
    path = ROOT / "benchmarks" / "results" / "sweep-overhead.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def overhead(work: Path, rounds: int) -> dict[str, Any]:
    base, sweep = str(work / "base.yaml"), str(work / "sweep.yaml")
    by_hand = [["train", base, f"model.auxiliary.weight={weight}", "--runs", str(work / "runs")] for weight in (0, 1)]
    engine = [["sweep", sweep, "--runs", str(work / "runs"), "--workers", "1", "--threads", "1"]]
    best: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name, commands in (("by hand", by_hand), ("engine", engine)):
            shutil.rmtree(work / "runs", ignore_errors=True)
            spent = timed(commands)
            best[name] = (min(spent[0], best[name][0]), min(spent[1], best[name][1])) if name in best else spent
    n_runs = len(list((work / "runs").glob("*/record.json")))
    (hand_clock, hand_cpu), (engine_clock, engine_cpu) = best["by hand"], best["engine"]
    return {
        "n_runs": n_runs,
        "by_hand_s": round(hand_clock, 2),
        "engine_s": round(engine_clock, 2),
        "by_hand_cpu_s": round(hand_cpu, 2),
        "engine_cpu_s": round(engine_cpu, 2),
        "overhead": round(engine_clock / hand_clock - 1, 4),
        "overhead_cpu": round(engine_cpu / hand_cpu - 1, 4),
        "bar": 0.05,
        "rounds": rounds,
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
    }


def timed(commands: list[list[str]]) -> tuple[float, float]:
    """Return seconds on the clock and of processors, of the commands and all their processes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for command in commands:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "stexpr", *command], check=True, env=environment, stdout=subprocess.DEVNULL)
    clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def thousand(work: Path) -> dict[str, Any]:
    (work / "thousand.yaml").write_text(THOUSAND % list(range(250)))
    began = time.perf_counter()
    plan = plan_sweep(load_sweep(work / "thousand.yaml"))
    plan.write(work / "runs")
    n_missing = len(missing_runs(plan, work / "runs"))
    status = sweep_status(work / "runs", "thousand")
    seconds = time.perf_counter() - began
    networks = sum(run.is_network for run in plan.runs)
    assert networks == 1000
    return {
        "thousand_runs_s": round(seconds, 2),
        "thousand_bar_s": 10,
        "thousand_missing": n_missing,
        "listed": len(status.runs),
    }


if __name__ == "__main__":
    main()
