"""What an engine runs and what it gives back.

A task names a function of stexpr and carries plain JSON, so it can cross to another process or host without pickled code.
"""

import importlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, runtime_checkable

from stexpr.config.allocation import keep_freed_memory

ATTEMPTS: Final = 3
"""How often a task is begun whose process dies under it: tasks go on from what they saved."""
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One piece of work.

    Attributes:
        key: Names it among its like.
        call: The function, as `module:name` below stexpr; it takes the argument and returns plain JSON.
        argument: Plain JSON.
    """

    key: str
    call: str
    argument: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        key: Of the task.
        value: What the function returned; None where it did not.
        error: Why it did not return, in one line.
        trace: The traceback of its exception; empty where its process died.
    """

    key: str
    value: Any = None
    error: str | None = None
    trace: str = ""


@runtime_checkable
class Engine(Protocol):
    """Runs tasks side by side.

    Attributes:
        name: As asked for on the command line.
        slots: Tasks at a time.
        threads: CPU threads of each; numbers may depend on it in their last digits.
    """

    name: str
    slots: int
    threads: int

    def run(self, tasks: Sequence[Task], stopped: Callable[[], bool]) -> Iterator[Outcome]:
        """Yield one outcome for each task, in the order they come.

        A task whose process dies is begun again, `ATTEMPTS` times in all.

        Args:
            tasks: In the order they are given out.
            stopped: Asked about once a second; once true no task is given out, those that run are asked to save and end, and
                tasks never begun yield nothing.
        """
        ...


def perform(task: Task) -> Outcome:
    """Run a task in this process, which is a worker's; an exception becomes an outcome."""
    keep_freed_memory()
    try:
        module, _, name = task.call.partition(":")
        return Outcome(task.key, getattr(importlib.import_module(module), name)(task.argument))
    except Exception as err:  # whatever it is, the other tasks go on
        return Outcome(task.key, error=in_one_line(err), trace=traceback.format_exc())


def in_one_line(err: BaseException) -> str:
    """Name an exception and its message on one line."""
    return " ".join(f"{type(err).__name__}: {err}".split())


def thread_environment(threads: int) -> dict[str, str]:
    """Return the variables that hold the libraries of a process to a number of threads."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def as_plain(item: Task | Outcome) -> dict[str, Any]:
    """Return a task or an outcome as plain JSON values."""
    return asdict(item)
