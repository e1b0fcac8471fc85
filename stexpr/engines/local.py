"""The local engine: worker processes of this machine, one per GPU or a share of the CPU each."""

import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from stexpr.engines.tasks import ATTEMPTS, Outcome, Task, as_plain, thread_environment

POLL_S: Final = 0.5
WORKER_BYTES: Final = 3e9
"""Memory set aside for a CPU worker where none is told how many there should be."""


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    results: IO[str]
    device: str | None
    task: Task | None = None


class LocalEngine:
    """Runs tasks in worker processes that stay for many tasks.

    Args:
        workers: How many; by default one per GPU, else as many as there are cores and memory for.
        threads: CPU threads of each; by default the cores shared out among the GPUs, 1 without one.
        logs: Folder of what the workers print.
    """

    name = "local"

    def __init__(self, logs: Path, *, workers: int | None = None, threads: int | None = None) -> None:
        self.devices = visible_gpus()
        cores = available_cores()
        default = len(self.devices) or max(1, min(cores // (threads or 1), int(free_memory() // WORKER_BYTES)))
        self.slots = workers or default
        self.threads = threads or (max(1, cores // self.slots) if self.devices else 1)
        self.logs = logs

    def run(self, tasks: Sequence[Task], stopped: Callable[[], bool]) -> Iterator[Outcome]:
        """Yield outcomes as they come; see `Engine.run`."""
        waiting = deque(tasks)
        begun: dict[str, int] = {}
        workers: dict[int, _Worker] = {}
        ending = False
        with selectors.DefaultSelector() as ready:
            try:
                while waiting or any(worker.task for worker in workers.values()):
                    if not ending and stopped():
                        ending = True
                        waiting.clear()
                        for worker in workers.values():
                            _close(worker)
                    for slot in range(min(self.slots, len(waiting) + len(workers))):
                        if waiting and slot not in workers:
                            workers[slot] = self._start(slot)
                            ready.register(workers[slot].results, selectors.EVENT_READ, slot)
                        if waiting and workers[slot].task is None:
                            task = waiting.popleft()
                            begun[task.key] = begun.get(task.key, 0) + 1
                            _give(workers[slot], task)
                    for key, _ in ready.select(POLL_S):
                        worker = workers[key.data]
                        line = worker.results.readline()
                        dropped, worker.task = worker.task, None
                        if line.endswith("\n"):
                            yield Outcome(**json.loads(line))
                            continue
                        ready.unregister(worker.results)
                        del workers[key.data]
                        died = _died(worker)
                        if dropped is None or ending:
                            continue
                        if begun[dropped.key] < ATTEMPTS:
                            waiting.appendleft(dropped)
                        else:
                            yield Outcome(dropped.key, error=f"its worker {died}, {ATTEMPTS} times; see {self.logs}")
            finally:
                for worker in workers.values():
                    _close(worker)
                for worker in workers.values():
                    worker.process.wait()
                    worker.results.close()

    def _start(self, slot: int) -> _Worker:
        device = self.devices[slot % len(self.devices)] if self.devices else None
        environment = {**os.environ, **thread_environment(self.threads)}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        reader, writer = os.pipe()
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"worker-{slot}.log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "stexpr.engines.worker", str(writer)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                pass_fds=(writer,),
                start_new_session=True,  # a Ctrl-C in the terminal reaches the engine, which asks its workers to save
            )
        os.close(writer)
        return _Worker(process, os.fdopen(reader, encoding="utf-8"), device)


def _give(worker: _Worker, task: Task) -> None:
    worker.task = task
    assert worker.process.stdin is not None
    try:
        worker.process.stdin.write(json.dumps(as_plain(task)) + "\n")
        worker.process.stdin.flush()
    except BrokenPipeError:  # it died; its end of the results says so in a moment
        return


def _close(worker: _Worker) -> None:
    assert worker.process.stdin is not None
    try:
        worker.process.stdin.close()
    except BrokenPipeError:
        return


def _died(worker: _Worker) -> str:
    """Take leave of a dead worker and say how it died."""
    _close(worker)
    code = worker.process.wait()
    worker.results.close()
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def available_cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the GPUs this process may use, by number or by name, as `CUDA_VISIBLE_DEVICES` takes them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one.strip() for one in named.split(",") if one.strip() and not one.strip().startswith("-")]
    import torch

    return list(map(str, range(torch.cuda.device_count())))


def free_memory() -> float:
    """Return the bytes of memory that can be had without swapping, infinite where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    sizes: dict[str, Any] = dict(line.split(":", 1) for line in lines)
    return float(sizes["MemAvailable"].split()[0]) * 1024
