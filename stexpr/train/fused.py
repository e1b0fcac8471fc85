"""The descriptor regression of a fold's network: described once, fitted for every inner training and for the final one."""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from stexpr.config import FusionConfig
from stexpr.data.datasets import SpotDataset, even_parts
from stexpr.data.geometry import slabs
from stexpr.models.components import VIEWS, component_axes, fit_view, joined
from stexpr.models.descriptors import Descriptors, Group
from stexpr.models.fusion import DescriptorRegression
from stexpr.models.objectives import StandardizedRegression
from stexpr.models.spot import SpotRegressor

__all__ = ["FusedTraining", "left_out_together"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

SHARES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""What `auto` chooses from."""
_WITHOUT_VALIDATION: Final = 0.5
_BATCH: Final = 32
_SLABS: Final = 4


class FusedTraining:
    """Fits descriptor regressions on spots of one dataset.

    Args:
        config: Of the fusion.
        dataset: The spots.
        seed: Of the landmarks.
        workers: Loader processes, where patches are on disk.

    Attributes:
        curves: By inner training and epoch, the validation r with each share tried; the checkpoint keeps it.
    """

    def __init__(self, config: FusionConfig, dataset: SpotDataset, *, seed: int, workers: int = 0) -> None:
        self.config = config
        self.dataset = dataset
        self.seed = seed
        self.workers = workers
        self.curves: dict[int, list[list[float]]] = {}
        self._described: dict[Group, Float32[Array, "S _"]] | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the regression that are tried."""
        return SHARES if self.config.share == "auto" else (self.config.share,)

    def best(self, phase: int, score: Callable[[Float32[Array, "S G"]], float], network: Array, regression: Array) -> float:
        """Score a network with each share of the regression beside it.

        Args:
            phase: The inner training.
            score: Of a prediction.
            network: Predicted by the network after an epoch.
            regression: Predicted by the regression.

        Returns:
            The highest score.
        """
        scores = [score((1 - share) * network + share * regression) for share in self.shares]
        self.curves.setdefault(phase, []).append(scores)
        return max(scores)

    def chosen_share(self, epochs: int) -> float:
        """Return the share with the highest score at an epoch, averaged over the inner trainings."""
        if not self.curves:
            return _WITHOUT_VALIDATION if self.config.share == "auto" else self.config.share
        scores = np.mean([curve[epochs - 1] for curve in self.curves.values()], axis=0)
        return self.shares[int(scores.argmax())]

    def fitted(self, model: SpotRegressor, rows: Int64[Tensor, "S"], share: float = 1.0) -> DescriptorRegression:
        """Fit on some spots, training spots only.

        Args:
            model: Its main head says what standardized expression is.
            rows: The spots.
            share: Of the regression in the prediction of a model it is fused with.
        """
        objective = model.main_objective
        assert isinstance(objective, StandardizedRegression)
        dataset = self.dataset
        with torch.no_grad():
            device = objective.mean.device
            counts, library = dataset.counts_main[rows].to(device), dataset.library[rows].to(device)
            targets = objective.target(counts, library).cpu().numpy()
        axes = component_axes(targets, self.config.components)
        described = {group: values[rows.numpy()] for group, values in self._all().items()}
        groups = left_out_together(dataset.spots.iloc[rows.tolist()])
        maps = [
            fit_view(
                view.kernel,
                joined(described, view),
                targets.astype(np.float64) @ axes.T,
                groups,
                landmarks=self.config.landmarks,
                seed=self.seed,
            )
            for view in VIEWS
        ]
        regression = DescriptorRegression(
            dataset.window_px,
            self.config.radii_px,
            n_landmarks=max(len(fitted.landmarks) for fitted in maps),
            axes=torch.from_numpy(axes.astype(np.float32)),
            share=share,
        )
        regression.fill(maps)
        return regression

    def expression(self, regression: DescriptorRegression, model: SpotRegressor, rows: Int64[Tensor, "S"]) -> Array:
        """Predict the expression of some spots by the regression alone."""
        described = {group: torch.from_numpy(values[rows.numpy()]) for group, values in self._all().items()}
        with torch.no_grad():
            standardized = regression.of_descriptors(described) @ regression.axes
            predicted: Array = model.main_objective.expression(standardized.to(next(model.parameters()).device)).cpu().numpy()
        return predicted

    def _all(self) -> dict[Group, Float32[Array, "S _"]]:
        """Describe every spot of the dataset, on the CPU, so that a fit is the same whatever the device."""
        if self._described is None:
            descriptors = Descriptors(self.dataset.window_px, self.config.radii_px)
            parts = even_parts(torch.arange(len(self.dataset)), _BATCH)
            batches = self.dataset.batches(parts, device=torch.device("cpu"), workers=self.workers)
            with torch.inference_mode():
                described = [descriptors(batch.patches) for batch in batches]
            self._described = {group: np.concatenate([part[group].numpy() for part in described]) for group in described[0]}
        return self._described


def left_out_together(spots: pd.DataFrame) -> list[str]:
    """Return what is left out in turn: patients, or sections of the one patient, or slabs of the one section."""
    for column in ("patient", "section"):
        if spots[column].nunique() > 1:
            return [str(name) for name in spots[column]]
    return [str(number) for number in slabs(spots[["x_um", "y_um"]].to_numpy(dtype=float), min(_SLABS, len(spots)))]
