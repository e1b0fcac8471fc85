"""Slides to bags by a pipeline: processes that cut patches feed those that hold the encoder, and this one writes."""

import contextlib
import math
import queue
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from stexpr.data.bags import BagRows, write_bag
from stexpr.engines.ray.pipeline import Message, RayPipeline
from stexpr.engines.tasks import Outcome, Task
from stexpr.errors import DomainWarning, StexprError
from stexpr.inference.bags import PatchBatch, bag_rows, open_for_bag
from stexpr.inference.encoder import ModelInput
from stexpr.inference.patches import run_model
from stexpr.train.slides.embed_job import failure, open_once, settings_of

__all__ = ["Embedder", "PipelinedEngine", "read_slide"]

_AHEAD: Final = 16
"""Batches of a slide that wait to be written, at most."""
_LOOK_S: Final = 0.5


class PipelinedEngine:
    """An engine for slides to embed, and nothing else: what it is given are the tasks of `embed_job.task_of`.

    Attributes:
        name: `ray`.
        slots: Slides read at a time.
        threads: CPU threads of each process that holds the encoder.
    """

    name = "ray"

    def __init__(self, pipeline: RayPipeline) -> None:
        self._pipeline = pipeline
        self.slots, self.threads = pipeline.readers, pipeline.threads

    def run(self, tasks: Sequence[Task], stopped: Callable[[], bool]) -> Iterator[Outcome]:
        """Yield outcomes as they come; see `Engine.run`. A process that dies ends it.

        Raises:
            TrainingError: A process died.
        """
        if not tasks:
            return
        shared = tasks[0].argument
        sees = ModelInput.of(open_once(shared)).to_json()
        sees["device"] = "cuda" if self._pipeline.gpus else "cpu"
        items = [{**task.argument, "sees": sees} for task in tasks]
        writers = {task.key: _Writer(task.argument) for task in tasks}
        messages = self._pipeline.stream(items, f"{__name__}:read_slide", f"{__name__}:Embedder", shared)
        try:
            for message in messages:
                if stopped():
                    return
                slide = message.header["slide"]
                if slide in writers and (ended := writers[slide].take(message)) is not None:
                    del writers[slide]
                    yield Outcome(slide, ended)
        finally:
            messages.close()  # type: ignore[attr-defined]
            for writer in writers.values():
                writer.abandon()


def read_slide(argument: dict[str, Any]) -> Iterator[Message]:
    """Cut the patches of a slide, as a reader of the pipeline.

    Args:
        argument: Of a task, with what the model `sees`.

    Yields:
        Patches, `part` of `parts`, the first with what the bag's header says; or, at any moment, what went wrong.
    """
    slide, settings, size = argument["name"], settings_of(argument["settings"]), argument["batch_size"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DomainWarning)  # the bag and the summary say it
            sees = ModelInput.from_json(argument["sees"])
            with open_for_bag(Path(argument["slide"]), sees, settings, argument["rois"]) as opened:
                parts = math.ceil(len(opened.laid.grid) / size)
                for part, batch in enumerate(opened.batches(size)):
                    header = {"slide": slide, "part": part, "parts": parts} | ({} if part else {"bag": opened.header})
                    yield Message(header, batch._asdict())
    except Exception as err:  # the other slides go on
        yield Message({"slide": slide, **failure(err), "trace": traceback.format_exc()})


class Embedder:
    """Runs the encoder, as a worker of the pipeline."""

    def __init__(self, argument: dict[str, Any]) -> None:
        self._model = open_once(argument)
        self._settings = settings_of(argument["settings"])

    def __call__(self, message: Message) -> Message:
        """Put in place of patches what a bag keeps of them."""
        if "part" not in message.header:
            return message
        batch = PatchBatch(**message.arrays)
        try:
            made = next(run_model(self._model, [batch.patches], symmetries=self._settings.symmetries, novelty=False))
        except StexprError as err:
            return Message({"slide": message.header["slide"], **failure(err)})
        rows = bag_rows(batch, made, self._settings)._asdict()
        return Message(message.header, {key: values for key, values in rows.items() if values is not None})


class _Writer:
    """Writes one bag, in a thread of its own, from messages in any order."""

    def __init__(self, argument: dict[str, Any]) -> None:
        self._path = Path(argument["bags"]) / f"{argument['name']}.h5"
        self._waiting: dict[int, Message] = {}
        self._next = 0
        self._rows: queue.Queue[BagRows | None] = queue.Queue(_AHEAD)
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None
        self._began = 0.0

    def take(self, message: Message) -> dict[str, Any] | None:
        """Take a message of the slide, and return what became of it once it is the last."""
        header = message.header
        if "part" not in header:
            self.abandon()
            return {key: value for key, value in header.items() if key != "slide"}
        self._waiting[header["part"]] = message
        while (arrived := self._waiting.pop(self._next, None)) is not None:
            if self._next == 0:
                self._begin(arrived.header["bag"])
            self._hand_on(BagRows(**arrived.arrays))
            self._next += 1
        if self._failed is None and self._next < header["parts"]:
            return None
        self._end()
        if self._failed is not None:
            return failure(self._failed)
        return {"became": "done", "seconds": round(time.monotonic() - self._began, 2)}

    def abandon(self) -> None:
        """Leave no bag."""
        self._failed = self._failed or _AbandonedError()
        self._end()

    def _begin(self, header: dict[str, Any]) -> None:
        self._began = time.monotonic()
        width, height = header["size_px"]
        self._thread = threading.Thread(target=self._write, args=({**header, "size_px": (width, height)},), daemon=True)
        self._thread.start()

    def _hand_on(self, rows: BagRows | None) -> None:
        """Wait for a slow disk, but not for a thread that has failed."""
        while self._thread is not None and self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._rows.put(rows, timeout=_LOOK_S)
                return

    def _end(self) -> None:
        self._hand_on(None)
        if self._thread is not None:
            self._thread.join()

    def _write(self, header: dict[str, Any]) -> None:
        try:
            write_bag(self._path, self._arriving(), **header)
        except Exception as err:  # told where the slide's outcome is
            self._failed = err

    def _arriving(self) -> Iterator[BagRows]:
        while (rows := self._rows.get()) is not None:
            yield rows
        if self._failed is not None:
            raise self._failed


class _AbandonedError(Exception):
    """A bag is not to be written after all."""
