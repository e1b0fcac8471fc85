"""The command line, run as a person runs it."""

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import pytest
import typer.main
import yaml

from hest_download import write_download
from raw_sections import write_raw_cohort, write_raw_section
from stexpr import cli
from stexpr.config import BASELINES

Run = Callable[..., tuple[int, str, str]]

SWEEP_FLAGS = ["--address", "--engine", "--gpus", "--runs", "--slurm", "--threads", "--workers", "--yes"]
PREDICT_FLAGS = [
    *("--abstain", "--batch-size", "--coverage", "--device", "--features", "--genes", "--min-tissue", "--model", "--mpp"),
    *("--output", "--preservation", "--species", "--stride", "--tissue"),
]
EMBED_FLAGS = [
    *("--address", "--batch-size", "--device", "--download", "--engine", "--expression", "--gpus", "--min-tissue", "--model"),
    *("--mpp", "--output", "--patches", "--readers", "--retry", "--roi-class", "--rois", "--slurm", "--stride-um", "--threads"),
    *("--weights", "--workers"),
]
FROZEN = {
    "audit": ["--cohort", "--output", "-o", "PATH"],
    "bags deploy": ["--bags", "--clinical", "--output", "--patient", "--slides", "-b", "-o", "RUNS"],
    "bags explain": sorted(["--bags", "--device", "--genes", "--output", "--slide", "--slides", "--target", "-b", "-o", "RUN"]),
    "config schema": [],
    "config show": ["OVERRIDES", "STUDY"],
    "convert": ["--to", "OVERRIDES", "SOURCE", "TARGET"],
    "data fetch": ["--from", "--output", "-o", "CARD"],
    "data list": [],
    "data verify": ["CARD", "FOLDER"],
    "demo": ["--output", "--quick", "--seed", "--slides", "-o"],
    "doctor": [],
    "export": sorted(["--cohort", "--device", "--model", "--onnx", "--output", "--seed", "--timm", "-o", "RUNS"]),
    "evaluate": ["--cohort", "--protocol", "--refresh", "RUN"],
    "hest-bench": sorted(
        ["--device", "--download", "--encoder", "--output", "--random-weights", "--task", "--weights", "-o", "FOLDER"]
    ),
    "leaderboard": ["--cohort", "--html", "--images", "--maps", "--output", "--protocol", "--slides", "--wandb", "-o", "RUNS"],
    "predict": sorted([*PREDICT_FLAGS, "-m", "-o", "SLIDE"]),
    "prepare": ["--adopt", "--from", "--output", "--patients", "-o", "CARD", "OVERRIDES"],
    "slides embed": sorted([*EMBED_FLAGS, "-m", "-o", "SOURCE"]),
    "sweep retry": [*SWEEP_FLAGS, "OVERRIDES", "SWEEP"],
    "sweep run": sorted(["--dry-run", *SWEEP_FLAGS, "OVERRIDES", "SWEEP"]),
    "sweep status": ["--runs", "--watch", "NAMES"],
    "sweep stop": ["--runs", "NAMES"],
    "train": ["--runs", "OVERRIDES", "STUDY"],
    "wandb report": ["--print", "--project", "RUNS"],
    "wandb sync": ["RUNS"],
}
"""What scripts of users rely on: change it only with a line in the CHANGELOG."""


def test_verbs_and_flags_are_frozen():
    found = {}

    def walk(command, path: str) -> None:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                walk(inner, f"{path} {name}".strip())
            return
        names = [opt if opt.startswith("-") else opt.upper() for param in command.params for opt in param.opts]
        found[path] = sorted(name for name in names if name != "--help")

    walk(typer.main.get_command(cli.app), "")
    assert found == FROZEN


def test_from_raw_files_to_a_leaderboard(stexpr: Run, raw_cohort: Path, tmp_path: Path):
    code, out, err = stexpr("prepare", raw_cohort, "--from", raw_cohort.parent, "-o", "cohort")
    assert (code, err) == (0, "")
    assert "4 sections, 3 patients, 24 genes, 32 px patches at 1 um/px" in out
    study = {
        "name": "mine",
        "cohort": "cohort",
        "protocol": {"panel": {"n_main": 10}},
        "model": {"backbone": "tiny"},
        "training": {"epochs": 2},
        "runtime": {"device": "cpu"},
    }
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    code, out, err = stexpr("train", "mine.yaml", "input.window_px=24")
    assert (code, err) == (0, "")
    n_runs = 3 * (1 + len(BASELINES))
    assert out.count("\n") == n_runs
    assert "color ridge, fold 2: mean r 0." in out
    code, out, err = stexpr("evaluate", "runs")
    assert code == 0
    assert out.count("as recorded") == n_runs
    code, out, err = stexpr("evaluate", "runs", "--protocol", "all")
    assert (code, err) == (0, "")
    assert "| tiny + aux | " in out
    assert "**triplex** is LEAKY" in out
    code, out, err = stexpr("evaluate", "runs", "--refresh")
    assert (code, out.count(": r was ")) == (0, n_runs)
    code, out, err = stexpr("leaderboard", "runs", "-o", "board")
    assert code == 0
    assert "tiny + aux" in out
    tables = {"comparisons.csv", "leaderboard.csv", "leaderboard.md", "leaderboard.png", "patients.csv", "per_gene.csv"}
    assert {path.name for path in Path("board").iterdir()} == tables
    code, out, err = stexpr("leaderboard", "runs", "-o", "page", "--html", "--maps", "color ridge")
    assert (code, err) == (0, "")
    assert "written to page/index.html" in out
    assert {path.name for path in Path("page").iterdir()} == {*tables, "index.html"}
    assert stexpr("leaderboard", "runs", "--html", "--maps", "colour ridge")[2].endswith("did you mean 'color ridge'?\n")
    code, out, err = stexpr("audit", "runs")
    assert (code, err) == (0, "")
    assert f"{n_runs} runs" in out
    assert "runs: 0 leaks, 0 to look at, " in out
    shutil.move("cohort", "moved")
    code, out, err = stexpr("leaderboard", "runs", "-o", "bare", "--html")
    assert (code, "The maps lie on no picture: " in out) == (0, True)
    assert stexpr("leaderboard", "runs", "-o", "page", "--html", "--images", "moved")[0] == 0
    shutil.move("moved", "cohort")
    code, out, err = stexpr("data", "verify", "cohort")
    assert (code, "is as it was written" in out) == (0, True)


def test_a_download_is_adopted(stexpr: Run, tmp_path: Path):
    write_download(tmp_path / "hest")
    code, out, err = stexpr("prepare", "--adopt", "hest", "name=breast", "leave_out=[TENX4]")
    assert (code, err) == (0, "")
    assert "hest: 3 sections, 3 patients, 23 genes, 32 px patches at 0.5 um/px" in out
    assert "section TENX4 left out: left out by leave_out" in out
    assert "2 genes left out: missing in some section" in out
    assert stexpr("data", "verify", "hest")[0] == 0
    Path("patients.csv").write_text("section,patient\nTENX1,Ada\nTENX2,Ada\n")
    code, out, err = stexpr("prepare", "--adopt", "hest", "--patients", "patients.csv")
    assert (code, "4 sections, 2 patients" in out) == (0, True)


def test_a_section_goes_through_the_formats(stexpr: Run, raw_cohort: Path):
    source = raw_cohort.parent / "a1.h5ad"
    code, out, err = stexpr("convert", source, "a1.zarr", "mpp=1.0", "patient=ada")
    assert (code, err) == (0, "")
    assert out == "a1.zarr: section a1 of patient ada, 64 spots x 24 genes, 320 x 320 px at 1 um/px (given)\n"
    assert stexpr("convert", "a1.zarr", "hest", "--to", "hest")[0] == 0
    assert stexpr("convert", "hest", "again.h5ad")[0] == 0
    again, first = (anndata.read_h5ad(path) for path in ("again.h5ad", source))
    assert (again.X != first.X).nnz == 0
    assert list(again.obs_names) == list(first.obs_names)


def test_config_show_reads_back(stexpr: Run):
    code, out, _ = stexpr("config", "show", "mob", "seed=3", "training.lr=1e-4")
    assert code == 0
    values = yaml.safe_load(out)
    assert (values["seed"], values["training"]["lr"], values["model"]["kind"]) == (3, 1e-4, "network")
    Path("again.yaml").write_text(out)
    assert stexpr("config", "show", "again.yaml")[1] == out


def test_config_schema_is_json(stexpr: Run):
    code, out, _ = stexpr("config", "schema")
    assert code == 0
    assert "protocol" in json.loads(out)["properties"]


def test_doctor_finds_this_installation_well(stexpr: Run):
    code, out, _ = stexpr("doctor")
    assert code == 0, out
    for what in ("torch and torchvision", "openslide", "cache folder", "device", "squidpy"):
        assert what in out
    assert "PROBLEM" not in out


def test_doctor_reports_what_is_wrong(monkeypatch: pytest.MonkeyPatch, stexpr: Run, tmp_path: Path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    code, out, _ = stexpr("doctor")
    assert code == 1
    assert "PROBLEM" in out


def test_an_audit_ends_with_exit_code_1_when_test_data_leaked(stexpr: Run, small_cohort: Path, tmp_path: Path):
    code, out, err = stexpr("audit", small_cohort, "-o", "clean.json")
    assert (code, err) == (0, "")
    assert ": 0 leaks, " in out
    assert json.loads(Path("clean.json").read_text())["leaks"] is False
    card = write_raw_cohort(tmp_path / "raw", {"a1": "a", "b1": "b"})
    write_raw_section(card.parent, "b1", 0)  # the tissue of a1 under another patient
    assert stexpr("prepare", card, "--from", card.parent, "-o", "leaky")[0] == 0
    code, out, _ = stexpr("audit", "leaky", "-o", "leaky.json")
    assert code == 1
    assert "leak" in out
    assert json.loads(Path("leaky.json").read_text())["leaks"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "mop"], "did you mean 'mob'?"),
        (["train", "mob", "trainin.lr=1"], "unknown key 'trainin'; did you mean 'training'?"),
        (["train", "mob", "training.lr"], "not of the form key=value"),
        (["train", "mob"], "cohorts/mob"),
        (["prepare", "mobb", "--from", ".", "-o", "x"], "did you mean 'mob'?"),
        (["prepare", "mob", "--from", "nowhere", "-o", "x"], "nowhere"),
        (["prepare", "mob"], "prepare needs CARD, --from FOLDER and --output FOLDER, or --adopt FOLDER"),
        (["prepare", "--adopt", "nowhere"], "no such folder"),
        (["convert", "nowhere", "x.zarr"], "no file or folder nowhere"),
        (["convert", "nowhere", "x"], "Say --to h5ad, spatialdata or hest"),
        (["convert", "nowhere", "x.zarr", "ppm=1"], "unknown key 'ppm'; did you mean 'mpp'?"),
        (["prepare", "--adopt", "nowhere", "-o", "x"], "copies nothing: leave --output x out"),
        (["prepare", "--adopt", "nowhere", "names=x"], "unknown key 'names'; did you mean 'name'?"),
        (["data", "fetch", "stnet"], "stnet"),
        (["leaderboard", "runs"], "no folder runs"),
        (["evaluate", "runs"], "no finished run"),
        (["config", "show", "."], "no configuration"),
        (["audit", "."], "is no prepared cohort"),
        (["hest-bench", "nowhere", "--encoder", "resnet18"], "nowhere"),
        (["evaluate", "runs", "--protocol", "tripleks"], "no folder runs"),
    ],
)
def test_what_is_refused_is_one_line_and_exit_code_2(stexpr: Run, arguments: list[str], message: str):
    code, out, err = stexpr(*arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("stexpr: ")
    assert message in err
    assert "Traceback" not in out + err


DISK = 8_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_earlier_results_whole(
    stexpr: Run, raw_cohort: Path, small_cohort: Path, small_disk: Path
):
    Path("study.yaml").write_text(
        f"cohort: {small_cohort}\nfolds: [0]\nmodel: {{kind: training_mean}}\nprotocol: {{panel: {{n_main: 5}}}}\n"
    )
    earlier = small_disk / "earlier.txt"
    earlier.write_text("whole")

    def fill() -> None:
        (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 20_000))

    fill()
    code, _, err = stexpr("train", "study.yaml", "--runs", small_disk / "runs")
    assert code == 2
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert not list(small_disk.glob("runs/*/record.json"))
    assert earlier.read_text() == "whole"
    code, _, err = stexpr("prepare", raw_cohort, "--from", raw_cohort.parent, "-o", small_disk / "cohort")
    assert code == 2
    assert err.count("\n") == 1
    assert "No space left on device" in err
    (small_disk / "filler").unlink()
    assert stexpr("train", "study.yaml", "--runs", small_disk / "runs")[0] == 0
    fill()
    Path("network.yaml").write_text(
        f"cohort: {small_cohort}\nfolds: [0]\nmodel: {{backbone: tiny}}\n"
        "protocol: {panel: {n_main: 5}}\ntraining: {epochs: 1}\n"
    )
    code, _, err = stexpr("train", "network.yaml", "--runs", small_disk / "runs")
    assert code == 2
    assert err.count("\n") == 1
    assert "checkpoint.pt: No space left on device" in err


def run_in_terminal(command: list[str]) -> tuple[int, str, str]:
    """Run with stderr on a terminal, which holds only 4 KiB: it is read while the command draws."""
    terminal, end = pty.openpty()
    drawn: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # Linux says EIO when the last writer is gone
            while chunk := os.read(terminal, 1 << 16):
                drawn.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=end, text=True, timeout=200, env={**os.environ, "TERM": "xterm"}
        )
    finally:
        os.close(end)
        reader.join()
        os.close(terminal)
    return done.returncode, done.stdout, b"".join(drawn).decode()


def test_results_go_to_stdout_while_bars_are_drawn_on_the_terminal(small_cohort: Path, tmp_path: Path):
    study = tmp_path / "study.yaml"
    study.write_text(
        f"cohort: {small_cohort}\nfolds: [0]\nmodel: {{kind: training_mean}}\nprotocol: {{panel: {{n_main: 5}}}}\n"
    )
    command = [sys.executable, "-m", "stexpr", "train", str(study), "--runs", str(tmp_path / "runs")]
    code, out, drawn = run_in_terminal(command)
    assert code == 0, drawn
    assert "training mean, fold 0: r undefined" in out
    assert "training mean on small" in drawn
    assert "r undefined" not in drawn


@pytest.mark.real
def test_fetch_and_verify_the_olfactory_bulb(stexpr: Run, shared_data: Path):
    code, out, err = stexpr("data", "fetch", "mob", "--from", shared_data / "mob")
    assert (code, err) == (0, "")
    assert "9 files fetched, 0 there before, every checksum right" in out
    assert stexpr("data", "verify", "mob")[0] == 0
    with open("raw/mob/MOB2.tsv", "a") as file:
        file.write("x")
    code, out, _ = stexpr("data", "verify", "mob")
    assert code == 1
    assert "MOB2.tsv" in out


def test_the_cards_are_listed(stexpr: Run):
    code, out, _ = stexpr("data", "list")
    assert code == 0
    for name in ("her2st", "hest", "mob", "stnet", "synthetic"):
        assert name in out
