import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.readers import read_folder
from stexpr.data.readers.xenium import affine_scale, read_alignment, to_image
from stexpr.errors import ConfigError, DataError, GeneError, ScaleError
from vendor_folders import XENIUM_MPP, make_tissue, write_xenium


@pytest.fixture(scope="module")
def tissue():
    return make_tissue()


@pytest.fixture(scope="module")
def original(tissue, tmp_path_factory):
    return write_xenium(tmp_path_factory.mktemp("xenium") / "x1", tissue)


@pytest.fixture
def copy(original, tmp_path):
    """A copy of the folder that may be damaged."""
    shutil.copytree(original.folder, tmp_path / "x1")
    return tmp_path / "x1"


@pytest.mark.parametrize(
    "made", [{"version": 1}, {"version": 3}, {"version": 3, "panel": False}, {"version": 1, "panel": False}], ids=str
)
def test_every_version_counts_the_same(tmp_path, tissue, made):
    written = write_xenium(tmp_path / "x1", tissue, **made)
    section = read_folder(written.folder, pseudo_spot_um=55)
    good = written.counts[:, 0]
    names = np.array(written.barcodes)[good]
    panel = made.get("panel", True)
    assert (section.gene_namespace, section.spot_pitch_um) == ("ensembl" if panel else "symbol", 55)
    symbols = list(section.spots.var["symbol"]) if panel else list(section.spots.var_names)
    assert sorted(symbols) == sorted(tissue.symbols)
    totals = dict(zip(symbols, np.asarray(section.spots.X.sum(axis=0)).ravel(), strict=True))
    assert totals == {symbol: int((names == symbol).sum()) for symbol in tissue.symbols}
    told = section.spots.uns["stexpr"]
    assert told["transcripts"] == len(good) == told["transcripts_pooled"] + sum(told["transcripts_left_out"].values())
    assert set(told["transcripts_left_out"]) == {
        "antisense probe", "blank codeword", "deprecated codeword", "genomic control probe", "negative control codeword",
        "negative control probe", "quality value below 20", "unassigned codeword",
    }  # fmt: skip
    assert section.notes[0] == "transcripts pooled into squares of 55 um"
    assert len(section.notes) == 1 + len(told["transcripts_left_out"])


def test_each_square_holds_the_transcripts_around_its_center(original, tissue):
    section = read_folder(original.folder, pseudo_spot_um=60)
    matrix = read_alignment(original.folder / "made_he_imagealignment.csv")
    centers = section.spots.obsm["spatial"]
    good = original.centers[original.counts[:, 0]]
    # On Xenium's axes, where the squares are straight.
    moved, squares = (points @ matrix[:2, :2].T * XENIUM_MPP for points in (good, centers))
    nearest = np.abs(moved[:, None] - squares[None]).max(axis=2)
    inside = nearest <= 30.01
    assert (inside.sum(axis=1) >= 1).all()
    counts = np.asarray(section.spots.X.sum(axis=1)).ravel()
    assert np.abs(inside.sum(axis=0) - counts).max() <= 1  # a point on an edge may round to either side
    assert section.mpp == pytest.approx(2.0, rel=1e-3)
    assert section.mpp_source.startswith("alignment (9.41")
    assert section.image.backend == "openslide"


def test_the_colors_under_the_squares_explain_the_counts(original, tissue):
    """The affine the wrong way round, or x and y swapped, would break this."""
    section = read_folder(original.folder, pseudo_spot_um=40)
    centers = section.spots.obsm["spatial"]
    inside = tissue.in_tissue(centers)
    expected = tissue.rates(centers[inside], 1.0)
    counts = section.spots[inside].X.toarray().astype(float)
    gene = expected.std(axis=0).argmax()
    share = counts[:, gene] / counts.sum(axis=1)
    assert np.corrcoef(share, expected[:, gene] / expected.sum(axis=1))[0, 1] > 0.5


@settings(deadline=None)
@given(
    angle=st.floats(-np.pi, np.pi),
    scale=st.floats(0.1, 20),
    shift=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)),
    mirrored=st.booleans(),
    points=st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 1e5)), min_size=1, max_size=5),
)
def test_the_affine_there_and_back(angle, scale, shift, mirrored, points):
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turn[:, 0] *= -1 if mirrored else 1
    matrix = np.vstack([np.column_stack([turn, shift]), [0.0, 0.0, 1.0]])
    image = np.array(points)
    um = (np.column_stack([image, np.ones(len(image))]) @ matrix.T)[:, :2] * XENIUM_MPP
    np.testing.assert_allclose(to_image(um, matrix, XENIUM_MPP), image, atol=1e-4)
    assert affine_scale(matrix) == pytest.approx(scale)


def test_the_documented_direction():
    """The worked example of 10x Genomics: (0, 0) of the H&E is (807.98, 73097.66) on the morphology image."""
    matrix = np.array(
        [
            [0.011071028838929093, 1.2895790134339569, 807.9788953065927],
            [-1.2895790134339569, 0.011071028838929093, 73097.655174759],
            [0.0, 0.0, 1.0],
        ]
    )
    um = np.array([[807.9788953065927, 73097.655174759]]) * XENIUM_MPP
    np.testing.assert_allclose(to_image(um, matrix, XENIUM_MPP), [[0.0, 0.0]], atol=1e-6)
    assert affine_scale(matrix) * XENIUM_MPP == pytest.approx(0.274, rel=1e-3)


def test_a_matrix_the_wrong_way_round_contradicts_the_image(copy):
    path = copy / "made_he_imagealignment.csv"
    np.savetxt(path, np.linalg.inv(np.loadtxt(path, delimiter=",")), delimiter=",")
    with pytest.raises(ScaleError, match=r"absurd|contradicts 2 um/px \(the image file"):
        read_folder(copy, pseudo_spot_um=55)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("1,0,0\n0,1,0\n", DataError, "not a 3 x 3 affine matrix"),
        ("1,0,0\n0,1,0\n0,0.1,1\n", DataError, "whose last line is 0,0,1"),
        ("1,0,nan\n0,1,0\n0,0,1\n", DataError, "not a 3 x 3 affine matrix"),
        ("fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n", DataError, "is not a matrix"),
        ("1,0,0\n0,2,0\n0,0,1\n", ScaleError, "stretches the image by 2 one way and 1 the other"),
        ("1,1,0\n1,1,0\n0,0,1\n", ScaleError, "stretches the image"),
        ("0,0,0\n0,0,0\n0,0,1\n", ScaleError, "absurd|stretches"),
    ],
)
def test_matrices_that_align_nothing(copy, text, error, message):
    (copy / "made_he_imagealignment.csv").write_text(text)
    with pytest.raises(error, match=message):
        read_folder(copy, pseudo_spot_um=55)


def test_an_alignment_to_another_place_is_refused(copy):
    path = copy / "made_he_imagealignment.csv"
    matrix = np.loadtxt(path, delimiter=",")
    matrix[0, 2] += 50_000
    np.savetxt(path, matrix, delimiter=",")
    with pytest.raises(DataError, match=r"only 0 of \d+ spots lie on made_he_image\.ome\.tif"):
        read_folder(copy, pseudo_spot_um=55)


def test_what_is_missing_is_named(copy):
    with pytest.raises(ConfigError, match="say pseudo_spot_um, such as 55 um"):
        read_folder(copy)
    with pytest.raises(ConfigError, match="pseudo_spot_um is -5; it is a length"):
        read_folder(copy, pseudo_spot_um=-5)
    for name, message in (
        ("made_he_imagealignment.csv", "name the alignment of made_he_image"),
        ("made_he_image.ome.tif", r"holds 0 files named \*he_image\.ome\.tif"),
        ("transcripts.parquet", "lacks its transcripts"),
        ("experiment.xenium", "lacks its manifest"),
    ):
        (copy / name).rename(copy / "away")
        with pytest.raises(DataError, match=message):
            read_folder(copy, pseudo_spot_um=55)
        (copy / "away").rename(copy / name)
    manifest = json.loads((copy / "experiment.xenium").read_text())
    for value, message in ((None, "says no pixel_size"), (212.5, "absurd")):
        (copy / "experiment.xenium").write_text(json.dumps(manifest | {"pixel_size": value}))
        with pytest.raises(DataError, match=message):
            read_folder(copy, pseudo_spot_um=55)


def test_ids_are_never_guessed(copy, tissue):
    (copy / "cell_feature_matrix.h5").unlink()
    with pytest.raises(GeneError, match="holds no cell_feature_matrix to tell their Ensembl ids"):
        read_folder(copy, pseudo_spot_um=55, gene_namespace="ensembl")
    section = read_folder(copy, pseudo_spot_um=55, gene_namespace="symbol")
    assert set(section.spots.var_names) == set(tissue.symbols)


def test_genes_that_nothing_shows_and_genes_off_the_panel(copy, tissue):
    path = copy / "transcripts.parquet"
    table = pq.read_table(path).to_pandas()
    table.loc[table["feature_name"] == "GENE3", "feature_name"] = "NEWGENE"
    table.to_parquet(path)
    section = read_folder(copy, pseudo_spot_um=55)
    assert list(section.spots.var_names) == [*tissue.ids, "NEWGENE"]
    assert section.spots[:, tissue.ids[3]].X.sum() == 0 < section.spots[:, "NEWGENE"].X.sum()
    assert section.spots.uns["stexpr"]["genes_not_in_the_panel"] == ["NEWGENE"]
