"""Who is predicted and scored when heads are deployed: everybody once, and whoever is not, by name."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from slide_cohorts import slide_study, write_cohort
from stexpr.config.slides import SlideTables
from stexpr.errors import DataError
from stexpr.train.checkpoint import StopFlag
from stexpr.train.slides.deploy import Deployment, deploy
from stexpr.train.slides.study import SlideStudy

PATIENTS = [f"X{i:02d}" for i in range(16)]
Change = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_cohort(tmp_path_factory.mktemp("training"), patients=24, patches=4)
    targets = ({"kind": "binary", "columns": ["A_mut", "N_mut"]}, {"kind": "fraction", "column": "KI67"})
    study = slide_study(
        folder, *targets, protocol={"split": {"k": 2, "inner_k": 0}, "min_positives": 2}, training={"epochs": 1}
    )
    opened = SlideStudy(study)
    return opened.run(study, opened.fold(study, 0), folder / "runs", stop=StopFlag())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen patients X00 to X15, the first two with two slides; X03 lacks one label."""
    folder = write_cohort(tmp_path_factory.mktemp("other"), patients=16, patches=4, seed=1)
    for table in ("clinical", "slides"):
        frame = pd.read_csv(folder / f"{table}.csv", dtype=str, keep_default_na=False)
        frame.assign(PATIENT="X" + frame["PATIENT"].str[2:]).to_csv(folder / f"{table}.csv", index=False)
    return folder


def tables(other: Path, where: Path, *, clinical: Change = lambda t: t, slides: Change = lambda t: t) -> SlideTables:
    """Write the tables of the other cohort, changed."""
    for name, change in (("clinical", clinical), ("slides", slides)):
        frame = pd.read_csv(other / f"{name}.csv", dtype=str, keep_default_na=False)
        change(frame).to_csv(where / f"{name}.csv", index=False)
    return SlideTables(clinical=(where / "clinical.csv",), slides=where / "slides.csv")


def predicted(found: Deployment, where: Path) -> pd.DataFrame:
    found.write(where / "out")
    return pd.read_csv(where / "out" / "predictions.csv")


def test_everybody_is_predicted_once_and_the_unlabelled_are_named(run: Path, other: Path, tmp_path: Path) -> None:
    found = deploy([run], other / "bags", tables(other, tmp_path))
    table = predicted(found, tmp_path)
    assert sorted(table["target"].unique()) == ["A_mut", "KI67", "N_mut"]
    for _, own in table.groupby(["target"]):
        assert own["patient"].tolist() == PATIENTS  # in the order of the slide table, those of two slides once
    assert table[["value"]].notna().all().all()
    assert found.results.patients["patient"].tolist() == PATIENTS
    scored = found.scores.drop_duplicates("target").set_index("target")["n_patients"]
    assert scored.to_dict() == {"A_mut": 15, "N_mut": 16, "KI67": 16}
    assert found.notes == ("1 patient (X03) without label on 1 target (A_mut)",)


def test_whoever_is_missing_somewhere_is_named(run: Path, other: Path, tmp_path: Path) -> None:
    def clinical(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["PATIENT"].isin(["X04", "X05"]), ["A_mut", "N_mut"]] = ["NA", "[Unknown]"]
        more = pd.DataFrame([{"PATIENT": f"Y{i}", "KI67": ".5"} for i in range(7)])
        return pd.concat([table[table["PATIENT"] != "X06"], more]).fillna("")

    def slides(table: pd.DataFrame) -> pd.DataFrame:
        lost = table["FILENAME"].isin(["P007-1", "P001-2"])  # a patient of one slide, one slide of a patient of two
        unknown = pd.DataFrame([("X07", "P007-9"), ("Y0", "Y0.h5")], columns=["PATIENT", "FILENAME"])
        return pd.concat([table[~lost], unknown])

    found = deploy([run], other / "bags", tables(other, tmp_path, clinical=clinical, slides=slides))
    assert found.notes == (
        "8 patients (X07, Y0, Y1, Y2, Y3 and 3 more) without slide",
        "2 slides (P007-9, Y0) without bag",
        "2 bags (P001-2, P007-1) in no row of the slide table",
        "3 patients (X03, X04, X05) without label on 1 target (A_mut)",
        "2 patients (X04, X05) without label on 1 target (N_mut)",
        "1 patient (X06) in no clinical table: predicted, not scored",
    )
    kept = [patient for patient in PATIENTS if patient != "X07"]
    for _, own in predicted(found, tmp_path).groupby(["target"]):
        assert own["patient"].tolist() == kept
    scored = found.scores.drop_duplicates("target").set_index("target")["n_patients"]
    assert scored.to_dict() == {"A_mut": 11, "N_mut": 12, "KI67": 14}


def test_all_slides_of_a_patient_count_in_any_order(run: Path, other: Path, tmp_path: Path) -> None:
    def values(name: str, slides: Change) -> pd.Series:
        (tmp_path / name).mkdir()
        outputs = deploy([run], other / "bags", tables(other, tmp_path / name, slides=slides)).results.outputs
        return outputs.set_index(["target", "patient"])["value"].sort_index()

    both = values("both", lambda t: t)
    turned = values("turned", lambda t: t.iloc[::-1].assign(FILENAME=" " + t["FILENAME"] + ".h5 "))
    pd.testing.assert_series_equal(turned, both, rtol=1e-5)
    one = values("one", lambda t: t[~t["FILENAME"].str.endswith("-2")])
    changed = one.index[(one - both).abs() > 1e-7].get_level_values("patient").unique().tolist()
    assert changed == ["X00", "X01"]


@pytest.mark.parametrize(
    ("clinical", "slides", "said"),
    [
        (lambda t: pd.concat([t, t.iloc[[2]]]), lambda t: t, r"clinical\.csv lists 1 patient \(X02\) more than once"),
        (lambda t: t, lambda t: pd.concat([t, t.iloc[[2]]]), r"slides\.csv lists 1 slide \(P002-1\) more than once"),
        (
            lambda t: t,
            lambda t: pd.concat([t, t.iloc[[2]].assign(FILENAME="P002-1.h5", PATIENT="X09")]),
            r"lists 1 slide \(P002-1\) more than once",
        ),
        (
            lambda t: t,
            lambda t: t.assign(FILENAME=t["FILENAME"] + ".svs"),
            r"no slide of .*slides\.csv has a bag in .*without \.h5",
        ),
        (lambda t: t.assign(PATIENT=""), lambda t: t, "has no PATIENT in row 2"),
    ],
)
def test_names_that_cannot_be_right_are_refused(
    run: Path, other: Path, tmp_path: Path, clinical: Change, slides: Change, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        deploy([run], other / "bags", tables(other, tmp_path, clinical=clinical, slides=slides))


def test_a_run_counts_once(run: Path, other: Path, tmp_path: Path) -> None:
    again = run.parent / ".." / run.parent.name / run.name
    with pytest.raises(DataError, match=r"2 runs \(.*\) are one folder; give each run once"):
        deploy([run, again], other / "bags", tables(other, tmp_path))
