"""Sweeps of slide studies: planned, estimated, run and told as those of spots."""

from pathlib import Path

import pytest
import torch
import yaml

from slide_cohorts import slide_study, write_cohort
from stexpr.config.sweep import load_sweep
from stexpr.errors import ConfigError
from stexpr.evaluate.records import read_records
from stexpr.models.bag import make_head
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.objectives import BagObjective, MultiLabel, Ordinal
from stexpr.models.bag.survival import Cox
from stexpr.models.bag.targets import TargetGroup
from stexpr.train.slides.validation import CHANCE, validation_ranking
from stexpr.train.sweep.plan import plan_sweep
from stexpr.train.sweep.probe import estimate_seconds
from stexpr.train.sweep.run import run_sweep
from stexpr.train.sweep.states import sweep_status
from sweeps import HereEngine

KI67 = {"kind": "fraction", "column": "KI67"}


def test_heads_are_swept(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=20, patches=5)
    study = slide_study(cohort, KI67, training={"epochs": 1}, protocol={"split": {"k": 2, "inner_k": 0}})
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json")))
    content = {"name": "heads", "study": "base.yaml", "grid": {"model.head": ["mean", "additive"]}, "seeds": [0, 1]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    plan = plan_sweep(load_sweep(tmp_path / "sweep.yaml"))
    assert (plan.n_studies, len(plan.runs), sum(run.is_network for run in plan.runs)) == (4, 16, 8)
    assert not plan.runs[0].is_network
    estimates = estimate_seconds([run for run in plan.runs if run.is_network], threads=torch.get_num_threads())
    assert len(estimates) == 8
    assert min(estimates) > 0
    lines: list[str] = []
    result = run_sweep(plan, tmp_path / "runs", HereEngine(), report=lines.append)
    assert result.is_complete
    assert len(read_records(tmp_path / "runs").slides) == 16
    assert any("spearman" in line and "mean on bags features" in line for line in lines)
    status = sweep_status(tmp_path / "runs", "heads")
    assert status.counts() == "16 done"
    assert status.best is not None
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**content, "grid": {"input.window_px": [1]}}))
    with pytest.raises(ConfigError, match="no study has the key 'input"):
        load_sweep(tmp_path / "sweep.yaml")


def model_of(*objectives: BagObjective) -> BagModel:
    head = make_head("mean", 2, sum(objective.n_outputs for objective in objectives), widths=(2,))
    return BagModel(head, objectives, mean=torch.zeros(2), sd=torch.ones(2))


def test_ranking_is_averaged_over_what_is_defined() -> None:
    yes = TargetGroup("binary", ("A", "B"))
    model = model_of(MultiLabel(torch.ones(2)))
    outputs = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    target = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [torch.nan, 1.0]])
    assert validation_ranking(model, [yes], outputs, [target]) == 1.0
    constant = torch.zeros(4, 2)
    assert validation_ranking(model, [yes], constant, [target]) == CHANCE
    none = torch.ones(4, 2)
    assert validation_ranking(model, [yes], outputs, [none]) == CHANCE
    grades, survival = TargetGroup("ordinal", ("G",), ("1", "2")), TargetGroup("cox", ("OS",))
    both = model_of(Ordinal(2), Cox())
    outputs = torch.tensor([[-1.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
    times = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 0.0]])
    ordered = validation_ranking(both, [grades, survival], outputs, [torch.tensor([0, 0, 1]), times])
    assert ordered == pytest.approx((1 + (1 + 3**0.5 / 2) / 2) / 2)
