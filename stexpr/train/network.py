"""Trains the network of one fold: the inner trainings that choose the number of epochs, then the final one."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from stexpr.config import NetworkConfig, StudyConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.splits import Fold, InnerSplit
from stexpr.inference import pick_device
from stexpr.models.augment import augment
from stexpr.models.objectives import make_objective
from stexpr.models.spot import SpotRegressor, build_spot_regressor
from stexpr.panel import ExpressionTransform
from stexpr.train.accumulation import Accumulation
from stexpr.train.checkpoint import StopFlag
from stexpr.train.compiling import Compiling
from stexpr.train.distributed import ALONE, Processes, normalizes_batches, unsynchronized
from stexpr.train.loop import Fit, Validation
from stexpr.train.phases import PhasedTraining
from stexpr.train.tracking import MetricsFile, Tracker
from stexpr.train.validation import validation_pearson
from stexpr.types import Progress, silent


@dataclass(frozen=True)
class Trained:
    """A trained network and how it came about.

    Attributes:
        model: With the weights to predict with, on its device.
        curves: Validation r after each epoch, one list per inner training.
        chosen_epochs: Epochs the final weights were trained for.
        seconds: Time spent training, over all starts of the run.
        execution: On how many processes and threads, and in how many parts each batch, as the record has it.
        notes: What of that may have changed the result, in words.
    """

    model: SpotRegressor
    curves: tuple[tuple[float, ...], ...]
    chosen_epochs: int
    seconds: float
    execution: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class NetworkTraining(PhasedTraining[SpotRegressor]):
    """All trainings of one fold, resumable at any step.

    Args:
        config: The study; its model is a network.
        fold: The partition.
        dataset: The training spots of the fold; after them those of the inner partitions, where a leaky protocol validates
            on the test sections.
        transform: Unit of expression.
        folder: The run's folder, for the checkpoint.
        progress: Shows the epochs of each training.
        processes: Who shares the training.
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
        processes: Processes = ALONE,
    ) -> None:
        assert isinstance(config.model, NetworkConfig)
        super().__init__(
            folder,
            fold=fold.index,
            n_inner=len(fold.inner),
            epochs=config.training.epochs,
            refit=config.protocol.validation.refit,
            checkpoint_epochs=config.runtime.checkpoint_epochs,
            progress=progress,
            processes=processes,
        )
        self.config = config
        self.fold = fold
        self.dataset = dataset
        self.transform = transform
        self.training_rows = dataset.rows(dict.fromkeys(fold.train_sections))
        self.accumulation = Accumulation(folder)
        self.compiling = Compiling() if config.training.compile else None

    def run(
        self, metrics: MetricsFile | None, trackers: list[Tracker], stop: StopFlag, resumed: dict[str, Any] | None
    ) -> Trained:
        """Train what the checkpoint does not hold yet; arguments and errors are those of `train`."""
        model = self.train(metrics, trackers, stop, resumed).model
        execution, notes = self._execution(model)
        return Trained(model, tuple(map(tuple, self.curves)), self.chosen_epochs, self.seconds, execution, notes)

    def fit(self, index: int) -> Fit[SpotRegressor]:
        """Make the training of a phase."""
        train_rows, rows = self.training_rows, None
        if index < self.n_inner:
            split: InnerSplit = self.fold.inner[index]
            train_rows, rows = self.dataset.rows(split.train), self.dataset.rows(split.validation)
        model = build_network(self.config, self.dataset, self.training_rows, self.transform)
        model = self.processes.synchronized(model)

        def measure() -> float:
            assert rows is not None
            return validation_pearson(model, self.dataset, rows, self.transform, self.config.training, processes=self.processes)

        return Fit(
            model,
            self.dataset,
            train_rows,
            validation=None if rows is None else Validation("pearson", measure),
            augment=partial(augment, self.config.input),
            training=self.config.training,
            n_epochs=self.n_epochs_of(index),
            seed=self.config.seed,
            phase=index,
            workers=self.config.runtime.workers,
            processes=self.processes,
            accumulation=self.accumulation,
            compiling=self.compiling,
        )

    def _execution(self, model: SpotRegressor) -> tuple[dict[str, Any], tuple[str, ...]]:
        size, parts = self.processes.size, self.accumulation.parts
        execution: dict[str, Any] = {"processes": size, "threads": torch.get_num_threads(), "accumulation": parts}
        execution |= {"compile": self.compiling.described()} if self.compiling is not None else {}
        note = self.accumulation.note(self.config.training.batch_size, size, batch_norm=normalizes_batches(model))
        notes = [note] if note else []
        if size > 1 and unsynchronized(model):
            notes.append(f"batch normalization saw only the spots of one of {size} processes at a time")
        return execution, tuple(notes)


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
        download=config.runtime.download,
    )
    placed: SpotRegressor = model.to(device=pick_device(config.runtime.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def without_auxiliary(config: StudyConfig) -> bool:
    """Whether a study needs no auxiliary genes, so that their counts need not be read."""
    return config.model.kind != "network" or config.model.auxiliary.weight == 0
