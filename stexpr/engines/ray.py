"""The Ray engine: tasks on the nodes of a cluster, or on this machine alone."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stexpr.engines.local import available_cores
from stexpr.engines.tasks import ATTEMPTS, Outcome, Task, in_one_line, perform, thread_environment
from stexpr.errors import ConfigError

POLL_S: Final = 1.0
AHEAD: Final = 2
"""Tasks submitted beyond those that run, so that no node waits for the next."""
KNOCK_S: Final = 4.0
JOIN_S: Final = 15.0
OBJECT_STORE_BYTES: Final = 100 * 1024**2
TOKENS: Final = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
LOOPBACK: Final = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Makes Ray stay on the loopback, as it does on macOS; else it puts an address that others reach in place of 127.0.0.1."""
SILENT: Final = ("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
"""Keeps the last words of a dying node, twenty lines of its log, off this program's standard output."""
JOIN: Final = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"


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
        self._leave: Callable[[], None] = _connect(address, (workers or 0) * self.threads)
        nodes = _nodes()
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
                while waiting and len(submitted) < (self.workers or max(self.slots, self._room(_nodes())) + AHEAD):
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
        self._leave = _nothing

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


def _nodes() -> list[dict[str, float]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def _first_sentence(err: Exception) -> str:
    return in_one_line(err).split(". ")[0]


def _nothing() -> None:
    return


def _connect(address: str | None, cpus: int) -> Callable[[], None]:
    """Connect to a cluster, or start one here, and return what undoes it.

    Args:
        address: Of the cluster; None starts one.
        cpus: Number of CPUs to offer in the one that is started, 0 for those there are.
    """
    os.environ.setdefault(*SILENT)  # read when Ray is imported, as is the next
    if address is None or _is_here(address):
        os.environ.setdefault(*LOOPBACK)
    try:
        import ray
    except ImportError as err:
        raise ConfigError("the engine ray needs Ray; install stexpr[ray]") from err
    if ray.is_initialized():
        return _nothing
    if address is not None:
        _check(address)
        with _signals_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return ray.shutdown
    own_token = not any(os.environ.get(name) for name in TOKENS)
    if own_token:  # else Ray would write one into the home folder
        os.environ[TOKENS[0]] = secrets.token_hex(32)

    def end() -> None:
        ray.shutdown()
        if own_token:
            del os.environ[TOKENS[0]]

    with _signals_kept():
        ray.init(
            address="local",  # whatever RAY_ADDRESS says
            num_cpus=cpus or available_cores(),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
    return end


def _is_here(address: str) -> bool:
    return address.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")


def _check(address: str) -> None:
    """Refuse an address that does not answer; Ray itself would try for minutes, and not hear a signal.

    Raises:
        ConfigError: It is none, nobody listens, or who listens is no Ray cluster that lets this machine join.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ConfigError(f"the address {address!r} of the Ray cluster is not of the form HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except OSError as err:
        raise ConfigError(f"no Ray cluster answers at {address} ({err}); is its head node up?") from err
    joining = subprocess.Popen(
        [sys.executable, "-c", JOIN, address],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = joining.communicate(timeout=JOIN_S)[1]
    except subprocess.TimeoutExpired:
        joining.kill()
        joining.communicate()
        said = f"no answer within {JOIN_S:.0f} s"
    if joining.returncode:
        last = said.strip().splitlines()[-1] if said.strip() else f"code {joining.returncode}"
        raise ConfigError(
            f"the Ray cluster at {address} cannot be joined: {last}; this machine has to be one of its nodes, with the same "
            f"version of Ray and, where it wants a token, RAY_AUTH_MODE=token and {' or '.join(TOKENS)}"
        )


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back the handler of SIGTERM that Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
