"""One run of a slide study: one fold, from training patients to a record."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stexpr.config import content_hash
from stexpr.config.slides import FinetuneConfig, SlideStudyConfig, SurvivalTarget
from stexpr.config.versions import versions
from stexpr.data.patch_labels import PatchLabels, read_patch_labels
from stexpr.data.slide_data import SlideData, TargetColumns
from stexpr.data.slide_examples import SlideExamples, classes_of, target_rows
from stexpr.data.splits import Fold, write_folds
from stexpr.errors import ConfigError
from stexpr.evaluate.records import RECORD, SlideRecord, write_record
from stexpr.evaluate.slides.results import SlideResults
from stexpr.evaluate.slides.score import score_fold
from stexpr.models.bag.covariates import CovariateCoding
from stexpr.models.bag.last_blocks import save_tuned
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.saved import LoadedHead, save_head
from stexpr.models.bag.targets import TargetGroup
from stexpr.models.export import load_model
from stexpr.train import folder as names
from stexpr.train.checkpoint import StopFlag
from stexpr.train.results import device_name
from stexpr.train.slides.results import FittedTargets, fit_targets, labels_table, outputs_table, patients_table, slide_results
from stexpr.train.slides.training import HeadTraining, predict_patients
from stexpr.train.tracking import MetricsFile, Tracker
from stexpr.types import Progress, silent

__all__ = ["SlideJob", "run_slide_fold"]


@dataclass(frozen=True)
class SlideJob:
    """One run, before anything is trained.

    Attributes:
        config: The study.
        data: What it reads.
        fold: The partition.
        split_hash: Identifies all folds of the split together.
        runs: Folder of all runs.
    """

    config: SlideStudyConfig
    data: SlideData
    fold: Fold
    split_hash: str
    runs: Path

    @cached_property
    def folder(self) -> Path:
        """Where the run lives, `runs/<hash>`."""
        instances = {
            "bags": self.data.store.hash,
            "patch_labels": self.patch_labels.hash if self.patch_labels is not None else None,
            "encoder": load_model(self.finetune.encoder).hash if self.finetune is not None else None,
        }
        fold = json.loads(json.dumps(self.fold.to_dict()))
        return self.runs / self.config.run_hash(self.data.hash, content_hash(instances), fold)

    @property
    def finetune(self) -> FinetuneConfig | None:
        """How the encoder learns along; None where it does not."""
        return self.config.model.finetune

    @cached_property
    def patch_labels(self) -> PatchLabels | None:
        """Labels of patches, where the head is trained on them."""
        folder = self.config.model.patch_labels
        return None if folder is None else read_patch_labels(folder, self.data.store.bags)

    @cached_property
    def groups(self) -> tuple[TargetGroup, ...]:
        """What is predicted.

        Raises:
            ConfigError: The head cannot learn these targets.
        """
        groups = tuple(_group(columns, self.data) for columns in self.data.columns)
        model = self.config.model
        if model.head == "clam":
            if len(groups) > 1:
                raise ConfigError(f"clam learns one classification, the protocol has {len(groups)} targets; take another head")
            return (groups[0].as_classes(),)
        if model.patch_labels is not None and (len(groups) > 1 or groups[0].kind != "fraction"):
            raise ConfigError("patch labels are of one fraction, such as Ki67; give the protocol that target alone")
        if model.vote == "majority" and any(group.kind != "binary" for group in groups):
            raise ConfigError("a majority votes on yes or no; take vote=mean for other targets")
        return groups

    @cached_property
    def coding(self) -> CovariateCoding | None:
        """How clinical columns become numbers, fitted on the training patients of the fold."""
        columns = self.config.model.covariates
        if not columns:
            return None
        patients = list(self.fold.train)
        return CovariateCoding.fit(columns, {column: self.data.cells(column, patients) for column in columns})

    @cached_property
    def examples(self) -> SlideExamples:
        """All patients of the study, as this run sees them."""
        data, model = self.data, self.config.model
        coding = self.coding
        cells = {column: data.cells(column, data.patients) for column in model.covariates}
        pairs = zip(data.columns, self.groups, strict=True)
        targets = [_as_group(target_rows(columns, data, data.patients), group) for columns, group in pairs]
        return SlideExamples(
            data,
            "patches" if self.finetune is not None else model.instances,
            targets,
            None if coding is None else coding(cells),
            together=self.config.protocol.several_slides == "bags",
            labels=self.patch_labels,
            memory_bytes=self.config.runtime.bags_in_memory_gb * 1e9,
        )


def run_slide_fold(
    job: SlideJob,
    *,
    stop: StopFlag,
    open_trackers: Callable[[SlideJob, list[Tracker], int], MetricsFile],
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train, predict, score and record one fold, or return at once if its record is there.

    Args:
        job: The run.
        stop: Asked after every training step.
        open_trackers: Opens `metrics.jsonl`, cut back to so many lines, and what mirrors it.
        progress: Shows the epochs.
        report: Receives one line when the run is done.

    Returns:
        The run's folder.

    Raises:
        InterruptedTrainingError: A signal arrived; the same call resumes.
        StexprError: Whatever is wrong; results of earlier runs stay whole.
    """
    folder, config = job.folder, job.config
    with names.exclusive(folder):
        if (folder / RECORD).exists():
            report(f"{config.label}, fold {job.fold.index}: done before ({folder})")
            return folder
        names.write_config(folder / names.CONFIG, config)
        write_folds(folder / names.FOLDS, [job.fold])
        training = HeadTraining(config, job.fold, job.examples, job.groups, folder, progress=progress)
        resumed = training.resume()
        trackers: list[Tracker] = []
        metrics = open_trackers(job, trackers, int(resumed["lines"]) if resumed else 0)
        model = training.train(metrics, trackers, stop, resumed).model
        results, fitted = _results(job, training, model)
        results.write(folder)
        _export(job, training, model, fitted)
        record = _record(job, training, model, results)
        summary = {name: value.value for name, value in record.values.items() if value.value is not None}
        for tracker in trackers:
            tracker.finish(summary, results.outputs, [], folder / names.MODEL)
        write_record(folder, record)
        (folder / names.CHECKPOINT).unlink(missing_ok=True)
        report(f"{config.label}, fold {job.fold.index}: {record.in_words} ({folder})")
    return folder


def _group(columns: TargetColumns, data: SlideData) -> TargetGroup:
    config: Any = columns.config
    survival = isinstance(config, SurvivalTarget)
    return TargetGroup(
        kind=config.loss if survival else config.kind,
        names=columns.names,
        classes=classes_of(columns, data),
        weight=config.weight,
        bins=config.bins if survival else 4,
    )


def _as_group(target: Tensor, group: TargetGroup) -> Tensor:
    """Write a single yes-or-no target as classes where the head wants them."""
    if group.kind == "multiclass" and target.ndim == 2:
        return torch.where(target[:, 0].isfinite(), target[:, 0], torch.full_like(target[:, 0], -1)).long()
    return target


def _results(job: SlideJob, training: HeadTraining, model: BagModel) -> tuple[SlideResults, FittedTargets]:
    examples, fold, protocol = job.examples, job.fold, job.config.protocol
    test_rows, train_rows = examples.rows(dict.fromkeys(fold.test_sections)), training.training_rows
    targets = examples.targets
    held_out = None
    if training.held_out:
        rows = torch.cat([rows for rows, _ in training.held_out])
        held_out = (torch.cat([outputs for _, outputs in training.held_out]), [target[rows] for target in targets])
    fitted = fit_targets(
        model.cpu(),
        job.groups,
        training.unlearned,
        protocol,
        training=(predict_patients(model, examples, train_rows), [target[train_rows] for target in targets]),
        held_out=held_out,
    )
    outputs = predict_patients(model, examples, test_rows)
    tables = [outputs_table(model, job.groups, fitted, outputs, examples.names(test_rows), "test")]
    for rows, inner in training.held_out:
        tables.append(outputs_table(model, job.groups, fitted, inner, examples.names(rows), "inner"))
    parts = {"test": examples.names(test_rows), "train": examples.names(train_rows)}
    labels = labels_table(job.data, fitted.targets, parts)
    patients = patients_table(job.data, protocol, job.config.model.covariates, parts)
    return slide_results(tables, labels, patients, fitted), fitted


def _export(job: SlideJob, training: HeadTraining, model: BagModel, fitted: FittedTargets) -> None:
    config, data = job.config, job.data
    bag = next(iter(data.store.bags.values()))
    provenance = {
        "study": config.name,
        "label": config.label,
        "cohort": data.name,
        "cohort_hash": data.hash,
        "protocol": config.protocol.decisive(),
        "seed": config.seed,
        "fold": job.fold.index,
        "training_patients": list(job.fold.train),
        "test_patients": list(job.fold.test),
        "mpp": bag.mpp,
        "patch_px": bag.patch_px,
        "versions": versions(),
    }
    encoder = bag.encoder
    if job.finetune is not None and model.encoder is not None:
        tuned = job.folder / names.MODEL / "encoder"
        save_tuned(tuned, job.finetune.encoder, model.encoder)
        encoder = load_model(tuned).hash
    head = LoadedHead(
        model=model,
        kind=config.model.head,
        instances=config.model.instances,
        genes=tuple(data.store.genes) if config.model.instances in ("expression", "both") else (),
        groups=job.groups,
        covariates=job.coding,
        unlearned=training.unlearned,
        several_slides=config.protocol.several_slides,
        encoder=encoder,
        fitted=tuple(asdict(target) for target in fitted.targets.values()),
        baseline=fitted.baseline,
        provenance=provenance,
    )
    save_head(job.folder / names.MODEL, head, widths=config.model.widths, dropout=config.model.dropout)


def _record(job: SlideJob, training: HeadTraining, model: BagModel, results: SlideResults) -> SlideRecord:
    config, data, fold = job.config, job.data, job.fold
    primary, values = score_fold(results, config.protocol)
    test_rows = job.examples.rows(dict.fromkeys(fold.test_sections))
    notes = data.describe().splitlines()[1:]
    notes += [f"{name}: all training patients of the fold are alike, so nothing is predicted" for name in training.unlearned]
    notes += [f"{target.name}: {note}" for target in results.targets.values() for note in target.notes]
    model_values = config.model.described()
    return SlideRecord.model_validate(
        {
            "study": config.name,
            "model_label": config.label,
            "kind": config.model.role,
            "model": {**model_values, "encoder": config.encoder_name},
            "settings": {"training": config.training.model_dump(mode="json")},
            "protocol": config.protocol.decisive(),
            "protocol_hash": config.protocol.hash,
            "cohort": {
                "name": data.name,
                "hash": data.hash,
                "patients": data.patients,
                "details": {"targets": list(data.cohort.targets), "sites": len(set(data.site_of.values()))},
            },
            "split_hash": job.split_hash,
            "fold": {
                "index": fold.index,
                "test_patients": tuple(fold.test),
                "validation": "patient" if fold.inner else "epochs",
            },
            "bags": {
                "hash": data.store.hash,
                "encoder": config.encoder_name,
                "encoder_hash": next(iter(data.store.bags.values())).encoder,
                "width": job.examples.width,
            },
            "config_hash": job.folder.name,
            "seed": config.seed,
            "n": {
                "patients": len(fold.test),
                "training_patients": len(fold.train),
                "slides": len(fold.test_sections),
                "patches": job.examples.n_patches(test_rows),
                "targets": len(results.targets),
            },
            "epochs": {"planned": config.training.epochs, "chosen": training.chosen_epochs},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "values": {name: value.model_dump() for name, value in values.items()},
            "primary": primary,
            "notes": tuple(notes),
            "execution": {"processes": 1, "threads": torch.get_num_threads()},
            "wall_time_s": round(training.seconds, 3),
            "device": device_name(config.runtime.device),
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
