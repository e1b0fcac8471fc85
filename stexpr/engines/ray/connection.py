"""Joining a Ray cluster, or starting one on this machine alone."""

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from stexpr.engines.local import available_cores
from stexpr.errors import ConfigError

__all__ = ["alive_nodes", "connect", "nothing"]

KNOCK_S: Final = 4.0
JOIN_S: Final = 15.0
OBJECT_STORE_BYTES: Final = 100 * 1024**2
TOKENS: Final = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
LOOPBACK: Final = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
"""Makes Ray stay on the loopback, as it does on macOS; else it puts an address that others reach in place of 127.0.0.1."""
SILENT: Final = ("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
"""Keeps the last words of a dying node, twenty lines of its log, off this program's standard output."""
JOIN: Final = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"


def connect(address: str | None, cpus: int, store_bytes: int = OBJECT_STORE_BYTES) -> Callable[[], None]:
    """Connect to a cluster, or start one here, and return what undoes it.

    Args:
        address: Of the cluster; None starts one.
        cpus: Number of CPUs to offer in the one that is started, 0 for those there are.
        store_bytes: Memory shared between processes, in the one that is started.

    Raises:
        ConfigError: Ray is not installed, or the cluster does not answer.
    """
    os.environ.setdefault(*SILENT)  # read when Ray is imported, as is the next
    if address is None or _is_here(address):
        os.environ.setdefault(*LOOPBACK)
    try:
        import ray
    except ImportError as err:
        raise ConfigError("the engine ray needs Ray; install stexpr[ray]") from err
    if ray.is_initialized():
        return nothing
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
            object_store_memory=store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
    return end


def alive_nodes() -> list[dict[str, float]]:
    """Return what each node of the cluster has."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def nothing() -> None:
    """Undo nothing."""
    return


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
