"""The last blocks of a trained encoder, to learn along with a slide head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stexpr.errors import ModelError
from stexpr.models.export import load_model, save_model
from stexpr.models.export.encoder import Encoder, load_encoder

__all__ = ["last_blocks", "save_tuned", "trainable_encoder"]


def trainable_encoder(source: str | Path, *, blocks: int = 1) -> Encoder:
    """Load an encoder of which only the last blocks learn.

    Normalization layers keep their statistics in evaluation mode, in which the encoder is meant to stay: otherwise the bags
    of a part would see each other.

    Args:
        source: An exported model.
        blocks: How many of its last blocks learn.

    Raises:
        ModelError: The model cannot be loaded, is an ensemble, or has fewer blocks.
    """
    encoder = load_encoder(source)
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    for weights in last_blocks(encoder.backbone.network, blocks):
        weights.requires_grad_(True)
    return encoder


def last_blocks(network: nn.Module, blocks: int) -> list[Tensor]:
    """Return the parameters of the last blocks of a network, as timm groups its layers; ours are its last stages.

    Raises:
        ModelError: The network does not have so many blocks.
    """
    groups = _blocks(network)
    if not 1 <= blocks <= len(groups):
        raise ModelError(f"the encoder has {len(groups)} blocks of weights; blocks = {blocks} is not between 1 and that")
    return [parameter for group in groups[-blocks:] for parameter in group]


def _blocks(network: nn.Module) -> list[Sequence[Tensor]]:
    """Group parameters by depth, those nearest the input first; layers after the last block belong to it."""
    from timm.models import group_parameters

    matcher: Any = getattr(network, "group_matcher", None)
    if matcher is None:
        stages = getattr(network, "stages", None)
        if not isinstance(stages, nn.ModuleList):
            raise ModelError(f"{type(network).__name__} does not tell its blocks; train the encoder first, and embed with it")
        return [list(stage.parameters()) for stage in stages]
    named = dict(network.named_parameters())
    groups = group_parameters(network, matcher(coarse=False))
    found = [[named[name] for name in names if name in named] for _, names in sorted(groups.items())]
    return [group for group in found if group]


def save_tuned(folder: Path, source: str | Path, encoder: nn.Module) -> None:
    """Write an encoder that learned along as an exported model, its heads those of the model it began as.

    The heads were trained on other features, so what it predicts of expression is not to be used; its features are.

    Args:
        folder: Made if need be.
        source: The exported model it began as.
        encoder: From `trainable_encoder`, trained.

    Raises:
        ModelError: The source cannot be loaded.
        DataError: The folder cannot be written.
    """
    began = load_model(source)
    assert isinstance(encoder, Encoder)
    began.model.backbone.load_state_dict(encoder.backbone.state_dict())
    save_model(
        folder,
        began.model,
        panel=began.panel,
        transform=began.transform,
        preprocessing=began.preprocessing,
        provenance={**began.provenance, "label": f"{began.provenance.get('label', '')}, last blocks trained with a slide head"},
        release=began.release.model_copy(update={"symmetries": False}),  # a head saw single views
    )
