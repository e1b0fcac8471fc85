"""Trains with and without a compiled loss and prints the losses as JSON: `compiled_losses.py COHORT STUDY`.

In a process of its own, because torch cannot trace the shape checks that the tests put around every function.
"""

import json
import sys
import warnings
from functools import partial
from pathlib import Path

import torch

from stexpr.config import StudyConfig, load_study
from stexpr.data.datasets import SpotDataset
from stexpr.data.store import PreparedCohort
from stexpr.models.augment import augment
from stexpr.panel import ExpressionTransform, GenePanel
from stexpr.train.checkpoint import StopFlag
from stexpr.train.compiling import Compiling
from stexpr.train.loop import Fit
from stexpr.train.network import build_network

PANEL = GenePanel(
    main=tuple(f"G{i:02d}" for i in range(12)), auxiliary=("G20", "G21"), rule="list", scope="training", min_detection=0.0
)


def losses(config: StudyConfig, cohort: Path, compiling: Compiling | None) -> list[float]:
    """Mean loss of each epoch."""
    data = SpotDataset(PreparedCohort.open(cohort), ["b1", "c1"], PANEL, window_px=24)
    rows = torch.arange(100)
    fit = Fit(
        build_network(config, data, rows, ExpressionTransform()),
        data,
        rows,
        validation=None,
        augment=partial(augment, config.input),
        training=config.training,
        n_epochs=config.training.epochs,
        seed=0,
        phase=0,
        compiling=compiling,
    )
    said: list[dict] = []
    fit.run(keep_best=False, stop=StopFlag(), on_epoch=said.append, save=lambda: None)
    return [values["train/loss"] for values in said]


if __name__ == "__main__":
    warnings.simplefilter("error")
    cohort, study = map(Path, sys.argv[1:])
    config = load_study(study, ["training.epochs=5", "training.batch_size=30"])  # 4 steps an epoch, of 25
    compiling = Compiling("aot_eager")  # torch's tracing without its code generation, which takes half a minute
    found = {"plain": losses(config, cohort, None), "compiled": losses(config, cohort, compiling)}
    print(json.dumps({**found, "described": compiling.described(), "seconds": compiling.seconds}))
