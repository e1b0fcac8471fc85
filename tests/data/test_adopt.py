"""Downloads become cohorts as they are."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hest_download import GENES, LEVEL0_MPP, WINDOW, write_download, write_section
from stexpr.config import AdoptConfig, load_study, settings_of
from stexpr.data.adopt import NO_PATCH, NO_SPOT, TWICE, adopt
from stexpr.data.cards import load_card
from stexpr.data.manifest import MANIFEST
from stexpr.data.prepare import prepare
from stexpr.data.store import PreparedCohort
from stexpr.data.stored import StoredSection, read_index
from stexpr.errors import ConfigError, DataError, GeneError, ScaleError
from stexpr.evaluate.audit.report import audit
from stexpr.evaluate.page.maps import _thumbnail
from stexpr.train.study import run_study

SHARED = [gene for gene in GENES if gene != "G05"]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adopted once; read it, do not change it."""
    folder = write_download(tmp_path_factory.mktemp("hest") / "breast")
    before = digests(folder)
    adopt(folder)
    after = digests(folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {MANIFEST, *(f"index/TENX{i}.h5" for i in range(1, 5))}
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A download of one section, to be spoilt."""
    write_section(tmp_path / "one", "A1", 1, side=3)
    return tmp_path / "one"


def test_the_manifest_says_what_the_metadata_say(download: Path) -> None:
    cohort = PreparedCohort.open(download)
    assert (cohort.name, cohort.mpp, cohort.window_px) == ("breast", 0.5, WINDOW)
    assert cohort.patient_of == {"TENX1": "P1", "TENX2": "P2", "TENX3": "P3", "TENX4": "P3"}
    said = cohort.manifest
    assert (said.species, said.tissue, said.preservation, said.technology) == ("Homo sapiens", "Breast", "FFPE", "Visium")
    assert (said.spot_diameter_um, said.spot_pitch_um, said.license) == (55.0, 100.0, "CC BY 4.0")
    assert said.adopted
    assert said.genes_left_out == {"missing in some section": 2}
    assert cohort.entry("TENX1").mpp_source == "metadata, pixel_size_um_estimated"
    cohort.verify()


@pytest.mark.parametrize("section", ["TENX1", "TENX2", "TENX3"])
def test_spots_counts_and_patches_pair_by_barcode(download: Path, section: str) -> None:
    cohort = PreparedCohort.open(download)
    assert cohort.genes == tuple(SHARED)
    source = anndata.read_h5ad(download / "st" / f"{section}.h5ad")
    table = source.to_df()
    spots = cohort.spots(section)
    counts = pd.DataFrame(cohort.counts(section).toarray(), index=spots.index, columns=list(cohort.genes))
    pd.testing.assert_frame_equal(counts, table.loc[spots.index, SHARED], check_names=False, check_dtype=False)
    np.testing.assert_array_equal(spots["library"], table.loc[spots.index].sum(axis=1))  # also genes off the axis
    places = pd.DataFrame(source.obsm["spatial"], index=source.obs_names).loc[spots.index].to_numpy()
    np.testing.assert_array_equal(spots[["x_px", "y_px"]], places)
    np.testing.assert_allclose(spots[["x_um", "y_um"]], places * LEVEL0_MPP)
    assert spots["tissue_fraction"].isna().all()
    with h5py.File(download / "patches" / f"{section}.h5") as file:
        row = {name.decode(): i for i, name in enumerate(file["barcode"][:, 0])}
        images = file["img"][:]
    expected = images[[row[name] for name in spots.index]]
    np.testing.assert_array_equal(cohort.patches(section), expected)
    reader = cohort.patch_reader(section, 16)
    np.testing.assert_array_equal(reader[2], expected[2, 8:24, 8:24])
    assert len(reader) == len(spots)
    reader.close()


def test_what_has_no_partner_is_counted_and_named(download: Path) -> None:
    cohort = PreparedCohort.open(download)
    assert cohort.entry("TENX1").left_out == {NO_PATCH: 5, NO_SPOT: 2}
    assert cohort.entry("TENX1").n_spots == 44
    index = read_index(download / "index" / "TENX1.h5")
    assert index.left_out[NO_SPOT] == ("900x999", "901x999")
    every = set(anndata.read_h5ad(download / "st" / "TENX1.h5ad").obs_names)
    assert set(index.left_out[NO_PATCH]) == every - set(index.barcodes)
    assert cohort.entry("TENX3").left_out == {}


def test_shallow_spots_are_hidden_here_too(download: Path) -> None:
    cohort = PreparedCohort.open(download)
    spots = cohort.spots("TENX1")
    least = int(spots["library"].quantile(0.3))
    kept = (spots["library"] >= least).to_numpy()
    part = cohort.keeping(least)
    np.testing.assert_array_equal(part.patches("TENX1"), cohort.patches("TENX1")[kept])
    assert (part.counts("TENX1") != cohort.counts("TENX1")[kept]).nnz == 0


def test_it_trains_evaluates_and_is_audited_like_any_cohort(download: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"{{cohort: {download}, model: {{backbone: tiny}}, training: {{epochs: 1}}, runtime: {{device: cpu}}, "
        "protocol: {panel: {n_main: 6, rule: spatially_variable}}, folds: [0]}"
    )
    runs = run_study(load_study(study), tmp_path / "runs")
    record = json.loads((runs[0] / "record.json").read_text())
    assert np.isfinite(record["values"]["pearson"]["value"])
    assert (record["cohort"]["name"], record["panel"]["rule"]) == ("breast", "spatially_variable")
    found = audit(download)
    assert not found.leaks
    assert not audit(runs[0]).leaks


def test_a_second_call_gives_the_same_cohort(download: Path, tmp_path: Path) -> None:
    again = tmp_path / "breast"
    shutil.copytree(download, again)
    assert adopt(again).hash == PreparedCohort.open(download).hash
    assert adopt(again, AdoptConfig(absent_genes="zero")).genes == (*GENES, "EXTRA")
    assert (PreparedCohort.open(again).counts("TENX2").toarray()[:, GENES.index("G05")] == 0).all()
    assert adopt(again, AdoptConfig(leave_out=("TENX2",))).genes == tuple(GENES)
    assert PreparedCohort.open(again).manifest.sections_left_out == {"TENX2": "left out by leave_out"}


def test_stexpr_never_writes_into_an_adopted_download(download: Path, raw_cohort: Path) -> None:
    card = load_card(raw_cohort).model_copy(update={"name": "breast"})
    assert card.prepare is not None
    with pytest.raises(DataError, match="is an adopted download, whose files stay as they are"):
        prepare(card, raw_cohort.parent, download, card.prepare)
    with pytest.raises(DataError, match="stexpr prepared already"):
        adopt(prepare(card, raw_cohort.parent, download.parent / "own", card.prepare).path)


def test_no_message_advises_to_delete_a_download(download: Path, tmp_path: Path) -> None:
    shutil.copytree(download, tmp_path / "spoilt")
    (tmp_path / "spoilt" / MANIFEST).write_text("{")
    with pytest.raises(DataError, match=r"delete cohort\.json alone and run stexpr prepare --adopt again"):
        PreparedCohort.open(tmp_path / "spoilt")


def write_metadata(folder: Path, section: str = "A1", **changes: object) -> None:
    path = folder / "metadata" / f"{section}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("patient", [None, float("nan"), "", "unknown"])
def test_an_unknown_patient_is_asked_for(folder: Path, tmp_path: Path, patient: object) -> None:
    write_section(folder, "B1", 2, side=3)
    write_metadata(folder, patient=patient)
    with pytest.raises(DataError, match=r"whose tissue 1 sections are: A1; .*--patients TABLE\.csv \(columns `section`"):
        adopt(folder)
    assert not (folder / MANIFEST).exists()
    table = tmp_path / "patients.csv"
    table.write_text("section;patient\nA1;Ada\n", encoding="utf-8-sig")  # as a spreadsheet saves it
    assert adopt(folder, patients=table).patient_of == {"A1": "Ada", "B1": "P2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("section,patient\nA2,x\n", "names 'A2', no section .*known: A1"),
        ("section,patient\nA1,x\nA1,y\n", "section 'A1' more than once"),
        ("id,patient\nA1,x\n", "has the columns id, patient; it needs columns `section` and `patient`"),
    ],
)
def test_a_wrong_table_is_refused(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "patients.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        adopt(folder, patients=tmp_path / "patients.csv")


def test_one_name_in_two_studies_is_two_people(folder: Path) -> None:
    write_section(folder, "B1", 1, side=3, metadata={"dataset_title": "Another study"})
    cohort = adopt(folder)
    assert cohort.patient_of == {"A1": "One study: P1", "B1": "Another study: P1"}
    assert "taken for several people" in cohort.entry("A1").notes[0]


def test_pixel_sizes_come_from_the_metadata_or_the_table(folder: Path, tmp_path: Path) -> None:
    write_metadata(folder, pixel_size_um_embedded=0.3)
    assert "pixel_size_um_embedded says 0.3 um/px, 0.25 is used" in adopt(folder).entry("A1").notes[0]
    write_metadata(folder, pixel_size_um_estimated=None, pixel_size_um_embedded=0.25)
    assert adopt(folder).entry("A1").mpp_source == "metadata, pixel_size_um_embedded"
    (folder / "metadata" / "A1.json").unlink()
    table = tmp_path / "patients.csv"
    table.write_text("section,patient\nA1,Ada\n")
    with pytest.raises(ScaleError, match=r"microns per pixel are unknown.*level0_mpp.*leave_out=\[A1\]"):
        adopt(folder, patients=table)
    table.write_text("section,patient,level0_mpp\nA1,Ada,0.25\n")
    cohort = adopt(folder, patients=table)
    assert (cohort.entry("A1").level0_mpp, cohort.entry("A1").mpp_source) == (0.25, "patients table")


def change_patches(folder: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(folder / "patches" / "A1.h5", "r+") as file:
        change(file)


def replace(key: str, values: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        old = file[key][:]
        del file[key]
        file[key] = values(old)

    return change


def test_patches_at_another_resolution_are_refused(folder: Path) -> None:
    with pytest.raises(ScaleError, match=r"shrink the image 2 times, which is 0\.5 um/px at 0\.25 um/px, not mpp = 1;"):
        adopt(folder, AdoptConfig(mpp=1.0))
    change_patches(folder, lambda file: file["img"].attrs.pop("patch_size_src"))
    assert adopt(folder).mpp == 0.5  # the file does not say, and HEST-1k does


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("coords", lambda old: old + 5000), r"lie a median of 4968 px off the spots"),
        (replace("barcode", lambda old: np.char.add(old, b"-1")), r"no spot is left \(9 spot without a patch, 9 patch without"),
        (replace("barcode", lambda old: old[:-1]), "9 patches of 32 x 32 px and 8 barcodes"),
        (replace("img", lambda old: old[:, :-1]), "patches of 31 x 32 px"),
        (replace("img", lambda old: old.astype(float)), "it needs img, uint8"),
        (lambda file: file.pop("img"), "holds no img"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(folder: Path, change: Callable[[h5py.File], None], message: str) -> None:
    change_patches(folder, change)
    with pytest.raises(DataError, match=message + r".*leave_out=\[A1\]"):
        adopt(folder)
    assert not (folder / MANIFEST).exists()


def change_spots(folder: Path, change: Callable[[anndata.AnnData], anndata.AnnData | None]) -> None:
    path = folder / "st" / "A1.h5ad"
    spots = anndata.read_h5ad(path)
    (change(spots) or spots).write_h5ad(path)


def test_spots_off_the_tissue_or_without_counts_are_left_out(folder: Path) -> None:
    def change(spots: anndata.AnnData) -> None:
        spots.obs["in_tissue"] = [0] + [1] * 8
        spots.X = spots.X.toarray()
        spots.X[4] = 0

    change_spots(folder, change)
    assert adopt(folder).entry("A1").left_out == {"not in tissue": 1, "fewer than 1 counts": 1}


@pytest.mark.filterwarnings("ignore:.* names are not unique:UserWarning")
def test_names_that_stand_twice_are_left_out(folder: Path) -> None:
    def change(spots: anndata.AnnData) -> None:
        spots.obs_names = ["000x000", "000x000", *spots.obs_names[2:]]
        spots.var_names = ["G01", *spots.var_names[1:]]

    change_spots(folder, change)
    cohort = adopt(folder)
    assert cohort.entry("A1").left_out == {TWICE: 2, NO_SPOT: 1}
    assert cohort.manifest.genes_left_out == {"named more than once in a section": 1}
    assert "G01" not in cohort.genes
    assert "G00" not in cohort.genes


def test_normalized_values_are_no_counts(folder: Path) -> None:
    change_spots(folder, lambda spots: anndata.AnnData(spots.X / 2, obs=spots.obs, var=spots.var, obsm=dict(spots.obsm)))
    with pytest.raises(DataError, match=r"section A1 has \d+ values that are not counts"):
        adopt(folder)


def test_sections_without_counts_or_patches_are_named(folder: Path) -> None:
    write_section(folder, "B1", 2, side=3)
    write_section(folder, "C1", 3, side=3)
    (folder / "patches" / "B1.h5").unlink()
    (folder / "st" / "C1.h5ad").unlink()
    left_out = {"B1": "no patches in the download", "C1": "no counts in the download"}
    assert adopt(folder).manifest.sections_left_out == left_out
    (folder / "st" / "A1.h5ad").unlink()
    with pytest.raises(DataError, match=r"holds no section in the HEST-1k layout \(1 files st/\*\.h5ad and 2 files"):
        adopt(folder)


def test_sections_that_share_no_gene_are_refused(folder: Path) -> None:
    write_section(folder, "B1", 2, side=3, genes=["H1", "H2"])
    with pytest.raises(GeneError, match="share none"):
        adopt(folder)


def test_larger_patches_are_cropped_and_said(folder: Path) -> None:
    write_section(folder, "B1", 2, side=3)

    def enlarge(file: h5py.File) -> None:
        larger = np.pad(file["img"][:], ((0, 0), (4, 4), (4, 4), (0, 0)))
        del file["img"]
        file["img"] = larger
        file["coords"][...] -= 8

    whole = adopt(folder).patches("A1")
    change_patches(folder, enlarge)
    cohort = adopt(folder)
    assert cohort.window_px == WINDOW
    np.testing.assert_array_equal(cohort.patches("A1"), whole)
    assert cohort.entry("A1").notes == ("patches of 40 px, of which a study sees the middle 32",)


def test_an_index_of_another_cohort_is_refused(folder: Path) -> None:
    cohort = adopt(folder)
    entry = cohort.entry("A1").model_copy(update={"n_spots": 3})
    with pytest.raises(DataError, match="names 9 spots, the manifest says 3"):
        StoredSection(folder, entry)
    (folder / "index" / "A1.h5").unlink()
    with h5py.File(folder / "index" / "A1.h5", "w"):
        pass
    with pytest.raises(DataError, match="is no index of a section"):
        StoredSection(folder, cohort.entry("A1"))


def test_what_stexpr_cut_itself_is_adopted_to_the_same(small_cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(small_cohort, tmp_path / "again")
    (tmp_path / "again" / MANIFEST).unlink()
    cut, adopted = PreparedCohort.open(small_cohort), adopt(tmp_path / "again", AdoptConfig(mpp=1.0))
    assert (adopted.genes, adopted.patient_of, adopted.window_px) == (cut.genes, cut.patient_of, cut.window_px)
    for section in cut.sections:
        same = ["x_px", "y_px", "x_um", "y_um", "library"]
        pd.testing.assert_frame_equal(adopted.spots(section)[same], cut.spots(section)[same])
        assert (adopted.counts(section) != cut.counts(section)).nnz == 0
        np.testing.assert_array_equal(adopted.patches(section), cut.patches(section))


def test_a_download_without_a_picture_has_maps_without_one(folder: Path) -> None:
    change_spots(folder, lambda spots: spots.uns.clear())
    picture, px_per_um, spot = _thumbnail(adopt(folder), "A1")
    assert (picture, px_per_um, spot) == (None, 1 / LEVEL0_MPP, None)


def test_a_setting_that_names_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"leave_out names 'A2', no section .*known: A1"):
        adopt(folder, AdoptConfig(leave_out=("A2",)))
    with pytest.raises(DataError, match="keep one"):
        adopt(folder, AdoptConfig(leave_out=("A1",)))
    with pytest.raises(ConfigError, match="did you mean 'leave_out'"):
        settings_of(AdoptConfig, ["leaveout=[A1]"], "--adopt")


@settings(max_examples=15, deadline=None)
@given(spots=st.permutations(list("abcdefg")), patches=st.permutations(list("abcdefg")), cut=st.integers(1, 6))
def test_pairs_are_the_shared_barcodes_in_the_order_of_the_spots(
    tmp_path_factory: pytest.TempPathFactory, spots: list[str], patches: list[str], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    write_section(folder, "A1", 1, side=3)
    named = [*spots[cut:], "y", "z", *spots[:cut]]

    def rename(file: h5py.File) -> None:
        replace("barcode", lambda old: np.array([name.encode() for name in [*patches[:cut], "x", "w", *patches[cut:]]]))(file)
        del file["coords"]

    change_spots(folder, lambda data: setattr(data, "obs_names", named))
    change_patches(folder, rename)
    cohort = adopt(folder)
    assert list(cohort.spots("A1").index) == [name for name in named if name in patches]
    assert cohort.entry("A1").left_out == {NO_PATCH: 2, NO_SPOT: 2}
    with h5py.File(folder / "patches" / "A1.h5") as file:
        row = {name.decode(): i for i, name in enumerate(file["barcode"][:])}
        images = file["img"][:]
    np.testing.assert_array_equal(cohort.patches("A1"), images[[row[name] for name in cohort.spots("A1").index]])
