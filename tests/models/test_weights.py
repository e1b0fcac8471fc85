"""Weights from elsewhere: safetensors of the network named or a word that says why not, and no request unasked."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

from hub_server import HubServer, fill_cache
from stexpr.errors import ModelError
from stexpr.models.backbones import create_backbone, own_input_px

PATCHES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def saved(folder: Path, name: str = "test_resnet", *, safe: bool = True, **arguments: Any) -> torch.nn.Module:
    torch.manual_seed(3)
    network: torch.nn.Module = timm.create_model(name, num_classes=10, **arguments)
    save_for_hf(network, folder, safe_serialization=safe)
    return network.eval()


def features(backbone: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = backbone.eval()(backbone.preprocess(PATCHES))
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home"


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_a_file_and_an_architecture_give_what_timm_gives(tmp_path, name):
    network = saved(tmp_path / "timm", name)
    path = tmp_path / "mine.safetensors"
    (tmp_path / "timm" / "model.safetensors").rename(path)
    backbone = create_backbone(name, window_px=64, weights=path)
    alone = timm.create_model(name, num_classes=0, **backbone.arguments)
    own = {key: value for key, value in network.state_dict().items() if key in alone.state_dict()}
    if "img_size" not in backbone.arguments:
        alone.load_state_dict(own)
        with torch.inference_mode():
            assert features(backbone).equal(alone.eval()(backbone.preprocess(PATCHES)))
    else:  # position embeddings are resampled
        assert torch.equal(backbone.state_dict()["network.blocks.0.attn.qkv.weight"], own["blocks.0.attn.qkv.weight"])
        assert backbone.input_px == 64


def test_a_file_of_another_network_is_refused_and_not_half_loaded(tmp_path):
    saved(tmp_path, "vit_tiny_patch16_224", init_values=1e-5)
    with pytest.raises(ModelError, match=r"another network: 0 tensors missing, 24 tensors too many \(such as blocks\.0\.ls1"):
        create_backbone("vit_tiny_patch16_224", window_px=64, weights=tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"another network: \d+ tensors missing"):
        create_backbone("resnet18", window_px=64, weights=tmp_path / "model.safetensors")


def test_a_file_of_other_shapes_is_refused(tmp_path):
    network = saved(tmp_path)
    tensors = dict(network.state_dict())
    tensors["conv1.0.weight" if "conv1.0.weight" in tensors else "conv1.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "changed.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded into 'test_resnet'") as caught:
        create_backbone("test_resnet", window_px=64, weights=tmp_path / "changed.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".ckpt"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"cos\nsystem\n")
    with pytest.raises(ModelError, match=r"is a pickle, which is never opened; .*save_file"):
        create_backbone("resnet18", window_px=64, weights=path)


def test_the_conversion_that_is_named_works(tmp_path):
    import subprocess
    import sys

    from stexpr.models.weights import CONVERT

    network = saved(tmp_path, safe=False)
    found = re.search(r'python -c "(.+?)", and', CONVERT)
    assert found is not None
    subprocess.run([sys.executable, "-c", found[1]], cwd=tmp_path, check=True)
    backbone = create_backbone("test_resnet", window_px=64, weights=tmp_path / "model.safetensors")
    assert torch.equal(next(backbone.parameters()), next(network.parameters()))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="no safetensors file that can be read"):
        create_backbone("resnet18", window_px=64, weights=path)
    with pytest.raises(ModelError, match="no safetensors file that can be read"):
        create_backbone("resnet18", window_px=64, weights=tmp_path / "absent.safetensors")


def test_a_folder_with_a_pickle_alone_is_refused(tmp_path):
    saved(tmp_path, safe=False)
    with pytest.raises(ModelError, match=r"as a pickle only \(pytorch_model\.bin\)"):
        create_backbone(f"local-dir:{tmp_path}", window_px=64, pretrained=True)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        create_backbone(f"local-dir:{tmp_path}", window_px=64, pretrained=True)
    assert create_backbone(f"local-dir:{tmp_path}", window_px=64).timm_name == "test_resnet"


def test_arguments_of_a_folder_are_checked_before_timm_sees_them(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": {"checkpoint_path": "/etc/passwd"}}))
    with pytest.raises(ModelError, match=r"config\.json: 'checkpoint_path' is no argument of a network"):
        create_backbone(f"local-dir:{tmp_path}", window_px=64, pretrained=True)


def test_a_folder_takes_no_other_weights(tmp_path):
    saved(tmp_path)
    with pytest.raises(ModelError, match="has weights of its own"):
        create_backbone(f"local-dir:{tmp_path}", window_px=64, weights=tmp_path / "model.safetensors")


def test_a_repository_in_the_cache_is_read_without_a_network(tmp_path, cache):
    saved(tmp_path / "repository")
    fill_cache(cache, "owner/name", tmp_path / "repository")
    backbone = create_backbone("hf-hub:owner/name", window_px=64, pretrained=True)
    assert (backbone.timm_name, backbone.portable_name) == ("test_resnet", "test_resnet")
    assert features(backbone).equal(
        features(create_backbone(f"local-dir:{tmp_path / 'repository'}", window_px=64, pretrained=True))
    )
    assert own_input_px("hf-hub:owner/name") == 160


def test_weights_of_timm_in_the_cache_are_read_without_a_network(tmp_path, cache):
    network = saved(tmp_path / "repository", "resnet18")
    settings = timm.get_pretrained_cfg("resnet18")
    assert settings is not None
    assert settings.hf_hub_id
    fill_cache(cache, settings.hf_hub_id, tmp_path / "repository")
    backbone = create_backbone("resnet18", window_px=64, pretrained=True)
    assert torch.equal(next(backbone.parameters()), next(network.parameters()))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf-hub:owner/name", ["https://huggingface.co/owner/name"]),
        ("uni", ["MahmoodLab/UNI", "CC-BY-NC-ND-4.0", "access on request", "a pickle only"]),
        ("hf-hub:owkin/phikon", ["owkin/phikon", "Owkin non-commercial", "open access"]),
        ("resnet18", ["'resnet18'", "apache-2.0", "https://huggingface.co/timm/resnet18"]),
    ],
)
def test_what_is_not_in_the_cache_is_named_with_license_and_access(cache, name, words):
    with pytest.raises(ModelError) as caught:
        create_backbone(name, window_px=64, pretrained=True)
    for word in [*words, "nothing is fetched unasked", "runtime.download=true", "HF_HOME", "model.pretrained=false"]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf-hub:nobody", "hf-hub:a/b/c", "hf-hub:../../etc", "hf-hub:"])
def test_what_is_no_repository_is_said(name):
    with pytest.raises(ModelError, match="is no repository of the Hugging Face hub"):
        create_backbone(name, window_px=64)


def test_an_architecture_without_weights_of_timm_is_said():
    with pytest.raises(ModelError, match="timm publishes no pretrained weights of 'vit_small_patch16_18x2_224'"):
        create_backbone("vit_small_patch16_18x2_224", window_px=64, pretrained=True)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer().running() as hub:
        for name, safe in (("owner/name", True), ("owner/pickled", False)):
            saved(tmp_path / name, safe=safe)
            hub.hold(name, tmp_path / name)
        yield hub


ATTEMPT = """
from stexpr.errors import ModelError
from stexpr.models.backbones import create_backbone
try:
    print(create_backbone({name!r}, window_px=64, pretrained=True, download={download}).timm_name)
except ModelError as err:
    print("refused:", err)
"""


def test_nothing_is_fetched_unless_asked_for_and_then_once(hub, tmp_path):
    own = "hf-hub:owner/name"
    attempts = [(own, False), ("uni", False), ("resnet18", False), (own, True), (own, False)]
    lines = hub.run("".join(ATTEMPT.format(name=name, download=download) for name, download in attempts), tmp_path / "home")
    assert all("nothing is fetched unasked" in line for line in lines[:3])
    assert lines[3:] == ["test_resnet", "test_resnet"]
    assert [line for line in hub.requests if line.startswith("GET")] == [
        f"GET /owner/name/resolve/main/{name}" for name in ("model.safetensors", "config.json")
    ]
    assert all(" /owner/name/" in line for line in hub.requests)


def test_what_the_hub_does_not_give_is_said(hub, tmp_path):
    hub.gated.add("MahmoodLab/UNI")
    names = ("hf-hub:owner/pickled", "uni", "hf-hub:owner/absent")
    lines = hub.run("".join(ATTEMPT.format(name=name, download=True) for name in names), tmp_path / "home")
    assert len(lines) == 3
    assert "there is no model.safetensors of owner/pickled" in lines[0]
    assert "save_file" in lines[0]
    assert "access was not granted" in lines[1]
    assert "https://huggingface.co/MahmoodLab/UNI" in lines[1]
    assert "owner/absent" in lines[2]
    assert not any("pytorch_model.bin" in line for line in hub.requests)
