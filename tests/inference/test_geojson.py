"""GeoJSON as QuPath reads it."""

import json

import numpy as np

from slides import slide_pixels, write_slide, write_slide_model
from stexpr.inference.geojson import write_geojson
from stexpr.inference.slide import predict_slide


def test_every_patch_is_a_square_with_its_measurements(tmp_path):
    slide = write_slide(tmp_path / "half.tif", slide_pixels(300, 450, foreign=True), mpp=1.0)
    done = predict_slide(slide, write_slide_model(tmp_path / "model"), tmp_path / "out.h5ad", stride_um=24.0, abstain=True)
    patches = done.read(["GENE2", "GENE0"])
    write_geojson(patches, tmp_path / "out.geojson")
    text = (tmp_path / "out.geojson").read_text()
    assert "NaN" not in text
    found = json.loads(text)
    assert found["type"] == "FeatureCollection"
    assert len(found["features"]) == patches.n_obs
    kept = patches.obs["applicable"].to_numpy()
    assert 0 < kept.sum() < len(kept)
    for i, feature in enumerate(found["features"]):
        assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "Polygon")
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) == 5
        corners = np.array(ring[:4])
        np.testing.assert_allclose(corners.mean(axis=0), patches.obsm["spatial"][i], atol=0.02)
        np.testing.assert_allclose(np.ptp(corners, axis=0), 24, atol=0.02)  # squares that overlap are as wide as the stride
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        measured = properties["measurements"]
        assert abs(measured["novelty"] - patches.obs["novelty"].iloc[i]) < 1e-4
        if kept[i]:
            assert "classification" not in properties
            assert list(measured) == ["GENE2", "GENE0", "novelty", "tissue fraction"]
            np.testing.assert_allclose([measured["GENE2"], measured["GENE0"]], patches.X[i], atol=1e-4)
        else:
            assert properties["classification"]["name"] == "not applicable"
            assert list(measured) == ["novelty", "tissue fraction"]
