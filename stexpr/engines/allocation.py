"""Memory of a process that is ours alone: what one batch frees stays for the next."""

import ctypes
import os
from typing import Final

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the settings, from glibc's malloc.h."""
_MMAP_FROM: Final = 2**30
_TRIM_FROM: Final = 2**31 - 1
_OWN_SETTINGS: Final = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let malloc keep freed blocks below 1 GiB for the next batch instead of giving them back to the kernel.

    Left alone, glibc maps each activation of some megabytes anew and unmaps it when it is freed, and the kernel fills it with
    zeros every time: up to a quarter of the processor time of a network on a CPU (`benchmarks/speed/allocation.py`). The
    largest memory a process takes stays about the same; it takes it until it ends. For the command line and for workers; a
    library does not decide this for the process it is imported into.

    Returns:
        Whether it does: not without glibc, and not where the environment says how malloc is to work.

    Reference:
        mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name in os.environ for name in _OWN_SETTINGS):
        return False
    # older versions of glibc refuse more than 32 MiB; without a threshold for mapping, trimming has nothing to keep
    return any(mallopt(_MMAP_THRESHOLD, size) for size in (_MMAP_FROM, 2**25)) and bool(mallopt(_TRIM_THRESHOLD, _TRIM_FROM))
