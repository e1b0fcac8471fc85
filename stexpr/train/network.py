"""Trains the network of one fold: the inner trainings that choose the number of epochs, then the final one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from stexpr.config import NetworkConfig, StudyConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.splits import Fold
from stexpr.errors import TrainingError
from stexpr.inference import pick_device
from stexpr.models.augment import Share, augment
from stexpr.models.low_rank import principal_components
from stexpr.models.mixup import mix
from stexpr.models.objectives import Objective, StandardizedRegression, make_objective
from stexpr.models.selfsupervised import SimSiam
from stexpr.models.spot import SpotRegressor, build_spot_regressor
from stexpr.models.trainable import TrainableModel
from stexpr.panel import ExpressionTransform
from stexpr.train.accumulation import Accumulation
from stexpr.train.checkpoint import StopFlag
from stexpr.train.compiling import Compiling
from stexpr.train.distributed import ALONE, Processes, normalizes_batches, unsynchronized
from stexpr.train.fused import FusedTraining
from stexpr.train.loop import Fit, Validation
from stexpr.train.phases import PhasedTraining
from stexpr.train.pretrain import PHASE, Pretrained, pretraining
from stexpr.train.tracking import MetricsFile, Tracker
from stexpr.train.validation import section_pearson, validation_pearson, validation_prediction
from stexpr.types import Progress, SpotBatch, silent


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


class NetworkTraining(PhasedTraining[TrainableModel]):
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
        tissue: Reads the training sections for pre-training, with larger patches; None takes the dataset.

    Raises:
        TrainingError: Several processes would share a batch that is to be mixed.
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
        tissue: Callable[[], SpotDataset] | None = None,
    ) -> None:
        assert isinstance(config.model, NetworkConfig)
        if config.training.mixup and processes.size > 1:
            raise TrainingError(
                f"training.mixup mixes the spots of a whole batch, which {processes.size} processes share; start one process, "
                "and let a sweep run several, or set training.mixup=0"
            )
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
        fusion = config.model.fusion
        self.fused = FusedTraining(fusion, dataset, seed=config.seed, workers=config.runtime.workers) if fusion else None
        self.tissue = tissue
        self.pretrained: Pretrained | None = None
        self.first_phase = PHASE if config.training.pretrain is not None else 0
        self.compiling = Compiling() if config.training.compile else None

    def run(
        self, metrics: MetricsFile | None, trackers: list[Tracker], stop: StopFlag, resumed: dict[str, Any] | None
    ) -> Trained:
        """Train what the checkpoint does not hold yet; arguments and errors are those of `train`."""
        model = self.train(metrics, trackers, stop, resumed).model
        assert isinstance(model, SpotRegressor)
        execution, notes = self._execution(model)
        if self.fused is not None:
            share = self.fused.chosen_share(self.chosen_epochs)
            if share:
                model.fuse(self.fused.fitted(model, self._rows(self.n_phases - 1), share))
            notes = (*notes, f"the regression on descriptors has a share of {share:g} in the prediction, the network the rest")
        return Trained(model, tuple(map(tuple, self.curves)), self.chosen_epochs, self.seconds, execution, notes)

    def fit(self, index: int) -> Fit[Any]:
        """Make the training of a phase; each after a pre-training starts from its weights."""
        if index == PHASE:
            spots = self.dataset if self.tissue is None else self.tissue()
            window_px = (self.config.input.fields_px or (self.dataset.window_px,))[0]
            return pretraining(self.config, self.fold, spots, window_px=window_px, processes=self.processes)
        model = build_network(self.config, self.dataset, self.training_rows, self.transform)
        if self.pretrained is not None:
            model.backbone.load_state_dict(self.pretrained.weights)
        model = self.processes.synchronized(model)
        train_rows = self._rows(index)
        validation = None
        if index < self.n_inner:
            rows = self.dataset.rows(self.fold.inner[index].validation)
            validation = Validation("pearson", self._measure(index, model, train_rows, rows))
        return Fit(
            model,
            self.dataset,
            train_rows,
            validation=validation,
            augment=partial(changed, self.config),
            training=self.config.training,
            n_epochs=self.n_epochs_of(index),
            seed=self.config.seed,
            phase=index,
            workers=self.config.runtime.workers,
            processes=self.processes,
            accumulation=self.accumulation,
            compiling=self.compiling,
        )

    def _rows(self, index: int) -> Int64[Tensor, "S"]:
        """Return the spots that a phase trains on."""
        return self.dataset.rows(self.fold.inner[index].train) if index < self.n_inner else self.training_rows

    def _measure(
        self, index: int, model: SpotRegressor, train_rows: Int64[Tensor, "S"], rows: Int64[Tensor, "V"]
    ) -> Callable[[], float]:
        """Return what measures the network of an inner training after each epoch, with what is fused with it in the end."""
        data, transform, training, processes = self.dataset, self.transform, self.config.training, self.processes
        fused = self.fused
        if fused is None:
            return partial(validation_pearson, model, data, rows, transform, training, processes=processes)
        beside = fused.expression(fused.fitted(model, train_rows), model, rows)

        def measure() -> float:
            own = validation_prediction(model, data, rows, training, processes=processes)
            return fused.best(index, lambda predicted: section_pearson(predicted, data, rows, transform), own, beside)

        return measure

    def ended(self, index: int, fit: Fit[Any]) -> None:
        """Keep what the backbone learned before it learns expression."""
        if isinstance(fit.model, SimSiam):
            self.pretrained = Pretrained.of(fit)

    def extra_state(self) -> dict[str, Any]:
        """Return what was learned in pre-training and measured of what is fused, nothing where there was neither."""
        state: dict[str, Any] = {} if self.pretrained is None else {"pretrained": dict(vars(self.pretrained))}
        return state | ({"shares": self.fused.curves} if self.fused is not None else {})

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what `extra_state` returned."""
        self.pretrained = Pretrained(**state["pretrained"]) if "pretrained" in state else None
        if self.fused is not None:
            self.fused.curves = dict(state.get("shares", {}))

    def _execution(self, model: SpotRegressor) -> tuple[dict[str, Any], tuple[str, ...]]:
        size, parts = self.processes.size, self.accumulation.parts
        execution: dict[str, Any] = {"processes": size, "threads": torch.get_num_threads(), "accumulation": parts}
        execution |= {"compile": self.compiling.described()} if self.compiling is not None else {}
        note = self.accumulation.note(self.config.training.batch_size, size, batch_norm=normalizes_batches(model))
        notes = [note] if note else []
        if self.pretrained is not None and self.config.training.pretrain is not None:
            notes.append(self.pretrained.note(self.config.training.pretrain))
        if size > 1 and unsynchronized(model):
            notes.append(f"batch normalization saw only the spots of one of {size} processes at a time")
        return execution, tuple(notes)


def changed(config: StudyConfig, batch: SpotBatch, generator: torch.Generator, share: Share) -> SpotBatch:
    """Change a batch at random, as the study says.

    Args:
        config: The study.
        batch: A process's share of a batch.
        generator: Source of randomness, of one seed for each step.
        share: Which rows of the whole batch they are; all of them where spots are mixed.
    """
    batch = augment(config.input, batch, generator, share)
    return mix(batch, config.training.mixup, generator) if config.training.mixup else batch


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
        fields_px=config.input.fields_px or (),
        main_objective=main,
        auxiliary_objective=auxiliary,
        seed=config.seed,
        download=config.runtime.download,
        components=_components(network, main, dataset, rows),
    )
    placed: SpotRegressor = model.to(device=pick_device(config.runtime.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def _components(network: NetworkConfig, main: Objective, dataset: SpotDataset, rows: Tensor) -> Tensor | None:
    if network.rank is None:
        return None
    assert isinstance(main, StandardizedRegression)
    return principal_components(main.target(dataset.counts_main[rows], dataset.library[rows]), network.rank)


def most_auxiliary(config: StudyConfig) -> int | None:
    """Return how many auxiliary genes a study wants at most, None for all there are."""
    return config.model.auxiliary.n_genes if isinstance(config.model, NetworkConfig) else None


def without_auxiliary(config: StudyConfig) -> bool:
    """Whether a study needs no auxiliary genes, so that their counts need not be read."""
    return config.model.kind != "network" or config.model.auxiliary.weight == 0
