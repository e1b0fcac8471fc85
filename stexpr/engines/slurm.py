"""The Slurm engine: tasks as job arrays, by submitit."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from stexpr.engines.tasks import ATTEMPTS, Outcome, Task, in_one_line, perform, thread_environment
from stexpr.errors import ConfigError

POLL_S: Final = 1.0
SLOTS: Final = 16
"""Jobs of an array that run at a time, where none is told."""
CLUSTER: Final = "cluster"
RESERVED: Final = {
    "cpus_per_task": "--threads",
    "gpus_per_node": "--gpus",
    "slurm_cpus_per_task": "--threads",
    "slurm_gpus_per_node": "--gpus",
    "slurm_array_parallelism": "--workers",
}
TIMEOUT_MIN: Final = 24 * 60
ARRAY: Final = 1000
"""Jobs of an array; Slurm's own limit, where nobody raised it, is 1001."""
GRACE_S: Final = 5.0
PENDING: Final = ("PENDING", "REQUEUED", "READY", "UNKNOWN")


@dataclass
class _Submitted:
    task: Task
    job: Any
    attempt: int
    ended: float | None = None


class SlurmEngine:
    """Runs each task as a job of an array; one that dies, for want of memory or of time, is submitted again.

    All nodes need stexpr, and the cohorts and the folder of runs at the same paths.

    Args:
        logs: Folder of what submitit writes and the jobs print; all nodes have to see it.
        workers: Jobs at a time; by default 16.
        threads: CPU threads of each; by default 1.
        gpus: GPUs of each, a whole number; by default none.
        options: Parameters of submitit, such as `slurm_partition`, `timeout_min` (by default a day) or `mem_gb`; with
            `cluster=local`, the jobs are processes of this machine.

    Raises:
        ConfigError: submitit is not installed, there is no Slurm here, or an option is none.
    """

    name = "slurm"

    def __init__(
        self,
        logs: Path,
        *,
        workers: int | None = None,
        threads: int | None = None,
        gpus: float | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.slots = workers or SLOTS
        self.threads = threads or 1
        if gpus is not None and gpus != int(gpus):
            raise ConfigError(f"Slurm gives whole GPUs to a job, not {gpus:g}")
        self._executor = _executor(logs, dict(options or {}), self.slots, self.threads, int(gpus or 0))

    def run(self, tasks: Sequence[Task], stopped: Callable[[], bool]) -> Iterator[Outcome]:
        """Yield outcomes as they come; see `Engine.run`."""
        waiting = deque((task, 1) for task in tasks)
        submitted: list[_Submitted] = []
        ending = False
        try:
            while waiting or submitted:
                if not ending and stopped():
                    ending = True
                    waiting.clear()
                    submitted = _without_pending(submitted)
                if begun := self._next(waiting, len(submitted)):
                    submitted += self._submit(begun)
                ended = [one for one in submitted if _has_ended(one)]
                for one in ended:
                    submitted.remove(one)
                    if one.job.paths.result_pickle.exists():
                        yield one.job.result()
                    elif ending:
                        continue
                    elif one.attempt < ATTEMPTS:
                        waiting.appendleft((one.task, one.attempt + 1))
                    else:
                        yield Outcome(one.task.key, error=f"its job died, {ATTEMPTS} times; see {one.job.paths.stderr}")
                if submitted and not ended:
                    time.sleep(POLL_S)
        finally:
            for one in submitted:
                one.job.cancel(check=False)

    def _next(self, waiting: deque[tuple[Task, int]], submitted: int) -> list[tuple[Task, int]]:
        """Take what is submitted now: Slurm holds back an array by itself, but not one array for another.

        So a new array has to wait until the last one is done; only tasks that died are submitted at once.
        """
        if self._executor.cluster == "local":
            room = self.slots - submitted
        elif submitted:
            room = sum(attempt > 1 for _, attempt in waiting)
        else:
            room = ARRAY
        return [waiting.popleft() for _ in range(min(room, len(waiting)))]

    def _submit(self, begun: Sequence[tuple[Task, int]]) -> list[_Submitted]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            with _environment(thread_environment(self.threads)):
                jobs = self._executor.map_array(perform, [task for task, _ in begun])
        except (FailedJobError, FailedSubmissionError) as err:
            raise ConfigError(f"Slurm refuses the jobs: {in_one_line(err)}") from err
        return [_Submitted(task, job, attempt) for (task, attempt), job in zip(begun, jobs, strict=True)]


def _has_ended(one: _Submitted) -> bool:
    """Whether the result is there, or the job has ended and a shared file system had the time to show its result."""
    if one.ended is None and one.job.done():
        one.ended = time.monotonic()
    return one.ended is not None and (one.job.paths.result_pickle.exists() or time.monotonic() - one.ended > GRACE_S)


def _without_pending(submitted: list[_Submitted]) -> list[_Submitted]:
    """Cancel what has not begun; what runs sees by itself that the sweep is stopped."""
    for one in submitted[:1]:
        one.job.get_info(mode="force")  # of all jobs at once; else the states may be minutes old
    pending = [one for one in submitted if one.job.state.upper() in PENDING]
    for one in pending:
        one.job.cancel(check=False)
    return [one for one in submitted if one not in pending]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables while jobs are submitted, who inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _executor(logs: Path, options: dict[str, str], slots: int, threads: int, gpus: int) -> Any:
    """Make the executor of submitit with its parameters."""
    try:
        import submitit
    except ImportError as err:
        raise ConfigError("the engine slurm needs submitit; install stexpr[slurm]") from err
    cluster = options.pop(CLUSTER, "slurm")
    if cluster not in ("slurm", "local"):
        raise ConfigError(f"the Slurm option {CLUSTER} is {cluster!r}, neither slurm nor local")
    for key in options:
        if key in RESERVED:
            raise ConfigError(f"the Slurm option {key} is set by {RESERVED[key]}")
    try:
        executor = submitit.AutoExecutor(folder=logs.resolve(), cluster=cluster)
    except RuntimeError as err:
        raise ConfigError(
            f"there is no Slurm on this machine ({in_one_line(err)}); start on a login node of a cluster"
        ) from err
    parameters: dict[str, Any] = {
        "timeout_min": TIMEOUT_MIN,
        "name": "stexpr",
        "cpus_per_task": threads,
        "slurm_array_parallelism": slots,
    }
    if gpus:
        parameters["gpus_per_node"] = gpus
    try:
        executor.update_parameters(**{**parameters, **{key: yaml.safe_load(value) for key, value in options.items()}})
    except (AssertionError, NameError, TypeError, ValueError, yaml.YAMLError) as err:
        raise ConfigError(f"submitit refuses the Slurm options {', '.join(options)}: {in_one_line(err)}") from err
    return executor
