"""Kill a sweep and its workers with SIGKILL at random moments and start it again: no run may be lost, doubled or torn.

    .venv/bin/python benchmarks/sweeps/kills.py [--kills 10] [--seed 0] [--work FOLDER]

Each kill hits the sweep's own process or one of its workers, by the toss of a coin, up to 15 s after the first worker is there;
when the sweep is dead the same command is given again. At the end every planned run has one record, nothing is left over, and
records, metrics and predictions equal those of a sweep that nobody disturbed, to the last bit. Writes
benchmarks/results/sweep-kills.json.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "train"))
from stexpr.config.sweep import load_sweep  # noqa: E402
from stexpr.config.versions import versions  # noqa: E402
from stexpr.data.cards import load_card  # noqa: E402
from stexpr.data.prepare import prepare  # noqa: E402
from stexpr.data.synthetic import write_synthetic  # noqa: E402
from stexpr.train.sweep.plan import plan_sweep  # noqa: E402
from sweeps import assert_same_results, workers_of  # noqa: E402

BASE = """
cohort: {cohort}
protocol: {{panel: {{n_main: 50}}}}
model: {{backbone: tiny}}
folds: [0, 1]
training: {{epochs: 30, patience: 30, batch_size: 16}}
"""
SWEEP = """
name: kills
study: base.yaml
seeds: [0, 1]
grid: {model.auxiliary.weight: [0, 1]}
"""
WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    result = run(options.work or Path(tempfile.mkdtemp(prefix="stexpr-kills-")), options.kills, options.seed)
    path = ROOT / "benchmarks" / "results" / "sweep-kills.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['n_runs']} runs after {len(result['kills'])} kills equal those of an undisturbed sweep; see {path}")


def run(work: Path, n_kills: int, seed: int) -> dict[str, Any]:
    card = load_card(write_synthetic(work / "raw", seed=0, patients=3, spots_per_section=100, genes=160))
    assert card.prepare is not None
    prepare(card, work / "raw", work / "cohort", card.prepare)
    (work / "base.yaml").write_text(BASE.format(cohort=work / "cohort"))
    (work / "sweep.yaml").write_text(SWEEP)
    plan = plan_sweep(load_sweep(work / "sweep.yaml"))
    rng = random.Random(seed)
    began = time.monotonic()
    kills, starts = [], 1
    process = start(work, "killed")
    while len(kills) < n_kills:
        while process.poll() is None and not workers_of(process.pid):
            time.sleep(0.1)
        wait = rng.uniform(0, 15)
        time.sleep(wait)
        if process.poll() is not None:
            assert process.returncode != 0, f"the sweep was done after {len(kills)} kills; give it more to do"
        victim, aim = pick(process, rng)
        done = len(list((work / "killed").glob("*/record.json")))
        victim.kill()
        kills.append({"after_s": round(wait, 1), "hit": aim, "runs_done": done})
        print(f"kill {len(kills)}: {aim}, {done} of {len(plan.runs)} runs done", flush=True)
        if aim == "sweep":
            process.wait()
            process, starts = start(work, "killed"), starts + 1
    assert process.wait() == 0, "the last sweep failed"
    seconds = time.monotonic() - began
    killed = work / "killed"
    lost = {run.key for run in plan.runs} - {path.parent.name for path in killed.glob("*/record.json")}
    assert not lost, lost
    assert not [*killed.glob("*/failure.json"), *killed.glob("*/checkpoint.pt"), *killed.glob("*/.*.part")]
    began = time.monotonic()
    assert start(work, "undisturbed").wait() == 0
    undisturbed = time.monotonic() - began
    assert_same_results(killed, work / "undisturbed")
    return {
        "n_runs": len(plan.runs),
        "kills": kills,
        "starts": starts,
        "lost": len(lost),
        "equal": True,  # or the comparison above had raised
        "seconds": round(seconds, 1),
        "seconds_undisturbed": round(undisturbed, 1),
        "workers": WORKERS,
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
    }


def start(work: Path, runs: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "stexpr", "sweep", str(work / "sweep.yaml"), "--runs", str(work / runs)]
    with (work / f"{runs}.log").open("a") as log:
        return subprocess.Popen([*command, "--workers", str(WORKERS)], stdout=log, stderr=log, start_new_session=True)


def pick(process: "subprocess.Popen[bytes]", rng: random.Random) -> tuple[psutil.Process, str]:
    workers = workers_of(process.pid)
    if workers and rng.random() < 0.5:
        return rng.choice(workers), "worker"
    return psutil.Process(process.pid), "sweep"


if __name__ == "__main__":
    main()
