import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stexpr.config import StudyConfig
from stexpr.evaluate.leaderboard import Leaderboard
from stexpr.train.mirror import WandbMirror, mirrored_spots, run_name
from stexpr.train.mirror_board import log_board
from stexpr.train.tracking import MetricsFile, Tracker
from stexpr.train.wandb_client import in_words
from wandb_files import assert_logged

PER_GENE = pd.DataFrame({"gene": ["A", "B"], "pearson": [0.5, None]})


def test_lines_past_the_checkpoint_are_cut(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, keep_lines=0)
    for epoch in range(3):
        metrics.log({"epoch": epoch})
    with path.open("a") as file:
        file.write('{"epoch": 3, "tor')  # a kill in the middle of a line
    resumed = MetricsFile(path, keep_lines=2)
    resumed.log({"epoch": 2, "again": 1})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"epoch": 0},
        {"epoch": 1},
        {"epoch": 2, "again": 1},
    ]
    assert resumed.lines == 3
    assert isinstance(resumed, Tracker)


def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None = None) -> WandbMirror:
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))  # no account
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    folder = tmp_path / "abc"
    folder.mkdir(exist_ok=True)
    return WandbMirror(mirrored_spots(StudyConfig(cohort=Path("c")), fold=0, cohort_hash="h"), folder)


def test_without_an_account_wandb_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tracker = mirror(tmp_path, monkeypatch)
    tracker.log({"epoch": 1, "val/pearson": 0.1})
    image = tmp_path / "map.png"
    from PIL import Image

    Image.new("RGB", (8, 8)).save(image)
    tracker.finish({"pearson": 0.5}, PER_GENE, [image], None)
    (run,) = (tmp_path / "abc" / "wandb").glob("offline-run-*-abc")
    assert_logged(tmp_path / "abc", b"val/pearson", b"resnet18-aux-f0-s0", b"per_gene", b"cohort_hash")
    assert list(run.glob("files/media/table/per_gene*"))
    assert list(run.glob("files/media/images/maps/map*"))


def test_training_outlives_its_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # where nothing in this process has set wandb up before, it refuses the mode earlier, and not even offline is left
    said = r"resnet18-aux-f0-s0 \(abc\): .*(did not take this run .*stexpr wandb sync|left this run .*metrics\.jsonl)"
    with pytest.warns(UserWarning, match=said):
        tracker = mirror(tmp_path, monkeypatch, mode="no-such-mode")
    tracker.log({"epoch": 1})
    tracker.finish({}, PER_GENE, [], None)


def test_a_resumed_run_is_logged_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "metrics.jsonl").write_text('{"epoch": 1, "train/loss": 0.625}\n')
    tracker = mirror(tmp_path, monkeypatch, mode="offline")
    tracker.log({"epoch": 2, "train/loss": 0.5})
    tracker.finish({}, PER_GENE, [], None)
    assert_logged(tmp_path / "abc", b"0.625", b"0.5")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"backbone": "efficientnet_b0"}, "efficientnet_b0-aux-f1-s3"),
        ({"backbone": "tiny", "auxiliary": {"weight": 0}}, "tiny-noaux-f1-s3"),
        ({"backbone": "tiny", "auxiliary": {"weight": 0.3}}, "tiny-aux0.3-f1-s3"),
        ({"backbone": "tiny", "loss": "mse_pearson", "pretrained": True}, "tiny-aux-mse_pearson-pretrained-f1-s3"),
        ({"backbone": "tiny", "rank": 8, "auxiliary": {"n_genes": 50}}, "tiny-aux-of50-rank8-f1-s3"),
        ({"kind": "color_ridge"}, "color_ridge-f1-s3"),
    ],
)
def test_runs_are_named_for_people(model: dict[str, Any], name: str):
    assert run_name(StudyConfig.model_validate({"cohort": "c", "seed": 3, "model": model}), 1) == name


def test_what_is_said_holds_no_secret():
    said = in_words(ValueError(f"proxy http://me:secret@host:1 refused the key {'k' * 40}\nmore"))
    assert said == "ValueError: proxy http://host:1 refused the key ..."


def test_a_board_is_logged_with_its_tables_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    models = pd.DataFrame(
        {
            "rank": pd.array([1, 2, None], dtype="Int64"),
            "model": ["tiny", "tiny + aux", "training mean"],
            "kind": ["network", "network", "baseline"],
            "r": [0.4, 0.3, np.nan],
            "r_low": [0.3, 0.2, np.nan],
            "r_high": [0.5, 0.4, np.nan],
            "interval": ["95 %", "95 %", None],
            "n_patients": 2,
            "n_sections": 2,
            "n_spots": 100,
            "ceiling": 0.6,
        }
    )
    r = {"tiny": [0.5, 0.3], "tiny + aux": [0.4, 0.2], "training mean": [np.nan, np.nan]}
    board = Leaderboard(
        title="planted, protocol stexpr",
        card=[("Protocol", "stexpr")],
        models=models,
        patients=pd.DataFrame({"A": [0.4, 0.3, np.nan]}, index=pd.Index(models["model"], name="model")),
        genes=pd.DataFrame({"rank": [1, 2], "gene": ["G1", "G2"], "n_patients": 2, "ceiling": [0.6, 0.5], **r}),
        comparisons=pd.DataFrame({"a": ["tiny"], "b": ["tiny + aux"], "difference": [0.1]}),
        notes=[],
    )
    said = log_board(board, "boards", tmp_path)
    assert said.startswith("logged to ")
    assert "wandb sync" in said
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    media = {path.name.split("_")[0] for path in run.glob("files/media/**/*.json")}
    assert {"leaderboard", "per", "comparisons", "scores", "genes-spread", "heat", "ceiling", "auxiliary"} <= media
    assert_logged(tmp_path, b"leaderboard", b"figures/scores", b"planted, protocol stexpr")
