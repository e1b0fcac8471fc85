"""What a run does when a batch does not fit into memory: it processes each batch in parts, and remembers in how many."""

import re
from dataclasses import dataclass
from pathlib import Path

from stexpr.errors import TrainingError

_NAME = re.compile(r"accumulation-(\d+)")


@dataclass
class Accumulation:
    """In how many parts each batch is processed; the parts' gradients add up to the gradient of the whole batch.

    The number is the name of an empty file of the run's folder, so that a run that is started again begins with it, also
    where memory ended before the first checkpoint or in only one of several processes.

    Attributes:
        folder: The run's folder, None to remember nothing.
        parts: Parts of each batch.
    """

    folder: Path | None = None
    parts: int = 1

    def __post_init__(self) -> None:
        self.parts = max([self.parts, *self._files()])

    def at_a_time(self, n: int) -> int:
        """Return how many of `n` examples are processed together."""
        return -(-n // min(self.parts, n))

    def double(self, n: int, *, coupled: bool) -> None:
        """Take twice as many parts.

        Args:
            n: Examples of the smallest share of the batch, which cannot be split into more parts than that.
            coupled: Whether the loss of a batch is more than a mean over its examples.

        Raises:
            TrainingError: One example does not fit, or the loss of the parts would not be that of the batch.
        """
        if coupled:
            raise TrainingError(
                f"out of memory with {self.at_a_time(n)} examples at a time, and this loss couples the examples of a "
                "batch, so its parts would train another loss; lower training.batch_size (training.pretrain.batch_size in "
                "self-supervised training), or take model.loss=mse"
            )
        if self.parts >= n:
            raise TrainingError("out of memory with one example at a time; take a smaller network or window")
        self.parts *= 2
        if self.folder is not None:
            (self.folder / f"accumulation-{self.parts}").touch()

    def forget(self) -> None:
        """Remove the files, once the record holds the number."""
        for path in self._files().values():
            path.unlink(missing_ok=True)

    def _files(self) -> dict[int, Path]:
        paths = self.folder.iterdir() if self.folder is not None and self.folder.is_dir() else ()
        return {int(found[1]): path for path in paths if (found := _NAME.fullmatch(path.name))}

    def note(self, batch_size: int, processes: int, *, batch_norm: bool) -> str:
        """Say what was done, for a record; empty if every batch was processed whole.

        Args:
            batch_size: Examples of a whole batch.
            processes: Processes that shared each.
            batch_norm: Whether the network normalizes over the examples processed together.
        """
        if self.parts == 1:
            return ""
        own = -(-batch_size // processes)
        words = f"out of memory: each batch of {batch_size} was processed in {min(self.parts, own)} parts"
        words += f" by each of {processes} processes" if processes > 1 else ""
        return words + (f"; batch normalization saw {self.at_a_time(own)} spots at a time" if batch_norm else "")
