"""The one training loop: any model that knows its loss, any examples read by row.

It knows nothing of genes or heads: what a batch is, is between the examples and the model.

Nothing random has a state of its own. Each epoch's order, each step's augmentation and each step's dropout are drawn from
(seed, phase, epoch, step), so a run resumed at any step repeats an uninterrupted one bit by bit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from stexpr.config import TrainingConfig
from stexpr.data.datasets import even_parts
from stexpr.errors import TrainingError
from stexpr.models.augment import Share
from stexpr.models.trainable import TrainableModel
from stexpr.train.accumulation import Accumulation
from stexpr.train.averaging import Average
from stexpr.train.checkpoint import StopFlag
from stexpr.train.compiling import Compiling
from stexpr.train.distributed import ALONE, Processes
from stexpr.train.step import Step
from stexpr.types import Progress, silent


@dataclass
class FitState:
    """How far one training has come; with the weights and the optimizer's state, all there is to resume.

    Attributes:
        epoch: Epochs completed.
        step: Steps completed in the current epoch.
        losses: Loss parts of the completed steps of the current epoch.
        curve: What validation measured after each completed epoch; empty without it.
    """

    epoch: int = 0
    step: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """Number of epochs after which validation was best, the earliest if several."""
        return int(np.argmax(self.curve)) + 1


@runtime_checkable
class Examples(Protocol):
    """Where the loop reads its examples, by row."""

    def batches(self, parts: Sequence[Tensor], *, device: torch.device, workers: int = 0) -> Iterator[Any]:
        """Yield one batch, of the kind the model reads, for each part."""
        ...

    def names(self, rows: Tensor) -> list[str]:
        """Name rows for a person to find."""
        ...


class Validation(NamedTuple):
    """What is measured after each epoch, the higher the better."""

    metric: str
    measure: Callable[[], float]


Model = TypeVar("Model", bound=TrainableModel)
Augment: TypeAlias = Callable[[Any, torch.Generator, Share], Any]


class Fit(Generic[Model]):
    """Trains one model on some rows for some epochs.

    Args:
        model: The model, on its device.
        examples: Where the rows are read.
        train_rows: Rows to learn from.
        validation: What is measured after each epoch, None for nothing.
        augment: Changes a share of a batch at random, drawing for the whole batch from the generator given.
        training: Optimizer and schedule.
        n_epochs: When to stop; the learning rate follows `training.epochs` all the same.
        seed: With `phase`, the source of every random number.
        phase: Which training of the run this is.
        workers: Loader processes.
        processes: Who shares each batch.
        accumulation: In how many parts each share is processed.
        compiling: Compiles the loss; None leaves it as it is.

    Raises:
        TrainingError: A batch has fewer examples than there are processes, or the loss of its parts is another.
    """

    def __init__(
        self,
        model: Model,
        examples: Examples,
        train_rows: Int64[Tensor, "S"],
        *,
        validation: Validation | None,
        augment: Augment,
        training: TrainingConfig,
        n_epochs: int,
        seed: int,
        phase: int,
        workers: int = 0,
        processes: Processes = ALONE,
        accumulation: Accumulation | None = None,
        compiling: Compiling | None = None,
    ) -> None:
        self.model = model
        self.examples = examples
        self.train_rows = train_rows
        self.validation = validation
        self.augment = augment
        self.training = training
        self.n_epochs = n_epochs
        self.seed = seed
        self.phase = phase
        self.workers = workers
        self.device = next(model.parameters()).device
        self.optimizer = make_optimizer(model, training)
        self.steps_per_epoch = math.ceil(len(train_rows) / training.batch_size)
        self.state = FitState()
        self.processes = processes
        smallest = len(train_rows) // max(self.steps_per_epoch, 1)
        if smallest < processes.size:
            raise TrainingError(
                f"training.batch_size = {training.batch_size} makes batches of {smallest}, which {processes.size} processes "
                "cannot share; raise it, or start fewer processes"
            )
        self._step = Step(model, self.optimizer, training, processes, accumulation or Accumulation(), compiling)
        self.average = Average(model, training.average) if training.average is not None else None
        self.best_weights: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything `load_state_dict` needs to go on."""
        return {
            "fit": asdict(self.state),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best_weights,
            **({"average": self.average.weights} if self.average is not None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self.state = FitState(**state["fit"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_weights = state["best"]
        if self.average is not None:
            self.average.load(state["average"])

    def run(
        self,
        *,
        keep_best: bool,
        stop: StopFlag,
        on_epoch: Callable[[dict[str, float | int]], None],
        save: Callable[[], None],
        progress: Progress = silent,
        label: str = "epochs",
    ) -> None:
        """Train from the current state to the end, or to the end of patience.

        Args:
            keep_best: Whether to keep the weights of the best validation epoch, and to end with them.
            stop: Asked after every step.
            on_epoch: Receives the epoch's mean losses, learning rate and validation.
            save: Called when the state must reach the disk: before leaving on a signal.
            progress: Shows the epochs.
            label: What it says beside them.

        Raises:
            InterruptedTrainingError: A signal arrived; the state is saved.
            TrainingError: A loss is not finite.
        """
        for _ in progress(range(self.state.epoch, self.n_epochs), label, self.n_epochs - self.state.epoch):
            if self._out_of_patience():
                break
            self._train_epoch(stop, save)
            values: dict[str, float | int] = {
                f"train/{part}": float(np.mean(losses)) for part, losses in self.state.losses.items()
            }
            values["train/lr"] = self.learning_rate(self.state.epoch, self.steps_per_epoch - 1)
            self.state.epoch, self.state.step, self.state.losses = self.state.epoch + 1, 0, {}
            if self.validation is not None:
                with nullcontext() if self.average is None else self.average.within(self.model):
                    measured = self.validation.measure()
                    self.state.curve.append(measured)
                    if keep_best and self.state.best_epoch == self.state.epoch:
                        self.best_weights = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
                values[f"val/{self.validation.metric}"] = measured
            on_epoch({"epoch": self.state.epoch, **values})
        if keep_best and self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        elif self.average is not None:
            self.model.load_state_dict(self.average.weights)

    def _out_of_patience(self) -> bool:
        curve = self.state.curve
        return bool(curve) and self.state.epoch - self.state.best_epoch >= self.training.patience

    def _train_epoch(self, stop: StopFlag, save: Callable[[], None]) -> None:
        epoch, done = self.state.epoch, self.state.step
        order = self.train_rows[torch.randperm(len(self.train_rows), generator=self._generator(epoch))]
        parts = even_parts(order, self.training.batch_size)
        pending: dict[str, list[Tensor]] = {}
        self.model.train()
        rank = self.processes.rank
        shares = [self.processes.share(part) for part in parts[done:]]
        batches = self.examples.batches(shares, device=self.device, workers=self.workers)
        for step, batch in enumerate(batches, start=done):
            total = len(parts[step])
            share = Share(self.processes.start(total), total)
            batch = self.augment(batch, self._generator(epoch, step, device=self.device), share)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(epoch, step) * group.get("lr_scale", 1.0)
            # dropout differs between processes, as it does between the rows of a batch
            seed = self._seed(epoch, step, *([rank] if rank else []))
            number = epoch * self.steps_per_epoch + step
            losses = self._step.take(batch, total=total, number=number, seed=seed)
            if self.average is not None:
                self.average.update(self.model, number)
            for part, value in losses.items():
                pending.setdefault(part, []).append(value)
            stop.agree(self.processes)
            if stop.signal_number is not None:
                self._collect(pending, parts, done)
                self.state.step = step + 1
                save()
                stop.raise_if_set()
        self._collect(pending, parts, done)

    def _collect(self, pending: dict[str, list[Tensor]], parts: tuple[Tensor, ...], done: int) -> None:
        """Bring the losses to the host, once an epoch: a look at each step would stall a GPU."""
        for part, values in pending.items():
            losses = self.processes.total(torch.stack(values).float().cpu())
            for i in torch.nonzero(~losses.isfinite()).flatten().tolist():
                named = ", ".join(self.examples.names(parts[done + i][:3]))
                raise TrainingError(
                    f"the {part} is {losses[i].item()} at epoch {self.state.epoch + 1}, step {done + i + 1} of "
                    f"{self.steps_per_epoch} (a batch of {len(parts[done + i])}: {named}, ...); lower training.lr or "
                    "set training.clip_norm"
                )
            self.state.losses.setdefault(part, []).extend(losses.tolist())

    def learning_rate(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then cosine to zero at `training.epochs`, or constant."""
        at = epoch + (step + 1) / self.steps_per_epoch
        warmup = min(self.training.warmup_epochs, self.training.epochs / 2)
        if at <= warmup:
            return self.training.lr * at / warmup
        if self.training.schedule == "constant":
            return self.training.lr
        share = (at - 1 / self.steps_per_epoch - warmup) / max(self.training.epochs - warmup, 1e-9)
        return self.training.lr * 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))

    def _seed(self, *at: int) -> int:
        return int(np.random.SeedSequence([self.seed, self.phase, *at]).generate_state(1, np.uint32)[0])

    def _generator(self, *at: int, device: torch.device | None = None) -> torch.Generator:
        return torch.Generator(device=device or "cpu").manual_seed(self._seed(*at))


def make_optimizer(model: TrainableModel, training: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimizer; biases and normalization layers are not decayed."""
    groups = model.parameter_groups(training.weight_decay)
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.lr, momentum=training.momentum)
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=training.lr, fused=fused)
