"""One training on two real processes, started by torchrun as a person starts it, against the same training on one.

Sums over the two halves of a batch are rounded otherwise than sums over the whole, hence the tolerances.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch

from stexpr.config import BASELINES, StudyConfig
from stexpr.evaluate.records import Record, read_record
from stexpr.train.distributed import ALONE, Processes
from stexpr.train.folder import exclusive, write_config
from stexpr.train.run import run_folder
from stexpr.train.spots import open_cohort, study_folds
from stexpr.train.study import run_study

Study = Callable[..., StudyConfig]
Baselines = Callable[[Path], None]
TIMEOUT_S = 240
pytestmark = pytest.mark.timeout(4 * TIMEOUT_S)
CURVES, PREDICTIONS, SCORES = 1e-5, 1e-4, 1e-4
"""Tolerances against one process, after six epochs or fewer."""


def torchrun(config: StudyConfig, folder: Path, *options: str, program: tuple[str, ...] = ("-m", "stexpr")) -> list[str]:
    """Write the study and return the command that trains it on two processes."""
    folder.mkdir(exist_ok=True)
    write_config(folder / "study.yaml", config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    study = ["train", str(folder / "study.yaml"), "--runs", str(folder / "runs")]
    return [*launcher, "--master-port", port, *options, *program, *study]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False)


def network(folder: Path) -> Path:
    """Return the run of the network among those of the baselines."""
    (model,) = folder.glob("runs/*/model")
    return model.parent


def curves(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: Path, two: Path) -> tuple[Record, Record]:
    first, second = curves(one), curves(two)
    assert [line.pop("phase") for line in first] == [line.pop("phase") for line in second]
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=CURVES, abs=CURVES)
    mine, other = (anndata.read_h5ad(run / "predictions.h5ad") for run in (one, two))
    assert mine.obs_names.tolist() == other.obs_names.tolist()
    np.testing.assert_allclose(mine.X, other.X, atol=PREDICTIONS)
    records = read_record(one), read_record(two)
    assert records[0].config_hash == records[1].config_hash
    assert records[0].epochs == records[1].epochs
    for name, value in records[0].values.items():
        assert records[1].values[name].value == pytest.approx(value.value, abs=SCORES), name
    return records


UNEVEN = (
    "folds=[0]",
    "training.batch_size=15",  # 7 and 8 spots, or 7 and 7
    "input.stain_jitter=0.1",
    "input.brightness=0.1",
    "input.test_symmetries=true",
    "training.average=0.9",
)


def test_two_processes_train_as_one(study: Study, tmp_path: Path):
    config = study(*UNEVEN)
    one = run_study(config, tmp_path / "one" / "runs")[0]
    done = run(torchrun(config, tmp_path / "two"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1 + len(BASELINES)  # only one of them speaks
    assert not [line for line in done.stderr.splitlines() if "Warning" in line]
    two = network(tmp_path / "two")
    assert two.name == one.name
    records = assert_same(one, two)
    assert [record.execution["processes"] for record in records] == [1, 2]
    assert records[1].execution["accumulation"] == 1
    assert records[1].notes == records[0].notes
    again = run(torchrun(config, tmp_path / "two"))
    assert (again.returncode, again.stdout.count("done before")) == (0, 1)


def test_batch_normalization_on_cpus_is_noted_and_resumes_bit_by_bit(study: Study, tmp_path: Path, baselines: Baselines):
    config = study("folds=[0]", "model.backbone=resnet18", "training.epochs=4")
    for folder in ("whole", "stopped"):
        baselines(tmp_path / folder / "runs")
    whole = run(torchrun(config, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    process = subprocess.Popen(torchrun(config, tmp_path / "stopped"), stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + TIMEOUT_S
    while not any(path.read_text().count("\n") >= 2 for path in tmp_path.glob("stopped/runs/*/metrics.jsonl")):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0
    assert errors.count("stexpr: stopped by SIGTERM; the state is saved") == 1, errors
    (checkpoint,) = tmp_path.glob("stopped/runs/*/checkpoint.pt")
    assert not (checkpoint.parent / "record.json").exists()
    resumed = run(torchrun(config, tmp_path / "stopped"))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    runs = network(tmp_path / "whole"), network(tmp_path / "stopped")
    assert curves(runs[0]) == curves(runs[1])
    records = [read_record(run) for run in runs]
    assert records[0].values == records[1].values
    assert "batch normalization saw only the spots of one of 2 processes at a time" in records[1].notes


SHORT_OF_MEMORY = """
import os, torch
from torch.nn.modules.module import register_module_forward_hook
from stexpr.cli import main
from stexpr.models.tiny import TinyNetwork

def refuse(module, inputs, output):  # one of the two has less memory than the other
    if isinstance(module, TinyNetwork) and len(output) > 4 and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("not enough")

register_module_forward_hook(refuse)
main()
"""


def test_memory_that_ends_in_one_process_is_remembered_by_the_next_start(study: Study, tmp_path: Path, baselines: Baselines):
    for folder in ("one", "two"):
        baselines(tmp_path / folder / "runs")
    config = study("folds=[0]", "training.epochs=2", "training.batch_size=16")
    (tmp_path / "short.py").write_text(SHORT_OF_MEMORY)
    program = (str(tmp_path / "short.py"),)
    done = run(torchrun(config, tmp_path / "two", "--max-restarts", "3", program=program))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stexpr: process 1 of 2 ran out of memory with 8 examples at a time; the same command goes on" in done.stderr
    one = run_study(config, tmp_path / "one" / "runs")[0]
    _, record = assert_same(one, network(tmp_path / "two"))
    assert record.execution["accumulation"] == 2
    assert "out of memory: each batch of 16 was processed in 2 parts by each of 2 processes" in record.notes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.loss=mse_pearson",), "the loss correlates over the batch, which 2 processes share: .* model.loss=mse or"),
        (("training.batch_size=1",), "training.batch_size = 1 makes batches of 1, which 2 processes cannot share"),
    ],
)
def test_what_processes_cannot_share_is_one_clear_line(study: Study, tmp_path: Path, overrides, message: str):
    done = run(torchrun(study("folds=[0]", *overrides), tmp_path / "two"))
    assert done.returncode != 0
    assert set(re.findall(r"exitcode +: (-?\d+)", done.stderr)) <= {"2", "-15"}  # torchrun may end the second itself
    assert re.search(r"exitcode +: 2", done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("stexpr: ")]
    assert len(lines) == 1, done.stderr
    assert re.search(message, lines[0])


def test_a_failure_of_the_first_process_ends_the_others_with_its_words(study: Study, tmp_path: Path):
    """Another training holds the folder, which only the first process notices."""
    config = study("folds=[0]", "training.epochs=2")
    cohort = open_cohort(config)
    with exclusive(run_folder(tmp_path / "two" / "runs", config, cohort, study_folds(config, cohort)[0])):
        done = run(torchrun(config, tmp_path / "two"))
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("stexpr: ")]
    assert len(lines) == 1, done.stderr
    assert "is being trained by process" in lines[0]


def test_shares_are_contiguous_and_cover_all_rows():
    rows = torch.arange(17)
    processes = [Processes(rank, 3) for rank in range(3)]
    shares = [process.share(rows) for process in processes]
    assert torch.equal(torch.cat(shares), rows)
    assert [process.start(17) for process in processes] == [int(share[0]) for share in shares]
    assert ALONE.largest(3) == 3
    assert ALONE.exchange("x") == ["x"]
    assert ALONE.share(rows) is not None
    assert ALONE.start(17) == 0
