"""A model of several fields of view goes through every form of export, and older folders are read as before."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from exported_models import everything_beside, preprocessing_of, save
from stexpr.errors import ConfigError, ModelError
from stexpr.inference.encoder import ModelInput
from stexpr.models.export import load_model, save_ensemble
from stexpr.models.export.encoder import load_encoder
from stexpr.models.export.timm_folder import save_timm_backbone
from stexpr.panel import Preprocessing

FIELDS = {"window_px": 48, "fields_px": (24, 48)}


def rewrite(folder: Path, **changes: Any) -> None:
    """Change config.json, as somebody would who knows how it is checked; None takes a key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["format"] = changes.pop("format", config["format"])
    config["preprocessing"] |= changes
    config["preprocessing"] = {key: value for key, value in config["preprocessing"].items() if value is not None}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["tiny", "mobilenetv3_small_050", "test_vit"])
def test_it_comes_back_with_its_fields(tmp_path, make_model, make_batch, name):
    model = make_model(backbone=name, **FIELDS)
    save(tmp_path / "model", model, **everything_beside(model))
    loaded = load_model(tmp_path / "model")
    patches = make_batch(3, window_px=48).patches
    with torch.inference_mode():
        assert loaded.model.predict(patches).equal(model.eval().predict(patches))
    assert loaded.preprocessing == preprocessing_of(model)
    assert (loaded.preprocessing.fields_px, loaded.preprocessing.spot_px) == ((24, 48), 24)
    output = loaded(patches)
    assert output.features.shape == (3, loaded.n_features) == (3, 2 * make_model(backbone=name).backbone.n_features)
    assert output.novelty.isfinite().all()
    assert loaded.expression_of(output.features).allclose(output.expression, atol=1e-4)
    encoder = load_encoder(tmp_path / "model")
    with torch.inference_mode():
        assert encoder(patches).equal(loaded.model.features(patches))
    loaded.save_pretrained(tmp_path / "again")
    assert load_model(tmp_path / "again").hash == loaded.hash
    assert type(loaded).from_pretrained(tmp_path / "again").preprocessing == loaded.preprocessing
    there = ModelInput.of(loaded).to_json()
    assert ModelInput.from_json(json.loads(json.dumps(there))).preprocessing == loaded.preprocessing


def test_the_card_says_what_the_network_sees(tmp_path, make_model):
    save(tmp_path, make_model(**FIELDS))
    said = "48 px at 4.36 um/px, of which the network sees the middle 24 and 48 px, each resized to 24 px"
    assert f"| input | {said}; stain normalization: none |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_folder_that_tells_no_fields_has_one(tmp_path, make_model, make_batch, version):
    model = make_model()
    save(tmp_path, model)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["format"] == 2  # which earlier versions read
    assert written["preprocessing"].keys() == {"mpp", "window_px", "input_px", "stain", "mean", "sd"}
    rewrite(tmp_path, format=version)
    loaded = load_model(tmp_path)
    assert loaded.preprocessing.fields_px == (32,)
    patches = make_batch(3).patches
    with torch.inference_mode():
        assert loaded.model.predict(patches).equal(model.eval().predict(patches))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fields_px": [48, 24]}, "do not ascend"),
        ({"fields_px": [24, 24, 48]}, "do not ascend"),
        ({"fields_px": [24, 96]}, "do not ascend to the side of the window, 48 px"),
        ({"fields_px": [-24, 48]}, "do not ascend"),
        ({"fields_px": ["a", 48]}, "valid integer"),
        ({"fields_px": 48}, "valid tuple"),
        ({"fields_px": None}, "does not fit config.json"),
        ({"other_px": 24}, "preprocessing has the keys"),
        ({"fields_px": [24, 48], "format": 2}, "preprocessing has the keys"),
        ({"fields_px": [48]}, "does not fit config.json"),  # the heads want the features of two
        ({"fields_px": [12, 24, 48]}, "does not fit config.json"),
        ({"fields_px": [24, 4096], "window_px": 4096}, "between 1 and 2048"),
    ],
    ids=str,
)
def test_other_fields_in_the_file_are_refused(tmp_path, make_model, changes, words):
    save(tmp_path, make_model(**FIELDS))
    rewrite(tmp_path, **changes)
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path)


def test_where_no_field_is_given_it_is_the_window():
    given = (1.0, 64, 64, "none", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert Preprocessing(*given).fields_px == (64,)
    assert Preprocessing(*given).spot_px == 64
    assert Preprocessing(*given).in_words == "64 px at 1 um/px"
    with pytest.raises(ConfigError, match="do not ascend"):
        Preprocessing(*given, fields_px=(32,))


def test_members_of_an_ensemble_see_the_same_fields(tmp_path, make_model):
    for name, fields_px in (("a", (24, 48)), ("b", (24, 48)), ("c", (16, 48))):
        save(tmp_path / name, make_model(window_px=48, fields_px=fields_px))
    a, b, c = (load_model(tmp_path / name) for name in "abc")
    save_ensemble(tmp_path / "alike", (a, b))
    assert load_model(tmp_path / "alike").preprocessing.fields_px == (24, 48)
    with pytest.raises(ModelError, match="differ in their fields of view"):
        save_ensemble(tmp_path / "unlike", (a, c))


def test_plain_timm_gives_the_features_of_each_field(tmp_path, make_model, make_batch):
    model = make_model(backbone="mobilenetv3_small_050", window_px=64, fields_px=(32, 64), auxiliary=False).eval()
    save_timm_backbone(model, tmp_path, preprocessing=preprocessing_of(model))
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["stexpr"]["fields_px"] == [32, 64]
    assert "the middle 32 and 64 px, each resized to 32 px" in told["stexpr"]["sees"]
    network = timm.create_model(f"local-dir:{tmp_path}", num_classes=0, pretrained=True).eval()
    network = network.to(memory_format=torch.channels_last)
    mean, sd = (torch.tensor(told["pretrained_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))
    patches = make_batch(4, window_px=64).patches
    inner = patches[:, :, 16:48, 16:48].float() / 255
    whole = patches.float().unflatten(3, (32, 2)).unflatten(2, (32, 2)).sum(dim=(3, 5)) / (255 * 4)
    with torch.inference_mode():
        both = torch.cat([inner, whole]).contiguous(memory_format=torch.channels_last)
        theirs = network((both - mean) / sd)
        assert torch.cat(theirs.split(4), dim=1).equal(model.features(patches))


def test_an_onnx_file_cuts_the_fields_itself(tmp_path, make_model, make_batch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    from stexpr.models.export.onnx import save_onnx

    save(tmp_path / "model", make_model(window_px=48, fields_px=(16, 20, 48)))  # one as it is, one interpolated, one averaged
    model = load_model(tmp_path / "model")
    report = save_onnx(model, tmp_path / "model.onnx", seconds=0.0)
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    for n in (1, 5):
        patches = make_batch(n, window_px=48, seed=n).patches
        found = session.run(["features", "expression"], {"patches": patches.contiguous().numpy()})
        output = model(patches)
        for ours, theirs in zip(found, (output.features, output.expression), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["stexpr.fields_px"]) == [16, 20, 48]
