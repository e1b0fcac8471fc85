"""Trains the network of one fold: the inner trainings that choose the number of epochs, then the final one."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from stexpr.config import NetworkConfig, StudyConfig, TrainingConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.splits import Fold, InnerSplit
from stexpr.errors import TrainingError
from stexpr.evaluate.metrics import pearson_per_gene
from stexpr.inference import pick_device, predict_expression
from stexpr.models.augment import augment
from stexpr.models.objectives import make_objective
from stexpr.models.spot import SpotRegressor, build_spot_regressor
from stexpr.panel import ExpressionTransform
from stexpr.train.checkpoint import StopFlag, load_checkpoint, save_checkpoint
from stexpr.train.folder import CHECKPOINT
from stexpr.train.loop import Fit, Validation
from stexpr.train.tracking import MetricsFile, Tracker
from stexpr.types import Progress, silent


@dataclass(frozen=True)
class Trained:
    """A trained network and how it came about.

    Attributes:
        model: With the weights to predict with, on its device.
        curves: Validation r after each epoch, one list per inner training.
        chosen_epochs: Epochs the final weights were trained for.
        seconds: Time spent training, over all processes that took part.
    """

    model: SpotRegressor
    curves: tuple[tuple[float, ...], ...]
    chosen_epochs: int
    seconds: float


@dataclass(frozen=True)
class _Phase:
    """One training of a run: an inner one, with validation rows, or the final one."""

    name: str
    train_rows: Tensor
    validation_rows: Tensor | None
    n_epochs: int


class NetworkTraining:
    """All trainings of one fold, resumable at any step.

    Args:
        config: The study; its model is a network.
        fold: The partition.
        dataset: The training spots of the fold; after them those of the inner partitions, where a leaky protocol validates
            on the test sections.
        transform: Unit of expression.
        folder: The run's folder, for the checkpoint.
        progress: Shows the epochs of each training.
    """

    def __init__(
        self,
        config: StudyConfig,
        fold: Fold,
        dataset: SpotDataset,
        transform: ExpressionTransform,
        folder: Path,
        *,
        progress: Progress = silent,
    ) -> None:
        assert isinstance(config.model, NetworkConfig)
        self.config = config
        self.network = config.model
        self.fold = fold
        self.dataset = dataset
        self.transform = transform
        self.training_rows = dataset.rows(dict.fromkeys(fold.train_sections))
        self.path = folder / CHECKPOINT
        self.progress = progress
        self.curves: list[list[float]] = []
        self.seconds = 0.0

    def run(self, metrics: MetricsFile, trackers: list[Tracker], stop: StopFlag, resumed: dict[str, Any] | None) -> Trained:
        """Train what the checkpoint does not hold yet.

        Args:
            metrics: The run's `metrics.jsonl`, cut back to the checkpoint.
            trackers: Where each epoch's values go, `metrics` among them.
            stop: Asked after every step.
            resumed: The checkpoint, None to start afresh.

        Raises:
            InterruptedTrainingError: A signal arrived; the state is saved.
            TrainingError: A loss is not finite; the note names the fold.
        """
        first = int(resumed["phase"]) if resumed else 0
        self.curves = list(resumed["curves"]) if resumed else []
        self.seconds = float(resumed["seconds"]) if resumed else 0.0
        for index in range(first, self.n_phases):
            fit = self._fit(index)
            if resumed and index == first:
                fit.load_state_dict(resumed["state"])
            try:
                self._run_phase(index, fit, metrics, trackers, stop)
            except Exception as err:
                err.add_note(f"in fold {self.fold.index}, {self._phase(index).name} training")
                raise
            if self._phase(index).validation_rows is not None:
                self.curves.append(fit.state.curve)
        chosen = self.config.training.epochs if not self.curves else choose_epoch(self.curves)
        return Trained(fit.model, tuple(map(tuple, self.curves)), chosen, self.seconds)

    @property
    def n_phases(self) -> int:
        """Trainings of this fold: one for each inner partition, and the final one where weights are not kept."""
        return len(self.fold.inner) + (not self._keeps_best)

    @property
    def _keeps_best(self) -> bool:
        return bool(self.fold.inner) and not self.config.protocol.validation.refit

    def _phase(self, index: int) -> _Phase:
        if index < len(self.fold.inner):
            split: InnerSplit = self.fold.inner[index]
            rows = self.dataset.rows
            return _Phase(f"inner {index}", rows(split.train), rows(split.validation), self.config.training.epochs)
        n_epochs = choose_epoch(self.curves) if self.curves else self.config.training.epochs
        return _Phase("final", self.training_rows, None, n_epochs)

    def _fit(self, index: int) -> Fit[SpotRegressor]:
        phase = self._phase(index)
        model = build_network(self.config, self.dataset, self.training_rows, self.transform)
        rows = phase.validation_rows

        def measure() -> float:
            assert rows is not None
            return validation_pearson(model, self.dataset, rows, self.transform, self.config.training)

        return Fit(
            model,
            self.dataset,
            phase.train_rows,
            validation=None if rows is None else Validation("pearson", measure),
            augment=partial(augment, self.config.input),
            training=self.config.training,
            n_epochs=phase.n_epochs,
            seed=self.config.seed,
            phase=index,
            workers=self.config.runtime.workers,
        )

    def _run_phase(
        self, index: int, fit: Fit[SpotRegressor], metrics: MetricsFile, trackers: list[Tracker], stop: StopFlag
    ) -> None:
        began = time.monotonic()
        before = self.seconds

        def save() -> None:
            self.seconds = before + time.monotonic() - began
            state = {"phase": index, "curves": self.curves, "seconds": self.seconds, "lines": metrics.lines}
            save_checkpoint(self.path, {**state, "state": fit.state_dict()})

        def on_epoch(values: dict[str, float | int]) -> None:
            for tracker in trackers:
                tracker.log({"phase": self._phase_name(index), **values})
            if fit.state.epoch % self.config.runtime.checkpoint_epochs == 0 or fit.state.epoch == fit.n_epochs:
                save()

        fit.run(
            keep_best=self._keeps_best,
            stop=stop,
            on_epoch=on_epoch,
            save=save,
            progress=self.progress,
            label=f"  fold {self.fold.index}, {self._phase_name(index)}: epochs",
        )
        self.seconds = before + time.monotonic() - began

    def _phase_name(self, index: int) -> str:
        return f"inner {index}" if index < len(self.fold.inner) else "final"

    def resume(self) -> dict[str, Any] | None:
        """Read the checkpoint of this run, None if there is none."""
        return load_checkpoint(self.path)


def validation_pearson(
    model: SpotRegressor,
    dataset: SpotDataset,
    rows: Int64[Tensor, "S"],
    transform: ExpressionTransform,
    training: TrainingConfig,
) -> float:
    """Return the mean over sections of the mean per-gene r; a constant prediction counts as 0.

    Args:
        model: The model, as it is after an epoch.
        dataset: Where the rows are read.
        rows: Validation spots.
        transform: Unit of expression.
        training: Batch size and precision.

    Raises:
        TrainingError: No gene varies over the spots of any section.
    """
    predicted = predict_expression(model, dataset, rows, batch_size=training.batch_size, precision=training.precision)
    measured = transform(dataset.counts_main[rows].numpy(), dataset.library[rows].numpy())
    sections = dataset.spots["section"].to_numpy()[rows.numpy()]
    means = []
    for section in dict.fromkeys(sections):
        own = sections == section
        scored = measured[own].std(axis=0) > 0
        if own.sum() > 1 and scored.any():
            means.append(np.nan_to_num(pearson_per_gene(predicted[own][:, scored], measured[own][:, scored])).mean())
    if not means:
        raise TrainingError("no gene varies over the validation spots, so no epoch can be chosen; set validation.rule=epochs")
    return float(np.mean(means))


def choose_epoch(curves: list[list[float]]) -> int:
    """Return the number of epochs with the highest validation r, averaged over the inner trainings.

    Only epochs that every inner training reached are compared; the earliest wins a tie.
    """
    reached = min(map(len, curves))
    return int(np.mean([curve[:reached] for curve in curves], axis=0).argmax()) + 1


def build_network(
    config: StudyConfig, dataset: SpotDataset, rows: Int64[Tensor, "S"], transform: ExpressionTransform
) -> SpotRegressor:
    """Build the network of a study, its objectives fitted on training spots, and put it on its device.

    Args:
        config: The study; its model is a network.
        dataset: Where the rows are read.
        rows: Training spots.
        transform: Unit of expression.
    """
    network = config.model
    assert isinstance(network, NetworkConfig)
    library = dataset.library[rows].numpy()
    main = make_objective(
        network.loss, counts=dataset.counts_main[rows].numpy(), library=library, transform=transform, standardize=True
    )
    auxiliary = None
    if dataset.counts_auxiliary.shape[1]:
        auxiliary = make_objective(
            network.loss,
            counts=dataset.counts_auxiliary[rows].numpy(),
            library=library,
            transform=transform,
            standardize=network.auxiliary.standardize,
        )
    model = build_spot_regressor(
        network,
        window_px=dataset.window_px,
        main_objective=main,
        auxiliary_objective=auxiliary,
        seed=config.seed,
    )
    placed: SpotRegressor = model.to(device=pick_device(config.runtime.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def without_auxiliary(config: StudyConfig) -> bool:
    """Whether a study needs no auxiliary genes, so that their counts need not be read."""
    return config.model.kind != "network" or config.model.auxiliary.weight == 0
