"""The trainings of one run, one after the other: the inner ones that choose the number of epochs, then the final one."""

import abc
import time
from pathlib import Path
from typing import Any, Generic, TypeVar

from stexpr.errors import TrainingError
from stexpr.inference import out_of_memory
from stexpr.models.trainable import TrainableModel
from stexpr.train.checkpoint import StopFlag, load_checkpoint, save_checkpoint
from stexpr.train.distributed import ALONE, Processes
from stexpr.train.folder import CHECKPOINT
from stexpr.train.loop import Fit
from stexpr.train.tracking import MetricsFile, Tracker
from stexpr.train.validation import choose_epoch
from stexpr.types import Progress, silent

Model = TypeVar("Model", bound=TrainableModel)


class PhasedTraining(abc.ABC, Generic[Model]):
    """All trainings of one fold, resumable at any step.

    Attributes:
        first_phase: Number of the first training; one below 0 comes before the inner ones, which start at 0.

    Args:
        folder: The run's folder, for the checkpoint.
        fold: Its number, for messages.
        n_inner: Inner trainings.
        epochs: Upper limit of each; trained to where there is no inner training.
        refit: Whether a final training on all training examples follows the inner ones.
        checkpoint_epochs: Epochs between checkpoints.
        progress: Shows the epochs of each training.
        processes: Who shares the training.
    """

    first_phase: int = 0

    def __init__(
        self,
        folder: Path,
        *,
        fold: int,
        n_inner: int,
        epochs: int,
        refit: bool,
        checkpoint_epochs: int,
        progress: Progress = silent,
        processes: Processes = ALONE,
    ) -> None:
        self.path = folder / CHECKPOINT
        self.fold_index = fold
        self.n_inner = n_inner
        self.epochs = epochs
        self.refit = refit or not n_inner
        self.checkpoint_epochs = checkpoint_epochs
        self.progress = progress
        self.processes = processes
        self.curves: list[list[float]] = []
        self.seconds = 0.0

    @abc.abstractmethod
    def fit(self, index: int) -> Fit[Model]:
        """Make the training of a phase, from `first_phase`: inner ones from 0, then the final one, of `n_epochs_of` epochs."""

    def ended(self, index: int, fit: Fit[Model]) -> None:
        """Take what is needed of a phase before its network is let go."""

    def extra_state(self) -> dict[str, Any]:
        """Return what the checkpoint holds of phases that ended, beside their curves."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what `extra_state` returned."""

    @property
    def keeps_best(self) -> bool:
        """Whether the best weights of the inner training are the result."""
        return not self.refit

    @property
    def n_phases(self) -> int:
        """Trainings of this fold: one for each inner partition, and the final one where weights are not kept."""
        return self.n_inner + self.refit

    @property
    def chosen_epochs(self) -> int:
        """Epochs that the inner trainings chose; the limit where there is none."""
        return choose_epoch(self.curves) if self.curves else self.epochs

    def n_epochs_of(self, index: int) -> int:
        """Return how long a phase trains at most."""
        return self.epochs if index < self.n_inner else self.chosen_epochs

    def phase_name(self, index: int) -> str:
        """Name a phase for a person."""
        if index < 0:
            return "self-supervised"
        return f"inner {index}" if index < self.n_inner else "final"

    def train(
        self, metrics: MetricsFile | None, trackers: list[Tracker], stop: StopFlag, resumed: dict[str, Any] | None
    ) -> Fit[Model]:
        """Train what the checkpoint does not hold yet, and return the last training.

        Args:
            metrics: The run's `metrics.jsonl`, cut back to the checkpoint; None where another process writes it.
            trackers: Where each epoch's values go, `metrics` among them.
            stop: Asked after every step.
            resumed: The checkpoint, None to start afresh.

        Raises:
            InterruptedTrainingError: A signal arrived; the state is saved.
            TrainingError: A loss is not finite, or there is no memory for one example; the note names the fold.
        """
        first = int(resumed["phase"]) if resumed else self.first_phase
        self.curves = list(resumed["curves"]) if resumed else []
        self.seconds = float(resumed["seconds"]) if resumed else 0.0
        if resumed:
            self.load_extra_state(resumed.get("extra", {}))
        for index in range(first, self.n_phases):
            fit = self.fit(index)
            if resumed and index == first:
                fit.load_state_dict(resumed["state"])
            try:
                self._run_phase(index, fit, metrics, trackers, stop)
            except Exception as err:
                err.add_note(f"in fold {self.fold_index}, {self.phase_name(index)} training")
                if out_of_memory(err):  # outside of a step, where smaller parts would not help
                    raise TrainingError(f"out of memory: {err}; take a smaller network or training.batch_size") from err
                raise
            if 0 <= index < self.n_inner:
                self.curves.append(fit.state.curve)
            self.ended(index, fit)
        return fit

    def _run_phase(
        self, index: int, fit: Fit[Model], metrics: MetricsFile | None, trackers: list[Tracker], stop: StopFlag
    ) -> None:
        began = time.monotonic()
        before = self.seconds

        def save() -> None:
            self.seconds = before + time.monotonic() - began
            lines = metrics.lines if metrics is not None else 0
            extra = self.extra_state()
            state = {"phase": index, "curves": self.curves, "seconds": self.seconds, "lines": lines}
            state |= {"extra": extra} if extra else {}
            self.processes.on_first(lambda: save_checkpoint(self.path, {**state, "state": fit.state_dict()}))

        def on_epoch(values: dict[str, float | int]) -> None:
            for tracker in trackers:
                tracker.log({"phase": self.phase_name(index), **values})
            if fit.state.epoch % self.checkpoint_epochs == 0 or fit.state.epoch == fit.n_epochs:
                save()

        fit.run(
            keep_best=self.keeps_best_of(index),
            stop=stop,
            on_epoch=on_epoch,
            save=save,
            progress=self.progress,
            label=f"  fold {self.fold_index}, {self.phase_name(index)}: epochs",
        )
        self.seconds = before + time.monotonic() - began

    def keeps_best_of(self, index: int) -> bool:
        """Whether a phase ends with the weights of its best epoch."""
        return self.keeps_best

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
