"""Backbones: from an image to a vector of features, whatever timm calls the network."""

import math
from dataclasses import dataclass
from typing import Any

import timm
import torch
from jaxtyping import Float, UInt8
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from stexpr.errors import ModelError, nearest
from stexpr.models.tiny import TinyNetwork


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


BACKBONES: dict[str, BackboneSpec] = {
    "resnet101": BackboneSpec("resnet101"),
    "inception_v3": BackboneSpec("inception_v3", min_px=75),
    **{f"efficientnet_b{i}": BackboneSpec(f"efficientnet_b{i}") for i in range(6)},
    "vit_b16": BackboneSpec("vit_base_patch16_224", multiple_px=16),
    "vit_b32": BackboneSpec("vit_base_patch32_224", min_px=32, multiple_px=32),
    "densenet121": BackboneSpec("densenet121", min_px=29),
    "tiny": BackboneSpec(""),
}
"""Short names: the ten of BrST-Net, ST-Net's DenseNet and a small one of our own. Any other name is looked up in timm."""

TRIAL_SIZES = (32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 299, 384)


class Backbone(nn.Module):
    """A network without its head, and how an image becomes its input.

    Attributes:
        name: As asked for.
        timm_name: The architecture in timm, with which it can be built again; `tiny` for our own.
        n_features: Length D of the feature vector.
        window_px: Side of the patches given.
        input_px: Side the network sees; larger than `window_px` only where the network cannot do with that.
    """

    mean_rgb: Tensor
    sd_rgb: Tensor

    def __init__(
        self, network: nn.Module, *, name: str, timm_name: str, n_features: int, window_px: int, input_px: int, colors: Any
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.timm_name = timm_name
        self.n_features = n_features
        self.window_px = window_px
        self.input_px = input_px
        # buffers, so that weights from a local folder take their own colors along
        self.register_buffer("mean_rgb", torch.tensor(colors["mean"], dtype=torch.float32))
        self.register_buffer("sd_rgb", torch.tensor(colors["std"], dtype=torch.float32))

    @property
    def mean(self) -> tuple[float, float, float]:
        """Per-channel mean subtracted from images in [0, 1]."""
        return _triple(self.mean_rgb)

    @property
    def sd(self) -> tuple[float, float, float]:
        """Per-channel standard deviation they are divided by."""
        return _triple(self.sd_rgb)

    def preprocess(self, patches: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 P P"]:
        """Scale patches to [0, 1], enlarge them to `input_px` where needed, and normalize the colors.

        Args:
            patches: RGB patches of side `window_px`.

        Returns:
            The input of `forward`, channels last in memory.

        Raises:
            ModelError: The patches have another size than the backbone was built for.
        """
        if patches.shape[2:] != (self.window_px, self.window_px):
            raise ModelError(
                f"backbone {self.name} was built for patches of {self.window_px} px, got {tuple(patches.shape[2:])}"
            )
        # in place, which gives the same bits in a third of the time: fresh memory costs more than the arithmetic
        images = patches.float().contiguous(memory_format=torch.channels_last).div_(255)
        if self.input_px != self.window_px:
            side = (self.input_px, self.input_px)
            images = functional.interpolate(images, size=side, mode="bilinear", antialias=True, align_corners=False)
        return images.sub_(self.mean_rgb[:, None, None]).div_(self.sd_rgb[:, None, None])

    def forward(self, images: Float[Tensor, "B 3 P P"]) -> Float[Tensor, "B D"]:
        """Return the features of preprocessed images."""
        features: Tensor = self.network(images)
        return features


def create_backbone(name: str, *, window_px: int, pretrained: bool = False, seed: int = 0) -> Backbone:
    """Build a backbone for patches of one size.

    The global random state is left as it was, and equal seeds give equal weights. Vision transformers are built at the
    window's size (rounded up to a multiple of their patch), to which timm resamples pretrained position embeddings. A
    network that cannot take the window gets it enlarged to the smallest size it can take; `input_px` tells.

    Args:
        name: One of `BACKBONES`, or any name timm knows.
        window_px: Side of the patches.
        pretrained: Load timm's weights, from the network or the cache of huggingface_hub.
        seed: Draws the initial weights.

    Returns:
        The backbone, in training mode, on the CPU.

    Raises:
        ModelError: The name is unknown (the nearest is named), there are no pretrained weights or they cannot be had,
            or the network takes none of the sizes tried.

    Example:
        >>> backbone = create_backbone("tiny", window_px=32)
        >>> backbone.n_features, backbone.input_px
        (192, 32)
    """
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would reseed every GPU as well
        torch.default_generator.manual_seed(seed)
        if name == "tiny":
            return _tiny(window_px, pretrained)
        return _from_timm(name, window_px, pretrained)


def _from_timm(name: str, window_px: int, pretrained: bool) -> Backbone:
    spec = BACKBONES.get(name)
    timm_name = spec.timm_name if spec else name
    native_px, sized = _timm_settings(name, timm_name)
    known = [_round_up(max(window_px, spec.min_px), spec.multiple_px)] if spec else None
    sizes = known or _sizes_to_try(window_px, native_px, sized)
    network, input_px, n_features = _first_that_works(timm_name, sizes, sized, native_px)
    if pretrained:
        network = _load_pretrained(timm_name, {"img_size": input_px} if sized else {})
    colors = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    return Backbone(
        network,
        name=name,
        timm_name=str(getattr(network, "pretrained_cfg", {}).get("architecture") or timm_name),
        n_features=n_features,
        window_px=window_px,
        input_px=input_px,
        colors=colors,
    )


def _timm_settings(name: str, timm_name: str) -> tuple[int, bool]:
    """Return a network's native input size and whether it is built for one size, after checking that timm knows it."""
    if ":" in timm_name:  # a folder or repository in timm's own format: local-dir:PATH, hf-hub:OWNER/NAME
        try:
            values: Any = timm.create_model(timm_name, num_classes=0).pretrained_cfg
        except Exception as err:  # a missing file, a lost connection, another library's config.json
            raise ModelError(f"backbone {name!r} cannot be read: {_one_line(err)}") from err
        return int(values["input_size"][-1]), bool(values.get("fixed_input_size"))
    if not timm.is_model(timm_name.split(".")[0]):
        hint = nearest(name, [*BACKBONES, *timm.list_models()])
        if not hint.startswith("did"):  # a thousand names are no help
            hint = f"known: {', '.join(sorted(BACKBONES))} and every name of timm.list_models()"
        raise ModelError(f"no backbone {name!r}; {hint}")
    try:
        settings = timm.get_pretrained_cfg(timm_name)
    except RuntimeError:  # what timm raises for a tag it does not know
        settings = None
    if settings is None:
        raise ModelError(f"timm knows {timm_name.split('.')[0]!r}, but not its weights {timm_name.split('.', 1)[-1]!r}")
    return int(settings.input_size[-1]), bool(settings.fixed_input_size)


def _sizes_to_try(window_px: int, native_px: int, sized: bool) -> list[int]:
    if sized:  # the usual patch sizes of vision transformers
        return sorted({_round_up(window_px, patch) for patch in (8, 14, 16, 32)} | {max(native_px, window_px)})
    return sorted({window_px, *(size for size in (*TRIAL_SIZES, native_px) if size > window_px)})


def _first_that_works(timm_name: str, sizes: list[int], sized: bool, native_px: int) -> tuple[nn.Module, int, int]:
    """Return the untrained network at the first size it takes, that size and its feature width."""
    attempts: list[tuple[int, dict[str, Any]]] = [(px, {"img_size": px} if sized else {}) for px in sizes]
    if sized:  # some networks have one size, and no argument for it
        attempts.append((native_px, {}))
    reason = ""
    network: nn.Module | None = None
    for px, arguments in attempts:
        try:
            if network is None or sized:
                # the same draws at every attempt, so the weights do not depend on how many failed
                with torch.random.fork_rng(devices=[]):
                    network = timm.create_model(timm_name, num_classes=0, **arguments)
            if px % _patch_px(network):
                continue  # the network would run, and drop the rows and columns left over
            return network, px, _feature_width(network, px)
        except Exception as err:  # networks refuse a size with whatever their first failing line raises
            reason = _one_line(err)
    raise ModelError(f"backbone {timm_name!r} works at none of {', '.join(str(px) for px, _ in attempts)} px: {reason}")


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


def _load_pretrained(timm_name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(timm_name, num_classes=0, pretrained=True, **arguments)
    except Exception as err:  # timm, huggingface_hub and the network each raise their own
        raise ModelError(
            f"the pretrained weights of {timm_name!r} cannot be loaded: {_one_line(err)} On a machine with a network run "
            f"python -c \"import timm; timm.create_model('{timm_name}', pretrained=True)\", copy its folder HF_HOME "
            "(default ~/.cache/huggingface) here and set HF_HOME to it; or set model.pretrained=false"
        ) from err
    return network


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


def _one_line(err: Exception) -> str:
    text = " ".join(str(err).split()) or type(err).__name__
    return f"{text[:200].rstrip('.')}."


def _triple(values: Tensor) -> tuple[float, float, float]:
    red, green, blue = (round(value, 6) for value in values.tolist())
    return red, green, blue


def _tiny(window_px: int, pretrained: bool) -> Backbone:
    if pretrained:
        raise ModelError("the backbone 'tiny' has no pretrained weights; set model.pretrained=false")
    return Backbone(
        TinyNetwork(),
        name="tiny",
        timm_name="tiny",
        n_features=2 * TinyNetwork.WIDTHS[-1],
        window_px=window_px,
        input_px=window_px,
        colors={"mean": (0.7, 0.55, 0.7), "std": (0.2, 0.2, 0.2)},
    )
