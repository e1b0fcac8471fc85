"""Backbones: from an image to a vector of features, whatever timm calls the network."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float, UInt8
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional

from stexpr.errors import ModelError, nearest
from stexpr.models.arguments import checked_arguments
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
        arguments: What the architecture is built with beside its defaults, plain JSON values.
        n_features: Length D of the feature vector.
        window_px: Side of the patches given.
        input_px: Side the network sees; larger than `window_px` only where the network cannot do with that.
    """

    mean_rgb: Tensor
    sd_rgb: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        timm_name: str,
        n_features: int,
        window_px: int,
        input_px: int,
        colors: Any,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.timm_name = timm_name
        self.arguments = dict(arguments or {})
        self.n_features = n_features
        self.window_px = window_px
        self.input_px = input_px
        # buffers, so that weights from a local folder take their own colors along
        self.register_buffer("mean_rgb", torch.tensor(colors["mean"], dtype=torch.float32))
        self.register_buffer("sd_rgb", torch.tensor(colors["std"], dtype=torch.float32))

    @property
    def portable_name(self) -> str:
        """The name by which it can be built again anywhere: without the folder or repository its weights came from."""
        return self.timm_name if ":" in self.name else self.name

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
        images = patches.float().contiguous(memory_format=torch.channels_last) / 255
        if self.input_px != self.window_px:
            side = (self.input_px, self.input_px)
            images = functional.interpolate(images, size=side, mode="bilinear", antialias=True, align_corners=False)
        return (images - self.mean_rgb[:, None, None]) / self.sd_rgb[:, None, None]

    def forward(self, images: Float[Tensor, "B 3 P P"]) -> Float[Tensor, "B D"]:
        """Return the features of preprocessed images."""
        features: Tensor = self.network(images)
        return features


def create_backbone(
    name: str,
    *,
    window_px: int,
    pretrained: bool = False,
    seed: int = 0,
    input_px: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a backbone for patches of one size.

    The global random state is left as it was, and equal seeds give equal weights. Vision transformers are built at the
    window's size (rounded up to a multiple of their patch), to which timm resamples pretrained position embeddings. A
    network that cannot take the window gets it enlarged to the smallest size it can take; `input_px` tells.

    Args:
        name: One of `BACKBONES`, or any name timm knows.
        window_px: Side of the patches.
        pretrained: Load timm's weights, from the network or the cache of huggingface_hub.
        seed: Draws the initial weights.
        input_px: Side the network sees, to which patches are resized; None takes the smallest it can do with.
        arguments: What the architecture is built with beside its defaults, plain JSON values; a folder brings its own.

    Returns:
        The backbone, in training mode, on the CPU.

    Raises:
        ModelError: The name is unknown (the nearest is named), there are no pretrained weights or they cannot be had,
            the network takes none of the sizes tried, or an argument is not one of a network.

    Example:
        >>> backbone = create_backbone("tiny", window_px=32)
        >>> backbone.n_features, backbone.input_px
        (192, 32)
    """
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would reseed every GPU as well
        torch.default_generator.manual_seed(seed)
        if name == "tiny":
            return _tiny(window_px, pretrained, input_px, arguments)
        return _from_timm(name, window_px, pretrained, input_px, checked_arguments(arguments or {}, f"backbone {name}"))


def _from_timm(name: str, window_px: int, pretrained: bool, input_px: int | None, arguments: dict[str, Any]) -> Backbone:
    spec = BACKBONES.get(name)
    timm_name = spec.timm_name if spec else name
    native_px, sized = _timm_settings(name, timm_name)
    if timm_name.startswith("local-dir:"):
        arguments = {**_arguments_of(Path(timm_name.removeprefix("local-dir:"))), **arguments}
    sized = sized and not arguments.get("dynamic_img_size") and arguments.get("strict_img_size", True)
    if input_px is not None:
        sizes = [input_px]
    elif spec:
        sizes = [_round_up(max(window_px, spec.min_px), spec.multiple_px)]
    else:
        sizes = _sizes_to_try(window_px, native_px, sized)
    attempts = [(px, {**arguments, "img_size": px} if sized else arguments) for px in sizes]
    if sized and input_px in (None, native_px):  # some networks have one size, and no argument for it
        attempts.append((native_px, arguments))
    network, built_px, n_features, arguments = _first_that_works(timm_name, attempts)
    if pretrained:
        network = _load_pretrained(timm_name, arguments)
    colors = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    return Backbone(
        network,
        name=name,
        timm_name=str(getattr(network, "pretrained_cfg", {}).get("architecture") or timm_name),
        n_features=n_features,
        window_px=window_px,
        input_px=built_px,
        colors=colors,
        arguments=arguments,
    )


def _arguments_of(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"  # that it is there and JSON, timm has seen
    return checked_arguments(json.loads(path.read_text(encoding="utf-8")).get("model_args") or {}, str(path))


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


def _first_that_works(timm_name: str, attempts: list[tuple[int, dict[str, Any]]]) -> tuple[nn.Module, int, int, dict[str, Any]]:
    """Return the untrained network at the first size it takes, that size, its feature width and its arguments."""
    reason = "no size is a multiple of the network's own patches"
    network: nn.Module | None = None
    built: dict[str, Any] | None = None
    for px, arguments in attempts:
        try:
            if network is None or arguments != built:
                # the same draws at every attempt, so the weights do not depend on how many failed
                with torch.random.fork_rng(devices=[]):
                    network, built = timm.create_model(timm_name, num_classes=0, **arguments), arguments
            if px % _patch_px(network):
                continue  # the network would run, and drop the rows and columns left over
            return network, px, _feature_width(network, px), arguments
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


def _tiny(window_px: int, pretrained: bool, input_px: int | None, arguments: Mapping[str, Any] | None) -> Backbone:
    if pretrained:
        raise ModelError("the backbone 'tiny' has no pretrained weights; set model.pretrained=false")
    if arguments or input_px not in (None, window_px):
        raise ModelError(
            f"the backbone 'tiny' has no arguments and sees patches as they are, {window_px} px, not {input_px} px"
        )
    return Backbone(
        TinyNetwork(),
        name="tiny",
        timm_name="tiny",
        n_features=2 * TinyNetwork.WIDTHS[-1],
        window_px=window_px,
        input_px=window_px,
        colors={"mean": (0.7, 0.55, 0.7), "std": (0.2, 0.2, 0.2)},
    )
