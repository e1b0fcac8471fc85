"""Memory of a process that is ours alone: what one batch frees stays for the next."""

import ctypes
import os
from typing import Final

__all__ = ["give_freed_memory_back", "keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the settings, from glibc's malloc.h."""
_MMAP_FROM: Final = 2**30
_TRIM_FROM: Final = 2**31 - 1
_BY_DEFAULT: Final = 2**17
_OWN_SETTINGS: Final = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_keeps = False
"""Whether this process, or the one it was forked from, keeps what it frees."""


def keep_freed_memory() -> bool:
    """Let malloc keep freed blocks below 1 GiB for the next batch instead of giving them back to the kernel.

    Left alone, glibc maps each activation of some megabytes anew and unmaps it when it is freed, and the kernel fills it with
    zeros every time: from a tenth to half of the processor time of a network on a CPU (`benchmarks/speed/allocation.py`).
    The largest memory a process takes stays about the same, but it keeps it until it ends, or runs short of it. For the command
    line and for workers; a library does not decide this for the process it is imported into.

    Returns:
        Whether it does: not without glibc, and not where the environment says how malloc is to work.

    Reference:
        mallopt(3).
    """
    global _keeps
    libc = _glibc()
    if libc is None or any(name in os.environ for name in _OWN_SETTINGS):
        return False
    # older versions of glibc refuse more than 32 MiB
    mapped = any(libc.mallopt(_MMAP_THRESHOLD, size) for size in (_MMAP_FROM, 2**25))
    _keeps = mapped and bool(libc.mallopt(_TRIM_THRESHOLD, _TRIM_FROM))
    return _keeps


def give_freed_memory_back() -> None:
    """Undo `keep_freed_memory`, if it was called, and give the kernel what is free: what is kept is in pieces.

    For a process that has run short of memory.
    """
    global _keeps
    libc = _glibc()
    if libc is None:
        return
    if _keeps:
        _keeps = False
        libc.mallopt(_MMAP_THRESHOLD, _BY_DEFAULT)
        libc.mallopt(_TRIM_THRESHOLD, _BY_DEFAULT)
    libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
