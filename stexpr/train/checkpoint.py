"""The state of an unfinished run: written whole or not at all, read without pickled code."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from stexpr.config.files import write_whole
from stexpr.errors import TrainingError
from stexpr.train.distributed import Processes

FORMAT = 1
WATCH_S = 1.0


class InterruptedTrainingError(TrainingError):
    """A signal asked the run to stop; its state is saved and the same command goes on from there."""

    def __init__(self, signal_number: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; the state is saved, and the same command goes on from here")
        self.exit_code = 128 + signal_number


class StopFlag:
    """Remembers that SIGINT or SIGTERM arrived, so that the loop can finish its step and save."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def agree(self, processes: Processes) -> None:
        """Set the flag where it is set in any process, so that all stop at the same step."""
        if processes.size > 1:
            self.signal_number = processes.largest(self.signal_number or 0) or None

    def raise_if_set(self) -> None:
        """Raise `InterruptedTrainingError` if a signal arrived."""
        if self.signal_number is not None:
            raise InterruptedTrainingError(self.signal_number)


@contextmanager
def stop_on_file(flag: StopFlag, path: Path) -> Iterator[None]:
    """Set the flag, as SIGTERM would, once a file appears; signals do not reach the other hosts of a cluster."""
    left = threading.Event()

    def watch() -> None:
        while not left.wait(WATCH_S):
            if path.exists():
                flag.signal_number = signal.SIGTERM
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        left.set()
        watcher.join()


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turn the first SIGINT or SIGTERM into a flag; a second one acts as usual.

    Outside the main thread, where Python allows no handler, the flag is never set.
    """
    flag = StopFlag()
    previous: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        flag.signal_number = number
        restore()

    def restore() -> None:
        while previous:
            number, handler = previous.popitem()
            signal.signal(number, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread
        previous.clear()
    try:
        yield flag
    finally:
        restore()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state beside and move it into place, so that a kill leaves the old one or the new one.

    Raises:
        DataError: There is no room for it; the old one stays.
    """
    write_whole(path, partial(torch.save, {"format": FORMAT, **state}), needs=tensor_bytes(state))


def tensor_bytes(state: Any) -> int:
    """Return how many bytes the tensors of a nested state take."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(tensor_bytes, state.values()))
    return sum(map(tensor_bytes, state)) if isinstance(state, list | tuple) else 0


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint onto the CPU, None if there is none.

    Raises:
        TrainingError: It cannot be read, or another version of stexpr wrote it.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch raises half a dozen kinds for a damaged file
        raise TrainingError(f"the checkpoint {path} cannot be read; delete it to train this fold from the start") from err
    if state.get("format") != FORMAT:
        raise TrainingError(f"the checkpoint {path} is of another version of stexpr; delete it to train from the start")
    return state
