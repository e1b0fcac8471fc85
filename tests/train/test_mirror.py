"""Runs on a server of Weights & Biases: a loopback stub (`wandb_server`) that wandb's own process talks to.

wandb reads its address once a process, so each case trains in a process of its own, as a person would.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stexpr.config import StudyConfig
from stexpr.errors import ConfigError
from stexpr.evaluate.records import read_record
from stexpr.train.folder import write_config
from stexpr.train.mirror_report import as_report, report_definition
from stexpr.train.mirror_sync import find_runs
from wandb_server import KEY, StubRun, WandbServer

ONE_FOLD = """
import sys
from pathlib import Path
from stexpr.config import load_study
from stexpr.train.checkpoint import stop_on_signals
from stexpr.train.run import run_fold
from stexpr.train.spots import open_cohort, study_folds

config = load_study(sys.argv[1])
cohort = open_cohort(config)
with stop_on_signals() as stop:
    run_fold(config, cohort, study_folds(config, cohort)[0], "split", Path("runs"), stop=stop)
"""
"""A study's first fold without the baselines, which would take most of the time and are not mirrored."""
NAME = "tiny-aux-f0-s0"


@dataclass
class Place:
    """A folder to work in, whose processes find the stub."""

    folder: Path
    server: WandbServer

    def run(self, *command: str, seconds: float = 240, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run Python with `stexpr` or a script, within so many seconds."""
        around = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        around |= {**self.server.environment(self.folder / "home"), "MPLBACKEND": "Agg"}
        # waits a test can afford
        around |= {"WANDB_INIT_TIMEOUT": "8", "WANDB_FINISH_TIMEOUT": "8", "WANDB_HTTP_TIMEOUT": "4", **environment}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=around, capture_output=True, text=True, timeout=seconds
        )
        assert KEY not in done.stdout + done.stderr
        return done

    def stexpr(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run the command line."""
        return self.run("-m", "stexpr", *arguments, **environment)

    def train(self, **environment: str) -> tuple[Path, str]:
        """Train one fold; return its folder and what was said on stderr."""
        done = self.run("-W", "always::UserWarning:stexpr", "-c", ONE_FOLD, "study.yaml", **environment)
        assert done.returncode == 0, done.stderr
        (record,) = self.folder.glob("runs/*/record.json")
        return record.parent, done.stderr


@pytest.fixture
def place(study: Callable[..., StudyConfig], tmp_path: Path) -> Iterator[Place]:
    """A study to train, and a server."""
    folder = tmp_path / "place"
    (folder / "home").mkdir(parents=True)
    write_config(folder / "study.yaml", study("runtime.tracker=wandb", "folds=[0]"))
    with WandbServer() as server:
        yield Place(folder, server)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_mirrored(run: StubRun, folder: Path) -> None:
    """Everything the run directory holds is on the server, with the same values."""
    lines, record = lines_of(folder), read_record(folder)
    epochs = [{key: value for key, value in line.items() if key[0] != "_"} for line in run.history if "epoch" in line]
    assert epochs == lines
    assert sum("val/pearson" in line for line in epochs) >= 3
    assert run.complete
    for name, value in record.values.items():
        assert run.summary.get(name) == value.value
    assert run.summary["val/pearson"] == {"max": max(line["val/pearson"] for line in lines if "val/pearson" in line)}
    assert run.summary["train/loss"] == {"min": min(line["train/loss"] for line in lines)}
    assert len(run.logged("per_gene")) == 1
    (table,) = (json.loads(content) for name, content in run.files.items() if name.startswith("media/table/per_gene"))
    ours = pd.read_parquet(folder / "per_gene.parquet")
    theirs = pd.DataFrame(table["data"], columns=table["columns"])
    assert theirs["gene"].tolist() == ours["gene"].tolist()
    assert theirs["pearson"].astype(float).tolist() == pytest.approx(ours["pearson"].tolist(), nan_ok=True)
    images = [content for name, content in run.files.items() if name.startswith("media/images/maps/")]
    assert sorted(images) == sorted(path.read_bytes() for path in (folder / "maps").glob("*.png"))
    settings = run.settings
    assert (settings["displayName"], settings["groupName"], settings["jobType"]) == (NAME, "small", "train")
    assert settings["tags"] == ["stexpr", "small", "tiny", "aux"]
    assert run.config["cohort_hash"] == record.cohort.hash
    assert run.config["fold"] == 0
    assert KEY not in json.dumps(settings)


def test_an_online_run_arrives_whole_with_its_lineage_and_its_board(place: Place):
    server = place.server
    done = place.stexpr("train", "study.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (path.parent for path in place.folder.glob("runs/*/metrics.jsonl"))
    run = server.run(NAME)
    assert_mirrored(run, folder)
    assert "wandb-events.jsonl" in run.lines  # the machine's own metrics
    assert len(server.runs) == 1  # the baselines are on the board
    cohort, model, predictions = map(server.artifact, ("cohort", "model", "predictions"))
    assert server.uses == [(folder.name, cohort.name)]
    assert cohort.metadata == {"name": "small", "hash": read_record(folder).cohort.hash}
    assert (list(cohort.entries), cohort.files) == (["cohort.json"], {})
    assert model.files == {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    assert predictions.files == {"predictions.h5ad": (folder / "predictions.h5ad").read_bytes()}
    assert all(artifact.run == folder.name and artifact.committed for artifact in (model, predictions))
    assert predictions.metadata["model"] == model.name

    said = place.stexpr("leaderboard", "runs", "-o", "board", "--wandb", "boards").stdout
    assert f"logged to {server.url}/stub-user/boards/runs/" in said
    (board,) = (run for run in server.runs.values() if run.settings["jobType"] == "leaderboard")
    assert (board.settings["project"], board.settings["groupName"]) == ("boards", "small")
    kinds = {name.split("/")[-1].split("_")[0] for name in board.files if name.startswith("media/")}
    assert {"leaderboard", "per", "comparisons", "scores", "genes-spread", "heat"} <= kinds
    assert board.summary["leading"] == "color ridge"

    server.trouble = 403
    done = place.stexpr("leaderboard", "runs", "-o", "later", "--wandb", "boards")
    assert done.returncode == 0, done.stderr
    assert "offline (Weights & Biases did not take it: " in done.stdout
    server.trouble = None
    assert "1 sent" in place.stexpr("wandb", "sync", "later").stdout
    assert sum(run.settings["jobType"] == "leaderboard" for run in server.runs.values()) == 2
    done = place.stexpr("wandb", "report", "runs", "--print")
    assert json.loads(done.stdout) == report_definition("stexpr", ["small"])


def test_a_run_whose_key_was_refused_is_sent_later_and_once(place: Place):
    server = place.server
    folder, said = place.train(WANDB_API_KEY="x" * 44)
    assert not server.runs
    assert said.count("UserWarning") == 1
    assert f"{NAME} ({folder.name}): Weights & Biases did not take this run (AuthenticationError" in said
    assert f"`stexpr wandb sync {folder.relative_to(place.folder)}` sends it later" in said
    assert "x" * 44 not in said
    for environment, message in (
        ({"WANDB_API_KEY": ""}, "nobody is logged in"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, "does not answer"),  # or refuses, on a machine with time to spare
    ):
        done = place.stexpr("wandb", "sync", "runs", **environment)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    server.refused = "file_stream"  # after which wandb itself would take the run for synced
    done = place.stexpr("wandb", "sync", "runs")
    assert (done.returncode, done.stdout.splitlines()[1:]) == (1, ["1 failed"]), done.stdout + done.stderr
    assert ": not sent: " in done.stdout
    server.refused = None
    done = place.stexpr("wandb", "sync", "runs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith(": sent")
    assert done.stdout.splitlines()[1:] == ["1 sent"]
    assert_mirrored(server.run(NAME), folder)
    model, predictions = ([file for file in server.artifacts if file.type == kind][-1] for kind in ("model", "predictions"))
    where = (folder / "model" / "model.safetensors").absolute().as_uri()
    assert (model.entries["model.safetensors"]["ref"], model.files) == (where, {})
    assert predictions.entries["predictions.h5ad"]["ref"] == (folder / "predictions.h5ad").absolute().as_uri()
    assert "named by its hash" in server.run(NAME).config["lineage"]
    asked = len(server.requests)
    done = place.stexpr("wandb", "sync", "runs")
    assert done.stdout.splitlines()[1:] == ["1 synced before"]
    assert len(server.requests) == asked


@pytest.mark.parametrize("trouble", [403, "silence"])
def test_an_outage_costs_a_warning_and_a_later_sync_brings_all(place: Place, trouble: int | str):
    server = place.server

    def begin() -> None:
        while not any(path.stat().st_size for path in place.folder.glob("runs/*/metrics.jsonl")):  # its first epoch
            time.sleep(0.01)
        server.trouble = trouble

    threading.Thread(target=begin, daemon=True).start()
    folder, said = place.train()  # ends by itself, or its process is ended and the test fails
    assert server.trouble == trouble
    assert not server.run(NAME).logged("per_gene")
    assert not server.run(NAME).complete
    assert said.count("UserWarning") == 1
    assert f"{NAME} ({folder.name}): Weights & Biases left this run (" in said
    assert "stexpr wandb sync" in said
    server.trouble = None
    done = place.stexpr("wandb", "sync", "runs")
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["1 sent"]), done.stdout + done.stderr
    assert_mirrored(server.run(NAME), folder)


def test_the_newest_attempt_of_each_run_is_sent(tmp_path: Path):
    for name in (
        "run-20250101_000000-a",
        "offline-run-20250101_000000-a",
        "run-20240101_000000-a",
        "offline-run-20230101_000000-b",
    ):
        (tmp_path / "r" / "wandb" / name).mkdir(parents=True)
        (tmp_path / "r" / "wandb" / name / f"run-{name[-1]}.wandb").touch()
    found = find_runs(tmp_path)
    assert [run.log.parent.name for run in found] == ["offline-run-20230101_000000-b", "offline-run-20250101_000000-a"]
    assert not any(run.synced or run.unfinished for run in found)
    (tmp_path / "r" / "config.yaml").touch()
    assert all(run.unfinished for run in found)
    with pytest.raises(ConfigError, match="no folder"):
        find_runs(tmp_path / "none")


def test_a_report_shows_curves_backbones_and_genes():
    definition = report_definition("mine", ["a", "b"])
    panels = [panel for block in definition["blocks"] for panel in block["panels"]]
    assert [panel["type"] for panel in panels] == ["LinePlot", "LinePlot", "BarPlot", "CustomChart"]
    assert definition["blocks"][0]["runsets"][0]["filters"] == 'JobType = "train" and Group in ["a", "b"]'
    assert panels[-1]["chart_name"] in definition["charts"]


def test_a_report_is_one_that_workspaces_can_build():
    reports = pytest.importorskip("wandb_workspaces.reports.v2")
    definition = report_definition("mine", ["a"])
    report = as_report(definition, "me", {name: f"me/{name}" for name in definition["charts"]})
    assert isinstance(report, reports.Report)
    assert report.blocks[2].panels[0].chart_name.startswith("me/")
