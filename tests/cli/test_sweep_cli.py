"""`stexpr sweep` as a person runs it."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(small_cohort: Path, tmp_path: Path) -> Path:
    base = {
        "cohort": str(small_cohort),
        "folds": [0],
        "protocol": {"panel": {"n_main": 5}},
        "model": {"backbone": "tiny"},
        "training": {"epochs": 1},
        "runtime": {"device": "cpu"},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "study": "base.yaml", "grid": {"model.auxiliary.weight": [0, 1]}}))
    return path


def test_from_a_grid_to_a_leaderboard(stexpr: Run, sweep: Path):
    code, out, err = stexpr("sweep", sweep, "--dry-run", "--workers", 1)
    assert (code, err) == (0, "")
    assert "mine: 9 runs, 2 of networks in 2 studies; 9 are missing. Training takes at most " in out
    assert not list(Path("runs").glob("*/config.yaml"))
    code, out, err = stexpr("sweep", sweep, "--workers", 1)
    assert (code, err) == (0, "")
    assert "1 at a time with 1 threads each, engine local" in out
    assert re.search(r"\[9/9\] tiny \+ aux, fold 0, seed 0: mean r -?0\.\d+ \(runs/", out)
    assert "mine: 9 runs done now, 0 before; stexpr leaderboard runs --html" in out
    code, out, err = stexpr("sweep", sweep, "--workers", 1)
    assert (code, "mine: 0 runs done now, 9 before" in out) == (0, True)
    code, out, err = stexpr("sweep", "status")
    assert (code, err) == (0, "")
    assert "mine (not running): 9 done; best so far tiny" in out
    code, out, _ = stexpr("sweep", "stop", "mine")
    assert (code, out.startswith("mine: asked to stop")) == (0, True)
    assert stexpr("leaderboard", "runs")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mine.yaml", "model.bakbone=tiny"], "unknown key 'model.bakbone'; did you mean 'backbone'?"),
        (["nothing.yaml"], "no configuration 'nothing.yaml'"),
        (["mine.yaml", "--engine", "rey"], "no engine 'rey'; did you mean 'ray'?"),
        (["mine.yaml", "--engine", "slurm", "--slurm", "partition"], "--slurm 'partition' is not of the form key=value"),
        (["status"], "no sweep was started in runs"),
        (["status", "other"], "no sweep 'other' was started in runs; started there: none"),
        (["retry", "mine.yaml", "cohort=nowhere"], "nowhere"),
    ],
)
def test_what_is_refused_is_one_line(stexpr: Run, sweep: Path, arguments: list[str], words: str):
    code, _, err = stexpr("sweep", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


def test_the_file_of_a_wandb_sweep_is_printed(stexpr: Run, sweep: Path):
    code, out, err = stexpr("sweep", sweep, "--engine", "wandb", "training.epochs=3")
    assert (code, err) == (0, "")
    definition = yaml.safe_load(out)
    assert definition["parameters"] == {
        "model.auxiliary.weight": {"values": [0, 1]},
        "folds": {"values": ["[0]", "[1]", "[2]"]},
    }
    assert definition["command"][:4] == ["${env}", "stexpr", "train", str(sweep.with_name("base.yaml"))]
    assert "training.epochs=3" in definition["command"]


def test_a_grid_of_a_million_studies_asks_first(stexpr: Run, sweep: Path):
    grid = {"seed": list(range(1000)), "model.auxiliary.weight": list(range(1000))}
    sweep.write_text(yaml.safe_dump({"name": "mine", "study": "base.yaml", "grid": grid}))
    began = time.monotonic()
    code, _, err = stexpr("sweep", sweep)
    assert (code, err.count("\n")) == (2, 1)
    assert "makes 1,000,000 studies" in err
    assert "--yes" in err
    assert time.monotonic() - began < 10


def test_failed_runs_are_told_and_retried(stexpr: Run, sweep: Path):
    code, out, _ = stexpr("sweep", sweep, "training.lr=1e30", "--workers", 1)
    assert code == 1
    assert "2 failed (traceback in " in out
    code, out, _ = stexpr("sweep", "status")
    assert "2 failed" in out
    assert "lower training.lr" in out
    code, out, _ = stexpr("sweep", "retry", sweep, "training.lr=1e30", "--workers", 1)
    assert (code, out.count("FAILED")) == (1, 2)
    (failure, *_) = Path("runs").glob("*/failure.json")
    assert "Traceback" in json.loads(failure.read_text())["traceback"]


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start `stexpr sweep` beside the test, and leave nothing running."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object, **streams: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "stexpr", "sweep", *map(str, arguments)]
        started.append(subprocess.Popen(command, text=True, **streams))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_the_live_view_ends_with_the_sweep_and_a_signal_ends_the_sweep(
    sweep: Path, tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
):
    runs, piped = tmp_path / "runs", {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sweep, "--runs", runs, "--workers", 1, "training.epochs=2000", "training.patience=2000"]
    running = start(*command, **piped)
    deadline = time.monotonic() + 200
    while not list(runs.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = start(*command, **piped)
    _, err = again.communicate(timeout=100)
    assert again.returncode == 2
    assert "is being swept by process" in err
    terminal, end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "50"}
    watching = start("status", "--watch", "--runs", runs, stdout=end, stderr=end, env=environment)
    os.close(end)
    drawn = b""
    while b"epoch" not in drawn:
        drawn += os.read(terminal, 1 << 16)
    assert b"mine (running)" in drawn
    running.send_signal(signal.SIGTERM)
    with contextlib.suppress(OSError):  # Linux says EIO when the last writer is gone
        while chunk := os.read(terminal, 1 << 16):
            drawn += chunk
    os.close(terminal)
    assert watching.wait(timeout=60) == 0
    assert b"mine (not running)" in drawn
    _, err = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM, err
    assert "the same command goes on from here" in err
    assert list(runs.glob("*/checkpoint.pt"))
