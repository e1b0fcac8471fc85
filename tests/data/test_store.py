import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.config.files import write_whole
from stexpr.data.hest import on_axis, write_metadata, write_patches, write_spots
from stexpr.data.manifest import (
    MANIFEST,
    CohortManifest,
    PreparedSection,
    check_section_names,
    read_manifest,
    section_files,
    stored_file,
    write_manifest,
)
from stexpr.data.patches import PatchReader
from stexpr.data.stain import STANDARD, fit_channels, recolored
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError

WINDOW = 16
GENES = ("ENSG1", "ENSG2", "ENSG3", "ENSG4", "ENSG5")


def raw(section: str) -> tuple[anndata.AnnData, np.ndarray]:
    rng = np.random.default_rng(sum(map(ord, section)))
    n = 5 + len(section)
    obs = pd.DataFrame(
        {"library": rng.uniform(10, 99, n), "tissue_fraction": rng.uniform(size=n), "in_tissue": True},
        index=[f"{section}_{i}x{i}" for i in range(n)],
    )
    counts = sp.csr_matrix(rng.poisson(0.7, (n, len(GENES))).astype(np.float32))
    spots = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(GENES)))
    spots.obsm["spatial"] = rng.uniform(50, 400, (n, 2))
    return spots, rng.integers(0, 256, (n, WINDOW, WINDOW, 3), dtype=np.uint8)


def write_cohort(folder: Path, sections: dict[str, str]) -> Path:
    entries = []
    for section, patient in sections.items():
        spots, patches = raw(section)
        names = section_files(section)[:3]
        corners = np.round(spots.obsm["spatial"] - 8)
        content = write_patches(folder / names[1], patches, corners, list(spots.obs_names), window_px=WINDOW, side=16.0)
        write_spots(folder / names[0], spots, np.full((9, 9, 3), 200, np.uint8), scale=0.02, spot_px=12.5)
        write_metadata(folder / names[2], {"id": section})
        entries.append(
            PreparedSection(
                section=section,
                patient=patient,
                n_spots=spots.n_obs,
                left_out={},
                level0_mpp=2.0,
                mpp_source="card",
                content=content,
                fingerprint="0",
                files={name: stored_file(folder / name) for name in names},
            )
        )
    manifest = CohortManifest(
        name="toy", species="human", tissue="breast", preservation="frozen", technology="ST", license="CC0", citation="-",
        library="whole", gene_namespace="ensembl", spot_diameter_um=100, spot_pitch_um=200, mpp=2.0, window_px=WINDOW,
        stain="none", stain_reference=None, min_counts=1, min_tissue=0, n_genes=len(GENES), genes_left_out={},
        sections=tuple(entries), versions={"stexpr": "0"},
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), {"B1": "bea", "A1": "al", "A2": "al"})


@pytest.fixture
def cohort(folder) -> PreparedCohort:
    return PreparedCohort.open(folder)


def rewrite(folder: Path, change) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    (folder / MANIFEST).write_text(json.dumps(values))


def test_sections_and_patients_keep_the_order_of_the_manifest(cohort):
    assert cohort.name == "toy"
    assert (cohort.mpp, cohort.window_px) == (2.0, WINDOW)
    assert cohort.sections == ("B1", "A1", "A2")
    assert cohort.patients == ("bea", "al")
    assert cohort.patient_of == {"B1": "bea", "A1": "al", "A2": "al"}
    assert cohort.sections_of(["al"]) == ("A1", "A2")
    assert cohort.sections_of(["al", "bea"]) == cohort.sections
    assert cohort.genes == GENES


def test_the_reader_without_anndata_sees_what_anndata_sees(cohort, folder):
    for section in cohort.sections:
        oracle = anndata.read_h5ad(folder / "st" / f"{section}.h5ad")
        counts = cohort.counts(section)
        assert counts.dtype == oracle.X.dtype == np.float32
        assert (counts != oracle.X).nnz == 0
        assert cohort.counts(section) is counts
        spots = cohort.spots(section)
        assert list(spots.index) == list(oracle.obs_names)
        assert cohort.genes == tuple(oracle.var_names)
        np.testing.assert_array_equal(spots[["x_px", "y_px"]], oracle.obsm["spatial"])
        np.testing.assert_allclose(spots[["x_um", "y_um"]], oracle.obsm["spatial"] * 2.0)
        for column in ("library", "tissue_fraction"):
            np.testing.assert_array_equal(spots[column], oracle.obs[column])


def test_scanpy_finds_the_hest_keys(folder):
    import scanpy

    spots = scanpy.read_h5ad(folder / "st" / "A1.h5ad")
    hest = spots.uns["spatial"]["ST"]
    assert hest["images"]["downscaled_fullres"].dtype == np.uint8
    assert hest["scalefactors"]["tissue_downscaled_fullres_scalef"] == 0.02
    assert hest["scalefactors"]["spot_diameter_fullres"] == 12.5
    with h5py.File(folder / "patches" / "A1.h5") as file:
        assert file["img"].dtype == np.uint8
        assert [row[0].decode() for row in file["barcode"][:]] == list(spots.obs_names)
        np.testing.assert_array_equal(file["coords"][:], np.round(spots.obsm["spatial"] - 8))


@pytest.mark.parametrize("window", [None, WINDOW, 10, 7, 1])
def test_a_crop_is_the_center_of_the_patch(cohort, window):
    whole = raw("A1")[1]
    size = window or WINDOW
    start = (WINDOW - size) // 2
    expected = whole[:, start : start + size, start : start + size]
    patches = cohort.patches("A1", window)
    np.testing.assert_array_equal(patches, expected)
    reader = cohort.patch_reader("A1", window)
    assert len(reader) == len(whole)
    np.testing.assert_array_equal(np.stack([reader[i] for i in range(len(reader))]), expected)
    reader.close()


def test_rows_off_the_end_and_files_cut_short_are_refused(cohort, folder, tmp_path):
    reader = cohort.patch_reader("A1", 10)
    np.testing.assert_array_equal(reader[-1], reader[len(reader) - 1])
    with pytest.raises(IndexError):
        reader[len(reader)]
    assert len(list(reader)) == len(reader)
    reader.close()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    reader = PreparedCohort.open(copy).patch_reader("A1")
    reader[0]
    with (copy / "patches" / "A1.h5").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(DataError, match="ends within patch"):
        reader[len(reader) - 1]


def test_patches_in_chunks_are_read_too(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("img", data=pixels, chunks=(1, 16, 16, 3), compression="gzip")
    reader = PatchReader(tmp_path / "a.h5", 5, 16, 8, rows=np.array([3, 1]))
    np.testing.assert_array_equal(reader[1], pixels[1, 4:12, 4:12])
    reader.close()


def _sum(reader, i):
    return int(reader[i].sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_used_here_still_works_in_loader_workers(cohort, method):
    reader = cohort.patch_reader("A1")
    expected = [_sum(reader, i) for i in range(len(reader))]
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(_sum, [(reader, i) for i in range(len(reader))])
    assert found == expected
    assert _sum(pickle.loads(pickle.dumps(reader)), 0) == expected[0]
    reader.close()
    assert _sum(reader, 0) == expected[0]
    reader.close()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cohort: cohort.patches("A1", 17), "a window of 17 px does not fit the 16 px patches"),
        (lambda cohort: cohort.patches("A1", 0), "a window of 0 px"),
        (lambda cohort: cohort.counts("A3"), "no section 'A3'; known: A1, A2, B1"),
        (lambda cohort: cohort.spots("Z"), "no section 'Z'; known: A1, A2, B1"),
        (lambda cohort: cohort.sections_of(["bee"]), "no patient 'bee'; did you mean 'bea'"),
    ],
)
def test_what_is_not_there_is_refused_by_name(cohort, call, message):
    with pytest.raises(DataError, match=message):
        call(cohort)


def test_the_hash_follows_content_not_wording(folder, tmp_path):
    first = PreparedCohort.open(folder)
    again = PreparedCohort.open(write_cohort(tmp_path / "again", {"B1": "bea", "A1": "al", "A2": "al"}))
    assert first.hash == again.hash
    assert len(first.hash) == 16
    assert [e.files for e in first.manifest.sections] == [e.files for e in again.manifest.sections]
    reworded = {"citation": "elsewhere", "versions": {"stexpr": "9"}}
    assert first.manifest.model_copy(update=reworded).hash == first.hash
    other = PreparedCohort.open(write_cohort(tmp_path / "other", {"B1": "bea", "A1": "bea", "A2": "al"}))
    assert other.hash != first.hash
    for change in ({"mpp": 3.0}, {"stain": "macenko", "stain_reference": "A1"}, {"window_px": 8}):
        assert first.manifest.model_copy(update=change).hash != first.hash


def test_an_altered_file_is_named(tmp_path):
    folder = write_cohort(tmp_path, {"A1": "al"})
    path = folder / "patches" / "A1.h5"
    PreparedCohort.open(folder).verify()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"was altered: patches/A1\.h5"):
        PreparedCohort.open(folder).verify()
    path.write_bytes(data[:-5])
    with pytest.raises(DataError, match=r"A1\.h5 has \d+ bytes, the manifest says \d+; run stexpr prepare"):
        PreparedCohort.open(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"section A1 of .* lacks its file patches/A1\.h5"):
        PreparedCohort.open(folder)


def test_a_file_that_is_no_hdf5_is_named(tmp_path):
    folder = write_cohort(tmp_path, {"A1": "al"})
    path = folder / "patches" / "A1.h5"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match=r"cannot read .*A1\.h5 as HDF5"):
        PreparedCohort.open(folder).patches("A1")


def test_contents_that_contradict_the_manifest_are_refused(tmp_path):
    folder = write_cohort(tmp_path, {"A1": "al"})
    rewrite(folder, lambda values: values.update(window_px=8, n_genes=4))
    cohort = PreparedCohort.open(folder)
    with pytest.raises(DataError, match=r"holds img uint8 \(7, 16, 16, 3\), the manifest says uint8 \(7, 8, 8, 3\)"):
        cohort.patches("A1")
    with pytest.raises(DataError, match="holds 5 genes, its manifest says 4"):
        _ = cohort.genes
    with pytest.raises(DataError, match=r"expected csr_matrix \(7, 4\)"):
        cohort.counts("A1")


def escape(name):
    def change(values):
        files = values["sections"][0]["files"]
        files[name] = next(iter(files.values()))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (escape("../secret"), "a file of a cohort lies in one of st, patches"),
        (escape("/etc/passwd"), "a file of a cohort lies in"),
        (escape("st/../../x"), "a file of a cohort lies in"),
        (escape("home/x"), "a file of a cohort lies in"),
        (lambda values: values["sections"][0].update(section="../x"), "becomes a file name"),
        (lambda values: values["sections"][0]["files"].pop("st/A1.h5ad"), r"lacks its file st/A1\.h5ad"),
        (lambda values: values["sections"].append(values["sections"][0]), "section names must differ"),
        (lambda values: values.update(sections=[]), "sections"),
        (lambda values: values.update(format=3), "format 3, this stexpr reads up to 2; install a newer"),
        (lambda values: values.pop("format"), "format None"),
        (lambda values: values.update(colour=1), "unknown key 'colour'"),
        (lambda values: values.update(mpp=-1), "mpp = -1"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(tmp_path, change, message):
    folder = write_cohort(tmp_path, {"A1": "al"})
    rewrite(folder, change)
    with pytest.raises(DataError, match=message) as caught:
        PreparedCohort.open(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_cohort_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"is not a prepared cohort: it holds no cohort\.json; run stexpr prepare"):
        PreparedCohort.open(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(DataError, match="format None"):
        read_manifest(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_whole(path, lambda part: part.write_text("old"))

    def full_disk(part):
        part.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=f"cannot write into {tmp_path}: No space left on device"):
        write_whole(path, full_disk)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_section_names_that_clash_on_disk_are_refused():
    check_section_names(["A1", "A2"])
    for names in (["a1", "A1"], [".hidden"], ["a/b"], [""], ["a\\b"]):
        with pytest.raises(ValueError, match=r"section"):
            check_section_names(names)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), unique=True, min_size=1), st.lists(st.integers(0, 9), unique=True, min_size=1))
def test_an_axis_moves_columns_and_fills_with_zero(own, axis):
    rng = np.random.default_rng(0)
    counts = rng.poisson(1, (4, len(own))).astype(float)
    table = pd.DataFrame(counts, columns=[f"g{i}" for i in own])
    wanted = [f"g{i}" for i in axis]
    moved = on_axis(sp.csr_matrix(counts), list(table.columns), wanted)
    np.testing.assert_array_equal(moved.toarray(), table.reindex(columns=wanted, fill_value=0))
    assert moved.has_sorted_indices


def test_a_cohort_without_its_shallow_spots(small_cohort: Path) -> None:
    whole = PreparedCohort.open(small_cohort)
    spots = whole.spots("b1")
    least = int(spots["library"].quantile(0.4))
    kept = (spots["library"] >= least).to_numpy()
    part = whole.keeping(least)
    pd.testing.assert_frame_equal(part.spots("b1"), spots[kept])
    assert (part.counts("b1") != whole.counts("b1")[kept]).nnz == 0
    np.testing.assert_array_equal(part.patches("b1", 16), whole.patches("b1", 16)[kept])
    reader = part.patch_reader("b1")
    assert len(reader) == kept.sum()
    np.testing.assert_array_equal(reader[3], whole.patches("b1")[kept][3])
    assert part.hidden("b1") == (~kept).sum() > 0
    assert whole.hidden("b1") == 0
    assert whole.keeping(0) is whole


def test_a_section_in_standardized_colors(tmp_path):
    cohort = PreparedCohort.open(write_cohort(tmp_path, {"long-name": "p", "b": "q"}))
    colored = cohort.colored("standardized")
    assert (cohort.stain, colored.stain, colored.hash) == ("none", "standardized", cohort.hash)
    assert cohort.colored("as_prepared") is cohort
    assert cohort.colored("standardized") is colored is colored.colored("standardized")
    for section in cohort.sections:
        table = fit_channels(cohort.patches(section)).table(STANDARD)
        expected = recolored(cohort.patches(section), table)
        np.testing.assert_array_equal(colored.patches(section), expected)
        crop = colored.patch_reader(section, 8)
        for i in range(len(crop)):
            np.testing.assert_array_equal(crop[i], expected[i, 4:12, 4:12])  # fitted on whole patches, whatever is read
        crop.close()
        assert colored.counts(section) is cohort.counts(section)
    kept = cohort.keeping(50).colored("standardized")
    assert len(kept.patches("long-name")) == len(cohort.keeping(50).spots("long-name")) < len(cohort.spots("long-name"))
    assert kept.keeping(60).standardized


def test_colors_are_not_standardized_twice(tmp_path):
    folder = write_cohort(tmp_path, {"a": "p"})
    manifest = read_manifest(folder)
    normalized = PreparedCohort(folder, manifest.model_copy(update={"stain": "reinhard", "stain_reference": "a"}))
    with pytest.raises(DataError, match=r"input\.colors=as_prepared"):
        normalized.colored("standardized")
