"""Bags of whole slides: what the encoder says of each patch, beside its color, in any order of batches."""

import json
from pathlib import Path

import numpy as np
import pytest

from slides import GENES, MPP, WINDOW_PX, slide_pixels, write_slide, write_slide_model
from stexpr.config.models import RADII_PX
from stexpr.data.bag_store import BagStore
from stexpr.data.grid import NoTissueError
from stexpr.errors import ConfigError, DataError, ModelError, ScaleError
from stexpr.inference.bags import EmbedSettings, embed_slide
from stexpr.inference.encoder import PatchModel, PlainEncoder, open_encoder
from stexpr.inference.patches import run_model
from stexpr.inference.slide import predict_slide
from stexpr.models.baselines import color_features, fitting_radii
from stexpr.models.export import load_model
from stexpr.models.export.encoder import load_encoder

ALL = EmbedSettings(expression=True, patches=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PatchModel:
    return open_encoder(write_slide_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide") / "one.ome.tif", slide_pixels(300, 450))


def test_a_bag_holds_what_a_prediction_of_the_slide_says(slide, model, tmp_path):
    bag = embed_slide(slide, model, tmp_path / "one.h5", settings=ALL, batch_size=7)
    predicted = predict_slide(slide, model, tmp_path / "one.h5ad", features=True).read()
    np.testing.assert_allclose(bag.features(), predicted.obsm["X_stexpr"], atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(bag.features("expression"), predicted.X, atol=1e-3, rtol=1e-3)
    np.testing.assert_array_equal(bag.coords() + WINDOW_PX / 2, np.round(predicted.obsm["spatial"] - 16) + 16)
    assert bag.genes == GENES == tuple(predicted.var_names)
    index = np.array([0, 3, bag.n - 1])
    pixels = slide_pixels(300, 450)
    corners = bag.coords()[index].astype(int)
    direct = np.stack([pixels[y : y + WINDOW_PX, x : x + WINDOW_PX] for x, y in corners])
    np.testing.assert_array_equal(bag.patches(index), direct)
    colors = color_features(direct, fitting_radii(RADII_PX, WINDOW_PX))
    np.testing.assert_allclose(bag.read(index, "color"), colors, rtol=1e-3)


def test_novelty_is_left_out_where_nobody_keeps_it_and_nothing_else_changes(model):
    patches = np.random.default_rng(0).integers(0, 256, (5, WINDOW_PX, WINDOW_PX, 3), dtype=np.uint8)
    whole, without = (next(run_model(model, [patches], novelty=novelty)) for novelty in (True, False))
    assert np.isfinite(whole.novelty).all()
    assert np.isnan(without.novelty).all()
    np.testing.assert_array_equal(without.features, whole.features)
    np.testing.assert_array_equal(without.expression, whole.expression)


def test_a_bag_says_how_it_was_made(slide, model, tmp_path):
    bag = embed_slide(slide, model, tmp_path / "one.h5", settings=ALL)
    assert (bag.encoder, bag.mpp, bag.patch_px, bag.side) == (model.hash, MPP, WINDOW_PX, float(WINDOW_PX))
    assert (bag.level0_mpp, bag.size_px) == (MPP, (450, 300))
    made = bag.provenance
    assert made["slide"]["file"] == "one.ome.tif"
    assert made["slide"]["bytes"] == slide.stat().st_size
    assert len(made["slide"]["sha256"]) == 64
    assert (made["min_tissue"], made["stain"], made["rois"]) == (0.5, "none", None)
    assert made["grid"]["patches"] == bag.n
    assert set(made["grid"]["left_out"]) == {"no tissue", "too little tissue"}
    assert made["versions"]["stexpr"]
    assert made["asked"]["settings"]["expression"] is True


def test_a_bag_is_the_same_whatever_the_batches(slide, model, tmp_path):
    bags = [embed_slide(slide, model, tmp_path / f"{size}.h5", settings=ALL, batch_size=size) for size in (1, 5, 512)]
    for bag in bags[1:]:
        np.testing.assert_array_equal(bag.coords(), bags[0].coords())
        np.testing.assert_array_equal(bag.features("color"), bags[0].features("color"))
        np.testing.assert_allclose(bag.features("both"), bags[0].features("both"), atol=2e-3, rtol=2e-3)
    again = embed_slide(slide, model, tmp_path / "again.h5", settings=ALL, batch_size=5)
    assert again.content == bags[1].content


def test_an_encoder_alone_gives_the_features_of_its_model(slide, model, tmp_path):
    plain = PlainEncoder(load_encoder(model), model.hash)
    features, none = (embed_slide(slide, one, tmp_path / f"{i}.h5") for i, one in enumerate((plain, model)))
    np.testing.assert_allclose(features.features(), none.features(), atol=1e-3, rtol=1e-3)
    assert not features.has("expression")
    assert not none.has("expression")
    assert features.has("color")
    assert BagStore.open(tmp_path).width == plain.n_features
    with pytest.raises(ModelError, match="predicts no expression; leave --expression out"):
        embed_slide(slide, plain, tmp_path / "x.h5", settings=ALL)


def test_only_patches_whose_center_lies_in_a_region_are_kept(slide, model, tmp_path):
    whole = embed_slide(slide, model, tmp_path / "whole.h5")
    rois = tmp_path / "one.geojson"
    square = [[0, 0], [225, 0], [225, 300], [0, 300], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [square, [[150, 100], [200, 100], [200, 200], [150, 200], [150, 100]]]}
    rois.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "Tumor"}}}))
    bag = embed_slide(slide, model, tmp_path / "one.h5", rois=rois)
    centers = whole.coords() + WINDOW_PX / 2
    x, y = centers.T
    kept = (x < 225) & ~((x >= 150) & (x < 200) & (y >= 100) & (y < 200))
    np.testing.assert_array_equal(bag.coords(), whole.coords()[kept])
    assert bag.provenance["grid"]["left_out"]["center outside of the regions of interest"] == (~kept).sum()
    assert bag.provenance["rois"] == {"classes": {"Tumor": 1}, "left_out": {}}
    only = EmbedSettings(roi_classes=("Necrosis",))
    with pytest.raises(DataError, match="no polygon of class Necrosis"):
        embed_slide(slide, model, tmp_path / "x.h5", rois=rois, settings=only)
    geometry["coordinates"] = [[[0, 0], [9, 0], [9, 9]]]
    rois.write_text(json.dumps(geometry))
    with pytest.raises(NoTissueError, match=r"patches of tissue are left out: center outside .*one\.ome\.tif"):
        embed_slide(slide, model, tmp_path / "x.h5", rois=rois)


def test_a_slide_of_one_patch_is_a_bag_of_one(model, tmp_path):
    pixels = slide_pixels(300, 450)
    one = write_slide(tmp_path / "one.tif", np.ascontiguousarray(pixels[130:162, 200:232]), tile=None)
    bag = embed_slide(one, model, tmp_path / "one.h5", settings=EmbedSettings(expression=True, min_tissue=0.0))
    assert (bag.n, bag.size_px, bag.features("both").shape) == (1, (32, 32), (1, bag.width + 6))


def test_slides_without_a_bag_are_refused_and_leave_none(slide, model, tmp_path):
    glass = write_slide(tmp_path / "glass.tif", np.full((200, 300, 3), 244, np.uint8))
    bare = write_slide(tmp_path / "bare.tif", slide_pixels(300, 450), mpp=None)
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"no slide")
    for path, kind, words in (
        (glass, NoTissueError, "no tissue was found"),
        (bare, ScaleError, "give them"),
        (broken, DataError, r"broken\.svs"),
        (tmp_path / "none.svs", DataError, "does not exist"),
    ):
        with pytest.raises(kind, match=words):
            embed_slide(path, model, tmp_path / "x.h5")
    for settings in (EmbedSettings(stride_um=-1.0), EmbedSettings(min_tissue=2.0)):
        with pytest.raises(ConfigError):
            embed_slide(slide, model, tmp_path / "x.h5", settings=settings)
    with pytest.raises(ConfigError, match="batch of 0"):
        embed_slide(slide, model, tmp_path / "x.h5", batch_size=0)
    assert not list(tmp_path.glob("*.h5")) + list(tmp_path.glob(".*"))


def test_features_that_are_not_finite_are_refused(slide, tmp_path):
    broken = load_model(write_slide_model(tmp_path / "model", reference=False, intervals=False))
    next(broken.model.backbone.parameters()).data.fill_(float("nan"))
    with pytest.raises(DataError, match=r"slide one has features that are not finite"):
        embed_slide(slide, broken, tmp_path / "one.h5")
    assert not (tmp_path / "one.h5").exists()


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="published encoders are uni"):
        open_encoder(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="--weights goes with a published encoder"):
        open_encoder(tmp_path, weights=tmp_path / "w.safetensors")


def test_a_published_encoder_embeds_at_its_own_resolution(tmp_path, monkeypatch):
    from dataclasses import replace

    from safetensors.torch import save_file

    from stexpr.models import encoders

    small = replace(
        encoders.ENCODERS["uni"], architecture="vit_tiny_patch16_224", n_features=192, input_px=32, mpp=2.0,
        arguments={"init_values": 1e-5},
    )  # fmt: skip
    monkeypatch.setitem(encoders.ENCODERS, "uni", small)
    save_file({key: value.contiguous() for key, value in small.build().state_dict().items()}, tmp_path / "w.safetensors")
    model = open_encoder("uni", weights=tmp_path / "w.safetensors")
    slide = write_slide(tmp_path / "one.tif", slide_pixels(300, 450), mpp=1.0)
    bag = embed_slide(slide, model, tmp_path / "one.h5")
    assert (bag.mpp, bag.patch_px, bag.side, bag.width) == (2.0, 32, 64.0, 192)
    assert bag.encoder == open_encoder("hf-hub:MahmoodLab/UNI", weights=tmp_path / "w.safetensors").hash
