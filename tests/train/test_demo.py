import time
from pathlib import Path

import numpy as np
import pytest

from stexpr.config import BASELINES
from stexpr.data.synthetic import read_truth
from stexpr.errors import DataError
from stexpr.train.demo import run_demo


def test_the_demo_finds_planted_genes_and_does_little_the_second_time(tmp_path: Path):
    folder = tmp_path / "demo"
    board = run_demo(folder, quick=True)
    assert len(board.models) == 4 + len(BASELINES)
    planted = set(read_truth(folder / "raw" / "synthetic.md").planted)
    ridge = board.genes.set_index("gene")["color ridge"]
    found = ridge[[gene for gene in ridge.index if gene in planted]]
    nothing = ridge[[gene for gene in ridge.index if gene not in planted]]
    assert found.mean() > 0.25
    assert abs(nothing.mean()) < 0.15
    before = (folder / "leaderboard" / "leaderboard.csv").read_bytes()
    assert (folder / "leaderboard" / "index.html").is_file()
    began, said = time.monotonic(), []
    run_demo(folder, quick=True, report=said.append)
    assert time.monotonic() - began < 30
    assert sum("done before" in line for line in said) == 12
    assert (folder / "leaderboard" / "leaderboard.csv").read_bytes() == before
    assert np.isfinite(found).all()


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(DataError, match="holds something that is not a demo; give another folder"):
        run_demo(tmp_path, quick=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
