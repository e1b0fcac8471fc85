"""Memory that is freed and taken again, in processes of its own."""

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import numpy as np
from stexpr.config.allocation import give_freed_memory_back, keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
    assert keep_freed_memory()  # once more changes nothing
if sys.argv[2:] == ["short"]:
    give_freed_memory_back()
held = np.ones(2**21), np.ones(2**22)  # 16 and 32 MiB
del held
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2**21)
    np.ones(2**22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*how: str) -> int:
    run = subprocess.run([sys.executable, "-c", COUNT, *how], check=True, capture_output=True, text=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep what is freed")
def test_freed_memory_is_not_fetched_from_the_kernel_again() -> None:
    kept = faults("kept")
    assert kept < 0.2 * faults("given back")
    assert faults("kept", "short") > 10 * max(kept, 10)


def test_what_the_environment_says_of_malloc_holds() -> None:
    code = "from stexpr.config.allocation import keep_freed_memory; print(keep_freed_memory())"
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert run.stdout.split() == ["False"]
