"""From the targets of a study to what a head is trained on: objectives fitted on training patients, and back from a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from stexpr.errors import ModelError
from stexpr.models.bag.objectives import (
    MOST_WEIGHT,
    BagObjective,
    Continuous,
    Fraction,
    MultiClass,
    MultiLabel,
    Ordinal,
)
from stexpr.models.bag.survival import Cox, DiscreteTime

__all__ = ["TargetGroup", "TargetKind", "fit_objective", "make_objective"]

TargetKind: TypeAlias = Literal["binary", "multiclass", "ordinal", "fraction", "continuous", "cox", "discrete"]
NO: Final = "no"


@dataclass(frozen=True)
class TargetGroup:
    """What one objective is about.

    Attributes:
        kind: Of its targets.
        names: Of the targets: several for binary and continuous ones, else one.
        classes: Of a multi-class or ordinal target, in their order.
        weight: Of its loss beside the others.
        bins: Intervals of discrete time.
    """

    kind: TargetKind
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    weight: float = 1.0
    bins: int = 4

    def as_classes(self) -> "TargetGroup":
        """Return a single yes-or-no target as one of two classes, for heads that need an output for each.

        Raises:
            ModelError: It is not a single one, nor of several classes already.
        """
        if self.kind == "multiclass":
            return self
        if self.kind != "binary" or len(self.names) > 1:
            raise ModelError(f"clam learns one classification, not {self.kind} {', '.join(self.names)}; take another head")
        return TargetGroup("multiclass", self.names, (NO, "yes"), self.weight)


def fit_objective(group: TargetGroup, target: Tensor) -> tuple[BagObjective, tuple[str, ...]]:
    """Fit the objective of a group on training patients.

    Args:
        group: What is predicted.
        target: One row per training patient, as the objective wants it; NaN or -1 is missing.

    Returns:
        The objective, and the targets of the group that these patients say nothing of: all are alike. A head still has an
        output for them; it means nothing.

    Raises:
        ModelError: None of the targets can be learned.
        DataError: No event, or a time that is not positive.
    """
    if group.kind == "binary":
        positive, negative = (target == 1).sum(dim=0), (target == 0).sum(dim=0)
        one_sided = tuple(n for n, a, b in zip(group.names, positive.tolist(), negative.tolist(), strict=True) if not (a and b))
        if len(one_sided) == len(group.names):
            raise ModelError(f"all training patients are alike in {', '.join(one_sided)}; there is nothing to learn")
        weights = (negative / positive.clamp_min(1)).clamp(1 / MOST_WEIGHT, MOST_WEIGHT)
        return MultiLabel(weights), one_sided
    if group.kind == "continuous":
        return Continuous.fit(target, group.names), ()
    if group.kind == "fraction":
        return Fraction(), ()
    if group.kind == "multiclass":
        return MultiClass.fit(target, group.classes), ()
    if group.kind == "ordinal":
        return Ordinal(len(group.classes)), ()
    known = target[:, 0].isfinite()
    if group.kind == "discrete":
        return DiscreteTime.fit(target[known, 0], target[known, 1] == 1, group.bins), ()
    return Cox(), ()


def make_objective(group: TargetGroup, state: Mapping[str, Tensor]) -> BagObjective:
    """Build the objective of a group for the weights and numbers of a file, which are loaded afterwards.

    Raises:
        ModelError: The file lacks a number of the objective.
    """
    try:
        if group.kind == "binary":
            return MultiLabel(torch.zeros_like(state["weights"]))
        if group.kind == "continuous":
            return Continuous(torch.zeros_like(state["mean"]), torch.zeros_like(state["sd"]))
        if group.kind == "multiclass":
            return MultiClass(torch.zeros_like(state["weights"]))
        if group.kind == "discrete":
            return DiscreteTime(state["bounds"].clone())
    except KeyError as err:
        raise ModelError(f"the file of the head lacks {err} of {', '.join(group.names)}; export it again") from err
    fixed: dict[str, Any] = {"fraction": Fraction, "cox": Cox}
    return Ordinal(len(group.classes)) if group.kind == "ordinal" else fixed[group.kind]()
