"""What is measured after each epoch, and the number of epochs it chooses."""

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from stexpr.config import TrainingConfig
from stexpr.data.datasets import SpotDataset
from stexpr.errors import TrainingError
from stexpr.evaluate.metrics import pearson_per_gene
from stexpr.inference import predict_expression
from stexpr.models.spot import SpotRegressor
from stexpr.panel import ExpressionTransform
from stexpr.train.distributed import ALONE, Processes

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def validation_pearson(
    model: SpotRegressor,
    dataset: SpotDataset,
    rows: Int64[Tensor, "S"],
    transform: ExpressionTransform,
    training: TrainingConfig,
    *,
    processes: Processes = ALONE,
) -> float:
    """Return the mean over sections of the mean per-gene r of a model, as it is after an epoch.

    Args:
        model: The model.
        dataset: Where the rows are read.
        rows: Validation spots.
        transform: Unit of expression.
        training: Batch size and precision.
        processes: Who shares the spots; each gets the same r.

    Raises:
        TrainingError: As for `section_pearson`.
    """
    return section_pearson(validation_prediction(model, dataset, rows, training, processes=processes), dataset, rows, transform)


def validation_prediction(
    model: SpotRegressor,
    dataset: SpotDataset,
    rows: Int64[Tensor, "S"],
    training: TrainingConfig,
    *,
    processes: Processes = ALONE,
) -> Float32[Array, "S G"]:
    """Predict validation spots, each process its share of them; arguments as for `validation_pearson`."""
    own = processes.share(rows)
    return processes.gather(
        predict_expression(model, dataset, own, batch_size=training.batch_size, precision=training.precision)
    )


def section_pearson(
    predicted: Float32[Array, "S G"], dataset: SpotDataset, rows: Int64[Tensor, "S"], transform: ExpressionTransform
) -> float:
    """Return the mean over sections of the mean per-gene r; a constant prediction counts as 0.

    Args:
        predicted: Expression of the rows.
        dataset: Where what was measured is read.
        rows: The spots.
        transform: Unit of expression.

    Raises:
        TrainingError: No gene varies over the spots of any section.
    """
    measured = transform(dataset.counts_main[rows].numpy(), dataset.library[rows].numpy())
    sections = dataset.spots["section"].to_numpy()[rows.numpy()]
    means = []
    for section in dict.fromkeys(sections):
        here = sections == section
        scored = measured[here].std(axis=0) > 0
        if here.sum() > 1 and scored.any():
            means.append(np.nan_to_num(pearson_per_gene(predicted[here][:, scored], measured[here][:, scored])).mean())
    if not means:
        raise TrainingError("no gene varies over the validation spots, so no epoch can be chosen; set validation.rule=epochs")
    return float(np.mean(means))


def choose_epoch(curves: list[list[float]]) -> int:
    """Return the number of epochs with the highest validation r, averaged over the inner trainings.

    Only epochs that every inner training reached are compared; the earliest wins a tie.
    """
    reached = min(map(len, curves))
    return int(np.mean([curve[:reached] for curve in curves], axis=0).argmax()) + 1
