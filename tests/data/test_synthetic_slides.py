"""The synthetic slide cohort: reproducible, readable like any other, and true to what it says is planted."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.images import open_image
from stexpr.data.patch_labels import read_patch_labels
from stexpr.data.slide_cohort import match_slides
from stexpr.data.synthetic_lesions import condense, enlarge, measure_squares
from stexpr.data.synthetic_patients import COLUMNS, clinical_table, plan_patients
from stexpr.data.synthetic_slides import SQUARE_PX, SlideTruth, read_slide_truth, write_synthetic_slides
from stexpr.data.synthetic_tissue import lay_out, populate, spot_grid
from stexpr.data.tables import ClinicalTable, read_clinical, read_slides
from stexpr.data.targets import read_labels, read_survival
from stexpr.errors import ConfigError, DataError

SMALL = {"patients": 12, "squares_per_slide": 9, "seed": 3}
TINY = {"patients": 4, "squares_per_slide": 4, "two_slides": 0.25, "seed": 3}
MUTATIONS = ("PLANTED_mut", "NULL1_mut", "NULL2_mut", "RARE_mut", "SITE_CONF_mut")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_slides(tmp_path_factory.mktemp("cohort") / "slides", **SMALL).parent


@pytest.fixture(scope="module")
def truth(folder: Path) -> SlideTruth:
    return read_slide_truth(folder)


@pytest.fixture(scope="module")
def clinical(folder: Path) -> ClinicalTable:
    return read_clinical(folder / "clinical.csv")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupted(items, label, total=None):
    for i, item in enumerate(items):
        if i == 1:
            raise KeyboardInterrupt
        yield item


def test_equal_choices_give_equal_files_and_another_seed_others(tmp_path: Path) -> None:
    first = files_of(write_synthetic_slides(tmp_path / "a", **TINY).parent)
    assert files_of(write_synthetic_slides(tmp_path / "b", **TINY).parent) == first
    other = files_of(write_synthetic_slides(tmp_path / "c", **{**TINY, "seed": 4}).parent)
    assert not {other[name] for name in other if "slides/" in name} & set(first.values())


def test_only_what_is_missing_or_altered_is_written_again(tmp_path: Path) -> None:
    description = write_synthetic_slides(tmp_path, **TINY)
    before, written = files_of(tmp_path), (tmp_path / "clinical.csv").stat().st_mtime_ns
    assert write_synthetic_slides(tmp_path, progress=interrupted, **TINY) == description
    assert (tmp_path / "clinical.csv").stat().st_mtime_ns == written
    (tmp_path / "slides" / "P001a.tif").write_bytes(b"no slide")
    (tmp_path / "bags").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_slides(tmp_path, progress=interrupted, **TINY)
    assert files_of(tmp_path) == {**before, "slides/P001a.tif": b"no slide"}
    write_synthetic_slides(tmp_path, **TINY)
    assert files_of(tmp_path) == before
    write_synthetic_slides(tmp_path, **{**TINY, "two_slides": 0.0})
    assert len(list((tmp_path / "slides").iterdir())) == 4
    assert (tmp_path / "bags").is_dir()


def test_an_interrupted_first_call_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_slides(tmp_path, progress=interrupted, **TINY)
    assert not list(tmp_path.iterdir())


def test_tables_are_read_as_any_other_and_every_patient_has_slides(folder: Path, clinical: ClinicalTable) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        targets = [
            *(read_labels(clinical, gene, "binary") for gene in MUTATIONS),
            read_labels(clinical, "KI67", "continuous"),
            read_labels(clinical, "SIGNATURE", "continuous"),
            *(read_labels(clinical, column, "multiclass") for column in ("GRADE", "SUBTYPE", "SITE", "SEX")),
            *(read_survival(clinical, event) for event in ("OS", "PFI")),
        ]
    slides = [path.stem for path in (folder / "slides").iterdir()]
    cohort = match_slides(read_slides(folder / "slides.csv"), targets, bags=slides)
    assert len(cohort.slides_of) == 12
    assert not any((cohort.without_slide, cohort.without_patient, cohort.without_bag, cohort.without_row, cohort.refused))
    assert {name: len(missing) for name, missing in cohort.without_label.items()} == {
        "PLANTED_mut": 1,
        "NULL1_mut": 2,
        "KI67": 1,
    }
    assert sum(read_labels(clinical, "RARE_mut", "binary").values.values()) == 3
    assert any(len(own) == 2 for own in cohort.slides_of.values())
    assert set(COLUMNS) == set(clinical.columns)
    assert set(json.loads((folder / "synthetic_slides.json").read_text())["sha256"]) == {
        name for name in files_of(folder) if name != "synthetic_slides.json"
    }


def test_slides_are_tiled_pyramids_that_know_their_scale(folder: Path) -> None:
    import tifffile

    for path in (folder / "slides").iterdir():
        with open_image(path) as image:
            assert image.mpp == pytest.approx(1.0)
            assert image.width == image.height
            assert image.width % SQUARE_PX == 0
            assert image.read(0, 0, SQUARE_PX, SQUARE_PX)[:4, :4].min() > 225
        with tifffile.TiffFile(path) as file:
            assert [page.is_tiled for page in file.pages] == [True, True]


def test_planted_patches_are_in_mutated_patients_only(truth: SlideTruth, clinical: ClinicalTable) -> None:
    assert 4 <= truth.patients["mutated"].sum() <= 6
    planted = truth.patches.groupby(truth.patches["slide"].str[:4])["planted"].max()
    assert ((planted > 0.1) == truth.patients["mutated"]).all()
    assert ((planted > 0) == truth.patients["mutated"]).all()
    shares = truth.patients.loc[truth.patients["mutated"], "planted"]
    assert shares.between(0.04, 0.1).all()
    said = read_labels(clinical, "PLANTED_mut", "binary").values
    assert all(truth.patients["mutated"][patient] == mutated for patient, mutated in said.items())


def test_patch_labels_are_read_by_the_studies(folder: Path) -> None:
    slides = read_slides(folder / "slides.csv").patient_of
    assert set(read_patch_labels(folder / "patch_labels", slides).tables) == set(slides)


def test_ki67_is_the_mean_of_the_patch_labels_by_nuclei(folder: Path, truth: SlideTruth, clinical: ClinicalTable) -> None:
    slides = read_slides(folder / "slides.csv").patient_of
    for patient, ki67 in read_labels(clinical, "KI67", "continuous").values.items():
        tables = [pd.read_csv(folder / "patch_labels" / f"{slide}.csv") for slide, own in slides.items() if own == patient]
        labels = pd.concat(tables)
        assert labels["value"].between(0, 1).all()
        assert labels["tumor_nuclei"].min() >= 5
        assert np.average(labels["value"], weights=labels["tumor_nuclei"]) == pytest.approx(ki67, abs=1e-3)
        assert truth.patients["ki67"][patient] == pytest.approx(ki67, abs=1e-4)
    assert np.ptp(truth.patients["ki67"]) > 0.3


def test_regions_hold_the_tumor_nuclei(folder: Path, truth: SlideTruth) -> None:
    from skimage.measure import points_in_poly

    inside, total = 0, 0
    for path in (folder / "rois").iterdir():
        squares = truth.patches[truth.patches["slide"] == path.stem]
        features = json.loads(path.read_text())["features"]
        assert {feature["properties"]["classification"]["name"] for feature in features} <= {"Tumor"}
        found = np.zeros(len(squares), dtype=bool)
        for feature in features:
            (ring,) = feature["geometry"]["coordinates"]
            assert ring[0] == ring[-1]
            found |= points_in_poly(squares[["x", "y"]].to_numpy(), np.array(ring))
        inside += squares["tumor"][found].sum() / squares["tissue"][found].sum() > 0.6 if found.any() else 1
        total += 1
    assert inside >= 0.9 * total


def test_stains_differ_between_sites_more_than_within() -> None:
    plans = plan_patients(0, 40, mutated=0.4, two_slides=0.2)
    stains = pd.DataFrame({"site": [plan.site for plan in plans], "ink": [plan.stain.hematoxylin[0] for plan in plans]})
    by_site = stains.groupby("site")["ink"]
    assert by_site.mean().std() > 1.2 * by_site.std().mean()
    assert by_site.size().tolist() == [10] * 4


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), n=st.integers(12, 200), effect=st.floats(0, 3), censored=st.floats(0.1, 0.8))
def test_what_is_said_of_patients_follows_what_it_should(seed: int, n: int, effect: float, censored: float) -> None:
    plans = plan_patients(seed, n, mutated=0.4, two_slides=0.2)
    rng = np.random.default_rng(seed)
    seen = pd.DataFrame({name: rng.uniform(0, 0.5, n) for name in ("tumor", "immune", "ki67")}, index=[p.name for p in plans])
    table, hazards = clinical_table(seed, plans, seen, effect=effect, censored=censored)
    assert list(table["PATIENT"]) == list(hazards.index) == list(seen.index)
    mix = (seen["tumor"] - seen["immune"]).to_numpy()
    assert hazards["log_hazard"].std(ddof=0) == pytest.approx(effect)
    order = np.argsort(mix)
    assert (np.diff(hazards["log_hazard"].to_numpy()[order]) >= 0).all()
    for event in ("OS", "PFI"):
        assert (table[f"{event}.time"] >= 1).all()
        assert set(table[event]) <= {0, 1}
    assert abs((1 - table["OS"]).mean() - censored) < 4 * np.sqrt(0.25 / n)
    assert table["GRADE"].value_counts().max() <= -(-n // 3)


def test_a_site_carries_the_confounded_mutation_and_nothing_the_null_ones() -> None:
    plans = plan_patients(1, 400, mutated=0.4, two_slides=0.0)
    seen = pd.DataFrame({name: np.linspace(0.1, 0.5, 400) for name in ("tumor", "ki67")}, index=[p.name for p in plans])
    table, _ = clinical_table(1, plans, seen.assign(immune=0.5 - 0.8 * seen["tumor"]), effect=1.0, censored=0.4)
    shares = (table == "MUT").groupby(table["SITE"]).mean()
    assert (shares["SITE_CONF_mut"].round(1) >= 0.7).sum() == 2
    assert (shares["SITE_CONF_mut"] <= 0.3).sum() == 2
    for gene in ("PLANTED_mut", "NULL1_mut", "NULL2_mut"):
        assert np.ptp(shares[gene]) < 0.3


def test_lesions_change_what_they_should_and_no_more() -> None:
    rng = np.random.default_rng(0)
    centers, side = spot_grid(60, SQUARE_PX, 144)
    before = lay_out(rng, centers, side)
    layout, regions = enlarge(rng, before, 0.2)
    assert regions.sum() / (before.inside > 0.5).sum() == pytest.approx(0.2, abs=0.01)
    assert layout.size[regions].mean() > 1.5
    assert abs(layout.size[~regions & (before.inside > 0.5)]).mean() < 0.7
    assert not enlarge(rng, before, 0.0)[1].any()
    tissue = populate(rng, layout)
    nuclei, mitotic = condense(rng, tissue.nuclei, 0.0, side)
    assert not mitotic[nuclei.kind != 0].any()
    assert mitotic[nuclei.kind == 0].mean() == pytest.approx(0.5, abs=0.06)
    assert (nuclei.radius[mitotic] < tissue.nuclei.radius[mitotic]).all()
    np.testing.assert_array_equal(nuclei.radius[~mitotic], tissue.nuclei.radius[~mitotic])
    squares = measure_squares(tissue, regions, mitotic, SQUARE_PX)
    assert squares["mitoses"].sum() <= mitotic.sum()
    assert (squares["mitoses"] <= squares["tumor_nuclei"]).all()
    kinds = squares[["tumor", "stroma", "immune", "fat"]].sum(axis=1)
    np.testing.assert_allclose(kinds, squares["tissue"], atol=1e-5)


def test_a_folder_of_something_else_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / "clinical.csv").write_text("mine")
    with pytest.raises(DataError, match="not a synthetic slide cohort"):
        write_synthetic_slides(tmp_path, **SMALL)
    assert files_of(tmp_path) == {"clinical.csv": b"mine"}
    with pytest.raises(DataError, match="not a synthetic slide cohort"):
        write_synthetic_slides(tmp_path / "clinical.csv", **SMALL)
    with pytest.raises(DataError, match="not a synthetic slide cohort"):
        read_slide_truth(tmp_path)
    with pytest.raises(DataError, match="cannot write into"):
        write_synthetic_slides(tmp_path / "clinical.csv" / "below", **SMALL)


@pytest.mark.parametrize(
    ("choices", "message"),
    [({"patient": 3}, "did you mean 'patients'"), ({"patients": 3}, "patients"), ({"mutated": 2}, "mutated")],
)
def test_choices_are_checked(tmp_path: Path, choices: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_synthetic_slides(tmp_path / "x", **choices)
    assert not (tmp_path / "x").exists()
