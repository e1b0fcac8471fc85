"""The scripts on the speed of training and embedding run at a small size."""

import importlib
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).resolve().parents[1] / "benchmarks" / "speed"
KEYS = {"path", "ours", "peer", "ratio", "bar", "unit", "device", "versions", "how", "profile"}


@pytest.mark.parametrize(("script", "n", "bar"), [("train_step", 1, 0.95), ("train_disk", 1, 0.97), ("embed", 3, 0.9)])
def test_a_script_compares_at_a_small_size(script: str, n: int, bar: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SPEED))
    for name in ("comparison", "spots", "slide", script):
        monkeypatch.delitem(sys.modules, name, raising=False)
    rows = importlib.import_module(script).rows(True)
    assert len(rows) == n
    for row in rows:
        assert set(row) >= KEYS
        assert (row["bar"], row["must"], row["unit"]) == (bar, "at least", "images/s")
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"], rel=1e-2)
    for name in ("comparison", "spots", "slide", script):
        sys.modules.pop(name, None)
