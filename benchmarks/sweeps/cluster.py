"""A Ray cluster of two nodes on this machine, for benchmarks and tests: on the loopback, with a token of its own.

Two nodes are two raylets with their own workers, ports and object stores; `python cluster.py FOLDER` starts them, prints what
they are as one line of JSON, and ends them when its standard input closes.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 120
END_S = 30


@dataclass(frozen=True)
class TwoNodes:
    """A running cluster.

    Attributes:
        address: Of its head, to join.
        head: Process id of the first node's raylet.
        second: Of the second node's.
    """

    address: str
    head: int
    second: int

    def kill_second(self) -> list[int]:
        """Kill the second node with all its workers, as a power cut would, and return the process ids."""
        killed = [self.second, *descendants(self.second)]
        for process in killed:
            os.kill(process, signal.SIGKILL)
        return killed


def descendants(process: int) -> list[int]:
    """Return the children of a process, and theirs; empty if there is no such process."""
    found = []
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(child) for child in tasks.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [one for child in children for one in (child, *descendants(child))]
    return found


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of the cluster's processes and of who joins it."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # stay on 127.0.0.1
        "RAY_TMPDIR": str(folder / "ray"),  # so that nobody else finds the cluster by chance
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # Ray warns where nothing is said
    }


@contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """Start a cluster of two nodes with one CPU each, and end its processes, by id, whatever happens.

    Args:
        folder: Of its token and logs; a short path, because sockets lie below it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    with (folder / "cluster.log").open("w") as log:
        holder = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **environment(folder)},
            text=True,
            start_new_session=True,  # a signal to the terminal's processes is the driver's to hear
        )
    assert holder.stdin is not None
    assert holder.stdout is not None
    started: set[int] = set()
    try:
        line = _line_within(holder, START_S)
        started = {holder.pid, *descendants(holder.pid)}
        yield TwoNodes(**json.loads(line))
    finally:
        started |= {holder.pid, *descendants(holder.pid)}
        holder.stdin.close()
        try:
            holder.wait(END_S)
        except subprocess.TimeoutExpired:
            for process in started:
                if Path(f"/proc/{process}/cwd").exists():
                    os.kill(process, signal.SIGKILL)
            holder.wait(END_S)
        holder.stdout.close()


def _line_within(holder: "subprocess.Popen[str]", seconds: float) -> str:
    assert holder.stdout is not None
    os.set_blocking(holder.stdout.fileno(), False)
    until, said = time.monotonic() + seconds, ""
    while not said.endswith("\n"):
        if holder.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the cluster did not start, code {holder.returncode}")
        time.sleep(0.1)
        said += os.read(holder.stdout.fileno(), 4096).decode() if _has_data(holder.stdout.fileno()) else ""
    return said


def _has_data(descriptor: int) -> bool:
    import select

    return bool(select.select([descriptor], [], [], 0)[0])


def hold(folder: Path) -> None:
    """Start both nodes in this process, say what they are, and wait for the end of standard input."""
    from ray.cluster_utils import Cluster

    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints
    sizes = {"num_cpus": 1, "object_store_memory": 80 * 1024**2, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=sizes)
    second = cluster.add_node(**sizes)
    raylets = {
        name: node.all_processes["raylet"][0].process.pid for name, node in (("head", cluster.head_node), ("second", second))
    }
    print(json.dumps({"address": cluster.address, **raylets}), file=said, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    hold(Path(sys.argv[1]))
