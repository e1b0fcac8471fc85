"""Sweeps: every run once, whatever is killed, stopped, failed or started twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from stexpr.config import load_study
from stexpr.engines.local import LocalEngine
from stexpr.errors import ConfigError, TrainingError
from stexpr.train.folder import BusyError, exclusive
from stexpr.train.study import run_study
from stexpr.train.sweep.job import write_failure
from stexpr.train.sweep.plan import PLAN, sweeps_in
from stexpr.train.sweep.run import missing_runs, run_sweep, stop_sweep
from stexpr.train.sweep.states import sweep_status
from sweeps import HereEngine, assert_same_results, plan_of, workers_of, write_sweep

TWO_MODELS = {"grid": {"model.auxiliary.weight": [0, 1]}, "overrides": {"folds": [0, 1]}}
ONE_RUN = {"overrides": {"folds": [0]}}
BASELINES_ONLY = "model={kind: training_mean}"


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wait_for(happened: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.02)


def test_a_plan_names_each_run_once_and_baselines_first(tmp_path: Path, small_cohort: Path):
    plan = plan_of(tmp_path, small_cohort, **TWO_MODELS, seeds=[0, 1], exclude=[{"model.auxiliary.weight": 1, "seed": 1}])
    kinds = [run.study.model.kind for run in plan.runs]
    assert kinds.count("network") == 3 * 2
    assert kinds[: -3 * 2].count("network") == 0
    assert len({run.key for run in plan.runs}) == len(plan.runs) == 7 * 2 + 3 * 2
    assert (plan.n_studies, plan.n_excluded, plan.n_shared) == (3, 1, 0)
    twice = plan_of(tmp_path, small_cohort, list=[{"model.auxiliary.weight": 0.5}, {"model.auxiliary": {"weight": 0.5}}])
    assert twice.n_shared == 3
    assert "3 runs asked for twice" in twice.summary()


@pytest.mark.usefixtures("one_thread")
def test_the_local_engine_makes_the_runs_that_are_made_by_hand(tmp_path: Path, small_cohort: Path):
    plan = plan_of(tmp_path, small_cohort, **TWO_MODELS)
    lines: list[str] = []
    result = run_sweep(plan, tmp_path / "runs", LocalEngine(tmp_path / "logs", workers=2, threads=1), report=lines.append)
    assert (result.n_before, result.n_done, result.failed, result.n_left) == (0, len(plan.runs), (), 0)
    assert result.is_complete
    assert len(lines) == len(plan.runs)
    assert any("tiny + aux, fold 1, seed 0: mean r 0." in line for line in lines)
    for weight in (0, 1):
        study = load_study(tmp_path / "base.yaml", [f"model.auxiliary.weight={weight}", "folds=[0, 1]"])
        run_study(study, tmp_path / "by hand")
    assert_same_results(tmp_path / "runs", tmp_path / "by hand")
    engine = HereEngine()
    again = run_sweep(plan, tmp_path / "runs", engine)
    assert (again.n_before, again.n_done, engine.performed) == (len(plan.runs), 0, [])
    status = sweep_status(tmp_path / "runs", "small")
    assert status.counts() == f"{len(plan.runs)} done"
    assert status.best is not None
    assert status.best[0] in ("tiny", "tiny + aux")


def test_a_failed_run_keeps_its_traceback_and_the_others_go_on(tmp_path: Path, small_cohort: Path):
    plan = plan_of(tmp_path, small_cohort, **ONE_RUN, grid={"training.lr": [1e30, 3e-3]})
    runs, lines = tmp_path / "runs", []
    result = run_sweep(plan, runs, HereEngine(), report=lines.append)
    assert (result.n_done, len(result.failed), result.n_left) == (len(plan.runs) - 1, 1, 0)
    assert any("FAILED" in line and "lower training.lr" in line for line in lines)
    (key, where), *_ = result.failed
    failure = json.loads(Path(where).read_text())
    assert "Traceback" in failure["traceback"]
    assert "TrainingError" in failure["traceback"]
    assert "1 failed" in sweep_status(runs, "small").counts()
    engine = HereEngine()
    assert not run_sweep(plan, runs, engine).is_complete
    assert engine.performed == []  # what failed waits for a retry
    assert not run_sweep(plan, runs, engine, only_failed=True).is_complete
    assert engine.performed == [key]


def test_a_failure_that_was_mended_outside_of_the_sweep_is_none(tmp_path: Path, small_cohort: Path):
    plan = plan_of(tmp_path, small_cohort, BASELINES_ONLY, **ONE_RUN)
    runs = tmp_path / "runs"
    run_sweep(plan, runs, HereEngine())
    write_failure(runs / plan.runs[0].key, "an error", "its traceback")
    assert run_sweep(plan, runs, HereEngine()).is_complete
    assert sweep_status(runs, "small").counts() == f"{len(plan.runs)} done"


def test_a_run_held_by_another_process_is_waited_for(tmp_path: Path, small_cohort: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stexpr.train.sweep.run.BUSY_POLL_S", 0.2)
    plan = plan_of(tmp_path, small_cohort, BASELINES_ONLY, **ONE_RUN)
    runs, held, free = tmp_path / "runs", threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive(runs / plan.runs[0].key):
            held.set()
            free.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    threading.Timer(1.0, free.set).start()
    engine = HereEngine()
    result = run_sweep(plan, runs, engine)
    holder.join()
    assert result.is_complete
    assert engine.performed.count(plan.runs[0].key) > 1
    assert result.n_done == len(plan.runs)


def test_one_sweep_at_a_time(tmp_path: Path, small_cohort: Path):
    plan = plan_of(tmp_path, small_cohort, **ONE_RUN)
    with (
        exclusive(plan.state_folder(tmp_path / "runs"), "being swept"),
        pytest.raises(BusyError, match=rf"small is being swept by process {os.getpid()} on "),
    ):
        run_sweep(plan, tmp_path / "runs", HereEngine())


def test_a_stopped_sweep_goes_on(tmp_path: Path, small_cohort: Path):
    plan = plan_of(tmp_path, small_cohort, BASELINES_ONLY, **ONE_RUN)
    runs = tmp_path / "runs"

    def stop_after_two(line: str) -> None:
        if line.startswith("[2/"):
            assert stop_sweep(runs) == ["small"]

    result = run_sweep(plan, runs, HereEngine(), report=stop_after_two)
    assert (result.n_done, result.n_left) == (2, len(plan.runs) - 2)
    assert "the same command goes on" in result.in_words("small", "sweep.yaml", runs)
    assert len(missing_runs(plan, runs)) == result.n_left
    assert run_sweep(plan, runs, HereEngine()).is_complete


def test_sweeps_that_are_not_there_are_named(tmp_path: Path, small_cohort: Path):
    plan = plan_of(tmp_path, small_cohort, **ONE_RUN)
    plan.write(tmp_path / "runs")
    assert sweeps_in(tmp_path / "runs") == ["small"]
    with pytest.raises(ConfigError, match=r"no sweep 'other' was started in .*; started there: small"):
        sweep_status(tmp_path / "runs", "other")
    with pytest.raises(ConfigError, match="started there: small"):
        stop_sweep(tmp_path / "runs", ["other"])
    (plan.state_folder(tmp_path / "runs") / PLAN).write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        sweep_status(tmp_path / "runs", "small")


def test_a_full_disk_ends_the_sweep_with_one_error(tmp_path: Path, small_cohort: Path, monkeypatch: pytest.MonkeyPatch):
    plan = plan_of(tmp_path, small_cohort, BASELINES_ONLY, **ONE_RUN)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stexpr.train.run.write_folds", full)
    engine = HereEngine()
    with pytest.raises(TrainingError, match=r"the disk of .* is full; free space, and the same command goes on"):
        run_sweep(plan, tmp_path / "runs", engine)
    assert len(engine.performed) == 1
    monkeypatch.undo()
    assert run_sweep(plan, tmp_path / "runs", HereEngine()).is_complete


def test_a_thousand_runs_are_planned_and_listed_in_seconds(tmp_path: Path, small_cohort: Path):
    began = time.process_time()
    plan = plan_of(tmp_path, small_cohort, seeds=list(range(167)), grid={"model.auxiliary.weight": [0, 1]})
    networks = [run for run in plan.runs if run.is_network]
    assert len(networks) == 167 * 2 * 3
    runs = tmp_path / "runs"
    plan.write(runs)
    assert len(missing_runs(plan, runs)) == len(plan.runs)
    status = sweep_status(runs, "small")
    assert status.count("waiting") == len(plan.runs)
    assert time.process_time() - began < 10


# --- kills -------------------------------------------------------------------------------------------------------------


def start(sweep: Path, runs: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "stexpr", "sweep", str(sweep), "--runs", str(runs), "--workers", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def test_killed_workers_and_sweeps_lose_double_and_tear_nothing(tmp_path: Path, small_cohort: Path):
    long = {
        "grid": {"model.auxiliary.weight": [0, 1]},
        "overrides": {"folds": [0], "training.epochs": 40, "training.patience": 40},
    }
    sweep, runs = write_sweep(tmp_path, small_cohort, **long), tmp_path / "runs"
    first = start(sweep, runs)
    wait_for(lambda: any(runs.glob("*/metrics.jsonl")), "a training")
    before = workers_of(first.pid)
    before[0].send_signal(signal.SIGKILL)
    wait_for(lambda: set(workers_of(first.pid)) - set(before), "another worker in the place of the dead one")
    orphans = workers_of(first.pid)
    first.kill()
    first.wait(timeout=30)
    psutil.wait_procs(orphans, timeout=90)
    assert not any(one.is_running() for one in orphans)
    second = start(sweep, runs)
    assert second.wait(timeout=150) == 0
    plan = plan_of(tmp_path, small_cohort, **long)
    assert {path.parent.name for path in runs.glob("*/record.json")} == {run.key for run in plan.runs}
    for left in ("failure.json", "checkpoint.pt", ".*.part"):
        assert not list(runs.glob(f"*/{left}"))
    run_sweep(plan, tmp_path / "undisturbed", LocalEngine(tmp_path / "logs", workers=2, threads=1))
    assert_same_results(runs, tmp_path / "undisturbed")
