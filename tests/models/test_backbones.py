"""Backbones: every one BrST-Net compared learns a step, says its size, and draws only from its own seed."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch.nn import functional

from stexpr.config import AuxiliaryConfig, NetworkConfig
from stexpr.errors import ModelError
from stexpr.models.backbones import BACKBONES, create_backbone, own_input_px
from stexpr.models.objectives import make_objective
from stexpr.models.spot import build_spot_regressor
from stexpr.panel import ExpressionTransform
from stexpr.types import SpotBatch

WIDTHS = {
    "resnet101": 2048,
    "inception_v3": 2048,
    "efficientnet_b0": 1280,
    "efficientnet_b1": 1280,
    "efficientnet_b2": 1408,
    "efficientnet_b3": 1536,
    "efficientnet_b4": 1792,
    "efficientnet_b5": 2048,
    "vit_b16": 768,
    "vit_b32": 768,
    "densenet121": 1024,
    "resnet18": 512,
    "tiny": 192,
    "mobilenetv3_small_050": 1024,
    "mobilenetv4_conv_small_050": 1280,
    "lcnet_050": 1280,
    "ghostnet_050": 1280,
}


def random_patches(n: int, side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", WIDTHS)
def test_a_step_trains_backbone_and_both_heads(name: str, record_property: Callable[[str, object], None]) -> None:
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    counts = rng.poisson(5, size=(8, 7)).astype(np.float32)
    library = counts.sum(axis=1)
    transform = ExpressionTransform()
    main, auxiliary = (
        make_objective("mse", counts=part, library=library, transform=transform) for part in (counts[:, :4], counts[:, 4:])
    )
    config = NetworkConfig(backbone=name, auxiliary=AuxiliaryConfig(weight=1.0))
    model = build_spot_regressor(config, window_px=64, main_objective=main, auxiliary_objective=auxiliary, seed=0)
    assert model.backbone.n_features == WIDTHS[name]
    assert model.backbone.window_px == 64
    assert model.backbone.input_px == (75 if name == "inception_v3" else 64)
    batch = SpotBatch(
        random_patches(2, 64), torch.from_numpy(counts[:2, :4]), torch.from_numpy(counts[:2, 4:]), torch.from_numpy(library[:2])
    )
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.loss(batch).total.backward()
    optimizer.step()
    moved = [key for key, value in model.named_parameters() if not torch.equal(value, before[key])]
    assert {"main_head.weight", "main_head.bias", "auxiliary_head.weight"} <= set(moved)
    # timm starts the last scale of each residual branch at 0, so the branch itself moves only from the second step on
    assert sum(key.startswith("backbone.") for key in moved) > 0.2 * sum(key.startswith("backbone.") for key in before)
    with torch.inference_mode():
        predicted = model.eval().predict(batch.patches)
    assert predicted.shape == (2, 4)
    assert predicted.dtype == torch.float32
    if name != "inception_v3":  # timm draws it so wide that running statistics of one step do not tame it yet
        assert predicted.isfinite().all()
    record_property("seconds", round(time.perf_counter() - start, 2))


def test_the_ten_of_brst_net_have_short_names() -> None:
    ten = {"resnet101", "inception_v3", "vit_b16", "vit_b32", *(f"efficientnet_b{i}" for i in range(6))}
    assert ten <= set(BACKBONES)


@pytest.mark.parametrize("name", ["inception_v3", "densenet121"])
def test_the_minimum_of_the_table_is_the_true_one(name: str) -> None:
    minimum = BACKBONES[name].min_px
    network = timm.create_model(name, num_classes=0).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, minimum, minimum)).isfinite().all()
        with pytest.raises(RuntimeError):
            network(torch.zeros(1, 3, minimum - 1, minimum - 1))


@pytest.mark.parametrize(
    ("name", "window_px", "input_px"),
    [
        ("vit_b32", 16, 32),
        ("vit_b32", 33, 64),
        ("vit_tiny_patch16_224", 50, 64),
        ("vit_tiny_patch16_224", 64, 64),
        ("densenet121", 20, 29),
        ("tiny", 17, 17),
    ],
)
def test_the_input_is_the_smallest_size_the_network_sees_whole(name: str, window_px: int, input_px: int) -> None:
    backbone = create_backbone(name, window_px=window_px).eval()
    assert backbone.input_px == input_px
    images = backbone.preprocess(random_patches(1, window_px))
    assert images.shape == (1, 3, input_px, input_px)
    images.requires_grad_()
    backbone(images).square().sum().backward()
    assert images.grad is not None
    # a vision transformer whose side is no multiple of its patch would not see the last rows and columns
    assert images.grad[..., -1, :].abs().sum() > 0
    assert images.grad[..., :, -1].abs().sum() > 0


def test_a_network_of_one_size_gets_it() -> None:
    # swin needs a multiple of its window of patches, so small sizes are refused and larger ones tried
    backbone = create_backbone("swin_tiny_patch4_window7_224", window_px=200)
    assert backbone.input_px >= 200
    with torch.inference_mode():
        assert backbone.eval()(backbone.preprocess(random_patches(1, 200))).shape == (1, 768)


@pytest.mark.parametrize("name", ["tiny", "resnet18", "vit_tiny_patch16_224"])
def test_equal_seeds_give_equal_weights_and_leave_the_random_state(name: str) -> None:
    torch.manual_seed(11)
    np.random.seed(11)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(11)
    np.random.seed(11)
    first = create_backbone(name, window_px=32, seed=5)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])
    torch.manual_seed(999)  # the caller's state has no say
    second = create_backbone(name, window_px=32, seed=5)
    third = create_backbone(name, window_px=32, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


def test_sizes_tried_do_not_change_the_weights() -> None:
    tried = create_backbone("resnet18", window_px=16, seed=1)
    other = create_backbone("resnet18", window_px=64, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(tried.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "meant"), [("resnet_18", "resnet18"), ("efficientnet_b9", "efficientnet_b"), ("tinny", "tiny")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"no backbone '{name}'; did you mean '{meant}"):
        create_backbone(name, window_px=32)


def test_a_name_near_nothing_is_answered_with_the_table() -> None:
    with pytest.raises(ModelError, match=r"no backbone 'qqqqqq'; .*vit_b16.*timm\.list_models"):
        create_backbone("qqqqqq", window_px=32)


def test_unknown_weights_of_a_known_network() -> None:
    with pytest.raises(ModelError, match="timm knows 'resnet18', but not its weights 'nobody_in1k'"):
        create_backbone("resnet18.nobody_in1k", window_px=32)


def test_weights_of_a_tag_are_built_untrained() -> None:
    backbone = create_backbone("resnet18.a1_in1k", window_px=32)
    assert backbone.timm_name == "resnet18"


def test_tiny_has_no_pretrained_weights() -> None:
    with pytest.raises(ModelError, match=r"model\.pretrained=false"):
        create_backbone("tiny", window_px=32, pretrained=True)


def test_pretrained_weights_without_a_network_name_the_way_out(tmp_path: Path) -> None:
    code = (
        "from stexpr.errors import ModelError\n"
        "from stexpr.models.backbones import create_backbone\n"
        "try: create_backbone('resnet18', window_px=64, pretrained=True)\n"
        "except ModelError as err: print(err)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert "'resnet18'" in lines[0]
    assert "HF_HOME" in lines[0]
    assert "model.pretrained=false" in lines[0]


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(3)
    network = timm.create_model("resnet18", num_classes=0)
    network.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    folder = tmp_path_factory.mktemp("weights") / "own"
    save_for_hf(network, folder, safe_serialization=True)
    return folder, network.eval()


def test_weights_of_a_local_folder_are_loaded_with_their_colors(weights_folder: tuple[Path, torch.nn.Module]) -> None:
    folder, network = weights_folder
    backbone = create_backbone(f"local-dir:{folder}", window_px=64, pretrained=True).eval()
    assert backbone.timm_name == "resnet18"
    assert (backbone.mean, backbone.sd) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    patches = random_patches(2, 64)
    mean, sd = (torch.tensor(values).view(3, 1, 1) for values in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    with torch.inference_mode():
        images = ((patches.float() / 255 - mean) / sd).contiguous(memory_format=torch.channels_last)
        assert torch.equal(backbone(backbone.preprocess(patches)), network(images))


def test_a_local_folder_without_pretrained_gives_its_architecture(weights_folder: tuple[Path, torch.nn.Module]) -> None:
    folder, network = weights_folder
    backbone = create_backbone(f"local-dir:{folder}", window_px=64)
    assert backbone.n_features == 512
    assert not torch.equal(next(backbone.network.parameters()), next(network.parameters()))


def test_a_local_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        create_backbone(f"local-dir:{tmp_path / 'nothing'}", window_px=64)


def test_a_local_folder_of_another_library(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(ModelError, match="backbone"):
        create_backbone(f"local-dir:{tmp_path}", window_px=64, pretrained=True)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 32, 31), (2, 3, 64, 64)])
def test_patches_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    backbone = create_backbone("tiny", window_px=32)
    with pytest.raises(ModelError, match=re.escape(f"built for patches of 32 px, got {shape[2:]}")):
        backbone.preprocess(torch.zeros(shape, dtype=torch.uint8))


def test_preprocessing_scales_and_normalizes() -> None:
    backbone = create_backbone("tiny", window_px=16)
    patches = random_patches(2, 16)
    expected = (patches.numpy() / 255 - np.reshape(backbone.mean, (3, 1, 1))) / np.reshape(backbone.sd, (3, 1, 1))
    np.testing.assert_allclose(backbone.preprocess(patches).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("name", "window_px"), [("tiny", 33), ("inception_v3", 64)])
def test_preprocessing_has_the_bits_of_the_plain_formula(name: str, window_px: int, channels_last: bool) -> None:
    backbone = create_backbone(name, window_px=window_px)
    patches = random_patches(3, window_px)
    given = patches.contiguous(memory_format=torch.channels_last) if channels_last else patches
    plain = patches.float() / 255
    if backbone.input_px != window_px:
        side = (backbone.input_px, backbone.input_px)
        plain = torch.nn.functional.interpolate(
            plain.contiguous(memory_format=torch.channels_last), size=side, mode="bilinear", antialias=True, align_corners=False
        )
    expected = (plain - backbone.mean_rgb.view(3, 1, 1)) / backbone.sd_rgb.view(3, 1, 1)
    made = backbone.preprocess(given)
    assert torch.equal(made, expected)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(given, patches), "the patches are left as they were"


def test_preprocessing_enlarges_bilinearly() -> None:
    backbone = create_backbone("vit_b32", window_px=24)
    patches = random_patches(1, 24)
    large = functional.interpolate(patches.float() / 255, size=(32, 32), mode="bilinear", align_corners=False)
    mean, sd = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.sd))
    assert torch.allclose(backbone.preprocess(patches), (large - mean) / sd, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "tiny"])
def test_a_frozen_backbone_stays_as_it_is(name: str) -> None:
    backbone = create_backbone(name, window_px=32)
    backbone.train()
    backbone.freeze()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    holder = torch.nn.Sequential(backbone, torch.nn.Linear(backbone.n_features, 1)).train()
    assert holder[1].training
    assert not any(module.training for module in backbone.modules())
    holder[1](backbone(backbone.preprocess(random_patches(4, 32)))).sum().backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(("name", "side"), [("tiny", None), ("resnet18", 224), ("inception_v3", 299), ("uni", 224)])
def test_the_input_its_makers_meant(name: str, side: int | None) -> None:
    assert own_input_px(name) == side


@pytest.mark.parametrize(("name", "side"), [("resnet18", 224), ("vit_b16", 96), ("vit_tiny_patch16_224", 224)])
def test_an_input_that_is_asked_for_is_taken(name: str, side: int) -> None:
    backbone = create_backbone(name, window_px=40, input_px=side).eval()
    assert (backbone.window_px, backbone.input_px) == (40, side)
    images = backbone.preprocess(random_patches(1, 40))
    assert images.shape == (1, 3, side, side)
    with torch.inference_mode():
        assert backbone(images).shape == (1, backbone.n_features)


def test_an_input_that_cannot_be_is_refused() -> None:
    with pytest.raises(ModelError, match=r"works at none of 50 px: .*patches"):
        create_backbone("vit_b16", window_px=40, input_px=50)
    with pytest.raises(ModelError, match="no other input than its own, 40 px"):
        create_backbone("tiny", window_px=40, input_px=50)


def test_tiny_says_the_same_of_a_patch_in_any_batch() -> None:
    backbone = create_backbone("tiny", window_px=32)
    patches = random_patches(5, 32)
    with torch.inference_mode():
        together = backbone(backbone.preprocess(patches))
        alone = torch.cat([backbone(backbone.preprocess(patch[None])) for patch in patches])
    assert torch.allclose(together, alone, atol=1e-5)


def test_tiny_has_slopes_on_an_even_patch() -> None:
    backbone = create_backbone("tiny", window_px=32)
    backbone(backbone.preprocess(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
