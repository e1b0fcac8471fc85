"""A run explained: the planted patches and genes are found, and every file says what it is."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from slide_cohorts import GENES, planted, slide_study, write_cohort
from slides import slide_pixels, write_slide
from stexpr.data.bags import read_bag
from stexpr.errors import ConfigError, DataError, ModelError
from stexpr.evaluate.slides.binary import auroc
from stexpr.inference.explain import explain_slide
from stexpr.models.bag.saved import load_head
from stexpr.train.slides import explain
from stexpr.train.slides.explain import explain_run
from stexpr.train.study import run_study

KI67 = {"kind": "fraction", "column": "KI67"}
MUTATION = {"kind": "binary", "columns": ["A_mut"]}


def trained(folder: Path, *targets: dict, k: int = 2, epochs: int = 20, **model: object) -> Path:
    """Train the first fold of a study on a cohort, and return its run on what is not color."""
    study = slide_study(
        folder,
        *targets,
        model=model,
        training={"epochs": epochs, "batch_size": 8, "schedule": "cosine"},
        protocol={"split": {"k": k, "inner_k": 0}},
    )
    run_study(study.model_copy(update={"folds": (0,)}), folder / "runs")
    (run,) = (path for path in (folder / "runs").iterdir() if load_head(path / "model").instances != "color")
    return run


@pytest.fixture(scope="module")
def genes_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An additive head on the expression of 25 patients; five are tested."""
    folder = write_cohort(tmp_path_factory.mktemp("genes"), patients=25, second_slides=4, pixels=True)
    clinical = pd.read_csv(folder / "clinical.csv")
    clinical["HER2 status"] = np.where(clinical["A_mut"] == "MUT", "Positive", "Negative")
    clinical.loc[3, "HER2 status"] = "Equivocal"
    clinical.to_csv(folder / "clinical.csv", index=False)
    return trained(folder, KI67, k=5, head="additive", instances="expression")


def test_attention_of_a_trained_head_finds_the_planted_patches(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path, patches=40, one_in=10, second_slides=0)
    head = load_head(trained(folder, MUTATION, head="gated_attention") / "model")
    mutated = pd.read_csv(folder / "clinical.csv").set_index("PATIENT")["A_mut"] == "MUT"
    found = []
    for patient in head.provenance["test_patients"]:
        if mutated[patient]:
            explanation = explain_slide(head, read_bag(folder / "bags" / f"{patient}-1.h5"), "A_mut")
            measures = explanation.measures
            truth = planted(len(measures["attention"]), 10)
            found.append([auroc(measures["attention"], truth), auroc(measures["credit"], truth)])
    attention, credit = np.mean(found, axis=0)
    assert attention > 0.9
    assert credit > 0.9


def test_a_run_is_explained_slide_by_slide_and_over_all(genes_run: Path, tmp_path: Path) -> None:
    folder, said = genes_run.parents[1], []
    (tmp_path / "r.csv").write_text("gene,pearson\nMKI67,0.4\nERBB2,-0.1\n")
    tested = load_head(genes_run / "model").provenance["test_patients"]
    pixels = slide_pixels(6 * 64, 6 * 64)
    (tmp_path / "images").mkdir()
    write_slide(tmp_path / "images" / f"{tested[0]}-1.tif", pixels)
    done = explain_run(
        genes_run, folder / "bags", tmp_path / "out", images=tmp_path / "images", genes=tmp_path / "r.csv", report=said.append
    )
    slides = [slide for slide in pd.read_csv(folder / "slides.csv")["FILENAME"] if slide.split("-")[0] in tested]
    assert sorted(done.slides["slide"]) == sorted(slides)
    files = {path.name for path in (tmp_path / "out" / "slides").iterdir()}
    kinds = ("csv", "geojson", "KI67.png", "KI67.patches.png", "KI67.genes.png")
    assert files == {f"{slide}.{kind}" for slide in slides for kind in kinds}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("slides", "slides.csv", "genes.csv", "genes.KI67.png", "sanity.csv", "patches.KI67.png", "patches.KI67.csv")
    }
    for path in (tmp_path / "out").rglob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200

    genes = pd.read_csv(tmp_path / "out" / "genes.csv").set_index("gene")
    assert genes.index[0] == "MKI67"
    assert genes["trusted"].to_dict() == {"MKI67": "yes", "ERBB2": "no", "ESR1": "unknown"}
    assert (genes["method"] == "exact").all()
    assert genes["leading"].sum() == pytest.approx(1, abs=1e-4)
    sanity = pd.read_csv(tmp_path / "out" / "sanity.csv").set_index("gene")
    assert sanity.loc["MKI67", "value"] > 0.5
    assert sanity.loc["MKI67", "low"] > 0
    assert sanity.loc["MKI67", "patients"] == 25
    assert sanity.loc["ERBB2", ["measure", "left_out"]].tolist() == ["auroc", 1]
    assert any(line.startswith("Predicted MKI67 rises with KI67, as it should: Spearman 0.") for line in said)
    assert any("without image in" in line for line in said)
    assert "note: held-out r is not known of 1 genes, which are not greyed; give it with --genes" in said


def test_the_patches_of_a_slide_add_up_in_its_files(genes_run: Path, tmp_path: Path) -> None:
    folder = genes_run.parents[1]
    done = explain_run(genes_run, folder / "bags", tmp_path, slides=["P007-1"])
    (line,) = done.slides.to_dict("records")
    assert (line["slide"], line["patient"], line["target"]) == ("P007-1", "P007", "KI67")
    assert done.sanity is None
    bag = read_bag(folder / "bags" / "P007-1.h5")
    table = pd.read_csv(tmp_path / "slides" / "P007-1.csv")
    assert len(table) == bag.n
    np.testing.assert_allclose(table[["x", "y"]], bag.coords())
    assert line["base"] + table["credit (KI67)"].sum() == pytest.approx(line["value"], abs=1e-4)
    assert table["attention"].sum() == pytest.approx(1, abs=1e-4)
    genes = [f"credit of {gene} (KI67)" for gene in GENES]
    np.testing.assert_allclose(table[genes].sum(axis=1), table["credit (KI67)"], atol=1e-4)
    assert set(table["leading gene (KI67)"]) <= set(GENES)
    squares = json.loads((tmp_path / "slides" / "P007-1.geojson").read_text())["features"]
    assert len(squares) == bag.n
    for feature, (_, row), corner in zip(squares, table.iterrows(), bag.coords(), strict=True):
        ring = np.array(feature["geometry"]["coordinates"][0])
        np.testing.assert_allclose(ring.min(axis=0), corner)
        np.testing.assert_allclose(np.ptp(ring, axis=0), bag.side)
        measured = feature["properties"]["measurements"]
        assert measured["attention"] == pytest.approx(row["attention"], rel=1e-3)
        assert measured["credit (KI67)"] == pytest.approx(row["credit (KI67)"], abs=1e-4)


def test_what_cannot_be_explained_is_said(genes_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = genes_run.parents[1]
    with pytest.raises(ModelError, match="does not predict 'KI76'; did you mean 'KI67'"):
        explain_run(genes_run, folder / "bags", tmp_path, targets=["KI76"])
    with pytest.raises(DataError, match="'P99' has no bag"):
        explain_run(genes_run, folder / "bags", tmp_path, slides=["P99"])
    with pytest.raises(DataError, match="per_gene"):
        explain_run(genes_run, folder / "bags", tmp_path, genes=folder / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="slides of the test patients of the run has a bag"):
        explain_run(genes_run, tmp_path / "empty", tmp_path)
    monkeypatch.setattr(explain, "MOST_OUTPUTS", 0)
    with pytest.raises(ConfigError, match="name those to explain with --target"):
        explain_run(genes_run, folder / "bags", tmp_path)
