"""Where memory ends, batches are processed in parts, and the result stays that of the whole batch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stexpr.config import StudyConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.store import PreparedCohort
from stexpr.errors import ModelError, TrainingError
from stexpr.evaluate.records import read_record
from stexpr.inference import out_of_memory, predict_expression
from stexpr.models.augment import augment
from stexpr.panel import ExpressionTransform, GenePanel
from stexpr.train.accumulation import Accumulation
from stexpr.train.checkpoint import StopFlag
from stexpr.train.folder import write_config
from stexpr.train.loop import Fit
from stexpr.train.network import build_network
from stexpr.types import SpotBatch

GENES = tuple(f"G{i:02d}" for i in range(12))
PANEL = GenePanel(main=GENES, auxiliary=("G20", "G21"), rule="list", scope="training", min_detection=0.0)
Study = Callable[..., StudyConfig]


def make_fit(config: StudyConfig, cohort: Path, accumulation: Accumulation) -> Fit:
    data = SpotDataset(PreparedCohort.open(cohort), ["b1", "c1"], PANEL, window_px=24)
    rows = torch.arange(61)  # batches of 16 and 15
    return Fit(
        build_network(config, data, rows, ExpressionTransform()),
        data,
        rows,
        validation=None,
        augment=partial(augment, config.input),
        training=config.training,
        n_epochs=2,
        seed=0,
        phase=0,
        accumulation=accumulation,
    )


def run(fit: Fit) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    fit.run(keep_best=False, stop=StopFlag(), on_epoch=said.append, save=lambda: None)
    return said


def limit_examples(module: torch.nn.Module, most: int) -> None:
    """Let a module run out of memory when it is given more examples than this."""

    def hook(_module, _inputs, output) -> None:
        if len(output) > most:
            raise torch.OutOfMemoryError(f"{len(output)} examples")

    module.register_forward_hook(hook)


def same(one: list[dict[str, Any]], other: list[dict[str, Any]], tolerance: float) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance)


def test_a_batch_splits_in_order():
    batch = SpotBatch(torch.zeros(7, 3, 4, 4, dtype=torch.uint8), torch.rand(7, 2), torch.rand(7, 0), torch.arange(7.0))
    parts = batch.split(3)
    assert [len(part) for part in parts] == [3, 2, 2]
    assert torch.equal(torch.cat([part.library for part in parts]), batch.library)
    assert torch.equal(torch.cat([part.counts_main for part in parts]), batch.counts_main)


@pytest.mark.parametrize("parts", [2, 3, 100])
@pytest.mark.parametrize("loss", ["mse", "negative_binomial"])
def test_parts_train_as_the_whole_batch_does(study: Study, small_cohort: Path, parts: int, loss: str):
    config = study(f"model.loss={loss}", "input.stain_jitter=0.2", "input.brightness=0.1", "training.optimizer=sgd")
    whole, split = (make_fit(config, small_cohort, Accumulation(parts=n)) for n in (1, parts))
    same(run(whole), run(split), 1e-5)
    for (name, a), b in zip(whole.model.state_dict().items(), split.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_step_that_does_not_fit_is_taken_in_parts_that_do(study: Study, small_cohort: Path, tmp_path: Path):
    whole, limited = make_fit(study(), small_cohort, Accumulation()), make_fit(study(), small_cohort, Accumulation(tmp_path))
    limit_examples(limited.model.backbone, 4)
    same(run(whole), run(limited), 1e-5)
    assert Accumulation(tmp_path).parts == 4  # a run that is started again begins so
    assert Accumulation(tmp_path).note(16, 1, batch_norm=False) == "out of memory: each batch of 16 was processed in 4 parts"
    note = Accumulation(tmp_path).note(15, 2, batch_norm=True)
    assert note == (
        "out of memory: each batch of 15 was processed in 4 parts by each of 2 processes; batch normalization saw 2 spots "
        "at a time"
    )
    Accumulation(tmp_path).forget()
    assert not list(tmp_path.glob("accumulation-*"))


def test_batch_normalization_begins_as_the_mean_over_parts(study: Study, small_cohort: Path):
    config = study("model.backbone=resnet18", "training.lr=1e-12", "training.weight_decay=0")
    fit = make_fit(config, small_cohort, Accumulation(parts=2))
    layer = fit.model.backbone.network.bn1
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].mean(dim=(0, 2, 3))))
    fit.n_epochs = 1
    run(fit)
    assert len(seen) == 8
    torch.testing.assert_close(layer.running_mean, torch.stack(seen).mean(dim=0), rtol=1e-3, atol=1e-4)


def test_one_example_that_does_not_fit_is_one_clear_error(study: Study, small_cohort: Path):
    fit = make_fit(study(), small_cohort, Accumulation())
    limit_examples(fit.model.backbone, 0)
    with pytest.raises(TrainingError, match="out of memory with one example at a time"):
        run(fit)


def test_a_loss_over_the_batch_is_not_replaced_by_that_of_its_parts(study: Study, small_cohort: Path):
    fit = make_fit(study("model.loss=mse_pearson"), small_cohort, Accumulation())
    limit_examples(fit.model.backbone, 8)
    with pytest.raises(TrainingError, match=r"with 16 examples at a time, .* lower training.batch_size"):
        run(fit)
    with pytest.raises(TrainingError, match="which 2 parts make up"):
        make_fit(study("model.loss=mse_pearson"), small_cohort, Accumulation(parts=2))


def test_other_errors_are_left_alone(study: Study, small_cohort: Path):
    fit = make_fit(study(), small_cohort, Accumulation())

    def hook(_module, _inputs, _output) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    fit.model.backbone.register_forward_hook(hook)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(fit)


def test_predictions_do_not_depend_on_how_many_fit(study: Study, small_cohort: Path):
    fit = make_fit(study(), small_cohort, Accumulation())
    rows = torch.arange(61)
    whole = predict_expression(fit.model, fit.examples, rows, batch_size=32)
    limit_examples(fit.model.backbone, 5)
    np.testing.assert_allclose(predict_expression(fit.model, fit.examples, rows, batch_size=32), whole, atol=1e-5)
    assert fit.model.training
    assert predict_expression(fit.model, fit.examples, rows[:0], batch_size=32).shape == (0, 12)
    limit_examples(fit.model.backbone, 0)
    with pytest.raises(ModelError, match="out of memory while predicting one patch"):
        predict_expression(fit.model, fit.examples, rows, batch_size=32)


def test_an_allocation_no_machine_can_serve_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 44)
    assert out_of_memory(caught.value)
    with pytest.raises(MemoryError) as refused:
        np.empty(1 << 44)
    assert out_of_memory(refused.value)
    assert not out_of_memory(ValueError("not enough memory"))


HUNGRY = """
import resource, sys, torch
from torch.nn.modules.module import register_module_forward_hook
from stexpr.cli import main
import anndata, matplotlib.pyplot, pandas, stexpr.train.study
from stexpr.models.tiny import TinyNetwork

def eat(module, inputs, output):  # 8 MB an example, four times over until its gradient is there
    if isinstance(module, TinyNetwork) and torch.is_grad_enabled():
        large = (output.mean(dim=1, keepdim=True) * torch.ones(len(output), 1 << 21)).square()
        return output + 0 * large.mean()

register_module_forward_hook(eat)
headroom = int(sys.argv.pop(1))
if headroom:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + headroom, resource.RLIM_INFINITY))
main()
"""


def train_hungrily(config: StudyConfig, folder: Path, headroom: int, baselines: Callable[[Path], None]) -> Path:
    folder.mkdir()
    baselines(folder / "runs")
    write_config(folder / "study.yaml", config)
    (folder / "hungry.py").write_text(HUNGRY)
    command = [sys.executable, str(folder / "hungry.py"), str(headroom), "train", str(folder / "study.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [*command, "--runs", str(folder / "runs")], capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (model,) = folder.glob("runs/*/model")
    return model.parent


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from Linux's /proc")
def test_a_study_in_too_little_memory_ends_as_in_enough(study: Study, tmp_path: Path, baselines: Callable[[Path], None]):
    config = study("folds=[0]", "training.epochs=1")
    enough = train_hungrily(config, tmp_path / "enough", 0, baselines)
    little = train_hungrily(config, tmp_path / "little", 350_000_000, baselines)
    assert read_record(enough).execution == {"processes": 1, "threads": 1, "accumulation": 1}
    record = read_record(little)
    parts = record.execution["accumulation"]
    assert parts in (2, 4, 8)
    assert f"out of memory: each batch of 16 was processed in {parts} parts" in record.notes
    assert not list(little.glob("accumulation-*"))
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (enough, little)]
    assert [line.pop("phase") for line in lines[0]] == [line.pop("phase") for line in lines[1]]
    same(lines[0], lines[1], 1e-4)
    assert record.values["pearson"].value == pytest.approx(read_record(enough).values["pearson"].value, abs=1e-4)
