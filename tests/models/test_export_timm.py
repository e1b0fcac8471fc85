"""The backbone in timm's own format: plain timm, without stexpr, gives the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from exported_models import preprocessing_of, save
from stexpr.errors import DataError, ModelError
from stexpr.models.export import load_model
from stexpr.models.export.timm_folder import save_timm_backbone

PLAIN_TIMM = """
import json, sys
sys.modules["stexpr"] = None  # where it is installed, it can no longer be imported
import timm, torch
from safetensors.torch import load_file

for folder in sys.argv[1:]:
    network = timm.create_model(f"local-dir:{folder}/timm", num_classes=0, pretrained=True)
    given = load_file(f"{folder}/given.safetensors")
    config = timm.data.resolve_model_data_config(network)
    mean, sd = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    network = network.eval().to(memory_format=torch.channels_last)
    images = given["images"].to(memory_format=torch.channels_last)
    with torch.inference_mode():
        features = network((images - mean) / sd)
    assert config["input_size"] == tuple(images.shape[1:]), config
    print(json.dumps([features.equal(given["features"]), float(features.std())]))
"""


def test_plain_timm_gives_the_same_bits(tmp_path, make_model, make_batch):
    names = {"mobilenetv3_small_050": 32, "vit_b32": 64, "inception_v3": 64, "efficientnet_b0": 48}
    for name, px in names.items():
        model = make_model(backbone=name, window_px=px, auxiliary=False)
        patches = make_batch(4, window_px=px).patches
        model(patches)  # moves running statistics away from where they start
        save(tmp_path / "model", model)
        network = load_model(tmp_path / "model").networks[0]
        folder = tmp_path / name
        save_timm_backbone(network, folder / "timm", preprocessing=preprocessing_of(model))
        assert sorted(path.name for path in (folder / "timm").iterdir()) == ["config.json", "model.safetensors"]
        backbone = network.model.backbone
        assert backbone.input_px == {"inception_v3": 75}.get(name, px)
        with torch.inference_mode():
            images = torch.nn.functional.interpolate(
                patches.float().contiguous(memory_format=torch.channels_last) / 255,
                size=(backbone.input_px,) * 2,
                mode="bilinear",
                antialias=True,
            )
            given = {"images": images.contiguous(), "features": network.model.features(patches).contiguous()}
        save_file(given, folder / "given.safetensors")
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN_TIMM, *(str(tmp_path / name) for name in names)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [same for same, _ in found] == [True] * len(names)
    assert all(spread > 0 for _, spread in found)


def test_what_timm_does_not_know_stands_beside_its_own_settings(tmp_path, make_model):
    model = make_model(backbone="test_resnet", auxiliary=False)
    save_timm_backbone(model, tmp_path, preprocessing=preprocessing_of(model))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["stexpr"]["mpp"] == 4.36
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 0
    assert config["pretrained_cfg"]["mean"] == pytest.approx(model.backbone.mean)
    assert (config["pretrained_cfg"]["crop_pct"], config["pretrained_cfg"]["interpolation"]) == (1, "bilinear")


def test_the_model_itself_stays_as_it_was(tmp_path, make_model):
    model = make_model(backbone="test_resnet", auxiliary=False)
    before = dict(model.backbone.network.pretrained_cfg)
    save_timm_backbone(model, tmp_path)
    assert model.backbone.network.pretrained_cfg == before
    assert next(p for p in model.backbone.parameters() if p.ndim == 4).is_contiguous(memory_format=torch.channels_last)


def test_a_study_starts_from_an_exported_backbone(tmp_path, make_model, make_batch):
    model = make_model(backbone="test_vit", window_px=48, auxiliary=False).eval()
    save_timm_backbone(model, tmp_path)
    again = make_model(backbone=f"local-dir:{tmp_path}", window_px=48, pretrained=True, auxiliary=False).eval()
    patches = make_batch(2, window_px=48).patches
    with torch.inference_mode():
        assert again.features(patches).equal(model.features(patches))


def test_our_own_backbone_is_not_one_of_timms(tmp_path, make_model):
    with pytest.raises(ModelError, match="'tiny' is not one of timm's"):
        save_timm_backbone(make_model(), tmp_path / "timm")
    assert not (tmp_path / "timm").exists()


@pytest.mark.parametrize("text", ['{"format": 2, "sha256": {}}', "[]", "no JSON"])
def test_another_model_in_the_folder_stays(tmp_path, make_model, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="belongs to another model"):
        save_timm_backbone(make_model(backbone="test_resnet", auxiliary=False), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_earlier_backbone_is_replaced(tmp_path, make_model):
    for name in ("test_resnet", "test_efficientnet"):
        save_timm_backbone(make_model(backbone=name, auxiliary=False), tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", num_classes=0, pretrained=True)
    assert network.pretrained_cfg["architecture"] == "test_efficientnet"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, make_model):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write into"):
        save_timm_backbone(make_model(backbone="test_resnet", auxiliary=False), tmp_path / "file")
