import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from stexpr.config import StudyConfig
from stexpr.config.sweep import SweepConfig, load_sweep
from stexpr.errors import ConfigError
from stexpr.train.run import run_folder
from stexpr.train.spots import open_cohort, study_folds
from stexpr.train.sweep.wandb_grid import wandb_sweep


def command_line(definition: dict[str, Any], drawn: dict[str, Any]) -> list[str]:
    """What W&B's agent calls for a set of parameters: the loop of `Agent._command_run`, with its own functions."""
    given = create_sweep_command_args({"args": {key: {"value": value} for key, value in drawn.items()}})
    given["env"] = ["/usr/bin/env"]
    line: list[str] = []
    for part in create_sweep_command(list(definition["command"])):
        line += given[part[2:-1]] if part.startswith("${") else [part]
    return line


def test_a_drawn_set_of_parameters_trains_its_fold(study: Callable[..., StudyConfig], tmp_path: Path) -> None:
    base = study()
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "grid",
                "study": "study.yaml",
                "overrides": {"training.epochs": 1, "training.clip_norm": None},
                "seeds": [0, 7],
                "grid": {"model.auxiliary.weight": [0, 0.5], "input.symmetries": [True, False], "input.window_px": [None, 16]},
            }
        )
    )
    sweep = load_sweep(tmp_path / "sweep.yaml")
    runs = tmp_path / "runs"
    definition = wandb_sweep(
        sweep.config,
        study=str(tmp_path / "study.yaml"),
        n_folds=3,
        project="a project",
        runs=str(runs),
        overrides=("training.lr=1e-2",),
    )
    definition = yaml.safe_load(yaml.safe_dump(definition))
    assert definition["method"] == "grid"
    assert definition["metric"] == {"name": "val/pearson", "goal": "maximize"}
    parameters = {key: entry["values"] for key, entry in definition["parameters"].items()}
    assert parameters["seed"] == [0, 7]
    assert parameters["folds"] == ["[0]", "[1]", "[2]"]
    assert parameters["input.window_px"] == ["null", 16]
    drawn = {"model.auxiliary.weight": 0.5, "input.symmetries": parameters["input.symmetries"][1]}
    line = command_line(definition, {**drawn, "input.window_px": 16, "seed": 7, "folds": "[1]"})
    assert line[:3] == ["/usr/bin/env", "stexpr", "train"]
    environment = {**os.environ, "WANDB_MODE": "offline", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=200, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (wanted,) = (
        one
        for one in load_sweep(tmp_path / "sweep.yaml", ["training.lr=1e-2"]).studies
        if (one.seed, one.model.auxiliary.weight, one.input.symmetries, one.input.window_px) == (7, 0.5, False, 16)  # type: ignore[union-attr]
    )
    cohort = open_cohort(base)
    folder = run_folder(runs, wanted, cohort, study_folds(wanted, cohort)[1])
    assert json.loads((folder / "record.json").read_text())["kind"] == "network"
    networks = [path for path in runs.glob("*/record.json") if json.loads(path.read_text())["kind"] == "network"]
    assert len(networks) == 1


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"zip": {"seed": [1]}}, "has no zip"),
        ({"list": [{"seed": 1}]}, "has no list"),
        ({"exclude": [{"seed": 1}]}, "has no exclude"),
        ({"grid": {"model.auxiliary": [{"weight": 1}]}}, "holds no keys and values, as the axis model.auxiliary does"),
        ({"grid": {"folds": [[0]]}}, "folds is an axis of its own"),
    ],
)
def test_what_a_grid_cannot_say_is_refused(parts: dict[str, Any], words: str) -> None:
    config = SweepConfig.model_validate({"name": "s", "study": "mob", **parts})
    with pytest.raises(ConfigError, match=f"{words}.*local, ray and slurm"):
        wandb_sweep(config, study="mob", n_folds=2, project="p", runs="runs")
