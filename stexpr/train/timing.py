"""How long a piece of work takes."""

import time
from collections.abc import Callable
from typing import Any, Final

import torch

STEPS: Final = 2
"""Calls that are timed, after one that is not."""


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Return the time of one call, the fastest of a few after a first one."""
    spent = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - began)
    return min(spent[1:])
