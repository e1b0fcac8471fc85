"""The encoder of a model alone: from patches to features, as a module of plain PyTorch."""

from pathlib import Path

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from stexpr.errors import ModelError
from stexpr.models.backbones import Backbone
from stexpr.models.export import load_model
from stexpr.models.export.loaded import LoadedModel
from stexpr.panel import Preprocessing

__all__ = ["Encoder", "load_encoder"]


class Encoder(nn.Module):
    """A trained backbone with its preprocessing, without heads: call it with patches to get features.

    A `LoadedModel` also predicts, and never trains; this is a module like any other, with gradients, to be frozen, trained
    further or built into another network. Colors are scaled and normalized inside. Stain normalization is not: where
    `preprocessing.stain` is not `none`, the patches are to be brought to that stain first. Of a network that sees several
    fields of view the features of all follow each other, the smallest field first.

    Args:
        backbone: Trained.
        preprocessing: How an image becomes its input: pixel size, field of view, stain.
        hash: Identifies the files it was loaded from.
    """

    def __init__(self, backbone: Backbone, preprocessing: Preprocessing, hash: str = "") -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.hash = hash

    @property
    def n_features(self) -> int:
        """Length of the feature vector."""
        return self.backbone.n_features

    def forward(self, patches: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the features of patches of side `preprocessing.window_px` at `preprocessing.mpp`.

        Raises:
            ModelError: The patches have another size.
        """
        features: Tensor = self.backbone(self.backbone.preprocess(patches))
        return features


def load_encoder(
    source: str | Path | LoadedModel, *, member: int | None = None, revision: str | None = None, download: bool = False
) -> Encoder:
    """Load the encoder of an exported model.

    Args:
        source: As for `load_model`, or a model loaded already, whose weights are then shared.
        member: Which network of an ensemble, from 0.
        revision: As for `load_model`.
        download: As for `load_model`.

    Returns:
        The encoder, in evaluation mode; of a folder or repository on the CPU.

    Raises:
        ModelError: As for `load_model`; or the model is an ensemble and no member was chosen, or one that it does not have.
    """
    model = source if isinstance(source, LoadedModel) else load_model(source, revision=revision, download=download)
    count = len(model.networks)
    if member is None and count > 1:
        raise ModelError(
            f"the model is an ensemble of {count} networks, each with features of its own; choose one with "
            f"member=0 to {count - 1}, or take the features of all from the model itself"
        )
    if member is not None and not 0 <= member < count:
        raise ModelError(f"the model has no network {member}; member is between 0 and {count - 1}")
    chosen = model.members[member] if member is not None and model.members else model
    return Encoder(chosen.model.backbone, chosen.preprocessing, chosen.hash).eval()
