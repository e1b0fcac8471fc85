"""What is measured after each epoch of a head: how well it ranks the patients held out."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from stexpr.errors import MetricError
from stexpr.evaluate.slides.agreement import spearman
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.classes import macro_auroc, place_spearman
from stexpr.evaluate.slides.concordance import harrell_c
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.objectives import BagObjective
from stexpr.models.bag.targets import TargetGroup
from stexpr.train.slides.results import survival_log_hazard

__all__ = ["VALIDATION", "validation_ranking"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

VALIDATION: Final = "ranking"
"""AUROC, c and (1 + Spearman) / 2, averaged. A loss would stop a head early that learns one gene of many: those that follow
nothing make it rise."""
CHANCE: Final = 0.5
Metric: TypeAlias = Callable[..., float]
CLASS_SCORES: Final[dict[str, Metric]] = {"multiclass": macro_auroc, "ordinal": place_spearman}


def validation_ranking(
    model: BagModel, groups: Sequence[TargetGroup], outputs: Float32[Tensor, "P K"], targets: Sequence[Tensor]
) -> float:
    """Average over targets how well outputs rank patients; .5 is chance, also where no target is defined on them.

    Args:
        model: Whose outputs they are.
        groups: What they tell.
        outputs: Of patients held out, on the model's device.
        targets: Of the same patients, on the CPU.
    """
    scores: list[float] = []
    for group, objective, output, target in zip(groups, model.objectives, model.split_outputs(outputs), targets, strict=True):
        assert isinstance(objective, BagObjective)
        scores += _of_group(group, objective, output, target)
    return float(np.mean(scores)) if scores else CHANCE


def _of_group(group: TargetGroup, objective: BagObjective, output: Tensor, target: Tensor) -> list[float]:
    if group.kind in ("cox", "discrete"):
        known = target[:, 0].isfinite().numpy()
        time, event = target[:, 0].numpy()[known], target[:, 1].numpy()[known] == 1
        return _ranks(harrell_c, survival_log_hazard(objective, output).cpu().numpy()[known], time, event)
    if group.kind in ("multiclass", "ordinal"):
        places = target.numpy()
        known = places >= 0
        with torch.inference_mode():
            chances = objective.predict(output[torch.from_numpy(known)]).cpu().numpy()
        return (_ranks if group.kind == "multiclass" else _follows)(CLASS_SCORES[group.kind], chances, places[known])
    columns = target[:, None] if target.ndim == 1 else target
    found: list[float] = []
    for column, own in enumerate(columns.T.numpy()):
        known = np.isfinite(own)
        predicted = output[:, column].float().numpy()[known]
        found += (
            _ranks(auroc, predicted, own[known] == 1) if group.kind == "binary" else _follows(spearman, predicted, own[known])
        )
    return found


def _ranks(metric: Metric, *arrays: Array) -> list[float]:
    """Return a score of which .5 is chance, as of predictions that are all alike; nothing where labels do not define it."""
    try:
        return [float(np.nan_to_num(metric(*arrays), nan=CHANCE))]
    except MetricError:
        return []


def _follows(correlation: Metric, *arrays: Array) -> list[float]:
    """Return (1 + correlation) / 2, likewise."""
    return _ranks(lambda *own: (1 + correlation(*own)) / 2, *arrays)
