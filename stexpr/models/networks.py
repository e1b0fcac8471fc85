"""Untrained networks of timm: the architecture a name stands for, built at a size it takes."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import timm
import torch
from torch import Tensor, nn

from stexpr.config.models import FOLDER
from stexpr.errors import ModelError, nearest
from stexpr.models.arguments import checked_arguments
from stexpr.models.encoders import ENCODERS
from stexpr.models.weights import CONFIG, hub_folder, one_line

TRIAL_SIZES: Final = (32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 299, 384)
HUB: Final = "hf-hub:"


@dataclass(frozen=True)
class BackboneSpec:
    """What a short name stands for.

    Attributes:
        timm_name: The architecture in timm; empty for our own.
        min_px: Smallest input it works at, found by trial; smaller windows are enlarged to it.
        multiple_px: The input is a multiple of this, the patch size of a vision transformer.
    """

    timm_name: str
    min_px: int = 16
    multiple_px: int = 1


BACKBONES: Final[dict[str, BackboneSpec]] = {
    "resnet101": BackboneSpec("resnet101"),
    "inception_v3": BackboneSpec("inception_v3", min_px=75),
    **{f"efficientnet_b{i}": BackboneSpec(f"efficientnet_b{i}") for i in range(6)},
    "vit_b16": BackboneSpec("vit_base_patch16_224", multiple_px=16),
    "vit_b32": BackboneSpec("vit_base_patch32_224", min_px=32, multiple_px=32),
    "densenet121": BackboneSpec("densenet121", min_px=29),
    "tiny": BackboneSpec(""),
}
"""Short names: the ten of BrST-Net, ST-Net's DenseNet and a small one of our own. Any other name is looked up in timm."""


@dataclass(frozen=True)
class Blueprint:
    """An architecture before it is built.

    Attributes:
        name: As asked for.
        source: What `timm.create_model` is asked for: an architecture, or `local-dir:` and a folder.
        arguments: What it is built with beside its defaults, plain JSON values.
        native_px: Side of the input its makers meant.
        sized: Whether it is built for one size of input.
    """

    name: str
    source: str
    arguments: Mapping[str, Any]
    native_px: int
    sized: bool

    @property
    def folder(self) -> Path | None:
        """The folder its weights and architecture come from, None for a name of timm."""
        return Path(self.source.removeprefix(FOLDER)) if self.source.startswith(FOLDER) else None

    def sizes(self, window_px: int) -> list[int]:
        """Return the sides of the input to try for a window, smallest first."""
        spec = BACKBONES.get(self.name)
        if spec:
            return [_round_up(max(window_px, spec.min_px), spec.multiple_px)]
        if self.sized:  # the usual patch sizes of vision transformers
            fitting = {_round_up(window_px, patch) for patch in (8, 14, 16, 32)}
            return sorted(fitting | {max(self.native_px, window_px)})
        return sorted({window_px, *(size for size in (*TRIAL_SIZES, self.native_px) if size > window_px)})


class Built(NamedTuple):
    """An untrained network, the side of its input, the length of its features and what it was built with."""

    network: nn.Module
    input_px: int
    n_features: int
    arguments: dict[str, Any]


def read_blueprint(name: str, arguments: Mapping[str, Any] | None = None, *, weights: bool, download: bool) -> Blueprint:
    """Find out what a name stands for.

    Args:
        name: One of `BACKBONES`, a name of timm, `local-dir:PATH` or `hf-hub:OWNER/NAME`.
        arguments: What the architecture is built with beside its defaults; a folder brings its own.
        weights: Whether a repository's weights are wanted too, or only its architecture.
        download: Fetch what a repository has and the cache has not.

    Raises:
        ModelError: The name is unknown (the nearest is named), or a folder or repository cannot be read.
    """
    own = checked_arguments(arguments or {}, f"backbone {name}")
    if name.startswith(HUB):
        folder = hub_folder(name.removeprefix(HUB), weights=weights, download=download)
        return _of_folder(name, f"{FOLDER}{folder}", own)
    if name.startswith(FOLDER):
        return _of_folder(name, name, own)
    spec = BACKBONES.get(name)
    timm_name = spec.timm_name if spec else name
    if ":" in timm_name or not timm.is_model(timm_name.split(".")[0]):
        hint = nearest(name, [*BACKBONES, *ENCODERS, *timm.list_models()])
        if not hint.startswith("did"):  # a thousand names are no help
            known = ", ".join(sorted([*BACKBONES, *ENCODERS]))
            hint = f"known: {known}, every name of timm.list_models(), hf-hub:OWNER/NAME and local-dir:PATH"
        raise ModelError(f"no backbone {name!r}; {hint}")
    try:
        settings = timm.get_pretrained_cfg(timm_name)
    except RuntimeError:  # what timm raises for a tag it does not know
        settings = None
    if settings is None:
        raise ModelError(f"timm knows {timm_name.split('.')[0]!r}, but not its weights {timm_name.split('.', 1)[-1]!r}")
    return _blueprint(name, timm_name, own, int(settings.input_size[-1]), bool(settings.fixed_input_size))


def _of_folder(name: str, source: str, own: dict[str, Any]) -> Blueprint:
    path = Path(source.removeprefix(FOLDER)) / CONFIG
    try:
        given = json.loads(path.read_text(encoding="utf-8")).get("model_args") or {}
        arguments = {**checked_arguments(given, str(path)), **own}  # before timm makes anything of them
        settings: Any = timm.create_model(source, num_classes=0).pretrained_cfg
    except ModelError:
        raise
    except Exception as err:  # a missing file, another library's config.json
        raise ModelError(f"backbone {name!r} cannot be read: {one_line(err)}") from err
    return _blueprint(name, source, arguments, int(settings["input_size"][-1]), bool(settings.get("fixed_input_size")))


def _blueprint(name: str, source: str, arguments: dict[str, Any], native_px: int, fixed: bool) -> Blueprint:
    sized = fixed and not arguments.get("dynamic_img_size") and bool(arguments.get("strict_img_size", True))
    return Blueprint(name, source, arguments, native_px, sized)


def build_network(blueprint: Blueprint, window_px: int, input_px: int | None = None) -> Built:
    """Build the untrained network at the first size it takes.

    Args:
        blueprint: What to build.
        window_px: Side of the patches.
        input_px: Side of the input, where it is decided.

    Raises:
        ModelError: It takes none of the sizes tried.
    """
    sizes = blueprint.sizes(window_px) if input_px is None else [input_px]
    plain = dict(blueprint.arguments)
    attempts = [(px, {**plain, "img_size": px} if blueprint.sized else plain) for px in sizes]
    if blueprint.sized and input_px in (None, blueprint.native_px):  # some have one size, and no argument for it
        attempts.append((blueprint.native_px, plain))
    reason = "no side is a multiple of its own patches"
    network: nn.Module | None = None
    built: dict[str, Any] | None = None
    for px, arguments in attempts:
        try:
            if network is None or arguments != built:
                # the same draws at every attempt, so the weights do not depend on how many failed
                with torch.random.fork_rng(devices=[]):
                    network, built = timm.create_model(blueprint.source, num_classes=0, **arguments), arguments
            if px % _patch_px(network):
                continue  # the network would run, and drop the rows and columns left over
            return Built(network, px, _feature_width(network, px), arguments)
        except Exception as err:  # networks refuse a size with whatever their first failing line raises
            reason = one_line(err)
    tried = ", ".join(str(px) for px, _ in attempts)
    raise ModelError(f"backbone {blueprint.name!r} works at none of {tried} px: {reason}")


def _patch_px(network: nn.Module) -> int:
    """Return the side of a vision transformer's own patches, 1 for other networks."""
    size: Any = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    return int(size[0] if isinstance(size, tuple) else size)


def _feature_width(network: nn.Module, px: int) -> int:
    was_training = network.training
    network.eval()
    with torch.no_grad():
        features: Tensor = network(torch.zeros(1, 3, px, px))
    network.train(was_training)
    if features.ndim != 2:
        raise ModelError(f"the network gives features of shape {tuple(features.shape[1:])}, not a vector")
    return int(features.shape[1])


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
