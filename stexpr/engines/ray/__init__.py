"""The Ray engine: tasks on the nodes of a cluster, or on this machine alone."""

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from stexpr.engines.ray.connection import alive_nodes, connect, nothing
from stexpr.engines.tasks import ATTEMPTS, Outcome, Task, in_one_line, perform, thread_environment
from stexpr.errors import ConfigError

POLL_S: Final = 1.0
AHEAD: Final = 2
"""Tasks submitted beyond those that run, so that no node waits for the next."""


class RayEngine:
    """Runs tasks on a Ray cluster; one whose worker or node dies is begun again on another.

    All nodes need stexpr, and the cohorts and the folder of runs at the same paths. A program that is connected to Ray already
    keeps its connection.

    Args:
        logs: Folder of what the workers print, one file a process.
        workers: Tasks at a time; by default as many as the nodes have room for.
        threads: CPU threads of each; by default 1.
        gpus: GPUs of each, also a part of one; by default 1 where the nodes have any.
        address: Of the cluster, `HOST:PORT`; None starts Ray on this machine, bound to its loopback.

    Raises:
        ConfigError: Ray is not installed, the cluster does not answer, or no node of it has room for a task.
    """

    name = "ray"

    def __init__(
        self,
        logs: Path,
        *,
        workers: int | None = None,
        threads: int | None = None,
        gpus: float | None = None,
        address: str | None = None,
    ) -> None:
        self.logs = logs.resolve()
        self.workers = workers
        self.threads = threads or 1
        self._leave: Callable[[], None] = connect(address, (workers or 0) * self.threads)
        nodes = alive_nodes()
        self.gpus = gpus if gpus is not None else float(any(node.get("GPU") for node in nodes))
        room = self._room(nodes)
        if not room:
            self.close()
            sizes = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise ConfigError(
                f"no node of the Ray cluster has room for a task of {self.threads} threads and {self.gpus:g} GPUs; its nodes "
                f"have: {sizes}"
            )
        self.slots = workers or room

    def run(self, tasks: Sequence[Task], stopped: Callable[[], bool]) -> Iterator[Outcome]:
        """Yield outcomes as they come; see `Engine.run`."""
        import ray

        remote = ray.remote(_perform_printing).options(
            num_cpus=self.threads,
            num_gpus=self.gpus,
            max_retries=ATTEMPTS - 1,
            runtime_env={"env_vars": thread_environment(self.threads)},
        )
        waiting = deque(tasks)
        submitted: dict[Any, Task] = {}
        ending = False
        try:
            while waiting or submitted:
                if not ending and stopped():
                    ending = True
                    waiting.clear()
                    _cancel(submitted)
                while waiting and len(submitted) < (self.workers or max(self.slots, self._room(alive_nodes())) + AHEAD):
                    task = waiting.popleft()
                    submitted[remote.remote(task, str(self.logs))] = task
                for reference in ray.wait(list(submitted), timeout=POLL_S)[0] if submitted else ():
                    task = submitted.pop(reference)
                    try:
                        yield ray.get(reference)
                    except ray.exceptions.TaskCancelledError:
                        continue
                    except ray.exceptions.RayError as err:
                        if not ending:
                            yield Outcome(task.key, error=f"its worker died, {ATTEMPTS} times: {_first_sentence(err)}")
        finally:
            _cancel(submitted)

    def close(self) -> None:
        """Leave the cluster, and end it if this engine started it; the end of the program does the same."""
        self._leave()
        self._leave = nothing

    def _room(self, nodes: Sequence[dict[str, float]]) -> int:
        """Return how many tasks fit on all nodes together."""
        return sum(
            int(min(node.get("CPU", 0) / self.threads, node.get("GPU", 0) / self.gpus if self.gpus else float("inf")))
            for node in nodes
        )


def _perform_printing(task: Task, logs: str) -> Outcome:
    """Run a task in a worker of Ray, which would otherwise keep what is printed on its own node."""
    Path(logs).mkdir(parents=True, exist_ok=True)
    with (
        (Path(logs) / f"{socket.gethostname()}-{os.getpid()}.log").open("a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        return perform(task)


def _cancel(submitted: dict[Any, Task]) -> None:
    """Drop what waits in a queue, and ask what runs to save and end: Ray sends it a SIGINT."""
    import ray

    for reference in submitted:
        ray.cancel(reference, force=False)


def _first_sentence(err: Exception) -> str:
    return in_one_line(err).split(". ")[0]
