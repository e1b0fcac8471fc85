"""One run of a slide study before anything is trained: what it reads, predicts and is called."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stexpr.config import content_hash
from stexpr.config.slides import FinetuneConfig, SlideStudyConfig, SurvivalTarget
from stexpr.data.patch_labels import PatchLabels, read_patch_labels
from stexpr.data.slide_data import SlideData, TargetColumns
from stexpr.data.slide_examples import SlideExamples, classes_of, target_rows
from stexpr.data.splits import Fold
from stexpr.errors import ConfigError
from stexpr.models.bag.covariates import CovariateCoding
from stexpr.models.bag.targets import TargetGroup
from stexpr.models.export import load_model

__all__ = ["SlideJob"]


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
