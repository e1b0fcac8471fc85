"""Backbones: from an image to a vector of features, whatever the network is called and wherever its weights come from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float, UInt8
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from stexpr.errors import ModelError
from stexpr.models.encoders import ENCODERS, Encoder, Pooling, known_encoder, pool
from stexpr.models.fields import cut_fields
from stexpr.models.networks import BACKBONES as BACKBONES
from stexpr.models.networks import Blueprint, build_network, read_blueprint
from stexpr.models.tiny import TinyNetwork
from stexpr.models.weights import CONFIG, SAFE, check_names, folder_file, hub_file, load_encoder_weights, one_line, timm_file
from stexpr.panel import checked_fields


class Backbone(nn.Module):
    """A network without its head, and how an image becomes its input.

    Attributes:
        name: As asked for.
        timm_name: The architecture in timm, with which it can be built again; `tiny` for our own.
        arguments: What the architecture is built with beside its defaults, plain JSON values.
        fields_px: Sides of the centered fields of view the network sees of a patch, ascending; the last is the whole patch.
        input_px: Side the network sees; another than that of the smallest field of view where the network cannot do with
            that, or is meant for it.
        pooling: What becomes of the network's output: nothing, or one vector of its tokens.
        frozen: Whether training leaves it as it is.
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
        pooling: Pooling = "network",
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.timm_name = timm_name
        self.arguments = dict(arguments or {})
        self.fields_px: tuple[int, ...] = (window_px,)
        self._features_of_a_field = n_features
        self.input_px = input_px
        self.pooling = pooling
        self.frozen = False
        # buffers, so that weights from a local folder take their own colors along
        self.register_buffer("mean_rgb", torch.tensor(colors["mean"], dtype=torch.float32))
        self.register_buffer("sd_rgb", torch.tensor(colors["std"], dtype=torch.float32))

    @property
    def n_features(self) -> int:
        """Length D of the feature vector, that of all fields of view together."""
        return len(self.fields_px) * self._features_of_a_field

    @property
    def window_px(self) -> int:
        """Side of the patches given, which is that of the largest field of view."""
        return self.fields_px[-1]

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

    def preprocess(self, patches: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "N 3 P P"]:
        """Cut the fields of view, scale them to [0, 1], resize them to `input_px` where needed, and normalize the colors.

        Args:
            patches: RGB patches of side `window_px`.

        Returns:
            The input of `forward`, all patches of the first field of view before those of the next, channels last in memory.

        Raises:
            ModelError: The patches have another size than the backbone was built for.
        """
        if patches.shape[2:] != (self.window_px, self.window_px):
            raise ModelError(
                f"backbone {self.name} was built for patches of {self.window_px} px, got {tuple(patches.shape[2:])}"
            )
        images = cut_fields(patches, self.fields_px, self.input_px)
        # along whole rows of pixels: along three channels a CPU goes number by number, and takes four times as long
        rows = images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(2)
        rows.sub_(self.mean_rgb.repeat(self.input_px)).div_(self.sd_rgb.repeat(self.input_px))
        return torch.unflatten(rows, 2, (self.input_px, 3)).permute(0, 3, 1, 2)

    def forward(self, images: Float[Tensor, "N 3 P P"]) -> Float[Tensor, "B D"]:
        """Return the features of preprocessed images, those of a patch's fields of view one after the other."""
        features: Tensor = self.network(images)
        if self.pooling != "network":
            features = pool(features, int(getattr(self.network, "num_prefix_tokens", 1)))
        n = len(self.fields_px)
        return features if n == 1 else torch.unflatten(features, 0, (n, -1)).transpose(0, 1).flatten(1)

    def freeze(self) -> None:
        """Keep weights and running statistics as they are, whatever is trained on top."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Switch to training or evaluation; what is frozen stays in evaluation."""
        super().train(mode and not self.frozen)
        return self


def create_backbone(
    name: str,
    *,
    window_px: int,
    fields_px: Sequence[int] = (),
    pretrained: bool = False,
    weights: Path | None = None,
    download: bool = False,
    seed: int = 0,
    input_px: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a backbone for patches of one size.

    The global random state is left as it was, and equal seeds give equal weights. Vision transformers are built at the
    window's size (rounded up to a multiple of their patch), to which timm resamples pretrained position embeddings. A
    network that cannot take the window gets it enlarged to the smallest size it can take; `input_px` tells. The published
    encoders of `ENCODERS` always get their own input size. Of several fields of view the smallest decides, and the others are
    brought to the same size.

    Args:
        name: One of `BACKBONES` or `ENCODERS`, any name timm knows, `hf-hub:OWNER/NAME`, or `local-dir:PATH`, a folder in
            timm's own format.
        window_px: Side of the patches.
        fields_px: Sides of centered fields of view the network sees of a patch, ascending to `window_px`; none for the whole
            patch alone.
        pretrained: Load the weights that belong to the name, from a folder or from the cache of huggingface_hub.
        weights: A safetensors file with the weights of the named architecture, instead.
        download: Fetch weights that are not in the cache.
        seed: Draws the initial weights.
        input_px: Side the network sees, to which patches are resized; None takes the smallest it can do with.
        arguments: What the architecture is built with beside its defaults, plain JSON values; a folder brings its own.

    Returns:
        The backbone, in training mode, on the CPU.

    Raises:
        ModelError: The name is unknown (the nearest is named), there are no pretrained weights, they cannot be had or are of
            another network, the network takes none of the sizes tried, or an argument is not one of a network.
        ConfigError: The fields of view do not ascend to the side of the patches.

    Example:
        >>> backbone = create_backbone("tiny", window_px=32)
        >>> backbone.n_features, backbone.input_px
        (192, 32)
    """
    fields = checked_fields(fields_px, window_px)
    smallest, known = fields[0], known_encoder(name)
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would reseed every GPU as well
        torch.default_generator.manual_seed(seed)
        if name == "tiny" or known is not None:
            own_px = smallest if known is None else ENCODERS[known].input_px
            if arguments or input_px not in (None, own_px):
                raise ModelError(f"the backbone {name!r} takes no arguments and no other input than its own, {own_px} px")
        if name == "tiny":
            backbone = _tiny(smallest, pretrained or weights is not None)
        elif known is not None:
            path = weights or (_encoder_file(ENCODERS[known], download) if pretrained else None)
            backbone = encoder_backbone(ENCODERS[known], name=known, window_px=smallest, weights=path)
        else:
            blueprint = read_blueprint(name, arguments, weights=pretrained, download=download)
            backbone = _from_timm(blueprint, smallest, input_px, _file_of(blueprint, weights, pretrained, download))
    backbone.fields_px = fields
    return backbone


def own_input_px(name: str, *, download: bool = False) -> int | None:
    """Return the side of the input a backbone's makers meant, None where it has none.

    Raises:
        ModelError: The name is unknown, or a folder or repository cannot be read.
    """
    known = known_encoder(name)
    if known is not None:
        return ENCODERS[known].input_px
    return None if name == "tiny" else read_blueprint(name, weights=False, download=download).native_px


def encoder_backbone(encoder: Encoder, *, name: str, window_px: int, weights: Path | None) -> Backbone:
    """Build a published encoder.

    Args:
        encoder: What is known of it.
        name: Its short name.
        window_px: Side of the patches.
        weights: Its weights as safetensors; None leaves it untrained.

    Raises:
        ModelError: The file does not hold its weights.
    """
    network = encoder.build()
    if weights is not None:
        load_encoder_weights(network, encoder, weights)
    return Backbone(
        network,
        name=name,
        timm_name=encoder.architecture,
        n_features=encoder.n_features,
        window_px=window_px,
        input_px=encoder.input_px,
        colors=encoder.colors,
        pooling=encoder.pooling,
    )


def _encoder_file(encoder: Encoder, download: bool) -> Path:
    if encoder.layout != "timm":
        hub_file(encoder.repository, CONFIG, download=download, terms=encoder.terms)
    return hub_file(encoder.repository, SAFE, download=download, terms=encoder.terms)


def _file_of(blueprint: Blueprint, weights: Path | None, pretrained: bool, download: bool) -> Path | None:
    """Return the weights to load into a network of timm, None for none."""
    if weights is not None and blueprint.folder is not None:
        raise ModelError(f"backbone {blueprint.name!r} has weights of its own; name its architecture to load {weights} instead")
    if weights is not None or not pretrained:
        return weights
    return timm_file(blueprint.source, download=download) if blueprint.folder is None else folder_file(blueprint.folder)


def _from_timm(blueprint: Blueprint, window_px: int, input_px: int | None, weights: Path | None) -> Backbone:
    network, built_px, n_features, arguments = build_network(blueprint, window_px, input_px)
    if weights is not None:
        network = _with_weights(network, blueprint, arguments, weights)
    return Backbone(
        network,
        name=blueprint.name,
        timm_name=str(getattr(network, "pretrained_cfg", {}).get("architecture") or blueprint.source),
        n_features=n_features,
        window_px=window_px,
        input_px=built_px,
        colors=resolve_model_data_config(network),  # type: ignore[no-untyped-call]
        arguments=arguments,
    )


def _with_weights(network: nn.Module, blueprint: Blueprint, arguments: Mapping[str, Any], weights: Path) -> nn.Module:
    """Return the network with weights, through timm, which resamples position embeddings to another input size."""
    check_names(network, weights)
    overlay = {"file": str(weights), "custom_load": False} if blueprint.folder is None else None
    try:
        loaded: nn.Module = timm.create_model(
            blueprint.source, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
        )
    except Exception as err:  # timm and safetensors each raise their own
        raise ModelError(f"{weights} cannot be loaded into {blueprint.name!r}: {one_line(err)}") from err
    return loaded


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
