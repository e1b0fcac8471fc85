import json
import shutil
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest

from stexpr.data.readers import read_folder
from stexpr.errors import ConfigError, DataError, ScaleError
from vendor_folders import make_tissue, write_visium_hd


@pytest.fixture(scope="module")
def tissue():
    return make_tissue(side_px=320)


@pytest.fixture(scope="module")
def original(tissue, tmp_path_factory):
    return write_visium_hd(tmp_path_factory.mktemp("hd") / "s1", tissue, sizes=(4, 8, 16))


@pytest.fixture
def copy(original, tmp_path):
    """A copy of the folder that may be damaged."""
    shutil.copytree(original.folder, tmp_path / "s1" / "outs")
    return tmp_path / "s1" / "outs"


def test_bins_of_a_size_are_read_as_they_were_written(original, tissue):
    section = read_folder(original.folder, image=original.image, bin_um=4)
    assert tuple(section.spots.obs_names) == original.barcodes
    assert tuple(section.spots.var_names) == tissue.ids
    np.testing.assert_array_equal(section.spots.X.toarray(), original.counts)
    np.testing.assert_allclose(section.spots.obsm["spatial"], original.centers)
    assert (section.mpp, section.mpp_source) == (2.0, "scalefactors_json.json")
    assert (section.spot_diameter_um, section.spot_pitch_um, section.name) == (4, 4, "s1")
    n_positions = pq.read_metadata(original.folder / "binned_outputs/square_004um/spatial/tissue_positions.parquet").num_rows
    assert section.spots.n_obs + section.left_out["not in tissue"] == n_positions


def test_scanpy_reads_the_same_counts(original):
    ours = read_folder(original.folder, image=original.image, bin_um=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another library
        import scanpy as sc

        theirs = sc.read_10x_h5(original.folder / "binned_outputs/square_008um/filtered_feature_bc_matrix.h5")
    assert list(theirs.obs_names) == list(ours.spots.obs_names)
    np.testing.assert_array_equal(theirs.X.toarray(), ours.spots.X.toarray())


@pytest.mark.parametrize("bin_um", [8, 12, 16, 24, 28, 56, 112])
def test_pooling_keeps_every_molecule_in_tissue(original, bin_um):
    section = read_folder(original.folder, image=original.image, bin_um=bin_um)
    source = max(size for size in (4, 8, 16) if bin_um % size == 0)
    bins = read_folder(original.folder, image=original.image, bin_um=source)
    np.testing.assert_array_equal(section.spots.X.sum(axis=0), bins.spots.X.sum(axis=0))
    assert section.spots.obs["n_bins"].sum() == bins.spots.n_obs
    assert section.spots.obs["n_bins"].max() <= (bin_um // source) ** 2
    assert (section.spot_pitch_um, section.mpp) == (bin_um, 2.0)
    if bin_um == source:
        np.testing.assert_array_equal(section.spots.obs_names, bins.spots.obs_names)
    else:
        assert section.notes == (f"bins of {bin_um} um pooled from those of {source} um",)
        assert list(section.left_out) == [f"bins of {source} um not in tissue"]
    # Every bin lies within the square it was counted in.
    grid = bins.spots.obs[["array_row", "array_col"]].to_numpy() // (bin_um // source)
    place = {tuple(row): i for i, row in enumerate(section.spots.obs[["array_row", "array_col"]].to_numpy())}
    square = section.spots.obsm["spatial"][[place[tuple(row)] for row in grid]]
    assert np.abs(bins.spots.obsm["spatial"] - square).max() <= (bin_um - source) / 2 / section.mpp + 1e-9


def test_a_pooled_bin_equals_the_same_bin_of_the_folder(copy, original):
    for gone in ("square_008um", "square_016um"):
        shutil.rmtree(copy / "binned_outputs" / gone)
    whole = read_folder(original.folder, image=original.image, bin_um=16).spots
    pooled = read_folder(copy, image=original.image, bin_um=16).spots
    shared = [name for name in whole.obs_names if name in set(pooled.obs_names)]
    full = [name for name in shared if pooled.obs.loc[name, "n_bins"] == 16]  # at the rim, parts of a bin are in tissue
    assert len(full) > 0.6 * whole.n_obs
    np.testing.assert_array_equal(pooled[full].X.toarray(), whole[full].X.toarray())
    np.testing.assert_allclose(pooled[shared].obsm["spatial"], whole[shared].obsm["spatial"])


def test_the_small_image_stands_in(original):
    section = read_folder(original.folder, bin_um=16)
    assert section.mpp == pytest.approx(2 * 320 / 300)
    assert section.notes[0].startswith("cut from tissue_hires_image.png")


def test_what_cannot_be_read(copy, original):
    with pytest.raises(ConfigError, match="say bin_um, such as 16"):
        read_folder(copy)
    with pytest.raises(ConfigError, match=r"bin_um is 30, which no bin of .* divides; known: multiples of 4, 8, 16"):
        read_folder(copy, bin_um=30)
    with pytest.raises(ConfigError, match="bin_um is 0; it is a length"):
        read_folder(copy, bin_um=0)
    bins = copy / "binned_outputs" / "square_016um"
    factors = bins / "spatial" / "scalefactors_json.json"
    values = json.loads(factors.read_text())
    factors.write_text(json.dumps(values | {"bin_size_um": 8.0}))
    with pytest.raises(ScaleError, match="its scale factors are of bins of 8 um"):
        read_folder(copy, bin_um=16)
    factors.write_text(json.dumps(values | {"microns_per_pixel": 0.2}))
    with pytest.raises(ScaleError, match=r"contradicts 2 um/px \(the pitch of the bins\)"):
        read_folder(copy, image=original.image, bin_um=16)
    factors.write_text(json.dumps(values | {"microns_per_pixel": 200.0}))
    with pytest.raises(ScaleError, match="200 um/px is absurd"):
        read_folder(copy, image=original.image, bin_um=16)
    del values["microns_per_pixel"]
    factors.write_text(json.dumps(values))
    assert read_folder(copy, image=original.image, bin_um=16).mpp_source.startswith("spot pitch (16 um / 8 px)")
    parquet = bins / "spatial" / "tissue_positions.parquet"
    whole = parquet.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:-4], b""):
        parquet.write_bytes(part)
        with pytest.raises(DataError, match="truncated or no table of positions"):
            read_folder(copy, image=original.image, bin_um=16)
    table = pq.read_table(original.folder / parquet.relative_to(copy))
    pq.write_table(table.rename_columns([name.replace("pxl_", "px_") for name in table.column_names]), parquet)
    with pytest.raises(DataError, match="no column 'pxl_row_in_fullres'; did you mean 'px_row_in_fullres'"):
        read_folder(copy, image=original.image, bin_um=16)
    pq.write_table(table.slice(0, table.num_rows // 2), parquet)
    with pytest.raises(DataError, match="have no position"):
        read_folder(copy, image=original.image, bin_um=16)
    shutil.rmtree(copy / "binned_outputs")
    (copy / "binned_outputs").mkdir()
    with pytest.raises(DataError, match="holds no bins such as square_008um"):
        read_folder(copy, bin_um=16)
