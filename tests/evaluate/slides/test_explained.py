"""Maps, sheets, genes and sanity: what they choose and say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stexpr.errors import DataError
from stexpr.evaluate.slides.contact_sheet import Extreme, contact_sheet_figure, extremes, merged
from stexpr.evaluate.slides.credited_genes import credited_genes, credited_genes_figure, read_held_out_r
from stexpr.evaluate.slides.heat_map import PatchMap, _raster, heat_map_figure
from stexpr.evaluate.slides.sanity import sanity_table
from stexpr.evaluate.tissue_maps import Background
from stexpr.inference.explained_output import ExplainedOutput
from stexpr.inference.gene_credit import GeneCredit
from stexpr.models.bag.objectives import Fraction

GENES = ("MKI67", "ERBB2", "ESR1")
OUTPUT = ExplainedOutput("KI67", "", "log odds", Fraction(), 0, 0)


@given(values=arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-3, 3) | st.just(np.nan)), n=st.integers(1, 12))
def test_extremes_are_the_ends_and_no_patch_is_in_both(values: np.ndarray, n: int) -> None:
    top, bottom = extremes(values, n)
    known = int(np.isfinite(values).sum())
    assert not set(top) & set(bottom)
    assert len(top) == min(n, (known + 1) // 2)
    assert len(bottom) == min(n, known // 2)
    rest = [value for i, value in enumerate(values) if i not in {*top, *bottom} and np.isfinite(value)]
    assert all(np.diff(values[top]) <= 0)
    assert all(np.diff(values[bottom]) >= 0)
    assert all(values[bottom].max(initial=-9) <= value <= values[top].min(initial=9) for value in rest)


def test_a_sheet_shows_each_patch_with_its_value() -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    top = [Extreme("a", i, 2.0 - i, pixels) for i in range(7)]
    figure = contact_sheet_figure(top, [Extreme("b", 3, -1.0, pixels)], "KI67 by credit", "log odds", name_slides=True)
    labels = [axes.get_xlabel() for part in figure.subfigs for axes in part.axes if axes.axison]
    assert labels[0] == "+2\na #0"
    assert labels[-1] == "-1\nb #3"
    assert len(labels) == 8
    assert [part.get_suptitle() for part in figure.subfigs] == ["highest, log odds", "lowest, log odds"]
    assert [one.value for one in merged(top, 2, highest=True)] == [2.0, 1.0]
    assert [one.value for one in merged(top, 2, highest=False)] == [-4.0, -3.0]


def test_squares_are_painted_where_they_are_and_overlaps_are_averaged() -> None:
    corners = np.array([[100.0, 200.0], [164.0, 200.0], [132.0, 264.0]])
    raster, (left, right, bottom, top) = _raster(corners, 64.0, np.array([1.0, 3.0, 5.0]))
    assert (left, right, bottom, top) == (100, 228, 328, 200)

    def at(x: float, y: float) -> float:
        row, column = int((y - top) / (bottom - top) * raster.shape[0]), int((x - left) / (right - left) * raster.shape[1])
        return float(raster[row, column])

    assert (at(130, 230), at(200, 230), at(164, 300)) == (1, 3, 5)
    assert np.isnan(at(110, 300))
    both, _ = _raster(np.array([[0.0, 0.0], [32.0, 0.0]]), 64.0, np.array([1.0, 3.0]))
    assert both[0, both.shape[1] // 2] == 2
    many, _ = _raster(np.stack(np.divmod(np.arange(200_000), 500), axis=1) * 256.0, 256.0, np.arange(200_000.0))
    assert np.isfinite(many).all()


def test_a_map_has_a_title_a_unit_and_the_slide() -> None:
    maps = [
        PatchMap("credit", np.array([1.0, -0.5]), "log odds"),
        PatchMap("attention", np.array([1.0, 1.0]), "times the average patch", signed=False),
        PatchMap("perturbation", np.array([np.nan, np.nan]), "log odds"),
    ]
    corners = np.array([[0.0, 0.0], [64.0, 0.0]])
    background = Background(np.full((20, 40, 3), 200, dtype=np.uint8), 200.0, 100.0)
    figure = heat_map_figure(corners, 64.0, maps, "slide a: KI67", background=background, mpp=0.5)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["slide", "credit", "attention", "perturbation: undefined"]
    units = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert units == ["log odds", "times the average patch"]
    bare = heat_map_figure(corners, 64.0, maps[:1], "slide a: KI67")
    assert bare.get_suptitle() == "slide a: KI67"


def credit(total: list[float], absolute: list[float]) -> GeneCredit:
    share = np.array([0.5, 0.25, 1.0])
    leader = np.zeros(4, dtype=np.int64)
    return GeneCredit(
        GENES, np.array(total), np.array(absolute), share, share, leader, np.zeros(4), "exact", start=0.0, features=0.0, gap=0.0
    )


def test_genes_are_averaged_over_slides_and_the_untrusted_are_greyed() -> None:
    slides = [credit([1.0, -2.0, 0.0], [1.0, 4.0, 0.5]), credit([3.0, 1.0, 0.0], [3.0, 2.0, 0.5])]
    table = credited_genes(OUTPUT, slides, {"MKI67": 0.2, "ERBB2": 0.0, "ESR1": np.nan})
    assert table["gene"].tolist() == ["ERBB2", "MKI67", "ESR1"]
    assert table["credit"].tolist() == [-0.5, 2.0, 0.0]
    assert table["absolute"].tolist() == [3.0, 2.0, 0.5]
    assert table["sign"].tolist() == ["-", "+", "0"]
    assert table["trusted"].tolist() == ["no", "yes", "no"]
    figure = credited_genes_figure(table)
    (axes,) = figure.axes
    grey = axes.get_yticklabels()[0].get_color()
    assert [label.get_color() == grey for label in axes.get_yticklabels()] == [True, False, True]
    assert "mean of 2 slides" in axes.get_title()
    unknown = credited_genes(OUTPUT, slides)
    assert set(unknown["trusted"]) == {"unknown"}
    assert "held-out r not known" in credited_genes_figure(unknown).axes[0].get_title()


def test_held_out_r_is_read_from_a_run_or_a_table(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    scores = pd.DataFrame(
        {
            "patient": ["a", "b"] * 2,
            "section": ["a1", "b1"] * 2,
            "gene": ["MKI67", "MKI67", "ERBB2", "ERBB2"],
            **{name: [0.2, 0.4, np.nan, np.nan] for name in ("pearson", "spearman", "rmse", "mae", "r2")},
            "n_spots": 50,
            "measured_constant": False,
            "predicted_constant": [False, False, True, True],
        }
    )
    scores.to_parquet(run / "per_gene.parquet", index=False)
    for path in (run, run / "per_gene.parquet"):
        found = read_held_out_r(path)
        assert found["MKI67"] == pytest.approx(0.3)
        assert not found["ERBB2"] > 0
    table = tmp_path / "r.csv"
    table.write_text("gene,pearson\nMKI67,0.4\nMKI67,0.2\n")
    with pytest.raises(DataError, match="several rows of gene MKI67"):
        read_held_out_r(table)
    table.write_text("gene,r\nMKI67,0.4\n")
    with pytest.raises(DataError, match="no column pearson"):
        read_held_out_r(table)


def sentences(expression: dict[str, np.ndarray], clinical: dict[str, list[str]]) -> list[str]:
    patients = [f"P{i}" for i in range(40)]
    predicted = {gene: dict(zip(patients, values.tolist(), strict=True)) for gene, values in expression.items()}
    cells = {column: dict(zip(patients, values, strict=True)) for column, values in clinical.items()}
    return sanity_table(list(expression), predicted, cells)["sentence"].tolist()


def test_sanity_says_whether_a_predicted_marker_goes_with_the_measured_one() -> None:
    rng = np.random.default_rng(0)
    ki67 = rng.random(40)
    expression = {"MKI67": ki67 + rng.random(40) / 2, "ERBB2": np.where(np.arange(40) % 2, 0.0, 1.0) + rng.random(40)}
    percent = [f"{100 * value:.0f}%" for value in ki67]
    her2 = ["Positive" if i % 2 else "Negative" for i in range(40)]
    her2[:2] = ["Equivocal", "Indeterminate"]
    rises, falls = sentences(expression, {"Ki-67 (%)": percent, "HER2_IHC": her2})
    assert rises.startswith("Predicted MKI67 rises with Ki-67 (%), as it should: Spearman 0.94")
    assert falls.startswith("Predicted ERBB2 FALLS with HER2_IHC: do not read it as ERBB2: AUROC 0.0")
    assert falls.endswith("over 38 patients.")
    noise = sentences({"MKI67": rng.random(40)}, {"KI67": [f"{value:.3f}" for value in ki67]})
    assert noise[0].startswith("Predicted MKI67 is not shown to rise with KI67")
    assert noise[1] == "ERBB2 is not among the predicted genes."
    mutation = sentences(expression, {"MKI67": ["WT"] * 40, "HER2": ["Positive"] * 40})
    assert mutation[0] == "MKI67 holds no cells that are numbers."
    assert "cannot be compared over 40 patients: 40 positive and 0 negative patients" in mutation[1]
    constant = sentences({"MKI67": np.ones(40)}, {"KI67": [f"{value:.3f}" for value in ki67]})
    assert "the predictions are all alike" in constant[0]
    assert sentences(expression, {})[0] == "No clinical column is called like ki67, to compare MKI67 with."
