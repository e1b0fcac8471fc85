"""Patients as examples of a training loop: their bags, read when they are needed, labels and covariates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from stexpr.data.bags import Bag, Instances
from stexpr.data.patch_labels import PatchLabels
from stexpr.data.slide_data import SlideData, TargetColumns
from stexpr.data.splits import Selection
from stexpr.data.targets import Survival
from stexpr.types import PatientBatch

__all__ = ["PatientBag", "SlideExamples", "classes_of", "sampled", "target_rows"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Seen: TypeAlias = Instances | Literal["patches"]
NO_CLASS = -1
LEAST_SD = 1e-6


@dataclass(frozen=True)
class PatientBag:
    """What a head sees at once: the patches of a slide, or of all slides of a patient, all of them or some.

    Attributes:
        bags: Of the slides.
        seen: What of each patch.
        device: Where it is wanted.
        kept: Slide -> what was read before, in memory.
        index: Places of the patches drawn, ascending over the slides put together; None for all.
        labels: Of the patches, in place of what a head sees; None for that.
    """

    bags: tuple[Bag, ...]
    seen: Seen
    device: torch.device
    kept: Mapping[str, Tensor]
    index: Int[Array, "M"] | None = None
    labels: PatchLabels | None = None

    @property
    def n(self) -> int:
        """Patches there are."""
        return sum(bag.n for bag in self.bags)

    def __len__(self) -> int:
        return self.n if self.index is None else len(self.index)

    def drawn(self, index: Int[Array, "M"]) -> "PatientBag":
        """Return some of the patches."""
        return replace(self, index=index)

    def read(self) -> Tensor:
        """Read them.

        Raises:
            DataError: A file was changed, damaged, or holds numbers that are not finite.
        """
        edges = np.cumsum([0, *(bag.n for bag in self.bags)])
        parts = []
        for bag, start, stop in zip(self.bags, edges, edges[1:], strict=False):
            own = None if self.index is None else self.index[(self.index >= start) & (self.index < stop)] - start
            if own is None or len(own):
                parts.append(self._read(bag, own))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self.device)

    def _read(self, bag: Bag, index: Int[Array, "M"] | None) -> Tensor:
        if self.labels is not None:
            labels = self.labels.of(bag)
            return torch.from_numpy(labels if index is None else labels[index])
        if bag.slide in self.kept:
            kept = self.kept[bag.slide]
            return kept if index is None else kept[torch.from_numpy(index)]
        if self.seen == "patches":
            patches = bag.patches(np.arange(bag.n) if index is None else index)
            return torch.from_numpy(patches).permute(0, 3, 1, 2)
        return torch.from_numpy(bag.features(self.seen) if index is None else bag.read(index, self.seen))


class SlideExamples:
    """The patients of a study, by row.

    Attributes:
        patients: Of the rows.
        targets: One tensor for each target of the protocol, a row per patient.
        covariates: A row per patient.

    Args:
        data: Of the study.
        seen: What a head sees of each patch.
        targets: From `target_rows`.
        covariates: Coded; None for none.
        together: Whether a patient's slides are one bag.
        labels: Of patches, where a head is trained on them.
        memory_bytes: Bags are kept in memory up to here, and read again beyond.
    """

    def __init__(
        self,
        data: SlideData,
        seen: Seen,
        targets: Sequence[Tensor],
        covariates: Float32[Tensor, "P _"] | None = None,
        *,
        together: bool = True,
        labels: PatchLabels | None = None,
        memory_bytes: float = 0.0,
    ) -> None:
        self.data = data
        self.seen = seen
        self.patients = data.patients
        self.targets = tuple(targets)
        self.covariates = torch.zeros(len(self.patients), 0) if covariates is None else covariates
        self.together = together
        self.labels = labels
        self._memory_bytes = memory_bytes
        self._row_of = {slide: row for row, p in enumerate(self.patients) for slide in data.cohort.slides_of[p]}

    def __len__(self) -> int:
        return len(self.patients)

    @property
    def width(self) -> int:
        """Features of a patch, stored or to come of its pixels."""
        return self.data.store.width_of("features" if self.seen == "patches" else self.seen)

    def rows(self, selection: Selection) -> Int64[Tensor, "P"]:
        """Return the rows of the patients of some slides, in the order of the study."""
        return torch.tensor(sorted({self._row_of[slide] for slide in selection}), dtype=torch.int64)

    def names(self, rows: Int64[Tensor, "P"]) -> list[str]:
        """Name the patients."""
        return [self.patients[row] for row in rows.tolist()]

    def bags(self, row: int, device: torch.device) -> list[PatientBag]:
        """Return the bags of a patient: one, or one for each slide."""
        slides = [self.data.store[slide] for slide in self.data.cohort.slides_of[self.patients[row]]]
        groups = [tuple(slides)] if self.together else [(slide,) for slide in slides]
        return [PatientBag(group, self.seen, device, self._kept) for group in groups]

    def batch(self, rows: Int64[Tensor, "P"], device: torch.device) -> PatientBatch:
        """Return patients as one batch, nothing of their bags read yet."""
        bags, patient = [], []
        for place, row in enumerate(rows.tolist()):
            own = self.bags(row, device)
            bags += own
            patient += [place] * len(own)
        return PatientBatch(
            bags=tuple(bags),
            patient=torch.tensor(patient, device=device),
            targets=tuple(target[rows].to(device) for target in self.targets),
            covariates=self.covariates[rows].to(device),
            patch_targets=() if self.labels is None else tuple(replace(bag, labels=self.labels) for bag in bags),
        )

    def batches(self, parts: Sequence[Tensor], *, device: torch.device, workers: int = 0) -> Iterator[PatientBatch]:
        """Yield one batch for each part; `workers` are not needed, since bags are read in large pieces."""
        for part in parts:
            yield self.batch(part, device)

    def n_patches(self, rows: Int64[Tensor, "P"]) -> int:
        """Count the patches of some patients."""
        return sum(bag.n for row in rows.tolist() for bag in self.bags(row, torch.device("cpu")))

    def moments(self, rows: Int64[Tensor, "P"]) -> tuple[Float32[Tensor, "D"], Float32[Tensor, "D"]]:
        """Return mean and SD of each feature over the patches of some patients, each slide counting alike.

        A feature that does not vary has SD 1. Where a head sees patches, these are of the features stored beside them.
        """
        seen: Instances = "features" if self.seen == "patches" else self.seen
        first, second = np.zeros(self.width), np.zeros(self.width)
        slides = [bag for row in rows.tolist() for one in self.bags(row, torch.device("cpu")) for bag in one.bags]
        for bag in slides:
            kept = self._kept.get(bag.slide)
            chunks = bag.chunks(instances=seen) if kept is None else (part.numpy() for part in torch.split(kept, 4096))
            for chunk in chunks:
                values = chunk.astype(np.float64)
                first += values.sum(axis=0) / bag.n / len(slides)
                second += (values**2).sum(axis=0) / bag.n / len(slides)
        sd = np.sqrt(np.maximum(second - first**2, 0))
        sd[sd < LEAST_SD * np.maximum(np.abs(first), 1)] = 1.0
        return torch.from_numpy(first.astype(np.float32)), torch.from_numpy(sd.astype(np.float32))

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        """Read bags into memory until it is used up, the shortest first, so that most of them fit."""
        kept: dict[str, Tensor] = {}
        if self.seen == "patches":
            return kept
        room = self._memory_bytes
        for bag in sorted(self.data.store.bags.values(), key=lambda bag: (bag.n, bag.slide)):
            need = bag.n * self.width * 2
            if need > room:
                break
            kept[bag.slide] = torch.from_numpy(bag.features(self.seen))
            room -= kept[bag.slide].nbytes
        return kept


def sampled(batch: PatientBatch, n: int, generator: torch.Generator) -> PatientBatch:
    """Draw at most `n` patches of each bag, without replacement."""
    bags: list[Any] = []
    labels: list[Any] = []
    for i, bag in enumerate(batch.bags):
        assert isinstance(bag, PatientBag)
        if bag.n <= n:
            bags.append(bag)
            labels += [batch.patch_targets[i]] if batch.patch_targets else []
            continue
        index = torch.randperm(bag.n, generator=generator, device=generator.device)[:n].sort().values.cpu().numpy()
        bags.append(bag.drawn(index))
        labels += [replace(bags[-1], labels=batch.patch_targets[i].labels)] if batch.patch_targets else []  # type: ignore[attr-defined]
    return replace(batch, bags=tuple(bags), patch_targets=tuple(labels))


def classes_of(columns: TargetColumns, data: SlideData) -> tuple[str, ...]:
    """Return the classes of a multi-class or ordinal target in their order; of others, none."""
    if columns.config.kind == "ordinal":
        return columns.config.order
    if columns.config.kind == "multiclass":
        target = data.cohort.targets[columns.names[0]]
        assert not isinstance(target, Survival)
        return tuple(sorted(set(target.values.values())))
    return ()


def target_rows(columns: TargetColumns, data: SlideData, patients: Sequence[str]) -> Tensor:
    """Return the labels of patients as an objective wants them, a row per patient.

    Returns:
        Yes-or-no and continuous targets: a column for each, NaN where missing. A fraction: one number, NaN where missing.
        Classes: the place of each, -1 where missing. Survival: time and event, NaN where missing.
    """
    targets = [data.cohort.targets[name] for name in columns.names]
    kind = columns.config.kind
    first = targets[0]
    if isinstance(first, Survival):
        rows = [(first.time.get(p, np.nan), float(first.event[p]) if p in first.event else np.nan) for p in patients]
        return torch.tensor(rows, dtype=torch.float32)
    if kind in ("multiclass", "ordinal"):
        place = {name: i for i, name in enumerate(classes_of(columns, data))}
        return torch.tensor([place[first.values[p]] if p in first.values else NO_CLASS for p in patients])
    values = [[_number(target, p) for target in targets] for p in patients]
    found = torch.tensor(values, dtype=torch.float32)
    return found[:, 0] if kind == "fraction" else found


def _number(target: Any, patient: str) -> float:
    return float(target.values[patient]) if patient in target.values else np.nan
