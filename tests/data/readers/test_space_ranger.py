import gzip
import json
import shutil
import warnings

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from PIL import Image

from stexpr.data.readers import read_folder
from stexpr.errors import ConfigError, DataError, GeneError, ScaleError
from vendor_files import write_matrix_folder
from vendor_folders import KnownTissue, make_tissue, write_space_ranger


@pytest.fixture(scope="module")
def tissue():
    return make_tissue()


@pytest.fixture(scope="module")
def original(tissue, tmp_path_factory):
    return write_space_ranger(tmp_path_factory.mktemp("visium") / "s1", tissue, matrix="both", antibodies=2)


@pytest.fixture
def copy(original, tmp_path):
    """A copy of the folder that may be damaged."""
    shutil.copytree(original.folder, tmp_path / "s1" / "outs")
    return tmp_path / "s1" / "outs"


def agrees(section, written, tissue):
    assert tuple(section.spots.obs_names) == written.barcodes
    assert tuple(section.spots.var_names) == tissue.ids
    assert tuple(section.spots.var["symbol"]) == tissue.symbols
    np.testing.assert_array_equal(section.spots.X.toarray(), written.counts)
    np.testing.assert_allclose(section.spots.obsm["spatial"], written.centers, atol=1e-9)
    assert section.spots.obs["in_tissue"].all()


@pytest.mark.parametrize(
    "made",
    [
        {"version": 1},
        {"version": 2},
        {"version": 1, "matrix": "mtx"},
        {"version": 2, "matrix": "mtx", "antibodies": 3},
        {"version": 3, "antibodies": 5},
        {"version": 4, "cytassist": True},
        {"version": 2, "angle": 1.5},
        {"version": 2, "angle": 3.1},
    ],
    ids=str,
)
def test_every_version_is_read_as_it_was_written(tmp_path, tissue, made):
    written = write_space_ranger(tmp_path / "s1", tissue, **made)
    section = read_folder(written.folder, image=written.image)
    agrees(section, written, tissue)
    assert section.mpp == pytest.approx(2, rel=2e-3)
    assert section.mpp_source.startswith("spot pitch (100 um / ")
    assert (section.name, section.patient, section.gene_namespace) == ("s1", "s1", "ensembl")
    assert (section.spot_diameter_um, section.spot_pitch_um) == (55, 100)
    assert list(section.left_out) == ["not in tissue"]
    types = made.get("antibodies", 0)
    assert section.notes == ((f"left out: {types} features of type Antibody Capture",) if types else ())
    # The parent folder will do as well.
    assert read_folder(tmp_path / "s1", image=written.image).spots.n_obs == section.spots.n_obs


def test_scanpy_and_squidpy_read_the_same(original):
    ours = read_folder(original.folder, image=original.image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's libraries
        import scanpy as sc
        import squidpy as sq

        counts = sc.read_10x_h5(original.folder / "filtered_feature_bc_matrix.h5")
        text = sc.read_10x_mtx(original.folder / "filtered_feature_bc_matrix", var_names="gene_ids")
        visium = sq.read.visium(original.folder)
    for theirs in (counts, text, visium):
        assert list(theirs.obs_names) == list(ours.spots.obs_names)
        np.testing.assert_array_equal(theirs.X.toarray(), ours.spots.X.toarray())
    assert list(counts.var["gene_ids"]) == list(text.var_names) == list(ours.spots.var_names)
    np.testing.assert_array_equal(visium.obsm["spatial"], ours.spots.obsm["spatial"])
    for key in ("in_tissue", "array_row", "array_col"):
        np.testing.assert_array_equal(visium.obs[key], ours.spots.obs[key])


def test_positions_are_read_by_name(copy, original, tissue):
    import pandas as pd

    path = copy / "spatial" / "tissue_positions.csv"
    table = pd.read_csv(path)
    table[table.columns[::-1]].assign(extra=7)[["barcode", *table.columns[:0:-1], "extra"]].to_csv(path, index=False)
    agrees(read_folder(copy, image=original.image), original, tissue)
    # Space Ranger 2.0 also wrote the header into the file of the old name.
    path.rename(path.with_name("tissue_positions_list.csv"))
    agrees(read_folder(copy, image=original.image), original, tissue)


def test_the_raw_matrix_keeps_spots_outside_tissue_marked(original, tissue):
    section = read_folder(original.folder, image=original.image, matrix="raw")
    inside = section.spots[section.spots.obs["in_tissue"].to_numpy()]
    assert section.left_out == {}
    assert section.spots.n_obs > len(original.barcodes) == inside.n_obs
    np.testing.assert_array_equal(inside.X.toarray(), original.counts)


def test_the_raw_matrix_stands_in_for_a_missing_one_and_says_so(copy, original):
    shutil.rmtree(copy / "filtered_feature_bc_matrix")
    (copy / "filtered_feature_bc_matrix.h5").unlink()
    assert "read from the raw one" in read_folder(copy, image=original.image).notes[-1]
    with pytest.raises(
        DataError, match=r"lacks a matrix of counts: filtered_feature_bc_matrix\.h5 or filtered_feature_bc_matrix;"
    ):
        read_folder(copy, image=original.image, matrix="filtered")


def test_the_matrix_of_space_ranger_before_features_had_types(copy, original, tissue):
    (copy / "filtered_feature_bc_matrix.h5").unlink()
    shutil.rmtree(copy / "filtered_feature_bc_matrix")
    features = (list(tissue.ids), list(tissue.symbols), ["Gene Expression"] * len(tissue.ids))
    counts = sp.csr_matrix(original.counts)
    write_matrix_folder(copy / "filtered_feature_bc_matrix", original.barcodes, features, counts, legacy=True)
    agrees(read_folder(copy, image=original.image), original, tissue)


def test_without_the_full_image_the_small_one_is_cut_and_noted(original):
    section = read_folder(original.folder)
    factor = 300 / 640
    assert section.image.path.name == "tissue_hires_image.png"
    np.testing.assert_allclose(section.spots.obsm["spatial"], original.centers * factor)
    assert section.mpp == pytest.approx(2 / factor, rel=2e-3)
    assert section.notes[0] == (
        "cut from tissue_hires_image.png, 2.13 times coarser than the full-resolution image, which was not given"
    )


def test_symbols_as_names_never_name_two_genes(copy, original, tissue):
    with h5py.File(copy / "filtered_feature_bc_matrix.h5", "r+") as file:
        names = file["matrix/features/name"][()]
        names[[1, 4]] = b"TWIN"
        names[2] = b""
        file["matrix/features/name"][...] = names
    section = read_folder(copy, image=original.image, gene_namespace="symbol")
    expected = list(tissue.symbols)
    for i in (1, 2, 4):
        expected[i] = tissue.ids[i]
    assert list(section.spots.var_names) == expected
    assert list(section.spots.var["gene_id"]) == list(tissue.ids)
    assert section.spots.uns["stexpr"]["genes_without_symbol"] == 3


def test_custom_ids_are_other_unless_the_caller_wants_ensembl(tmp_path):
    plain = make_tissue()
    custom = KnownTissue(plain.image, plain.mpp, plain.symbols, plain.symbols, plain.slopes)
    written = write_space_ranger(tmp_path / "s1", custom)
    section = read_folder(written.folder, image=written.image)
    assert (section.gene_namespace, section.spots.var_names[0]) == ("other", "GENE0")
    with pytest.raises(GeneError, match="0 Ensembl ids among its 24 genes, such as 'GENE0'"):
        read_folder(written.folder, image=written.image, gene_namespace="ensembl")


def test_pixel_sizes_are_held_against_each_other(copy, original, tissue, tmp_path):
    factors = copy / "spatial" / "scalefactors_json.json"
    values = json.loads(factors.read_text())

    def change(**changed):
        factors.write_text(json.dumps(values | changed))

    change(spot_diameter_fullres=55 / 2)  # some versions mean the spot itself
    assert read_folder(copy, image=original.image).mpp_source.startswith("spot pitch (100 um / ")
    change(spot_diameter_fullres=65 / 2.1)
    assert "; spot_diameter_fullres (65 um) says 2.1" in read_folder(copy, image=original.image).mpp_source
    change(spot_diameter_fullres=100.0)
    with pytest.raises(
        ScaleError, match=r"2 um/px \(spot pitch .*\) contradicts 0\.65 um/px \(spot_diameter_fullres \(65 um\)\)"
    ):
        read_folder(copy, image=original.image)
    assert "spot_diameter_fullres" in read_folder(copy, image=original.image, mpp=2.0).mpp_source
    change(spot_diameter_fullres=-3)
    with pytest.raises(ScaleError, match="spot_diameter_fullres is -3, not a number above 0"):
        read_folder(copy, image=original.image)
    change()
    section = read_folder(copy, image=original.image, mpp=2)
    assert (section.mpp, section.mpp_source) == (2, "given")
    with pytest.raises(ScaleError, match=r"its spots lie .* apart, 149\.2 um at 3 um/px"):
        read_folder(copy, image=original.image, mpp=3)
    import tifffile

    wrong = tmp_path / "scanner.tif"
    tifffile.imwrite(wrong, tissue.image, photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    with pytest.raises(ScaleError, match=r"contradicts 0\.5 um/px \(the image file \(pillow\)\); is scanner\.tif the image"):
        read_folder(copy, image=wrong)


def test_an_image_of_another_size_is_refused(tmp_path, tissue):
    written = write_space_ranger(tmp_path / "s1", tissue, cytassist=True)
    with pytest.raises(
        DataError, match=r"cytassist_image\.tiff is 160 x 214 px, .* about 640 x 640 px; .* the microscope's image"
    ):
        read_folder(written.folder, image=written.folder / "spatial" / "cytassist_image.tiff")
    Image.fromarray(tissue.image).resize((320, 320)).save(tmp_path / "half.png")
    with pytest.raises(DataError, match=r"half\.png is 320 x 320 px, .* say pixel_scale"):
        read_folder(written.folder, image=tmp_path / "half.png")
    (written.folder / "spatial" / "tissue_hires_image.png").unlink()
    with pytest.raises(DataError, match=r"spots lie on cytassist_image\.tiff"):
        read_folder(written.folder, image=written.folder / "spatial" / "cytassist_image.tiff")
    with pytest.raises(DataError, match=r"lacks an image; name the full-resolution one, or copy: tissue_hires_image\.png"):
        read_folder(written.folder)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("tissue_positions.csv", lambda text: text[: len(text) // 2], "no position in tissue_positions.csv|not a number"),
        ("tissue_positions.csv", lambda text: "\n".join(text.split("\n")[:40]), "barcodes of .* have no position"),
        ("tissue_positions.csv", lambda text: text.replace("-1,", "-2,"), "have no position .* such as '[ACGT]{16}-1'"),
        ("tissue_positions.csv", lambda text: text.replace("array_col", "array_column"), "no column 'array_col'; did you mean"),
        ("tissue_positions.csv", lambda text: text.replace("pxl_row", "pxl_col"), "no column 'pxl_row_in_fullres'"),
        ("tissue_positions.csv", lambda text: text.split("\n")[0] + "\n", "is empty"),
        ("tissue_positions.csv", lambda text: "", "truncated or no table of positions"),
        ("tissue_positions.csv", lambda text: text.replace("-1,1,", "-1,2,"), "in_tissue is neither 0 nor 1"),
        ("tissue_positions.csv", lambda text: text + text.split("\n")[5], "a barcode more than once"),
        ("tissue_positions.csv", lambda text: text.replace("barcode,", "spot,", 1), "have no position|not a number|no header"),
        ("scalefactors_json.json", lambda text: text[:-9], "truncated or not JSON"),
        ("scalefactors_json.json", lambda text: "[1]", "holds list, not keys and values"),
    ],
)
def test_damaged_positions_and_scale_factors_are_refused(copy, original, name, damage, message):
    path = copy / "spatial" / name
    changed = damage(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(DataError, match=message):
        read_folder(copy, image=original.image)


def test_swapped_columns_show_as_no_lattice(copy, original):
    path = copy / "spatial" / "tissue_positions.csv"
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
    text = path.read_text()
    path.write_text(text.replace(header, "barcode,in_tissue,array_col,array_row,pxl_row_in_fullres,pxl_col_in_fullres"))
    with pytest.raises(ScaleError, match="rows and columns are swapped, or this is no Visium array"):
        read_folder(copy, image=original.image)
    path.write_text(text.replace(header, "barcode,in_tissue,pxl_row_in_fullres,array_col,array_row,pxl_col_in_fullres"))
    with pytest.raises((DataError, ScaleError)):
        read_folder(copy, image=original.image)


@pytest.mark.parametrize("part", [0.3, 0.9, 0.0])
def test_a_truncated_matrix_is_refused(copy, original, part):
    for path in (
        copy / "filtered_feature_bc_matrix.h5",
        *(copy / "filtered_feature_bc_matrix" / f"{name}.gz" for name in ("matrix.mtx", "features.tsv", "barcodes.tsv")),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(DataError, match=r"truncated or no feature-barcode matrix|is damaged"):
            read_folder(copy, image=original.image)
        path.write_bytes(whole)
        if path.suffix == ".h5":
            path.unlink()  # the folder of text files is read where there is no HDF5 file


def test_a_matrix_whose_parts_do_not_fit_is_refused(copy, original):
    path = copy / "filtered_feature_bc_matrix.h5"
    for name, change in (
        ("matrix/indices", lambda values: values + 100),
        ("matrix/indptr", lambda values: values[:-1]),
        ("matrix/barcodes", lambda values: values[:-1]),
        ("matrix/features/id", lambda values: values[:-1]),
        ("matrix/features/feature_type", lambda values: np.full_like(values, b"Antibody Capture")),
        ("matrix/features/name", None),
    ):
        shutil.copy(original.folder / path.name, path)
        with h5py.File(path, "r+") as file:
            values = file[name][()]
            del file[name]
            if change is not None:
                file[name] = change(values)
        with pytest.raises(DataError, match=r"damaged|truncated|no feature of type 'Gene Expression'"):
            read_folder(copy, image=original.image)
    path.unlink()
    lines = gzip.decompress((copy / "filtered_feature_bc_matrix" / "barcodes.tsv.gz").read_bytes()).splitlines(keepends=True)
    (copy / "filtered_feature_bc_matrix" / "barcodes.tsv.gz").write_bytes(gzip.compress(b"".join(lines[:-1])))
    with pytest.raises(DataError, match=r"is damaged: 106 x 26 counts for 105 barcodes x 26 features"):
        read_folder(copy, image=original.image)


def test_what_is_missing_is_named(copy, original):
    for name, message in (
        ("spatial/scalefactors_json.json", "lacks its scale factors: scalefactors_json.json"),
        ("spatial/tissue_positions.csv", "lacks the positions of its barcodes: tissue_positions.parquet or"),
        ("filtered_feature_bc_matrix/features.tsv.gz", "lacks the names of its features"),
    ):
        if "matrix" in name:
            (copy / "filtered_feature_bc_matrix.h5").unlink()
        (copy / name).rename(copy / "away")
        with pytest.raises(DataError, match=message):
            read_folder(copy, image=original.image)
        (copy / "away").rename(copy / name)
    with pytest.raises(DataError, match=r"image .*none\.tif does not exist"):
        read_folder(copy, image=copy / "none.tif")


def test_options_of_other_kinds_and_unknown_folders_are_refused(original, tmp_path):
    with pytest.raises(ConfigError, match="bin_um is not for a folder of kind space_ranger"):
        read_folder(original.folder, bin_um=8)
    with pytest.raises(ConfigError, match="alignment is not for"):
        read_folder(original.folder, alignment="a.csv")
    with pytest.raises(DataError, match="no output folder that stexpr knows"):
        read_folder(tmp_path)
    (tmp_path / "square_008um" / "spatial").mkdir(parents=True)
    with pytest.raises(DataError, match=r"square_008um is one bin size of a Visium HD folder"):
        read_folder(tmp_path / "square_008um")
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        read_folder(tmp_path / "nowhere")


def test_the_section_goes_into_a_file_and_back(original, tmp_path):
    spots = read_folder(original.folder, image=original.image).spots
    spots.write_h5ad(tmp_path / "s.h5ad")
    again = anndata.read_h5ad(tmp_path / "s.h5ad")
    np.testing.assert_array_equal(again.X.toarray(), spots.X.toarray())
    assert again.uns["stexpr"]["features_left_out"] == {"Antibody Capture": 2}
