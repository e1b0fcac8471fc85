"""Readers on CPUs feed workers that hold a model, by Ray Data: a GPU does not wait for files to be decoded."""

import contextlib
import functools
import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from safetensors.numpy import load, save

from stexpr.engines.ray.connection import alive_nodes, connect, nothing
from stexpr.engines.tasks import in_one_line, thread_environment
from stexpr.errors import ConfigError, TrainingError

__all__ = ["Message", "RayPipeline"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Row: TypeAlias = dict[str, Any]

STORE_BYTES: Final = 1024**3
"""Memory shared between readers and workers, where Ray is started here."""
BLOCK_BYTES: Final = 16 * 1024**2
"""What is handed on at a time: about a hundred patches of 224 px."""
_HEADER: Final = "header"
_COLUMN: Final = "message"


@dataclass(frozen=True)
class Message:
    """What passes between the processes of a pipeline; it carries no code.

    Attributes:
        header: Plain JSON values.
        arrays: Numbers, by name.
    """

    header: Mapping[str, Any]
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the message as bytes."""
        header = np.frombuffer(json.dumps(dict(self.header)).encode(), dtype=np.uint8)
        return save({_HEADER: header, **{key: np.ascontiguousarray(values) for key, values in self.arrays.items()}})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Message":
        """Return the message that became these bytes."""
        arrays = load(content)
        return cls(json.loads(arrays.pop(_HEADER).tobytes()), arrays)


class RayPipeline:
    """Streams items through readers and workers on a Ray cluster.

    All nodes need stexpr, and the files at the same paths.

    Args:
        readers: Processes that read, one CPU each.
        workers: Processes that hold a model; by default one per GPU, else one.
        threads: CPU threads of each worker; by default 1.
        gpus: GPUs of each worker, also a part of one; by default 1 where the nodes have any.
        address: Of the cluster, `HOST:PORT`; None starts Ray on this machine, bound to its loopback.

    Raises:
        ConfigError: Ray is not installed, the cluster does not answer, or it has no room for readers and workers together.
    """

    def __init__(
        self,
        *,
        readers: int,
        workers: int | None = None,
        threads: int | None = None,
        gpus: float | None = None,
        address: str | None = None,
    ) -> None:
        self.readers = readers
        self.threads = threads or 1
        self._leave: Callable[[], None] = connect(address, readers + (workers or 1) * self.threads, STORE_BYTES)
        nodes = alive_nodes()
        n_gpus = sum(node.get("GPU", 0) for node in nodes)
        self.gpus = gpus if gpus is not None else float(n_gpus > 0)
        self.workers = workers or (max(1, int(n_gpus / self.gpus)) if self.gpus else 1)
        cpus = sum(node.get("CPU", 0) for node in nodes)
        if cpus < self.readers + self.workers * self.threads or n_gpus < self.workers * self.gpus:
            self.close()
            raise ConfigError(
                f"the Ray cluster has {cpus:g} CPUs and {n_gpus:g} GPUs, too few for {self.readers} readers and {self.workers} "
                f"workers of {self.threads} threads and {self.gpus:g} GPUs; take fewer"
            )

    def stream(
        self, items: Sequence[Mapping[str, Any]], read: str, work: str, argument: Mapping[str, Any]
    ) -> Iterator[Message]:
        """Yield what the workers make of what the readers read, in the order it comes; nothing of an item is kept.

        Readers wait where workers are slower. Messages of one item may come in another order than they were read.

        Args:
            items: Plain JSON; each is read by one reader.
            read: `module:name` of a generator function that takes an item and yields messages.
            work: `module:name` of a class that is built with the argument in each worker and called with each message, which it
                turns into another.
            argument: Plain JSON.

        Raises:
            TrainingError: A process died, or raised what it should have caught.
        """
        import ray

        rows = [{"item": json.dumps(dict(item))} for item in items]
        environment = {"env_vars": thread_environment(self.threads)}
        with _quiet():
            source = ray.data.from_items(rows, override_num_blocks=len(rows))
            messages = source.map_batches(
                functools.partial(_read, read=read),
                batch_size=1,
                compute=ray.data.TaskPoolStrategy(size=self.readers),
                num_cpus=1,
                runtime_env={"env_vars": thread_environment(1)},
            ).map_batches(
                _Worker,
                fn_constructor_args=(work, dict(argument)),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=self.workers),
                num_cpus=self.threads,
                num_gpus=self.gpus or None,
                runtime_env=environment,
            )
            try:
                for batch in messages.iter_batches(batch_size=1, prefetch_batches=1):
                    yield Message.from_bytes(bytes(batch[_COLUMN][0]))
            except ray.exceptions.RayError as err:
                raise TrainingError(
                    f"the Ray pipeline broke off ({in_one_line(err)[:300]}); the same command goes on, and without --readers "
                    "it finds out at which slide"
                ) from err

    def close(self) -> None:
        """Leave the cluster, and end it if this pipeline started it; the end of the program does the same."""
        self._leave()
        self._leave = nothing


def _read(batch: Row, read: str) -> Iterator[Row]:
    for message in _named(read)(json.loads(str(batch["item"][0]))):
        yield {_COLUMN: np.array([message.to_bytes()], dtype=object)}


class _Worker:
    def __init__(self, work: str, argument: dict[str, Any]) -> None:
        self._work = _named(work)(argument)

    def __call__(self, batch: Row) -> Row:
        made: Message = self._work(Message.from_bytes(bytes(batch[_COLUMN][0])))
        return {_COLUMN: np.array([made.to_bytes()], dtype=object)}


def _named(call: str) -> Any:
    module, _, name = call.partition(":")
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let Ray Data print nothing and hand on small blocks, inside the block only."""
    import ray

    logger = logging.getLogger("ray.data")
    before = logger.level
    context = ray.data.DataContext.get_current()
    settings = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": BLOCK_BYTES,
    }
    kept = {name: getattr(context, name) for name in settings}
    try:
        logger.setLevel(logging.ERROR)
        for name, value in settings.items():
            setattr(context, name, value)
        yield
    finally:
        logger.setLevel(before)
        for name, value in kept.items():
            setattr(context, name, value)
