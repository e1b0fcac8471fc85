"""Work that tests of engines hand out: it names itself, fails, dies or waits."""

import os
import signal
import time
from pathlib import Path
from typing import Any


def report(argument: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {
        "pid": os.getpid(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "torch": torch.get_num_threads(),
        "given": argument,
    }


def fail(argument: dict[str, Any]) -> None:
    raise ValueError("no\nway")


def die(argument: dict[str, Any]) -> str:
    """Kill the own process the first `times` times."""
    begun = Path(argument["folder"]) / f"{time.time_ns()}-{os.getpid()}"
    begun.touch()
    if len(list(begun.parent.iterdir())) <= argument["times"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"


def wait(argument: dict[str, Any]) -> str:
    """Wait until a file is there or a signal asks to stop, and say which."""
    from stexpr.train.checkpoint import stop_on_signals

    folder = Path(argument["folder"])
    with stop_on_signals() as stop:
        (folder / f"waits-{os.getpid()}").touch()
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if stop.signal_number is not None:
                (folder / "saved").touch()
                return "asked"
            if (folder / "stop").exists():
                return "saw the file"
            time.sleep(0.05)
    return "waited too long"
