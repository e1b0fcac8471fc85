"""`stexpr bags`, run as a person runs it."""

from collections.abc import Callable
from pathlib import Path

from slide_cohorts import slide_study, write_cohort
from stexpr.models.bag.saved import load_head
from stexpr.train.study import run_study

Run = Callable[..., tuple[int, str, str]]


def test_a_slide_is_explained_from_the_command_line(stexpr: Run, tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "cohort", patients=16, second_slides=0, pixels=True)
    study = slide_study(
        folder, {"kind": "multiclass", "column": "SUBTYPE"}, model={"head": "patch_vote"}, training={"epochs": 2}
    )
    protocol = study.protocol.model_copy(update={"min_positives": 1})
    run_study(study.model_copy(update={"folds": (0,), "protocol": protocol}), folder / "runs")
    run = next(path for path in (folder / "runs").iterdir() if load_head(path / "model").instances == "features")
    code, out, err = stexpr("bags", "explain", run, "-b", folder / "bags", "--slide", "P001-1", "--target", "SUBTYPE=x")
    assert (code, err) == (0, "")
    assert "1 slides, 1 outputs explained; written to explained" in out
    assert {path.name for path in Path("explained", "slides").iterdir()} == {
        *("P001-1.csv", "P001-1.geojson", "P001-1.SUBTYPE=x.png", "P001-1.SUBTYPE=x.patches.png")
    }
    code, out, err = stexpr("bags", "explain", run, "-b", folder / "bags", "--target", "SUBTIPE")
    assert code == 2
    assert err.endswith("did you mean 'SUBTYPE'?\n")
