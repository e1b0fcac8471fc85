"""The scripts of benchmarks/speed: the form of their results, and that each runs at a small size."""

import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SPEED = Path(__file__).resolve().parents[1] / "benchmarks" / "speed"


SCRIPTS = ("attention", "growth", "metrics", "patches", "prepare")


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SPEED))
    for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):  # set by the module, and put back
        monkeypatch.setenv(f"{name}_NUM_THREADS", os.environ.get(f"{name}_NUM_THREADS", "1"))
    import comparison

    yield comparison
    del sys.modules["comparison"]


def test_a_ratio_says_how_much_faster_or_how_much_dearer(comparison: ModuleType) -> None:
    about = {"how": "", "profile": ""}
    twice = comparison.compared("a", ours=1.0, peer=2.0, at_least=1.5, **about)
    assert (twice["ratio"], twice["must"], comparison.holds(twice)) == (2.0, "at least", True)
    rate = comparison.compared("a", ours=90.0, peer=100.0, at_least=0.95, unit="patches/s", **about)
    assert (rate["ratio"], comparison.holds(rate)) == (0.9, False)
    cost = comparison.compared("a", ours=3.0, peer=2.0, at_most=1.5, **about)
    assert (cost["ratio"], cost["must"], comparison.holds(cost)) == (1.5, "at most", True)
    with pytest.raises(ValueError, match="at_least or at_most"):
        comparison.compared("a", ours=1.0, peer=1.0, **about)


def test_a_script_writes_its_rows_and_fails_below_a_bar(
    comparison: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "RESULTS", tmp_path)
    row = comparison.compared("slow", ours=2.0, peer=1.0, at_least=1, how="by hand", profile="all of it")
    monkeypatch.setattr(sys, "argv", ["script.py", "--quick"])
    comparison.main("few", lambda quick: [row] if quick else [], "")
    assert not list(tmp_path.iterdir())
    assert "slow" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit, match="below the bar: slow"):
        comparison.main("few", lambda quick: [] if quick else [row], "")
    found = json.loads((tmp_path / "speed-few.json").read_text(encoding="utf-8"))
    assert found == {"command": "python benchmarks/speed/script.py", "rows": [row]}


def test_tasks_take_turns_and_profiles_name_what_runs(comparison: ModuleType) -> None:
    ticks = iter([0.0, 1.0, 0.0, 5.0, 0.0, 2.0, 0.0, 7.0, 0.0, 9.0, 0.0, 6.0])
    order: list[str] = []
    medians = comparison.in_turns(3, lambda: order.append("a"), lambda: order.append("b"), clock=lambda: next(ticks))
    assert medians == [2.0, 6.0]
    assert order == ["a", "b"] * 3
    assert "sorted" in comparison.profiled(lambda: sorted(range(2_000_000), key=lambda x: -x))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_at_a_small_size_and_write_nothing(
    script: str, comparison: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--quick"])
    runpy.run_path(str(SPEED / f"{script}.py"), run_name="__main__")
    assert "ratio" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_results_hold_their_bars(script: str, comparison: ModuleType) -> None:
    found = json.loads((comparison.RESULTS / f"speed-{script}.json").read_text(encoding="utf-8"))
    assert found["command"] == f"python benchmarks/speed/{script}.py"
    for row in found["rows"]:
        assert comparison.holds(row), row["path"]
        assert row["profile"]
        assert set(row["versions"]) >= {"python", "stexpr"}
