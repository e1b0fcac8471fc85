import gzip

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from PIL import Image

from stexpr.data.cards import DataCard, load_card
from stexpr.data.images import SlideImage
from stexpr.data.readers import READERS, read_section
from stexpr.data.section import join_genes
from stexpr.errors import CardError, DataError, GeneError, ScaleError

ARRAY = [(x, y) for x in range(3, 7) for y in range(10, 13)]


def card(reader="legacy_st", *, section=(), **fields):
    entry = {"section": "S1", "patient": "P1", "counts": "counts.tsv", "spots": "spots.tsv", "image": "he.png", "mpp": 2.0}
    return DataCard.model_validate(
        {
            "name": "mine",
            "species": "Homo sapiens",
            "tissue": "breast",
            "technology": "ST",
            "gene_namespace": "symbol",
            "reader": reader,
            "sections": [entry | dict(section)],
        }
        | fields
    )


def read(folder, card):
    return read_section(card.sections[0], folder, card)


def write_counts(path, rows, genes):
    lines = ["\t".join(["", *genes]), *("\t".join([key, *map(str, row)]) for key, row in rows.items())]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def legacy(tmp_path):
    """Twelve spots 100 px apart; one is not selected, one has no counts, one is only in the counts."""
    rows = {f"{x}x{y}": [x, y, 0] for x, y in ARRAY}
    del rows["3x11"]
    rows["30x30"] = [9, 9, 9]
    write_counts(tmp_path / "counts.tsv", rows, ["A", "B", "C"])
    table = pd.DataFrame(ARRAY, columns=["x", "y"]).add([0.02, -0.03])
    table["pixel_x"] = [100.0 * x for x, _ in ARRAY]
    table["pixel_y"] = [100.0 * y + 7 for _, y in ARRAY]
    table["selected"] = [0] + [1] * (len(ARRAY) - 1)
    table.to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
    Image.new("RGB", (1500, 1500), (200, 180, 200)).save(tmp_path / "he.png")
    return tmp_path


def test_legacy_counts_and_spots_are_joined_and_the_rest_is_counted(legacy):
    section = read(legacy, card(spot_diameter_um=100))
    assert section.left_out == {
        "not selected": 1,
        "in counts but not in spot file": 1,
        "in spot file but not in counts": 1,
    }
    assert list(section.spots.obs_names) == [f"{x}x{y}" for x, y in ARRAY if (x, y) not in ((3, 10), (3, 11))]
    expected = np.array([(100.0 * x, 100.0 * y + 7) for x, y in ARRAY if (x, y) not in ((3, 10), (3, 11))])
    np.testing.assert_allclose(section.spots.obsm["spatial"], expected)
    np.testing.assert_array_equal(section.spots.X.toarray()[0], [3, 12, 0])
    assert section.spots.X.dtype == np.int32
    assert section.spots.obs["in_tissue"].all()
    assert isinstance(section.image, SlideImage)
    assert (section.mpp, section.mpp_source, section.patient, section.spot_diameter_um) == (2.0, "card", "P1", 100)


def test_gzip_header_without_corner_and_pixel_scale(legacy):
    rows = {f"{x}x{y}": [x, y] for x, y in ARRAY}
    write_counts(legacy / "c.tsv.gz", rows, ["A", "B"])
    text = gzip.decompress((legacy / "c.tsv.gz").read_bytes()).lstrip(b"\t")
    (legacy / "c.tsv.gz").write_bytes(gzip.compress(text + b"\n"))
    section = read(legacy, card(section={"counts": "c.tsv.gz", "pixel_scale": 0.5, "mpp_source": "stage"}))
    assert list(section.spots.var_names) == ["A", "B"]
    np.testing.assert_allclose(section.spots.obsm["spatial"][0], [150, 0.5 * (100 * 11 + 7)])
    assert section.mpp_source == "card: stage"


def test_all_spots_are_taken_where_none_is_marked(legacy):
    pd.read_csv(legacy / "spots.tsv", sep="\t").drop(columns="selected").to_csv(legacy / "spots.tsv", sep="\t", index=False)
    assert read(legacy, card()).spots.n_obs == 11


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("4\t10\t0", "4\t10"), r"truncated or damaged: row '4x10' has 2 counts for 4 columns"),
        (lambda text: text[:-4], "truncated or damaged"),
        (lambda text: text.replace("4\t10\t0", "4\tten\t0"), "'ten' at spot 4x10, gene B"),
        (lambda text: text.replace("4\t10\t0", "4\t\t0"), "'' at spot 4x10, gene B"),
        (lambda text: text.replace("4\t10\t0", "4\t-10\t0"), "not counts, such as -10 at spot 4x10, gene B"),
        (lambda text: text.replace("4\t10\t0", "4\t1.5\t0"), r"not counts, such as 1\.5 at spot 4x10, gene B"),
        (lambda text: text.replace("4\t10\t0", "4\tnan\t0"), "not counts, such as nan at spot 4x10, gene B"),
        (lambda text: text.replace("\tC\n", "\tB\n"), "genes more than once: B"),
        (lambda text: text.replace("4x11\t", "4x10\t"), "barcodes more than once: 4x10"),
        (
            lambda text: text.replace("x", "_"),
            "do not join: counts.tsv has spots such as '3_10', spots.tsv positions such as '3x10'",
        ),
        (lambda text: text.split("\n")[0] + "\n", "is empty"),
        (lambda text: "", "is empty"),
    ],
)
def test_damaged_counts_are_refused_with_their_place(legacy, damage, message):
    path = legacy / "counts.tsv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=message):
        read(legacy, card())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "is empty"),
        (lambda text: text.replace("pixel_x", "px_x"), "no column 'pixel_x'; did you mean 'px_x'"),
        (lambda text: text.replace("\t1007.0\t", "\tx\t", 1), "pixel_y of row 2 is 'x', not a number"),
        (lambda text: text.replace("\t300.0\t", "\t\t", 1), "pixel_x of row 2 is 'nan', not a number"),
        (lambda text: text[: text.rindex("\t") - 3], "not a number"),
        (lambda text: text.replace("3.02\t10.97", "3.02\t9.97"), "array position 3x10 more than once"),
        (lambda text: text.replace("\t1\n", "\t0\n"), r"section S1 is empty: 0 spots"),
    ],
)
def test_damaged_spot_files_are_refused(legacy, damage, message):
    path = legacy / "spots.tsv"
    text = path.read_text()
    changed = damage(text)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(DataError, match=message):
        read(legacy, card())


def test_truncated_gzip_is_refused(legacy):
    write_counts(legacy / "c.tsv.gz", {f"{x}x{y}": range(300) for x, y in ARRAY}, [f"g{i}" for i in range(300)])
    data = (legacy / "c.tsv.gz").read_bytes()
    for part in (data[: len(data) // 2], data[:-6], b"no gzip at all"):
        (legacy / "c.tsv.gz").write_bytes(part)
        with pytest.raises(DataError, match=r"c\.tsv\.gz is truncated or not a table"):
            read(legacy, card(section={"counts": "c.tsv.gz"}))


def test_a_missing_file_and_a_missing_entry_are_named(legacy):
    (legacy / "he.png").unlink()
    with pytest.raises(DataError, match=r"section S1 of patient P1 lacks its file .*he\.png; run `stexpr data fetch mine`"):
        read(legacy, card())
    Image.new("RGB", (10, 10)).save(legacy / "he.png")
    with pytest.raises(CardError, match="needs `spots`"):
        read(legacy, card(section={"spots": None}))


def test_unknown_and_absent_readers(legacy):
    with pytest.raises(CardError, match="no reader 'legacy-st'; did you mean 'legacy_st'"):
        read(legacy, card("legacy-st"))
    with pytest.raises(CardError, match="names no reader: ask them"):
        read(legacy, card(None, access="gated", access_note="ask them"))
    assert set(READERS) == {"legacy_st", "h5ad", "space_ranger", "visium_hd", "xenium"}


def test_pixel_size_from_card_file_or_pitch_and_never_guessed(legacy):
    unknown = {"mpp": None}
    with pytest.raises(ScaleError, match=r"unknown: neither the card nor he\.png says, and the card has no spot_pitch_um"):
        read(legacy, card(section=unknown))
    section = read(legacy, card(section=unknown, spot_pitch_um=200))
    assert section.mpp == pytest.approx(2.0)
    assert section.mpp_source == "spot pitch (200 um / 100 px)"
    with pytest.raises(ScaleError, match="absurd"):
        read(legacy, card(section=unknown, spot_pitch_um=200_000))
    with pytest.raises(ScaleError, match="absurd"):
        read(legacy, card(section={"mpp": 50}))
    with pytest.raises(ScaleError, match="300 um at 3 um/px"):
        read(legacy, card(section={"mpp": 3}, spot_pitch_um=200))
    dpi = 25_400 / 1.5
    Image.open(legacy / "he.png").save(legacy / "he.tif", dpi=(dpi, dpi))
    section = read(legacy, card(section=unknown | {"image": "he.tif"}))
    assert (round(section.mpp, 4), section.mpp_source) == (1.5, "image file (pillow)")
    section = read(legacy, card(section={"image": "he.tif"}))
    assert (section.mpp, section.mpp_source) == (2.0, "card; the image file says 1.5")


def test_scattered_spots_do_not_shorten_the_pitch(legacy):
    table = pd.read_csv(legacy / "spots.tsv", sep="\t")
    table[["pixel_x", "pixel_y"]] += np.random.default_rng(0).normal(0, 12, (len(table), 2))
    table.to_csv(legacy / "spots.tsv", sep="\t", index=False)
    assert read(legacy, card(section={"mpp": None}, spot_pitch_um=200)).mpp == pytest.approx(2.0, rel=0.06)


def test_ensembl_versions_are_stripped_and_nothing_else(legacy):
    genes = ["ENSMUSG00000064339.1", "AC107081.1", "ENSG00000182378.14_PAR_Y"]
    write_counts(legacy / "counts.tsv", {f"{x}x{y}": [1, 2, 3] for x, y in ARRAY}, genes)
    section = read(legacy, card(gene_namespace="ensembl"))
    assert list(section.spots.var_names) == ["ENSMUSG00000064339", "AC107081.1", "ENSG00000182378_PAR_Y"]
    with pytest.raises(GeneError, match="most genes are Ensembl ids"):
        read(legacy, card())
    write_counts(legacy / "counts.tsv", {f"{x}x{y}": [1, 2] for x, y in ARRAY}, ["ENSG00000000003.1", "ENSG00000000003.2"])
    with pytest.raises(GeneError, match="more than once: ENSG00000000003"):
        read(legacy, card(gene_namespace="ensembl"))


def test_symbols_come_from_a_table_only(legacy):
    (legacy / "symbols.csv").write_text("gene,symbol\nA,ERBB2\nC,ESR1\nZ,PGR\n")
    section = read(legacy, card(symbol_table="symbols.csv"))
    assert list(section.spots.var_names) == ["ERBB2", "B", "ESR1"]
    assert section.spots.uns["stexpr"] == {"genes_renamed": 2, "genes_without_symbol": 1}
    (legacy / "symbols.csv").write_text("gene,symbol\nA,ERBB2\nC,ERBB2\n")
    with pytest.raises(GeneError, match="symbol 'ERBB2' to more than one gene"):
        read(legacy, card(symbol_table="symbols.csv"))
    (legacy / "symbols.csv").write_text("gene,symbol,more\nA,ERBB2,1\n")
    with pytest.raises(DataError, match="3 columns, not two"):
        read(legacy, card(symbol_table="symbols.csv"))


H5AD = {"counts": "s.h5ad", "spots": None}


def write_h5ad(folder, counts, **parts):
    spots = anndata.AnnData(counts, **parts)
    spots.obs_names = [f"spot{i}" for i in range(spots.n_obs)]
    spots.var_names = list("ABC")[: spots.n_vars]
    spots.write_h5ad(folder / "s.h5ad")


def test_h5ad_with_image(legacy):
    counts = np.arange(36).reshape(12, 3)
    centers = np.array(ARRAY, dtype=np.float32) * 200
    obs = pd.DataFrame({"in_tissue": pd.Categorical(["1"] * 11 + ["0"])}, index=[f"spot{i}" for i in range(12)])
    normalized = np.log1p(counts).astype(np.float32)
    write_h5ad(legacy, normalized, layers={"counts": sp.csc_matrix(counts)}, obsm={"spatial": centers}, obs=obs)
    section = read(legacy, card("h5ad", section=H5AD | {"pixel_scale": 0.5}))
    np.testing.assert_array_equal(section.spots.X.toarray(), counts)
    np.testing.assert_allclose(section.spots.obsm["spatial"], np.array(ARRAY) * 100.0)
    assert list(section.spots.obs["in_tissue"]) == [True] * 11 + [False]
    assert section.left_out == {}


def test_h5ad_without_what_is_needed(legacy):
    centers = np.array(ARRAY, dtype=float)
    for counts, parts, message in (
        (np.full((12, 3), 0.5), {"obsm": {"spatial": centers}}, "not counts, such as 0.5 at spot spot0"),
        (np.ones((12, 3)), {}, r'no obsm\["spatial"\]'),
        (np.ones((12, 3)), {"obsm": {"spatial": centers[:, :1]}}, r"shape \(12, 1\)"),
        (None, {"obsm": {"spatial": centers}, "shape": (12, 3)}, r"neither layers\[\"counts\"\] nor X"),
    ):
        write_h5ad(legacy, counts, **parts)
        with pytest.raises(DataError, match=message):
            read(legacy, card("h5ad", section=H5AD))
    data = (legacy / "s.h5ad").read_bytes()
    (legacy / "s.h5ad").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"s\.h5ad is not an AnnData file"):
        read(legacy, card("h5ad", section=H5AD))


def test_h5ad_with_repeated_barcodes_is_refused(legacy):
    spots = anndata.AnnData(np.ones((12, 3), dtype=np.float32), obsm={"spatial": np.array(ARRAY) * 100.0})
    spots.write_h5ad(legacy / "s.h5ad")
    import h5py

    with h5py.File(legacy / "s.h5ad", "r+") as file:
        file["obs/_index"][1] = file["obs/_index"][0]
    with pytest.raises(DataError, match="barcodes more than once: 0"):
        read(legacy, card("h5ad", section=H5AD))


@pytest.mark.real
def test_mob_is_read_as_published(shared_data):
    mob = load_card("mob")
    sections = [read_section(entry, shared_data / "mob", mob) for entry in mob.sections]
    assert [section.spots.n_obs for section in sections] == [379, 407, 438]
    assert sum(section.spots.n_obs for section in sections) == mob.n_spots
    assert join_genes(sections, "refuse")[0][0] == "ENSMUSG00000064339"
    assert sections[0].left_out == {"not selected": 1544, "in counts but not in spot file": 11}
    assert [section.patient for section in sections] == ["mouse1", "mouse1", "mouse2"]
    raw = pd.read_csv(shared_data / "mob" / "MOB1.tsv", sep="\t", index_col=0)
    np.testing.assert_array_equal(sections[0].spots.X.toarray(), raw.loc[sections[0].spots.obs_names].to_numpy())


@pytest.mark.real
def test_her2st_is_read_as_published(shared_data):
    her2st = load_card("her2st")
    sections = {entry.section: read_section(entry, shared_data / "her2st", her2st) for entry in her2st.sections}
    shapes = {name: section.spots.n_obs for name, section in sections.items()}
    assert shapes == {"A1": 346, "C2": 187, "C3": 180, "C4": 184, "C5": 181, "C6": 178}
    missing = {name: section.left_out.get("in spot file but not in counts", 0) for name, section in sections.items()}
    assert missing == {"A1": 2, "C2": 0, "C3": 2, "C4": 3, "C5": 2, "C6": 1}
    raw = pd.read_csv(shared_data / "her2st" / "counts" / "C3.tsv.gz", sep="\t", index_col=0)
    np.testing.assert_array_equal(sections["C3"].spots.X.toarray(), raw.to_numpy())
    assert len(join_genes(list(sections.values()), "zero")[0]) == 17_589
    assert len(join_genes(list(sections.values()), "intersect")[0]) == 13_772
    for section in sections.values():
        centers = section.spots.obsm["spatial"]
        assert (centers > 0).all()
        assert (centers < [section.image.width, section.image.height]).all()
