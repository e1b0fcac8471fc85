"""Weights & Biases beside the run directory: each network's run, and one run for a leaderboard.

Everything it shows is in the run directory first. A server that refuses, stops answering or was never there costs seconds and
one warning, never the training; the whole run is then kept as an offline run, which `stexpr wandb sync` sends later.
"""

import contextlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd

from stexpr.config import BackboneConfig, NetworkConfig, StudyConfig
from stexpr.train import folder as names
from stexpr.train.wandb_client import RESULTS_S, as_table, client, close_run, in_words, open_run, within

__all__ = ["Mirrored", "WandbMirror", "mirrored_spots", "run_name"]

TAG_LENGTH: Final = 64
OFFLINE_LINEAGE: Final = (
    "logged offline: model and predictions are references to files of that machine, and the cohort is named by its hash alone"
)


class _Results(NamedTuple):
    """What a run has to show when it is done."""

    summary: Mapping[str, Any]
    per_gene: pd.DataFrame
    images: Sequence[Path]
    model: Path | None


def run_name(config: StudyConfig, fold: int) -> str:
    """Name a run for people, such as `resnet18-aux-f0-s0`; what is not the default follows the auxiliary head.

    Args:
        config: The study.
        fold: Index of the fold.
    """
    model = config.model
    if isinstance(model, NetworkConfig):
        parts = [model.backbone_label, _auxiliary(model), *([model.loss] if model.loss != "mse" else [])]
        parts += [f"rank{model.rank}"] if model.rank is not None else []
        parts += ["pretrained"] if model.pretrained else []
    else:
        parts = [model.backbone_label, model.kind] if isinstance(model, BackboneConfig) else [model.kind]
    return "-".join([*parts, f"f{fold}", f"s{config.seed}"])


def _auxiliary(model: NetworkConfig) -> str:
    weight = model.auxiliary.weight
    named = "noaux" if not weight else "aux" if weight == 1 else f"aux{weight:g}"
    return f"{named}-of{model.auxiliary.n_genes}" if weight and model.auxiliary.n_genes is not None else named


@dataclass(frozen=True)
class Mirrored:
    """What a mirror says of a run.

    Attributes:
        name: For people.
        project: Of Weights & Biases.
        group: The study.
        job_type: `train` or `baseline`.
        tags: Empty ones are left out.
        config: Plain JSON values.
        metric: Measured by validation after each epoch, the higher the better.
        table: What the table of the results is called.
        predictions: Files of the run's folder that hold them.
        cohort: Its name.
        cohort_hash: Content hash of it.
        manifest: The file that stands for the cohort.
    """

    name: str
    project: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    metric: str
    table: str
    predictions: tuple[str, ...]
    cohort: str
    cohort_hash: str
    manifest: Path


def mirrored_spots(config: StudyConfig, *, fold: int, cohort_hash: str) -> Mirrored:
    """Describe a run of a study of spots.

    Args:
        config: The study.
        fold: Index of the fold.
        cohort_hash: Content hash of the prepared cohort.
    """
    model = config.model
    tags = [config.protocol.name, config.cohort.name]
    tags += [model.backbone_label] if isinstance(model, BackboneConfig) else []
    tags += [_auxiliary(model)] if isinstance(model, NetworkConfig) else []
    return Mirrored(
        name=run_name(config, fold),
        project=config.runtime.wandb_project,
        group=config.name,
        job_type="train" if isinstance(model, BackboneConfig) else "baseline",
        tags=tuple(tags),
        config={**config.model_dump(mode="json"), "fold": fold, "cohort_hash": cohort_hash},
        metric="pearson",
        table="per_gene",
        predictions=(names.PREDICTIONS,),
        cohort=config.cohort.name,
        cohort_hash=cohort_hash,
        manifest=config.cohort / "cohort.json",
    )


class WandbMirror:
    """Mirrors a run: online when someone is logged in and the server answers, else offline.

    `WANDB_MODE`, where set, decides instead. A resumed run is logged anew from `metrics.jsonl`, so what a server or an offline
    run holds never depends on interruptions.
    """

    def __init__(self, mirrored: Mirrored, folder: Path) -> None:
        """Open the mirror; a failure is one warning.

        Args:
            mirrored: What it says of the run.
            folder: The run's folder, whose name is the run's id.
        """
        self._folder = folder
        self._mirrored = mirrored
        self._given = {
            "project": mirrored.project,
            "id": folder.name,
            "name": mirrored.name,
            "group": mirrored.group,
            "job_type": mirrored.job_type,
            "tags": list(dict.fromkeys(tag[:TAG_LENGTH] for tag in mirrored.tags if tag)),
            "config": mirrored.config,
        }
        self._run: Any = None
        self._trouble: str | None = None
        try:
            self._run, trouble = open_run(folder, self._given)
            self._begin(self._run)
        except Exception as err:  # whatever wandb raises, the training is worth more than its mirror
            self._run = None
            self._warn(f"left this run ({in_words(err)}); its numbers are in {folder / names.METRICS}")
            return
        if trouble:
            self._warn(f"did not take this run ({trouble}); {self._later()}")

    def log(self, values: Mapping[str, float | int | str]) -> None:
        """Mirror one epoch."""
        if self._run is not None and self._trouble is None:
            try:
                self._run.log(dict(values))
            except Exception as err:
                self._trouble = in_words(err)

    def finish(self, summary: Mapping[str, Any], per_gene: pd.DataFrame, images: Sequence[Path], model: Path | None) -> None:
        """Log the final values, the table of genes, the pictures, model and predictions with their lineage; then close."""
        if self._run is None:
            return
        results = _Results(summary, per_gene, images, model)
        if self._trouble is None:
            try:
                within(RESULTS_S, partial(self._send, self._run, results))
                self._trouble = close_run(self._run)
            except Exception as err:
                self._trouble = in_words(err)
        if self._trouble is not None:
            self._keep_offline(results)
        self._run = None

    def _begin(self, run: Any) -> None:
        run.define_metric("epoch")
        run.define_metric("train/*", step_metric="epoch", summary="min")
        run.define_metric("train/lr", step_metric="epoch")
        run.define_metric("val/*", step_metric="epoch")
        run.define_metric(f"val/{self._mirrored.metric}", step_metric="epoch", summary="max")
        path = self._folder / names.METRICS
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            run.log(json.loads(line))

    def _send(self, run: Any, results: _Results) -> None:
        wandb = client()

        run.summary.update(dict(results.summary))
        run.log({f"maps/{image.stem.partition('-')[2] or image.stem}": wandb.Image(str(image)) for image in results.images})
        run.log({self._mirrored.table: as_table(results.per_gene)})
        if results.model is None or run.disabled:
            return
        metadata = {**results.summary, "run": run.id, "cohort_hash": self._mirrored.cohort_hash}
        model = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
        predictions = wandb.Artifact(f"predictions-{run.id}", type="predictions", metadata={**metadata, "model": model.name})
        paths = [self._folder / name for name in self._mirrored.predictions]
        if run.offline:  # there is nobody to ask for the cohort, and a copy of each model would lie in the user's cache
            model.add_reference(results.model.absolute().as_uri())
            for path in paths:
                predictions.add_reference(path.absolute().as_uri())
            run.config.update({"lineage": OFFLINE_LINEAGE})
        else:
            name, content = self._mirrored.cohort, self._mirrored.cohort_hash
            cohort = wandb.Artifact(f"cohort-{content}", type="cohort", metadata={"name": name, "hash": content})
            cohort.add_reference(self._mirrored.manifest.absolute().as_uri())  # its checksum; no tissue leaves the machine
            run.use_artifact(cohort)
            model.add_dir(str(results.model))
            for path in paths:
                predictions.add_file(str(path))
        run.log_artifact(model)
        run.log_artifact(predictions)

    def _keep_offline(self, results: _Results) -> None:
        """Write the whole run again as an offline run, for the server has at best the beginning of it."""
        with contextlib.suppress(Exception):  # it is left as it is, but two runs of one id must not be open at once
            close_run(self._run)
        try:
            run, _ = open_run(self._folder, self._given, mode="offline")
            self._begin(run)
            self._send(run, results)
            lost = close_run(run)
        except Exception as err:
            lost = in_words(err)
        kept = f"nor could it be kept offline ({lost}); its numbers are in {self._folder}" if lost else self._later()
        self._warn(f"left this run ({self._trouble}); {kept}")

    def _later(self) -> str:
        return f"it is kept offline: `stexpr wandb sync {self._folder}` sends it later"

    def _warn(self, words: str) -> None:
        message = f"{self._given['name']} ({self._folder.name}): Weights & Biases {words}"
        warnings.warn(message, stacklevel=3)
