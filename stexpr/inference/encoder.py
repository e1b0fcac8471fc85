"""What turns patches into features: a model that stexpr exported, or the encoder of one alone, or a published one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import UInt8
from torch import Tensor

from stexpr.errors import ModelError
from stexpr.models.augment import symmetry_mean
from stexpr.models.backbones import create_backbone
from stexpr.models.encoders import ENCODERS, known_encoder
from stexpr.models.export import CONFIG, LoadedModel, PatchOutput, Release, load_model
from stexpr.models.export.encoder import Encoder
from stexpr.models.weights import weights_hash
from stexpr.panel import Preprocessing

__all__ = ["ModelInput", "PatchModel", "PlainEncoder", "open_encoder"]


@dataclass(frozen=True)
class PlainEncoder:
    """An encoder without heads, used as a `LoadedModel` is; it predicts no gene.

    Attributes:
        encoder: In evaluation mode.
        hash: Identifies its weights.
        release: Nothing is known of it.
        provenance: What it was trained on, as far as that is known.
    """

    encoder: Encoder
    hash: str
    release: Release = field(default_factory=Release)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes its input."""
        return self.encoder.preprocessing

    @property
    def genes(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def n_features(self) -> int:
        """Length of the feature vector."""
        return self.encoder.n_features

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    def to(self, device: torch.device | str) -> "PlainEncoder":
        """Move the weights to a device, in place, and return the encoder."""
        self.encoder.to(device)
        return self

    @torch.inference_mode()
    def __call__(
        self, patches: UInt8[Tensor, "B 3 H W"], *, symmetries: bool | None = None, novelty: bool = True
    ) -> PatchOutput:
        """Compute the features of patches; as `LoadedModel` does, with expression of no gene and no novelty.

        Args:
            patches: RGB of side `preprocessing.window_px` at `preprocessing.mpp`, on the encoder's device.
            symmetries: Average over the eight flips and rotations.
            novelty: It is NaN in any case.
        """
        features = symmetry_mean(self.encoder, patches) if symmetries else self.encoder(patches)
        nothing = torch.empty((len(patches), 0), device=patches.device)
        return PatchOutput(features.float(), nothing, nothing, torch.full((len(patches),), torch.nan, device=patches.device))


PatchModel: TypeAlias = LoadedModel | PlainEncoder


@dataclass(frozen=True)
class ModelInput:
    """What a model wants to see, without its weights: enough to cut its patches in another process.

    Attributes:
        preprocessing: As the model's.
        release: As the model's, as far as patches depend on it.
        hash: As the model's.
        genes: As the model's.
        device: Where the model runs.
        provenance: As the model's.
    """

    preprocessing: Preprocessing
    release: Release
    hash: str
    genes: tuple[str, ...]
    device: torch.device
    provenance: Mapping[str, Any]

    @classmethod
    def of(cls, model: PatchModel) -> "ModelInput":
        """Take what patches depend on out of a model."""
        known = model.release
        release = Release(symmetries=known.symmetries, stain_reference=known.stain_reference)
        return cls(model.preprocessing, release, model.hash, model.genes, model.device, dict(model.provenance))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "preprocessing": asdict(self.preprocessing),
            "release": self.release.model_dump(mode="json"),
            "hash": self.hash,
            "genes": list(self.genes),
            "device": self.device.type,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ModelInput":
        """Return what became these values."""
        seen = dict(values["preprocessing"])
        preprocessing = Preprocessing(**{**seen, **{key: tuple(seen[key]) for key in ("mean", "sd", "fields_px")}})
        release, device = Release.model_validate(values["release"]), torch.device(values["device"])
        return cls(preprocessing, release, values["hash"], tuple(values["genes"]), device, values["provenance"])


def open_encoder(source: str | Path, *, weights: Path | None = None, download: bool = False) -> PatchModel:
    """Load what turns patches into features.

    Args:
        source: Folder of an exported model, which then also predicts expression; or the name of a published encoder, one of
            `ENCODERS`, which sees tissue at the resolution its makers published.
        weights: A safetensors file with the weights of the published encoder, instead of those in the cache.
        download: Fetch weights that are not in the cache of huggingface_hub.

    Returns:
        The model, in evaluation mode on the CPU.

    Raises:
        ModelError: There is no such model or encoder, or its weights cannot be had.
    """
    known = None if (Path(source) / CONFIG).is_file() else known_encoder(str(source))
    if known is not None:
        return _published(known, weights, download)
    if weights is not None:
        raise ModelError(f"{source} has weights of its own; --weights goes with a published encoder: {', '.join(ENCODERS)}")
    try:
        return load_model(source, download=download)
    except ModelError as err:
        err.add_note(f"published encoders are {', '.join(ENCODERS)}")
        raise


def _published(name: str, weights: Path | None, download: bool) -> PlainEncoder:
    about = ENCODERS[name]
    backbone = create_backbone(
        name, window_px=about.input_px, pretrained=weights is None, weights=weights, download=download
    ).eval()
    preprocessing = Preprocessing(about.mpp, about.input_px, about.input_px, "none", backbone.mean, backbone.sd)
    identity = weights_hash(backbone)[:16]
    encoder = Encoder(backbone, preprocessing, identity).eval().to(memory_format=torch.channels_last)
    return PlainEncoder(encoder, identity, provenance={"label": name})
