"""Features and predictions in an AnnData: those of the patches, whatever holds the image, and nothing else touched."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import stexpr
from small_models import GENES, WINDOW_PX, small_model, small_section
from stexpr import tl
from stexpr.data.images import open_image
from stexpr.data.provenance import noted
from stexpr.errors import DataError, DataWarning, DomainWarning, ModelError, ScaleError
from stexpr.models.export import Release, save_ensemble
from stexpr.models.export.applicability import Views, appearance, fit_applicability
from stexpr.models.export.intervals import PredictionIntervals

Section = tuple[Any, Path]


def by_hand(model: Any, pixels: np.ndarray, centers: np.ndarray, side: int = WINDOW_PX) -> Any:
    """Cut the patches and call the model, with nothing of ours between."""
    return model(patches_of(pixels, centers, side))


def patches_of(pixels: np.ndarray, centers: np.ndarray, side: int = WINDOW_PX) -> torch.Tensor:
    corners = np.round(centers - side / 2).astype(int)
    patches = [Image.fromarray(pixels[y : y + side, x : x + side]) for x, y in corners]
    resized = [np.array(patch.resize((WINDOW_PX, WINDOW_PX), Image.Resampling.BILINEAR)) for patch in patches]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5, rtol=1e-4)


def test_features_and_expression_are_those_of_the_patches(model: Any, section: Section) -> None:
    adata, image = section
    tl.predict(adata, model, image=image, mpp=1.0)
    output = by_hand(model, np.array(Image.open(image)), adata.obsm["spatial"])
    close(adata.obsm["X_stexpr"], output.features)
    close(adata.obsm["stexpr_expression"], output.expression)
    assert list(adata.obsm["stexpr_expression"].columns) == list(GENES)
    assert (adata.obsm["stexpr_expression"].index == adata.obs_names).all()
    assert "stexpr_novelty" not in adata.obs  # the model has no reference
    assert "stexpr_spread" not in adata.obsm


def test_one_pass_gives_what_two_give(model: Any, section: Section) -> None:
    adata, image = section
    whole = tl.predict(adata, model, image=image, mpp=1.0, key_added="a", copy=True)
    assert tl.embed(adata, model, image=image, mpp=1.0, key_added="X_mine") is None
    tl.predict_expression(adata, model, image=image, mpp=1.0)
    np.testing.assert_array_equal(adata.obsm["X_mine"], whole.obsm["X_a"])
    np.testing.assert_array_equal(adata.obsm["stexpr_expression"], whole.obsm["a_expression"])


def with_picture(adata: Any, picture: Any, scale: float, **more: Any) -> Any:
    own = adata.copy()
    own.uns["spatial"] = {"lib": {"images": {"hires": picture}, "scalefactors": {"tissue_hires_scalef": scale}, **more}}
    return own


def test_the_image_comes_from_wherever_it_is(model: Any, section: Section, tmp_path: Path) -> None:
    adata, file = section
    pixels = np.array(Image.open(file))
    expected = tl.embed(adata, model, image=file, mpp=1.0, copy=True).obsm["X_stexpr"]
    with open_image(file) as opened:
        for image in (str(file), opened, pixels, pixels / 255, np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])):
            np.testing.assert_array_equal(tl.embed(adata, model, image=image, mpp=1.0, copy=True).obsm["X_stexpr"], expected)
    stored = with_picture(adata, (pixels / 255).astype(np.float32), 1.0)
    tl.embed(stored, model, mpp=1.0)
    np.testing.assert_array_equal(stored.obsm["X_stexpr"], expected)
    said = noted(stored, "X_stexpr")["sections"][0]
    assert said["image"] == "the picture 'hires' of uns[\"spatial\"]"
    named = with_picture(adata, pixels[::4, ::4], 0.25, metadata={"source_image_path": str(file)})
    tl.embed(named, model, mpp=1.0, library_id="lib")
    np.testing.assert_array_equal(named.obsm["X_stexpr"], expected)
    assert noted(named, "X_stexpr")["sections"][0]["image"] == str(file)


@pytest.mark.parametrize("path", ["tissue.tif", "/nowhere/tissue.tif"])
def test_a_named_file_that_cannot_be_taken_is_said(model: Any, section: Section, path: str) -> None:
    adata, file = section
    own = with_picture(adata, np.array(Image.open(file)), 1.0, metadata={"source_image_path": path})
    with pytest.warns(DataWarning, match=f"'hires'.* its source_image_path {path!r} (is relative|does not exist)"):
        tl.embed(own, model, mpp=1.0)
    del own.uns["spatial"]["lib"]["images"]
    with pytest.raises(DataError, match=r"there is no image.*source_image_path"):
        tl.embed(own, model, mpp=1.0)


def test_a_finer_image_is_reduced_and_a_coarser_one_warned_of(section: Section, tmp_path: Path) -> None:
    adata, file = section
    pixels = np.array(Image.open(file))
    model = small_model(folder=tmp_path / "coarse", mpp=2.0)
    inner = adata[(adata.obsm["spatial"] > 32).all(axis=1) & (adata.obsm["spatial"] < 288).all(axis=1)].copy()
    tl.predict(inner, model, image=file, mpp=1.0)
    close(inner.obsm["X_stexpr"], by_hand(model, pixels, inner.obsm["spatial"], side=64).features)
    assert noted(inner, "X_stexpr")["model_mpp"] == 2.0
    fine = small_model(folder=tmp_path / "fine", mpp=0.5)
    with pytest.warns(DomainWarning, match="the image has 1 um/px, coarser than the 0.5"):
        tl.embed(inner, fine, image=file, mpp=1.0)
    assert "coarser" in noted(inner, "X_stexpr")["sections"][0]["foreign"][0]
    small = with_picture(inner, pixels[::2, ::2], 0.5)
    with pytest.warns(DomainWarning, match="the image has 2 um/px, coarser than the 0.5"):
        tl.embed(small, fine, mpp=1.0)


def test_another_species_is_warned_of_and_recorded(model: Any, section: Section) -> None:
    adata, file = section
    with pytest.warns(DomainWarning, match="species: the image is of Homo sapiens, the model was trained on Mus musculus"):
        tl.embed(adata, model, image=file, mpp=1.0, species="Homo sapiens", preservation="Fresh Frozen")
    said = noted(adata, "X_stexpr")
    assert len(said["sections"][0]["foreign"]) == 1
    assert (said["species"], said["preservation"]) == ("Homo sapiens", "Fresh Frozen")


def test_pixel_sizes(model: Any, section: Section) -> None:
    adata, file = section
    with pytest.raises(ScaleError, match=r"microns per pixel are unknown: neither .*s\.png nor.*pass mpp="):
        tl.embed(adata, model, image=file)
    with pytest.raises(ScaleError, match="50 um/px is absurd"):
        tl.embed(adata, model, image=file, mpp=50.0)
    factors = {"spot_diameter_fullres": 65.0, "tissue_hires_scalef": 1.0}
    own = with_picture(adata, np.array(Image.open(file)), 1.0, scalefactors=factors)
    with pytest.raises(ScaleError, match=r"spot_diameter_um=, what the 65 px of spot_diameter_fullres span \(65 where Space"):
        tl.embed(own, model)
    tl.embed(own, model, spot_diameter_um=65.0)
    assert noted(own, "X_stexpr")["sections"][0]["source"] == "spots of 65 um"
    factors["microns_per_pixel"] = 1.0
    own = with_picture(adata, np.array(Image.open(file)), 1.0, scalefactors=factors)
    tl.embed(own, model, spot_diameter_um=55.0)
    said = noted(own, "X_stexpr")["sections"][0]
    assert (said["mpp"], said["source"]) == (1.0, "scale factors; spots of 55 um says 0.8462")


@pytest.fixture
def at_the_edge(section: Section) -> Section:
    adata, file = section
    adata.obsm["spatial"][0] = (15.0, 160.0)  # half a window is 16 px
    adata.obsm["spatial"][1] = (-200.0, 160.0)
    return adata, file


def test_a_patch_that_leaves_the_image_is_nan_unless_told_otherwise(model: Any, at_the_edge: Section) -> None:
    adata, file = at_the_edge
    with pytest.warns(DataWarning, match=r"2 of 64 spots: the patch \(32 um wide, 32 px\) leaves .* 320 x 320 px"):
        tl.predict(adata, model, image=file, mpp=1.0)
    for table in (adata.obsm["X_stexpr"], adata.obsm["stexpr_expression"].to_numpy()):
        np.testing.assert_array_equal(np.isnan(table).all(axis=1), np.arange(64) < 2)
        np.testing.assert_array_equal(np.isnan(table).any(axis=1), np.arange(64) < 2)
    assert noted(adata, "X_stexpr")["sections"][0]["left_out"] == {"patch leaves the image": 2}
    padded = tl.embed(adata, model, image=file, mpp=1.0, edge="pad", copy=True)
    white = np.pad(np.array(Image.open(file)), ((16, 16), (16, 16), (0, 0)), constant_values=255)
    close(padded.obsm["X_stexpr"][:1], by_hand(model, white, adata.obsm["spatial"][:1] + 16).features)
    with pytest.raises(DataError, match=r"2 of 64 spots: the patch.*edge='nan' or edge='pad'"):
        tl.embed(adata, model, image=file, mpp=1.0, edge="raise")


@given(st.permutations(range(64)), st.integers(1, 64), st.integers(1, 70))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_prediction_is_a_function_of_the_patch_alone(model: Any, whole: Any, order: list[int], n: int, size: int) -> None:
    adata, file, expected = whole
    some = adata[order[:n]].copy()
    tl.embed(some, model, image=file, mpp=1.0, batch_size=size)
    close(some.obsm["X_stexpr"], expected[order[:n]])


@pytest.fixture(scope="module")
def whole(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, np.ndarray]:
    adata, file = small_section(tmp_path_factory.mktemp("whole"))
    return adata, file, tl.embed(adata, model, image=file, mpp=1.0, copy=True).obsm["X_stexpr"]


def test_a_copy_leaves_its_input_alone(model: Any, section: Section) -> None:
    adata, file = section
    before = adata.copy()
    own = tl.predict(adata, model, image=file, mpp=1.0, copy=True)
    assert "X_stexpr" in own.obsm
    assert list(adata.obsm) == list(before.obsm)
    assert "stexpr" not in adata.uns
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_a_view_becomes_an_anndata_of_its_own(model: Any, section: Section) -> None:
    adata, file = section
    view = adata[10:20]
    tl.predict(view, model, image=file, mpp=1.0)
    assert not view.is_view
    assert view.obsm["X_stexpr"].shape == (10, model.n_features)
    assert "X_stexpr" not in adata.obsm
    assert "stexpr" not in adata.uns


def test_everything_survives_the_way_through_a_file(model: Any, section: Section, tmp_path: Path) -> None:
    adata, file = section
    adata.uns["stexpr"] = {"genes_renamed": np.int64(3)}  # what a reader leaves there
    tl.embed(adata, model, image=file, mpp=1.0)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    tl.predict_expression(again, model, image=file, mpp=1.0)
    again.write_h5ad(tmp_path / "b.h5ad")
    last = anndata.read_h5ad(tmp_path / "b.h5ad")
    pd.testing.assert_frame_equal(last.obsm["stexpr_expression"], again.obsm["stexpr_expression"])
    np.testing.assert_array_equal(last.obsm["X_stexpr"], adata.obsm["X_stexpr"])
    said = json.loads(last.uns["stexpr"])
    assert said["genes_renamed"] == 3
    assert set(said["tl"]) == {"X_stexpr", "stexpr_expression"}
    one = said["tl"]["X_stexpr"]
    assert one == noted(adata, "X_stexpr")
    assert one["model"]["hash"] == model.hash
    assert one["model"]["species"] == "Mus musculus"
    assert one["expression"] == {"kind": "library_log1p", "target_sum": 1e4, "n_genes": 0}


@pytest.fixture
def ensemble(model: Any, section: Section, tmp_path: Path) -> Any:
    """Two networks, the second of other genes, with intervals and training features."""
    adata, file = section
    other = small_model(("G01", "G09", "G00"), seed=1, folder=tmp_path / "other")
    seen = appearance(patches_of(np.array(Image.open(file)), adata.obsm["spatial"]))
    members = []
    for member in (model, other):
        features = torch.from_numpy(tl.embed(adata, member, image=file, mpp=1.0, copy=True).obsm["X_stexpr"])
        reference = fit_applicability(Views(features, seen), np.repeat(["a", "b"], 32))
        members.append(replace(member, networks=(replace(member.networks[0], applicability=reference),)))
    genes = (*GENES, "G09")
    width = np.arange(10, dtype=np.float32).reshape(5, 2)
    intervals = PredictionIntervals(genes, (0.5, 0.9), width, "spot", 2, 128)
    save_ensemble(tmp_path / "ensemble", tuple(members), release=Release(), intervals=intervals)
    return stexpr.load_model(tmp_path / "ensemble")


def test_an_ensemble_as_a_new_anndata(ensemble: Any, model: Any, section: Section, tmp_path: Path) -> None:
    adata, file = section
    adata.obs["layer"] = "outer"
    before = list(adata.obsm)
    made = tl.predict_expression(adata, tmp_path / "ensemble", image=file, mpp=1.0, as_anndata=True)
    assert list(made.var_names) == [*GENES, "G09"]
    assert list(adata.obsm) == before
    assert (made.obs["layer"] == "outer").all()
    np.testing.assert_array_equal(made.obsm["spatial"], adata.obsm["spatial"])
    np.testing.assert_array_equal(made.var["half_width_0.9"], [1, 3, 5, 7, 9])
    assert made.var["n_networks"].tolist() == [1, 2, 1, 2, 1]
    np.testing.assert_array_equal(np.isnan(made.layers["spread"]).all(axis=0), made.var["n_networks"] < 2)
    assert (made.obs["stexpr_novelty"] > 0).all()
    alone = tl.predict_expression(adata, model, image=file, mpp=1.0, copy=True).obsm["stexpr_expression"]
    close(made[:, "G03"].X.ravel(), alone["G03"])
    assert noted(made, "X")["intervals"].startswith("spot-level, not valid for new patients")
    made.write_h5ad(tmp_path / "made.h5ad")
    tl.predict(adata, ensemble, image=file, mpp=1.0)
    np.testing.assert_array_equal(adata.obsm["stexpr_expression"], made.X)
    np.testing.assert_array_equal(adata.obsm["stexpr_spread"], made.layers["spread"])
    np.testing.assert_array_equal(adata.obsm["X_stexpr"], made.obsm["X_stexpr"])
    np.testing.assert_array_equal(adata.obs["stexpr_novelty"], made.obs["stexpr_novelty"])


def test_spots_on_several_images(model: Any, section: Section, tmp_path: Path) -> None:
    first, second = (small_section(tmp_path / name, seed=seed) for name, seed in (("x", 3), ("y", 4)))
    alone = [tl.embed(adata, model, image=file, mpp=1.0, copy=True).obsm["X_stexpr"] for adata, file in (first, second)]
    both = anndata.concat([first[0], second[0]], keys=["x", "y"], label="library", index_unique="-")
    mixed = np.random.default_rng(0).permutation(128)
    both = both[mixed].copy()
    images = {"x": first[1], "y": second[1]}
    tl.embed(both, model, image=images, mpp={"x": 1.0, "y": 1.0}, library_key="library")
    close(both.obsm["X_stexpr"], np.vstack(alone)[mixed])
    assert sorted(part["n_spots"] for part in noted(both, "X_stexpr")["sections"]) == [64, 64]
    pictures = {name: np.array(Image.open(file)) for name, file in images.items()}
    both.uns["spatial"] = {
        name: {"images": {"downscaled_fullres": pixels}, "scalefactors": {"tissue_downscaled_fullres_scalef": 1.0}}
        for name, pixels in pictures.items()
    }
    tl.embed(both, model, mpp=1.0, library_key="library", key_added="X_stored")
    np.testing.assert_array_equal(both.obsm["X_stored"], both.obsm["X_stexpr"])
    with pytest.raises(DataError, match=r"image is given for x, not for library 'y'"):
        tl.embed(both[np.argsort(mixed)].copy(), model, image={"x": first[1]}, mpp=1.0, library_key="library")
    with pytest.raises(DataError, match=r"choose one of its libraries with library_id=: x, y"):
        tl.embed(both, model, mpp=1.0)
    lonely = both.uns["spatial"]["x"].pop("images")
    with pytest.raises(DataError, match=r"there is no image.*\(in library x\)"):
        tl.embed(both, model, mpp=1.0, library_key="library")
    both.uns["spatial"]["x"]["images"] = lonely
    with pytest.raises(DataError, match=r"no library 'z'"):
        tl.embed(both, model, mpp=1.0, library_id="z")
    with pytest.raises(DataError, match="library_id is for spots on one image"):
        tl.embed(both, model, mpp=1.0, library_id="x", library_key="library")
    with pytest.raises(DataError, match="library_key = 'librari' is no column of obs; did you mean 'library'"):
        tl.embed(both, model, mpp=1.0, library_key="librari")


def test_what_is_refused(model: Any, section: Section, tmp_path: Path, unchecked: None) -> None:
    adata, file = section
    good = {"image": file, "mpp": 1.0}
    with pytest.raises(DataError, match="works on an AnnData, got DataFrame"):
        tl.embed(adata.obs, model, **good)
    with pytest.raises(DataError, match="edge = 'white'; it can be nan, pad, raise"):
        tl.embed(adata, model, edge="white", **good)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="batch_size = 0"):
        tl.embed(adata, model, batch_size=0, **good)
    with pytest.raises(TypeError, match="unexpected keyword argument 'speces'"):
        tl.embed(adata, model, speces="mouse", **good)  # type: ignore[call-arg]
    with pytest.raises(ModelError):
        tl.embed(adata, tmp_path / "no model", **good)
    with pytest.raises(DataError, match="does not exist"):
        tl.embed(adata, model, image=tmp_path / "no.png", mpp=1.0)
    with pytest.raises(DataError, match=r"there is no image: none was given, and uns.* holds no picture; pass image="):
        tl.embed(adata, model, mpp=1.0)
    for wrong, said in (
        (np.zeros((320, 320), np.uint8), "has shape"),
        (np.full((320, 320, 3), 300), "holds int64 pixels"),
        (np.full((320, 320, 3), 2.0), "holds float64 pixels"),
    ):
        with pytest.raises(DataError, match=said):
            tl.embed(adata, model, image=wrong, mpp=1.0)
    own = with_picture(adata, np.zeros((40, 40, 3), np.uint8), 0.1)
    with pytest.raises(DataError, match=r"has 320 x 320 px, but obsm.* counts pixels of an image of about 400 x 400 px"):
        tl.embed(own, model, **good)
    del own.uns["spatial"]["lib"]["scalefactors"]["tissue_hires_scalef"]
    with pytest.raises(DataError, match="scalefactors lack 'tissue_hires_scalef'"):
        tl.embed(own, model, mpp=1.0)
    far = adata.copy()
    far.obsm["spatial"] += 5000
    with pytest.raises(DataError, match="all 64 spots: the patch"):
        tl.embed(far, model, edge="pad", **good)
    far.obsm["spatial"] = np.full((64, 2), np.nan)
    with pytest.raises(DataError, match="two finite numbers"):
        tl.embed(far, model, **good)
    del far.obsm["spatial"]
    with pytest.raises(DataError, match=r"no obsm\[.spatial.\]"):
        tl.embed(far, model, **good)
    adata.uns["stexpr"] = "not JSON"
    with pytest.raises(DataError, match=r"uns\['stexpr'\] holds str, not what stexpr writes"):
        tl.embed(adata, model, **good)
    adata.write_h5ad(tmp_path / "backed.h5ad")
    backed = anndata.read_h5ad(tmp_path / "backed.h5ad", backed="r")
    with pytest.raises(DataError, match=r"backed by .*backed\.h5ad.*to_memory"):
        tl.embed(backed, model, **good)
    backed.file.close()


def test_a_gene_with_a_slash_has_no_place_in_a_table(section: Section, tmp_path: Path) -> None:
    adata, file = section
    odd = small_model(("G00", "H2/K1"), folder=tmp_path / "odd")
    with pytest.raises(DataError, match="1 genes have a slash in their name, such as 'H2/K1'"):
        tl.predict(adata, odd, image=file, mpp=1.0)
    assert "X_stexpr" not in adata.obsm
    made = tl.predict_expression(adata, odd, image=file, mpp=1.0, as_anndata=True)
    made.write_h5ad(tmp_path / "made.h5ad")
    assert list(anndata.read_h5ad(tmp_path / "made.h5ad").var_names) == ["G00", "H2/K1"]
