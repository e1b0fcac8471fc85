"""Cards whose sections are output folders, from the files to the prepared cohort."""

import json

import anndata
import h5py
import numpy as np
import pytest
import yaml

from stexpr.data.cards import load_card
from stexpr.data.prepare import prepare
from stexpr.data.readers import input_files, read_section
from stexpr.errors import CardError, DataError
from vendor_folders import make_tissue, write_space_ranger, write_visium_hd, write_xenium

HEAD = {
    "name": "vendor",
    "species": "Homo sapiens",
    "tissue": "breast",
    "technology": "made in a test",
    "gene_namespace": "ensembl",
    "prepare": {"mpp": 2.0, "window_px": 32, "min_counts": 5},
}
READERS = {
    "space_ranger": (write_space_ranger, {"folder": "s1/outs", "image": "s1/image.tif", "matrix": "filtered"}),
    "visium_hd": (write_visium_hd, {"folder": "s1", "image": "s1/image.tif", "bin_um": 48}),
    "xenium": (write_xenium, {"folder": "s1", "pseudo_spot_um": 60.0}),
}


def write_card(folder, reader, *entries, **changes):
    sections = [{"section": f"S{i}", "patient": f"P{i}"} | entry for i, entry in enumerate(entries)]
    path = folder / "vendor.md"
    path.write_text(f"---\n{yaml.safe_dump(HEAD | {'reader': reader, 'sections': sections} | changes)}---\n")
    return path


@pytest.fixture(scope="module")
def tissue():
    return make_tissue(side_px=400)


@pytest.mark.parametrize("reader", READERS)
def test_prepare_goes_from_the_folder_to_patches(tmp_path, tissue, reader):
    write, entry = READERS[reader]
    write(tmp_path / "raw" / "s1", tissue)
    card = load_card(write_card(tmp_path / "raw", reader, entry))
    section = read_section(card.sections[0], tmp_path / "raw", card)
    cohort = prepare(card, tmp_path / "raw", tmp_path / "cohort", card.prepare)
    manifest = cohort.manifest.sections[0]
    assert manifest.notes == section.notes
    assert (manifest.mpp_source, manifest.level0_mpp) == (section.mpp_source, section.mpp)
    # Each spot of the folder is kept, or counted under one reason.
    mine = {why: n for why, n in manifest.left_out.items() if why not in section.left_out}
    assert manifest.n_spots + sum(mine.values()) == section.spots.n_obs
    assert section.left_out.items() <= manifest.left_out.items()
    assert manifest.n_spots > 20
    stored = anndata.read_h5ad(tmp_path / "cohort" / "st" / "S0.h5ad")
    assert list(stored.var["symbol"]) == list(tissue.symbols)
    rows = section.spots.obs_names.get_indexer(stored.obs_names)
    np.testing.assert_array_equal(stored.X.toarray(), section.spots.X.toarray()[rows])
    with h5py.File(tmp_path / "cohort" / "patches" / "S0.h5") as file:
        patches, corners = file["img"][()], file["coords"][()]
    np.testing.assert_allclose(corners + 16, stored.obsm["spatial"], atol=0.51)
    x, y = corners[0]
    assert abs(section.mpp - 2) < 2e-3
    assert np.abs(patches[0].astype(int) - tissue.image[y : y + 32, x : x + 32]).mean() < 3


@pytest.mark.parametrize("reader", READERS)
def test_a_rerun_sees_every_file_it_read_and_no_other(tmp_path, tissue, reader):
    write, entry = READERS[reader]
    write(tmp_path / "raw" / "s1", tissue)
    card = load_card(write_card(tmp_path / "raw", reader, entry))
    first = prepare(card, tmp_path / "raw", tmp_path / "cohort", card.prepare).manifest
    (tmp_path / "raw" / "s1" / "possorted_genome_bam.bam").write_bytes(b"large and of no concern")
    assert prepare(card, tmp_path / "raw", tmp_path / "cohort", card.prepare).manifest == first
    for path in input_files(card.sections[0], tmp_path / "raw", card):
        whole = path.read_bytes()
        if path.suffix in (".csv", ".json", ".xenium"):
            path.write_bytes(whole + b"\n")
            again = prepare(card, tmp_path / "raw", tmp_path / "cohort", card.prepare).manifest
            assert again.sections[0].fingerprint != first.sections[0].fingerprint
            assert again.hash == first.hash
        path.unlink()
        with pytest.raises(DataError, match=r"lacks|does not exist|holds 0 files|holds no cell_feature_matrix"):
            prepare(card, tmp_path / "raw", tmp_path / "cohort", card.prepare)
        path.write_bytes(whole)


def test_sections_of_one_card_share_the_genes(tmp_path, tissue):
    write_space_ranger(tmp_path / "raw" / "a", tissue, version=1, seed=1)
    write_space_ranger(tmp_path / "raw" / "b", tissue, matrix="mtx", antibodies=2, seed=2)
    entries = ({"folder": "a", "image": "a/image.tif"}, {"folder": "b"})
    card = load_card(write_card(tmp_path / "raw", "space_ranger", *entries))
    manifest = prepare(card, tmp_path / "raw", tmp_path / "cohort", card.prepare.model_copy(update={"mpp": 3.0})).manifest
    assert manifest.n_genes == len(tissue.ids)
    assert manifest.sections[0].notes == ()
    assert [note.split()[0] for note in manifest.sections[1].notes] == ["cut", "left"]
    stored = json.loads((tmp_path / "cohort" / "metadata" / "S1.json").read_text())
    assert stored["notes"] == list(manifest.sections[1].notes)
    assert (stored["spot_diameter"], stored["inter_spot_dist"]) == (55, 100)


@pytest.mark.parametrize(
    ("reader", "entry", "message"),
    [
        ("space_ranger", {"counts": "c.h5ad", "image": "i.tif"}, "section S0: reader `space_ranger` needs `folder`"),
        ("h5ad", {"folder": "s1"}, "reader `h5ad` needs `counts`; `folder` goes with space_ranger, visium_hd, xenium"),
        ("space_ranger", {"folder": "s1", "counts": "c.h5"}, "either `counts`, a file, or `folder`"),
        ("space_ranger", {}, "either `counts`, a file, or `folder`"),
        ("h5ad", {"counts": "c.h5ad"}, "`image` is missing"),
        ("visium_hd", {"folder": "s1"}, "reader `visium_hd` needs `bin_um`, such as bins of 16 um"),
        ("xenium", {"folder": "s1"}, "reader `xenium` needs `pseudo_spot_um`, such as squares of 55 um"),
        ("space_ranger", {"folder": "s1", "bin_um": 8}, "`bin_um` is not for reader `space_ranger`"),
        ("xenium", {"folder": "s1", "pseudo_spot_um": 50, "matrix": "raw"}, "`matrix` is not for reader `xenium`"),
        ("visium_hd", {"folder": "s1", "bin_um": 8, "alignment": "a.csv"}, "`alignment` is not for reader"),
        ("visium_hd", {"folder": "s1", "bin_um": 1}, "bin_um = 1"),
        ("xenium", {"folder": "s1", "pseudo_spot_um": 0}, "pseudo_spot_um = 0"),
        ("space_ranger", {"folder": "../s1"}, "stays inside the cohort's folder"),
        ("xenium", {"folder": "s1", "pseudo_spot_um": 50, "alignment": "/a.csv"}, "stays inside the cohort's folder"),
    ],
)
def test_what_a_card_of_folders_refuses(tmp_path, reader, entry, message):
    with pytest.raises(CardError, match=message):
        load_card(write_card(tmp_path, reader, entry))


def test_symbol_tables_are_for_files(tmp_path):
    with pytest.raises(CardError, match="leave symbol_table out"):
        load_card(write_card(tmp_path, "space_ranger", {"folder": "s1"}, symbol_table="s.csv"))


def test_positions_on_a_smaller_copy_of_the_image(tmp_path, tissue):
    from PIL import Image

    written = write_space_ranger(tmp_path / "s1", tissue)
    half = Image.fromarray(tissue.image).resize((200, 200), Image.Resampling.BOX)
    half.save(tmp_path / "half.png")
    entry = {"folder": "s1", "image": "half.png", "pixel_scale": 0.5}
    card = load_card(write_card(tmp_path, "space_ranger", entry))
    section = read_section(card.sections[0], tmp_path, card)
    np.testing.assert_allclose(section.spots.obsm["spatial"], written.centers / 2)
    assert section.mpp == pytest.approx(4.0, rel=2e-3)
    card = load_card(write_card(tmp_path, "space_ranger", {"folder": "s1", "pixel_scale": 0.5}))
    with pytest.raises(CardError, match="pixel_scale belongs to an image, and none is named"):
        read_section(card.sections[0], tmp_path, card)
