"""The form all results of benchmarks/speed share: ours beside a peer, measured in turns, against a bar.

A script measures and calls `main`:

    import comparison  # before NumPy and torch, whose threads it sets

    # isort: split
    import numpy as np

    def rows(quick: bool) -> list[comparison.Row]:
        ours, peer = comparison.in_turns(5, ours_call, peer_call)
        return [comparison.compared("patch_reading", ours=ours, peer=peer, at_least=0.8, how="...", profile="...")]

    if __name__ == "__main__":
        comparison.main("patches", rows, __doc__)

which prints figure, peer's figure, ratio and bar, and writes benchmarks/results/speed-patches.json: its command and the rows.
With `--quick` sizes are small, nothing is written and no bar is held; the tests run the scripts so.
"""

import os

os.environ.update({f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")})  # before NumPy and torch

import argparse
import cProfile
import json
import platform
import pstats
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from stexpr.config.versions import versions

RESULTS = Path(__file__).resolve().parents[1] / "results"
Row: TypeAlias = dict[str, Any]
"""`path, ours, peer, ratio, must, bar, unit, device, versions, how, profile`, and what a script adds."""


def in_turns(
    rounds: int,
    *tasks: Callable[[], object],
    clock: Callable[[], float] = time.process_time,
    of: Callable[[list[float]], float] = statistics.median,
) -> list[float]:
    """Time of each task in seconds, the median of `rounds` rounds in which all take their turn.

    Processor seconds, unless another clock is given: on a busy machine the clock on the wall also counts waiting, which falls
    on long tasks more than on short ones. A task on a GPU needs `time.perf_counter`, and to wait for the device itself.
    Where a turn takes long and the machine's speed changes from one to the next, `of=min` compares the undisturbed ones.
    """
    found: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for times, task in zip(found, tasks, strict=True):
            start = clock()
            task()
            times.append(clock() - start)
    return [of(times) for times in found]


def compared(
    path: str,
    *,
    ours: float,
    peer: float,
    how: str,
    profile: str,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "CPU s",
    on: str | None = None,
    packages: Sequence[str] = ("stexpr", "numpy"),
    **more: Any,
) -> Row:
    """One row of a result.

    With `at_least` the ratio says how many times as fast ours is (larger is better), with `at_most` how many times as much
    it takes (smaller is better); exactly one of them is given.

    Args:
        path: What was measured, in a few words: the name in the table.
        ours: Figure of stexpr.
        peer: The same of the peer.
        how: Sizes, what the peer is, how it was measured, what was extrapolated.
        profile: Where ours spends its time, in one or two lines; see `profiled`.
        at_least: Bar of the ratio, a floor.
        at_most: Bar of the ratio, a ceiling.
        unit: Of both figures; one that ends in `/s` is a rate, of which more is better.
        on: What it ran on; None is one core of this machine.
        packages: Whose versions matter.
        more: Further figures, kept as they are.
    """
    if (at_least is None) == (at_most is None):
        raise ValueError(f"{path}: give at_least or at_most")
    faster = ours / peer if unit.endswith("/s") else peer / ours
    ratio, bar = (faster, at_least) if at_most is None else (1 / faster, at_most)
    about = {"path": path, "ours": _rounded(ours), "peer": _rounded(peer), "ratio": _rounded(ratio)}
    about |= {"must": "at least" if at_most is None else "at most", "bar": bar, "unit": unit, "device": on or cpu()}
    known = {"python": platform.python_version(), **versions(tuple(packages))}
    return about | {"versions": known, "how": how, "profile": profile, **more}


def holds(row: Row) -> bool:
    """Say whether a row reaches its bar."""
    return bool(row["ratio"] >= row["bar"] if row["must"] == "at least" else row["ratio"] <= row["bar"])


def profiled(call: Callable[[], object], top: int = 5) -> str:
    """Run it once under cProfile and name the functions most of the time is spent in, themselves and not what they call."""
    watch = cProfile.Profile(time.process_time)
    watch.enable()
    call()
    watch.disable()
    entries: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(watch).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in entries.values())
    largest = sorted(entries.items(), key=lambda entry: -entry[1][2])[:top]
    return ", ".join(f"{own / total:.0%} {_function(*key)}" for key, (_, _, own, _, _) in largest if own >= total / 100)


def main(name: str, rows: Callable[[bool], list[Row]], doc: str | None) -> None:
    """Measure, print and write results/speed-NAME.json; exits with 1 where a bar is not reached, after writing."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing written, no bar held")
    quick = parser.parse_args().quick
    found = rows(quick)
    for row in found:
        print(line(row), flush=True)
    if quick:
        return
    write(name, found)
    missed = [row["path"] for row in found if not holds(row)]
    if missed:
        sys.exit(f"below the bar: {', '.join(missed)}")


def write(name: str, rows: list[Row]) -> None:
    """Write a result; the command in it is the script that runs."""
    script = Path(sys.argv[0]).resolve()
    command = f"python benchmarks/speed/{script.name}"
    text = json.dumps({"command": command, "rows": rows}, indent=1, ensure_ascii=False)
    (RESULTS / f"speed-{name}.json").write_text(text + "\n", encoding="utf-8")


def line(row: Row) -> str:
    """What is printed of a row."""
    figures = f"ours {row['ours']:>10g}   peer {row['peer']:>10g} {row['unit']:10}"
    return f"{row['path']:36} {figures} ratio {row['ratio']:>8g}   {row['must']} {row['bar']:g}"


def cpu() -> str:
    """This machine's processor; scripts run on one thread of it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, 1 of {os.cpu_count()} cores, shared with other work"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _function(file: str, _: int, name: str) -> str:
    """A function as cProfile names it, without addresses and folders."""
    if file == "~":
        return re.sub(r" at 0x[0-9a-f]+|[<>{}]|built-in method |method ", "", name).replace(" of '", " of ").replace("'", "")
    return f"{Path(file).stem}.{name}"
