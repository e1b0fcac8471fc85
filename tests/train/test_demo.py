import time
from pathlib import Path

import numpy as np
import pytest

from stexpr.config import BASELINES
from stexpr.data.bags import read_bag
from stexpr.data.synthetic import read_truth
from stexpr.errors import DataError
from stexpr.evaluate.leaderboard import Leaderboard
from stexpr.train.demo import run_demo
from stexpr.train.slides.demo import run_slide_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Leaderboard]:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, run_demo(folder, quick=True)


def test_the_demo_finds_planted_genes_and_does_little_the_second_time(demo: tuple[Path, Leaderboard]):
    folder, board = demo
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


@pytest.mark.timeout(600)
def test_the_demo_goes_on_with_slides(demo: tuple[Path, Leaderboard]):
    folder, said = demo[0], []
    boards = run_slide_demo(folder, quick=True, report=said.append)
    assert list(boards) == ["mutation", "ki67", "survival"]
    assert {model for board in boards.values() for model in board.models["model"]} == {
        "gated_attention on demo features",
        "gated_attention on demo color",
    }
    for name in boards:
        assert (folder / "slide_leaderboard" / name / "index.html").is_file()
    bag = read_bag(next((folder / "bags").glob("*.h5")))
    assert bag.has("expression")
    assert bag.has("patches")
    again: list[str] = []
    run_slide_demo(folder, quick=True, report=again.append)
    assert sum("done before" in line for line in again) == 12
    assert "24 patients" in "".join(said)


def test_slides_wait_for_a_demo(tmp_path: Path):
    with pytest.raises(DataError, match="runs"):
        run_slide_demo(tmp_path, quick=True)


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(DataError, match="holds something that is not a demo; give another folder"):
        run_demo(tmp_path, quick=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
