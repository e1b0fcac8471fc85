"""Published encoders: their networks have the sizes that were published, whoever's weights go into them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stexpr.errors import ModelError
from stexpr.models.backbones import create_backbone, encoder_backbone
from stexpr.models.encoders import ENCODERS, Encoder, known_encoder, pool

PUBLISHED = {  # millions of parameters, as LazySlide's table of models has them
    "uni": 303.4,
    "uni2_h": 681.4,
    "virchow": 631.2,
    "virchow2": 631.2,
    "h_optimus_0": 1134.8,
    "h_optimus_1": 1134.8,
    "phikon": 85.8,
    "phikon_v2": 303.4,
}
SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 3}


def patches(n: int = 3, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_encoder_is_checked():
    assert PUBLISHED.keys() == ENCODERS.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_network_has_the_published_size_and_feature_length(name):
    encoder = ENCODERS[name]
    with torch.device("meta"):
        network: Any = encoder.build()
        images = torch.zeros(1, 3, encoder.input_px, encoder.input_px)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.06)
    output = network.eval()(images)
    features = output if encoder.pooling == "network" else pool(output, network.num_prefix_tokens)
    assert features.shape == (1, encoder.n_features)
    registers = encoder.arguments.get("reg_tokens", 4 if "reg4" in encoder.architecture else 0)
    assert network.num_prefix_tokens == 1 + registers


@pytest.mark.parametrize("name", PUBLISHED)
def test_license_and_access_are_said(name):
    encoder = ENCODERS[name]
    assert encoder.license in encoder.terms
    assert f"https://huggingface.co/{encoder.repository}" in encoder.terms
    assert ("access on request" in encoder.terms) == encoder.gated


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("uni", "uni"),
        ("hf-hub:MahmoodLab/UNI", "uni"),
        ("hf-hub:MahmoodLab/uni", "uni"),  # the hub does not tell case apart
        ("hf-hub:bioptimus/H-optimus-0", "h_optimus_0"),
        ("MahmoodLab/UNI", None),
        ("hf-hub:MahmoodLab/UNI3", None),
        ("resnet18", None),
    ],
)
def test_a_repository_of_a_known_encoder_is_recognized(name, short):
    assert known_encoder(name) == short


def test_pooling_leaves_the_registers_out():
    tokens = torch.arange(2 * 7 * 3, dtype=torch.float32).reshape(2, 7, 3)
    pooled = pool(tokens, 5)
    assert pooled.equal(torch.cat([tokens[:, 0], tokens[:, 5:].mean(dim=1)], dim=1))
    tokens[:, 1:5] = torch.nan
    assert pool(tokens, 5).equal(pooled)


def small(layout: str = "timm", **changes: Any) -> Encoder:
    """An encoder of the kind, of a size for tests."""
    encoder = Encoder("owner/small", "none", "vit_tiny_patch16_224", 24, SMALL, input_px=64, layout=layout)
    return replace(encoder, **changes)


def test_weights_of_a_file_give_the_features_of_their_network(tmp_path):
    encoder = small(pooling="class_and_mean", n_features=48, arguments={**SMALL, "reg_tokens": 4}, swiglu=True)
    torch.manual_seed(1)
    network: Any = encoder.build().eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    backbone = encoder_backbone(encoder, name="small", window_px=32, weights=tmp_path / "weights.safetensors").eval()
    assert (backbone.input_px, backbone.n_features, backbone.mean) == (64, 48, (0.485, 0.456, 0.406))
    with torch.inference_mode():
        images = backbone.preprocess(patches())
        tokens = network(images)
        assert images.shape == (3, 3, 64, 64)
        assert backbone(images).equal(torch.cat([tokens[:, 0], tokens[:, 5:].mean(dim=1)], dim=1))


def test_half_precision_weights_are_read_into_single(tmp_path):
    encoder = small()
    network = encoder.build().half()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    backbone = encoder_backbone(encoder, name="small", window_px=64, weights=tmp_path / "weights.safetensors")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert torch.equal(next(backbone.network.parameters()).detach(), next(network.parameters()).detach().float())


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_weights_of_another_encoder_are_refused(tmp_path, change):
    encoder = small(arguments={**SMALL, "init_values": 1e-5})
    tensors = dict(encoder.build().state_dict())
    if change == "missing":
        del tensors["blocks.1.ls1.gamma"]
    elif change == "surplus":
        tensors["reg_token"] = torch.zeros(1, 4, 24)
    else:
        tensors["pos_embed"] = tensors["pos_embed"][:, :5].clone()
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(
        ModelError, match=r"does not hold the weights of owner/small.*(ls1\.gamma|reg_token|pos_embed)"
    ) as caught:
        encoder_backbone(encoder, name="small", window_px=64, weights=tmp_path / "weights.safetensors")
    assert "\n" not in str(caught.value)


def of_transformers(kind: str, folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="an oracle; comes with the extra lazyslide")
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 64, "patch_size": 16}
    torch.manual_seed(2)
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**shape, intermediate_size=96))
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**shape, layerscale_value=0.3))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and positions start at 0, where a mistaken name would not show
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tensors = {key: value.contiguous() for key, value in saved_by(model, folder).items()}
    save_file(tensors, folder / "model.safetensors")
    return model.eval()


def saved_by(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("layout", ["vit", "dinov2"])
def test_weights_of_transformers_give_the_features_of_transformers(tmp_path, layout):
    model = of_transformers(layout, tmp_path)
    eps = 1e-12 if layout == "vit" else 1e-6
    arguments = SMALL if layout == "vit" else {**SMALL, "init_values": 1.0}
    encoder = small(layout, norm_eps=eps, arguments=arguments)
    backbone = encoder_backbone(encoder, name="small", window_px=64, weights=tmp_path / "model.safetensors").eval()
    with torch.inference_mode():
        images = backbone.preprocess(patches(side=64))
        theirs = model(pixel_values=images).last_hidden_state[:, 0]
        assert torch.allclose(backbone(images), theirs, atol=1e-5)
        assert theirs.std() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_norm_eps": 1e-5}, "another network"),
        ({"num_attention_heads": 4}, "another network"),
        ({"model_type": "dinov2"}, "another network"),
        ({"image_size": 128}, "another network"),
        ({"layer_norm_eps": "small"}, "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=str,
)
def test_what_the_tensors_do_not_tell_is_compared_with_their_config(tmp_path, change, message):
    of_transformers("vit", tmp_path)
    path = tmp_path / "config.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        encoder_backbone(small("vit", norm_eps=1e-12), name="s", window_px=64, weights=tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [("encoder.layer.0.attention.attention.key.bias", "lacks key"), ("stem.weight", "of no vision transformer")],
)
def test_tensors_of_no_vision_transformer_are_refused(tmp_path, name, message):
    of_transformers("vit", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    if tensors.pop(name, None) is None:
        tensors[name] = torch.zeros(2)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=message):
        encoder_backbone(small("vit", norm_eps=1e-12), name="s", window_px=64, weights=path)


@pytest.mark.parametrize("asked", [{"input_px": 448}, {"arguments": {"depth": 2}}])
def test_a_published_encoder_is_taken_as_it_is(asked):
    with pytest.raises(ModelError, match="'uni' takes no arguments and no other input than its own, 224 px"):
        create_backbone("uni", window_px=64, **asked)
