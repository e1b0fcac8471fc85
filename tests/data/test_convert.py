"""A section into other formats and back, without loss."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from stexpr.data.convert import ConvertConfig, convert, read_any
from stexpr.data.images import ArrayImage
from stexpr.data.pyramid import pyramid_sizes, write_pyramid
from stexpr.data.section import Section
from stexpr.data.section_files import write_h5ad, write_hest
from stexpr.data.spatialdata import write_spatialdata
from stexpr.errors import ConfigError, DataError, ScaleError, StexprError
from vendor_folders import make_tissue, write_space_ranger

NAMES = st.text("abcXYZ019_-.", min_size=1, max_size=6)
COLUMN = st.sampled_from(["score", "percent_mito", "cluster", "array_row", "region", "instance_id"])
TARGETS = ("one.h5ad", "one.zarr", "folder")


@st.composite
def columns(draw: st.DrawFn, n: int) -> dict[str, Any]:
    """Columns of the kinds that tables have."""
    kinds = {
        "number": hnp.arrays(np.float64, n, elements=st.floats(-1e6, 1e6, width=64)),
        "whole": hnp.arrays(np.int64, n, elements=st.integers(-9, 2**40)),
        "truth": hnp.arrays(np.bool_, n),
        "text": st.lists(st.text(max_size=5).filter(lambda text: "\0" not in text), min_size=n, max_size=n),
        "category": st.lists(st.sampled_from("uvw"), min_size=n, max_size=n).map(pd.Categorical),
    }
    chosen = draw(st.lists(COLUMN, unique=True, max_size=4))
    return {name: draw(kinds[draw(st.sampled_from(sorted(kinds)))]) for name in chosen}


@st.composite
def parts(draw: st.DrawFn) -> dict[str, Any]:
    """Parts of any section: sparse or dense counts, odd names, positions between pixels, columns of all kinds."""
    n, genes = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    names = [draw(st.lists(NAMES, min_size=size, max_size=size, unique=True)) for size in (n, genes)]
    return {
        "counts": draw(hnp.arrays(np.float32, (n, genes), elements=st.integers(0, 1000).map(float))),
        "kind": draw(st.sampled_from(["csr", "csc", "dense"])),
        "obs": (names[0], draw(columns(n))),
        "var": (names[1], draw(columns(genes))),
        "centers": draw(hnp.arrays(np.float64, (n, 2), elements=st.floats(-5, 400, width=64))),
        "size": (draw(st.integers(20, 300)), draw(st.integers(20, 300))),
        "seed": draw(st.integers(0, 99)),
        "words": {
            "name": draw(st.sampled_from(["A1", "TENX 99", "b.2"])),
            "patient": draw(st.text("abc é", min_size=1)).strip() or "p",
            "mpp": draw(st.floats(0.06, 15)),
            "gene_namespace": draw(st.sampled_from(["ensembl", "symbol", "other"])),
            "left_out": draw(st.dictionaries(st.sampled_from(["not in tissue", "a/b"]), st.integers(1, 9))),
            "spot_diameter_um": draw(st.none() | st.floats(1, 200)),
            "notes": draw(st.sampled_from([(), ("measured twice",)])),
        },
    }


def section_of(parts: dict[str, Any]) -> Section:
    counts = parts["counts"]
    spots = anndata.AnnData(
        {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[parts["kind"]](counts),
        obs=pd.DataFrame(parts["obs"][1], index=parts["obs"][0]),
        var=pd.DataFrame(parts["var"][1], index=parts["var"][0]),
        obsm={"spatial": parts["centers"], "X_pca": parts["centers"] / 3},
        layers={"raw": sp.csr_matrix(counts) * 2},
        uns={"made_by": "hand"},
    )
    pixels = np.random.default_rng(parts["seed"]).integers(0, 256, (*parts["size"], 3), dtype=np.uint8)
    return Section(spots=spots, image=ArrayImage(pixels), mpp_source="scanner log", **parts["words"])


def pixels_of(section: Section) -> np.ndarray:
    with section.image as image:
        side = max(image.width, image.height)
        return image.read(0, 0, side, side)[: image.height, : image.width]


def dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def assert_same(found: Section, expected: Section) -> None:
    """Everything a section holds is equal, and columns keep their kind."""
    for key in ("patient", "mpp", "mpp_source", "gene_namespace", "left_out", "spot_diameter_um", "spot_pitch_um", "notes"):
        assert getattr(found, key) == getattr(expected, key), key
    assert found.name == expected.name
    np.testing.assert_array_equal(pixels_of(found), pixels_of(expected))
    a, b = found.spots, expected.spots
    np.testing.assert_array_equal(dense(a.X), dense(b.X))
    assert a.X.dtype == b.X.dtype
    np.testing.assert_array_equal(a.obsm["spatial"], b.obsm["spatial"])
    np.testing.assert_array_equal(a.obsm["X_pca"], b.obsm["X_pca"])
    np.testing.assert_array_equal(dense(a.layers["raw"]), dense(b.layers["raw"]))
    assert a.uns["made_by"] == "hand"
    for one, other in ((a.obs, b.obs), (a.var, b.var)):
        pd.testing.assert_frame_equal(one, other, check_index_type=False, check_categorical=False)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(parts=parts(), path=st.permutations(TARGETS))
def test_any_round_through_all_formats_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, parts: dict[str, Any], path: list[str]
) -> None:
    section = section_of(parts)
    folder = tmp_path_factory.mktemp("round")
    write_h5ad(section, folder / "start.h5ad")
    source = folder / "start.h5ad"
    for name in [*path, "end.h5ad"]:
        convert(source, folder / name, to=None if "." in name else "hest")
        source = folder / name
        assert_same(read_any(source), section)


@pytest.fixture
def section() -> Section:
    """Twelve spots on a lattice."""
    rng = np.random.default_rng(0)
    y, x = np.divmod(np.arange(12), 4)
    spots = anndata.AnnData(
        sp.csr_matrix(rng.poisson(2, (12, 5)).astype(np.float32)),
        obs=pd.DataFrame({"cluster": ["a", "b"] * 6}, index=[f"AAAC{i}-1" for i in range(12)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(5)]),
        obsm={"spatial": np.stack([x, y], axis=1) * 50.0 + 30},
        layers={"raw": sp.csr_matrix((12, 5), dtype=np.float32)},
        uns={"made_by": "hand"},
    )
    spots.obsm["X_pca"] = np.zeros((12, 2))
    image = ArrayImage(rng.integers(0, 256, (180, 240, 3), dtype=np.uint8))
    return Section("A1", "P", spots, image, 0.5, "scanner log", "symbol", {}, 20.0, 25.0)


@pytest.fixture
def saved(section: Section, tmp_path: Path) -> Path:
    write_h5ad(section, tmp_path / "one.h5ad")
    return tmp_path / "one.h5ad"


# --- the files, as others read them ------------------------------------------------------------------------------------


def test_scanpy_and_tifffile_read_the_pair(saved: Path, section: Section) -> None:
    import tifffile

    spots = anndata.read_h5ad(saved)
    library = spots.uns["spatial"]["A1"]
    assert library["metadata"]["source_image_path"] == "one.tif"
    assert library["scalefactors"]["spot_diameter_fullres"] == 40.0
    assert library["images"]["hires"].shape == (180, 240, 3)
    np.testing.assert_array_equal(tifffile.imread(saved.with_suffix(".tif")), pixels_of(section))


def test_openslide_reads_the_pyramid_and_its_scale(tmp_path: Path) -> None:
    import openslide

    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (30, 43, 3)), np.ones((70, 70, 1))).astype(np.uint8)[:2051, :3001]
    write_pyramid(tmp_path / "he.tif", ArrayImage(pixels), 0.25)
    with openslide.OpenSlide(tmp_path / "he.tif") as slide:
        assert list(slide.level_dimensions) == pyramid_sizes(3001, 2051) == [(3001, 2051), (1500, 1025), (750, 512)]
        region = slide.read_region((0, 0), 0, (3001, 2051)).convert("RGB")
        np.testing.assert_array_equal(np.asarray(region), pixels)
        small = np.asarray(slide.read_region((0, 0), 2, (750, 512)).convert("RGB"))
    expected = np.asarray(Image.fromarray(pixels).resize((750, 512), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - expected).mean() < 6  # but for the edges of the squares


def test_a_hest_folder_has_the_keys_of_hest(section: Section, saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "hest", to="hest")
    said = json.loads((tmp_path / "hest" / "metadata" / "A1.json").read_text())
    assert (said["id"], said["pixel_size_um_estimated"], said["spot_diameter"]) == ("A1", 0.5, 20.0)
    hest = anndata.read_h5ad(tmp_path / "hest" / "st" / "A1.h5ad").uns["spatial"]["ST"]
    assert hest["images"]["downscaled_fullres"].dtype == np.uint8
    assert (tmp_path / "hest" / "wsis" / "A1.tif").is_file()


def test_several_sections_share_a_hest_folder(section: Section, saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "hest", to="hest")
    convert(saved, tmp_path / "hest", to="hest", config=ConvertConfig(section="B1", patient="Q"))
    with pytest.raises(DataError, match=r"holds 2 sections: A1, B1; choose one with section=NAME"):
        read_any(tmp_path / "hest")
    assert read_any(tmp_path / "hest", ConvertConfig(section="B1")).patient == "Q"
    with pytest.raises(DataError, match="holds no section 'C1'"):
        read_any(tmp_path / "hest", ConvertConfig(section="C1"))
    with pytest.raises(DataError, match="exists already"):
        convert(saved, tmp_path / "hest", to="hest")


# --- what the caller says, and what others wrote ------------------------------------------------------------------------


def test_the_callers_word_goes_first_and_is_recorded(saved: Path) -> None:
    found = read_any(saved, ConvertConfig(mpp=0.55, patient="Q", section="B", gene_namespace="other"))
    assert (found.mpp, found.mpp_source) == (0.55, "given; scanner log says 0.5")
    assert (found.patient, found.name, found.gene_namespace) == ("Q", "B", "other")


def foreign(saved: Path, change: Callable[[anndata.AnnData], Any] = lambda spots: None) -> None:
    spots = anndata.read_h5ad(saved)
    del spots.uns["stexpr"]
    change(spots)
    spots.write_h5ad(saved)


def test_a_file_of_others_needs_what_it_does_not_say(saved: Path, tmp_path: Path) -> None:
    foreign(saved)
    found = read_any(saved)
    assert (found.name, found.patient, found.gene_namespace) == ("one", "one", "other")
    assert found.mpp == pytest.approx(0.5)
    assert found.mpp_source.startswith("image file")
    Image.fromarray(pixels_of(found)).save(tmp_path / "plain.png")
    with pytest.raises(ScaleError, match=r"microns per pixel are unknown.*give mpp.*while reading .*one\.h5ad as h5ad"):
        read_any(saved, ConvertConfig(image=str(tmp_path / "plain.png")))
    assert read_any(saved, ConvertConfig(image=str(tmp_path / "plain.png"), mpp=0.7)).mpp == 0.7


@pytest.mark.parametrize("name", ["../he.tif", "/etc/passwd", "..\\he.tif"])
def test_a_file_cannot_name_an_image_outside_its_folder(saved: Path, name: str) -> None:
    foreign(saved, lambda spots: spots.uns["spatial"]["A1"]["metadata"].update(source_image_path=name))
    saved.with_suffix(".tif").rename(saved.parent / "he.tif")
    with pytest.raises(DataError, match=r"the image of one\.h5ad is not clear.*image=FILE"):
        read_any(saved)


def test_words_that_are_not_ours_are_refused(saved: Path) -> None:
    foreign(saved, lambda spots: spots.uns.update(stexpr={"section": '{"name": 3}'}))
    with pytest.raises(DataError, match="is not what stexpr writes"):
        read_any(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spots: spots.obsm.pop("spatial"), r"has no obsm\[\"spatial\"\]"),
        (lambda spots: setattr(spots, "obs_names", ["x"] * 12), "barcodes more than once: x"),
        (lambda spots: spots.obsm.update(spatial=np.full((12, 2), np.nan)), "two finite numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* names are not unique:UserWarning")
def test_spots_without_names_or_places_are_refused(saved: Path, change: Callable[..., Any], message: str) -> None:
    foreign(saved, change)
    with pytest.raises(StexprError, match=message):
        read_any(saved)


def test_normalized_values_travel_too(saved: Path, tmp_path: Path) -> None:
    foreign(saved, lambda spots: setattr(spots, "X", np.log1p(spots.X.toarray())))
    convert(saved, tmp_path / "other.zarr")
    np.testing.assert_array_equal(dense(read_any(tmp_path / "other.zarr").spots.X), dense(anndata.read_h5ad(saved).X))


@pytest.mark.parametrize(
    ("target", "to", "message"),
    [
        ("x", None, "Say --to h5ad, spatialdata or hest"),
        ("x.zarr", "h5ad", r"ends in \.h5ad"),
        ("x", "spatialdata", r"ends in \.zarr"),
        ("x", "spatial", r"does not write the format 'spatial'; did you mean 'spatialdata'"),
        ("x", "instrument", "does not write the format 'instrument'"),
    ],
)
def test_an_unclear_target_is_refused(saved: Path, tmp_path: Path, target: str, to: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(saved, tmp_path / target, to=to)
    assert not (tmp_path / target).exists()


def test_a_setting_of_another_format_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"bin_um is for a source in the format instrument; .* is h5ad"):
        read_any(saved, ConvertConfig(bin_um=8))
    with pytest.raises(ConfigError, match="table is for a source in the format spatialdata"):
        read_any(saved, ConvertConfig(table="table"))


def test_a_source_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        read_any(tmp_path / "nothing")
    (tmp_path / "broken.h5ad").write_text("x")
    with pytest.raises(DataError, match=r"cannot read .*broken\.h5ad as AnnData"):
        read_any(tmp_path / "broken.h5ad")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="as instrument"):
        read_any(tmp_path / "empty")


@pytest.mark.parametrize("write", [write_h5ad, write_hest, write_spatialdata])
def test_a_failed_write_leaves_nothing(section: Section, tmp_path: Path, write: Callable[[Section, Path], None]) -> None:
    section.spots.uns["made_by"] = object()
    with pytest.raises(Exception, match=r"object|write"):
        write(section, tmp_path / "one.h5ad")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_instruments_folder_is_a_source(tmp_path: Path) -> None:
    written = write_space_ranger(tmp_path / "visium", make_tissue())
    made = convert(written.folder, tmp_path / "visium.zarr", config=ConvertConfig(image=str(written.image), section="V1"))
    back = read_any(tmp_path / "visium.zarr")
    assert (back.name, back.mpp, back.left_out, back.notes) == ("V1", made.mpp, made.left_out, made.notes)
    found = pd.DataFrame(dense(back.spots.X), index=back.spots.obs_names).loc[list(written.barcodes)]
    np.testing.assert_array_equal(found, written.counts)
    pd.testing.assert_frame_equal(back.spots.var, made.spots.var, check_index_type=False)
    with pytest.raises(ConfigError, match="bin_um is not for a folder of kind space_ranger"):
        read_any(written.folder, ConvertConfig(bin_um=8))


@pytest.mark.real
def test_a_section_of_the_olfactory_bulb_goes_round(shared_data: Path, tmp_path: Path) -> None:
    from stexpr.data.cards import load_card
    from stexpr.data.readers import read_section

    card = load_card("mob")
    section = read_section(card.sections[0], shared_data / "mob", card)
    section.spots.obsm["X_pca"] = np.zeros((section.spots.n_obs, 2))
    section.spots.layers["raw"] = section.spots.X.copy()
    section.spots.uns["made_by"] = "hand"
    write_h5ad(section, tmp_path / "mob.h5ad")
    convert(tmp_path / "mob.h5ad", tmp_path / "mob.zarr")
    convert(tmp_path / "mob.zarr", tmp_path / "hest", to="hest")
    assert_same(read_any(tmp_path / "hest"), section)
