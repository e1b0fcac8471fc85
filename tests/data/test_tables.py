import warnings
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.slide_cohort import match_slides
from stexpr.data.tables import read_clinical, read_slides, read_tcga_sites, tcga_sites
from stexpr.data.targets import Labels, Survival, read_labels, read_survival
from stexpr.errors import DataError, DataWarning

CLINICAL = """PATIENT,TP53,grade,score,OS,OS.time,HER2
p1,MUT,G1,0.5,1,100,Positive
p2,WT,G2,1.5,0,200,Negative
p3,,G2,NA,1,300,Equivocal
p4,MUT,[Not Available],2,0,400,Positive
"""
SLIDES = "PATIENT,FILENAME\np1,a.h5\np1,b.h5\np2,c\np3,d\nq,e\n"


@pytest.fixture
def table(tmp_path: Path):
    return read_clinical(written(tmp_path, CLINICAL))


@pytest.fixture
def slides(tmp_path: Path):
    return read_slides(written(tmp_path, SLIDES, "slides.csv"))


def written(folder: Path, text: str, name: str = "clinical.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def survival(folder: Path, rows: list[tuple[object, object]], **arguments):
    lines = [f"p{i},{event},{time}" for i, (event, time) in enumerate(rows)]
    return read_survival(read_clinical(written(folder, "\n".join(["PATIENT,OS,OS.time", *lines]))), "OS", **arguments)


def test_a_missing_label_is_missing_and_never_false(table):
    labels = read_labels(table, "TP53", "binary")
    assert labels.values == {"p1": True, "p2": False, "p4": True}
    assert all(type(value) is bool for value in labels.values.values())
    assert labels.missing == ("p3",)
    assert read_labels(table, "grade", "multiclass").values == {"p1": "G1", "p2": "G2", "p3": "G2"}
    assert read_labels(table, "score", "continuous").values == {"p1": 0.5, "p2": 1.5, "p4": 2.0}


def test_cells_of_another_meaning_are_named_not_guessed(table):
    with pytest.raises(DataError, match=r"patient p3 in .* is 'Equivocal'.*missing="):
        read_labels(table, "HER2", "binary")
    assert read_labels(table, "HER2", "binary", missing=("Equivocal",)).missing == ("p3",)
    assert read_labels(table, "grade", "binary", positive="G1").values == {"p1": True, "p2": False, "p3": False}
    with pytest.raises(DataError, match=r"G9.*found: G1, G2"):
        read_labels(table, "grade", "binary", positive="G9")
    with pytest.raises(DataError, match="'G1', not a finite number"):
        read_labels(table, "grade", "continuous")
    with pytest.raises(DataError, match="did you mean 'TP53'"):
        read_labels(table, "TP35", "binary")


@settings(max_examples=25, deadline=None)
@given(cells=st.lists(st.sampled_from(["MUT", "WT", "mut", "", "NA", "n/a", "[Unknown]"]), min_size=1, max_size=12))
def test_every_patient_is_labelled_or_missing(cells, tmp_path_factory):
    rows = "".join(f"p{i},{cell}\n" for i, cell in enumerate(cells))
    table = read_clinical(written(tmp_path_factory.mktemp("t"), "PATIENT,GENE\n" + rows))
    kinds = {cell.lower() for cell in cells} & {"mut", "wt"}
    if len(kinds) < 2:
        with pytest.raises(DataError, match="GENE"):
            read_labels(table, "GENE", "binary")
        return
    labels = read_labels(table, "GENE", "binary")
    assert sorted(labels.patients) == sorted(table.patients)
    assert dict(labels.values) == {
        f"p{i}": cell.lower() == "mut" for i, cell in enumerate(cells) if cell.lower() in ("mut", "wt")
    }


def test_everyone_left_out_is_named(table, slides):
    labels = read_labels(table, "TP53", "binary")
    cohort = match_slides(slides, [labels, read_labels(table, "grade", "multiclass")], bags=["a", "b", "c", "e", "x"])
    assert cohort.slides_of == {"p1": ("a", "b"), "p2": ("c",)}
    assert set(cohort.without_slide) == {"p3", "p4"}
    assert cohort.without_patient == ("e",)
    assert cohort.without_bag == ("d",)
    assert cohort.without_row == ("x",)
    assert match_slides(slides, [labels]).without_label == {"TP53": ("p3",)}
    assert "1 slide (e) without patient" in cohort.describe()
    assert "1 patient (p3) without label on 1 target (TP53)" in match_slides(slides, [labels]).describe()


def test_a_target_all_equal_among_the_patients_with_slides_is_refused_by_name(table, slides):
    labels, grade = read_labels(table, "TP53", "binary"), read_labels(table, "grade", "multiclass")
    score = Labels("score", "continuous", {"p2": 1.5, "p3": 0.5})
    cohort = match_slides(slides, [labels, grade, score], bags=["c", "d"])
    assert list(cohort.targets) == ["score"]
    assert {name: why.split(";")[0] for name, why in cohort.refused.items()} == {
        "TP53": "target 'TP53' is False in all 1 patients",
        "grade": "target 'grade' is G2 in all 2 patients",
    }


def test_no_target_left_is_an_error(table, slides):
    with pytest.raises(DataError, match=r"nothing can be learned.*TP53"):
        match_slides(slides, [read_labels(table, "TP53", "binary")], bags=["c"])
    with pytest.raises(DataError, match="each once"):
        match_slides(slides, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PATIENT,FILENAME\na,s\na,s.h5\n", r"1 slide \(s\) more than once"),
        ("PATIENT,FILENAME\na,s\nb,s\n", r"1 slide \(s\) more than once"),
        ("PATIENT,FILENAME\n,s\n", "no PATIENT in row 2"),
        ("PATIENT,FILENAME\na,../../etc/passwd\n", "without folders"),
        ("PATIENT,FILENAME\na,..\n", "without folders"),
        ("PATIENT,FILE\na,s\n", "no column 'FILENAME'.*did you mean 'FILE'"),
        ("PATIENT,FILENAME\n", "no rows"),
        ("", "cannot read"),
    ],
)
def test_bad_slide_tables(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_slides(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PATIENT,A\np,1\np,0\n", r"1 patient \(p\) more than once"),
        ("PATIENT,A,A\np,1,2\n", r"1 column \(A\) more than once"),
        ("NAME,A\np,1\n", "no column 'PATIENT'"),
        ("PATIENT,A\np,1,2,3\n", "cannot read"),
    ],
)
def test_bad_clinical_tables(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_clinical(written(tmp_path, text))


def test_a_file_that_is_no_workbook_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_clinical(written(tmp_path, "PATIENT,A\np,1\n", "clinical.xlsx"))


def test_text_and_excel_read_alike(tmp_path):
    written(tmp_path, "\ufeffPATIENT;A\n007;1\n8;0\n", "t.csv")
    pd.DataFrame({"PATIENT": ["007", 8], "A": [1, 0]}).to_excel(tmp_path / "t.xlsx", index=False)
    text, excel = (read_clinical(tmp_path / name) for name in ("t.csv", "t.xlsx"))
    assert text.patients == excel.patients == ("007", "8")
    assert text.columns == excel.columns == {"A": {"007": "1", "8": "0"}}


def test_survival_keeps_times_and_says_whom_it_left_out(tmp_path):
    rows = [(1, 10), (0, 20), (1, 0), ("", 5), ("1:DECEASED", 7), ("0:LIVING", 8)]
    with pytest.warns(DataWarning, match=r"1 patient \(p2\) of time 0"):
        found = survival(tmp_path, rows)
    assert found.event == {"p0": True, "p1": False, "p4": True, "p5": False}
    assert found.time == {"p0": 10, "p1": 20, "p4": 7, "p5": 8}
    assert (found.missing, found.zero) == (("p3",), ("p2",))
    assert sorted(found.patients) == [f"p{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 5), (0, -1)], r"not above 0 in 1 patient \(p1\)"),
        ([(0, 5), (0, 6)], "no events in 2 patients"),
        ([(2, 5), (1, 6)], "is '2'; allowed: 1 .observed."),
        ([(1, "soon"), (0, 6)], "'soon', not a finite number"),
        ([(1, "inf"), (0, 6)], "'inf', not a finite number"),
    ],
)
def test_bad_survival(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        survival(tmp_path, rows)


def test_a_column_of_events_only_may_be_flipped(tmp_path):
    with pytest.warns(DataWarning, match="39 events in 40 patients; is the column flipped"):
        survival(tmp_path, [(int(i > 0), 10 + i) for i in range(40)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        survival(tmp_path, [(int(i > 3), 10 + i) for i in range(40)])


def test_days_and_months_are_told_apart(tmp_path):
    days = [(i % 2, 300 + 10 * i) for i in range(20)]
    months = [(i % 2, 10.3 + i / 4) for i in range(20)]
    with pytest.warns(DataWarning, match="whole numbers; are days and months mixed"):
        survival(tmp_path, [(e, t) for e, t in days] + [(e, t + 0.01) for e, t in months])
    sites = {f"p{i}": "north" if i < 20 else "south" for i in range(40)}
    with pytest.warns(DataWarning, match=r"in south and of .* in north; are days and months mixed"):
        survival(tmp_path, days + [(e, round(t)) for e, t in months], group_of=sites)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        survival(tmp_path, days + days, group_of=sites)


def test_survival_needs_one_time_per_event():
    with pytest.raises(DataError, match="different patients"):
        Survival("OS", {"a": 1.0}, {"b": True})
    with pytest.raises(DataError, match="no label in any"):
        Labels("X", "binary", {})


def test_sites_come_from_barcodes(tmp_path):
    path = written(tmp_path, "TSS Code;Source Site\nNA;Duke\nBH;Pittsburgh\n")
    assert tcga_sites(["TCGA-NA-A4QV", "TCGA-BH-A0B3"], read_tcga_sites(path)) == {
        "TCGA-NA-A4QV": "Duke",
        "TCGA-BH-A0B3": "Pittsburgh",
    }
    with pytest.raises(DataError, match="'ZZ' of patient TCGA-ZZ-A0B3"):
        tcga_sites(["TCGA-ZZ-A0B3"], read_tcga_sites(path))
    with pytest.raises(DataError, match="no TCGA barcode"):
        tcga_sites(["patient 1"])
    with pytest.raises(DataError, match="two sites"):
        read_tcga_sites(written(tmp_path, "TSS Code;Source Site\nA;x\nA;y\n"))


@pytest.mark.real
def test_the_tables_of_tcga_work_unchanged(shared_data):
    tables = shared_data / "tables"
    clinical, slides = read_clinical(tables / "TCGA-LUAD-DX_CLINI.xlsx"), read_slides(tables / "TCGA-LUAD-DX_SLIDE.csv")
    egfr = read_labels(clinical, "EGFR_anymut", "binary")
    cohort = match_slides(slides, [egfr, read_labels(clinical, "Proliferation", "continuous")])
    raw = pd.read_excel(tables / "TCGA-LUAD-DX_CLINI.xlsx").set_index("PATIENT")["EGFR_anymut"]
    assert sum(egfr.values.values()) == (raw == "MUT").sum()
    assert len(egfr.missing) == raw.isna().sum() > 0
    assert len(slides.patient_of) == 541
    assert sum(len(own) for own in cohort.slides_of.values()) + len(cohort.without_patient) == 541
    assert max(len(own) for own in cohort.slides_of.values()) > 1


@pytest.mark.real
def test_the_outcomes_of_tcga_work_unchanged(shared_data):
    table = read_clinical(shared_data / "tables" / "TCGA-CDR_outcome.xlsx")
    brca = {patient for patient, kind in table.columns["type"].items() if kind == "BRCA"}
    for name, events in (("OS", 151), ("DSS", 83), ("DFI", 84), ("PFI", 145)):
        with pytest.warns(DataWarning, match="of time 0"):
            found = read_survival(table, name)
        own = found.among(brca)
        assert sum(own.event.values()) == events - sum(table.columns[name].get(patient) == "1" for patient in own.zero)
        assert set(own.patients) == brca
