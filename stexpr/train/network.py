"""Trains the network of one fold: the inner trainings that choose the number of epochs, then the final one."""

import time
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
from stexpr.errors import TrainingError
from stexpr.inference import out_of_memory, pick_device
from stexpr.models.augment import augment
from stexpr.models.objectives import make_objective
from stexpr.models.spot import SpotRegressor, build_spot_regressor
from stexpr.panel import ExpressionTransform
from stexpr.train.accumulation import Accumulation
from stexpr.train.checkpoint import StopFlag, load_checkpoint, save_checkpoint
from stexpr.train.distributed import ALONE, Processes, normalizes_batches, unsynchronized
from stexpr.train.folder import CHECKPOINT
from stexpr.train.loop import Fit, Validation
from stexpr.train.tracking import MetricsFile, Tracker
from stexpr.train.validation import choose_epoch, validation_pearson
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
        self.config = config
        self.network = config.model
        self.fold = fold
        self.dataset = dataset
        self.transform = transform
        self.training_rows = dataset.rows(dict.fromkeys(fold.train_sections))
        self.path = folder / CHECKPOINT
        self.progress = progress
        self.processes = processes
        self.accumulation = Accumulation(folder)
        self.curves: list[list[float]] = []
        self.seconds = 0.0

    def run(
        self, metrics: MetricsFile | None, trackers: list[Tracker], stop: StopFlag, resumed: dict[str, Any] | None
    ) -> Trained:
        """Train what the checkpoint does not hold yet.

        Args:
            metrics: The run's `metrics.jsonl`, cut back to the checkpoint; None where another process writes it.
            trackers: Where each epoch's values go, `metrics` among them.
            stop: Asked after every step.
            resumed: The checkpoint, None to start afresh.

        Raises:
            InterruptedTrainingError: A signal arrived; the state is saved.
            TrainingError: A loss is not finite, or there is no memory for one example; the note names the fold.
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
                if out_of_memory(err):  # outside of a step, where smaller parts would not help
                    raise TrainingError(f"out of memory: {err}; take a smaller network or training.batch_size") from err
                raise
            if self._phase(index).validation_rows is not None:
                self.curves.append(fit.state.curve)
        chosen = self.config.training.epochs if not self.curves else choose_epoch(self.curves)
        execution, notes = self._execution(fit.model)
        return Trained(fit.model, tuple(map(tuple, self.curves)), chosen, self.seconds, execution, notes)

    def _execution(self, model: SpotRegressor) -> tuple[dict[str, Any], tuple[str, ...]]:
        size, parts = self.processes.size, self.accumulation.parts
        execution = {"processes": size, "threads": torch.get_num_threads(), "accumulation": parts}
        note = self.accumulation.note(self.config.training.batch_size, size, batch_norm=normalizes_batches(model))
        notes = [note] if note else []
        if size > 1 and unsynchronized(model):
            notes.append(f"batch normalization saw only the spots of one of {size} processes at a time")
        return execution, tuple(notes)

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
        model = self.processes.synchronized(model)
        rows = phase.validation_rows

        def measure() -> float:
            assert rows is not None
            return validation_pearson(model, self.dataset, rows, self.transform, self.config.training, processes=self.processes)

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
            processes=self.processes,
            accumulation=self.accumulation,
        )

    def _run_phase(
        self, index: int, fit: Fit[SpotRegressor], metrics: MetricsFile | None, trackers: list[Tracker], stop: StopFlag
    ) -> None:
        began = time.monotonic()
        before = self.seconds

        def save() -> None:
            self.seconds = before + time.monotonic() - began
            lines = metrics.lines if metrics is not None else 0
            state = {"phase": index, "curves": self.curves, "seconds": self.seconds, "lines": lines}
            self.processes.on_first(lambda: save_checkpoint(self.path, {**state, "state": fit.state_dict()}))

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
        """Read the checkpoint of this run, None if there is none.

        Raises:
            TrainingError: It cannot be read, or not all processes see the same.
        """
        state = load_checkpoint(self.path)
        fit = state["state"]["fit"] if state else {}
        seen = self.processes.exchange((state["phase"], fit["epoch"], fit["step"]) if state else None)
        if seen.count(seen[0]) < len(seen):
            raise TrainingError(f"not all processes see the same {self.path}; put the runs on a file system they share")
        return state


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
