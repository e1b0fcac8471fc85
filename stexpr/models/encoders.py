"""Published foundation encoders by short name: license, access, architecture, and what they expect to see.

Nothing of theirs comes with stexpr. Values are those of the model cards on the Hugging Face hub where these could be read
(H-optimus-0, Virchow's and Virchow2's terms, Phikon's config.json); the others are those that TRIDENT (its `load.py` and table
of encoders) and LazySlide agree on, read in November 2026. The parameter counts published are checked by a test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import timm
import torch
from timm.layers import SwiGLUPacked  # type: ignore[attr-defined]
from torch import nn

Pooling: TypeAlias = Literal["network", "class_and_mean"]
Layout: TypeAlias = Literal["timm", "vit", "dinov2"]
IMAGENET: Final = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
BIOPTIMUS: Final = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}


@dataclass(frozen=True)
class Encoder:
    """What is published of an encoder.

    Attributes:
        repository: On the Hugging Face hub.
        license: Of the weights.
        architecture: In timm.
        n_features: Length of the feature vector.
        arguments: What the architecture is built with beside its defaults.
        swiglu: Whether its blocks have packed SwiGLU layers with SiLU.
        gated: Whether the conditions have to be accepted on the hub, where the owner grants access.
        safetensors: Whether the repository is known to hold safetensors; None where that is not known.
        input_px: Side of its input.
        mpp: Microns per pixel of the images it is used on.
        scale_note: What else is to be known of its resolution.
        colors: Mean and standard deviation its input is normalized with.
        pooling: `class_and_mean` joins the class token and the mean of the patch tokens.
        layout: Whose names its tensors have: timm's, or those of ViT or DINOv2 in transformers.
        norm_eps: Added to the variance by its layer normalizations.
    """

    repository: str
    license: str
    architecture: str
    n_features: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    swiglu: bool = False
    gated: bool = True
    safetensors: bool | None = None
    input_px: int = 224
    mpp: float = 0.5
    scale_note: str = ""
    colors: Mapping[str, tuple[float, float, float]] = field(default_factory=lambda: IMAGENET)
    pooling: Pooling = "network"
    layout: Layout = "timm"
    norm_eps: float = 1e-6

    @property
    def terms(self) -> str:
        """License and access in one clause."""
        access = "access on request" if self.gated else "open access"
        pickled = "; a pickle only, when last seen" if self.safetensors is False else ""
        return f"{self.license}, {access} at https://huggingface.co/{self.repository}{pickled}"

    def build(self) -> nn.Module:
        """Build the network, untrained."""
        layers = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if self.swiglu else {}
        pool = {"global_pool": ""} if self.pooling == "class_and_mean" else {}
        arguments = {"img_size": self.input_px, **self.arguments, **layers, **pool}
        network: nn.Module = timm.create_model(self.architecture, num_classes=0, **arguments)
        for layer in network.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = self.norm_eps
        return network


NON_COMMERCIAL: Final = "CC-BY-NC-ND-4.0"
VIRCHOW: Final = {"init_values": 1e-5, "mlp_ratio": 5.3375}
UNI2: Final = {
    **{"patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2},
    **{"init_values": 1e-5, "no_embed_class": True, "reg_tokens": 8},
}
H_OPTIMUS: Final = Encoder(
    "bioptimus/H-optimus-0",
    "Apache-2.0",
    "vit_giant_patch14_reg4_dinov2",
    1536,
    {"init_values": 1e-5},
    colors=BIOPTIMUS,
)

ENCODERS: Final[dict[str, Encoder]] = {
    "uni": Encoder(
        "MahmoodLab/UNI",
        NON_COMMERCIAL,
        "vit_large_patch16_224",
        1024,
        {"init_values": 1e-5},
        safetensors=False,
    ),
    "uni2_h": Encoder(
        "MahmoodLab/UNI2-h",
        NON_COMMERCIAL,
        "vit_giant_patch14_224",
        1536,
        UNI2,
        swiglu=True,
        safetensors=False,
        scale_note="its own card's resolution was not at hand: 0.5 is what its makers use in TRIDENT",
    ),
    "virchow": Encoder(
        "paige-ai/Virchow",
        "Apache-2.0",
        "vit_huge_patch14_224",
        2560,
        VIRCHOW,
        swiglu=True,
        safetensors=True,
        pooling="class_and_mean",
    ),
    "virchow2": Encoder(
        "paige-ai/Virchow2",
        NON_COMMERCIAL,
        "vit_huge_patch14_224",
        2560,
        {**VIRCHOW, "reg_tokens": 4},
        swiglu=True,
        safetensors=True,
        scale_note="trained on 2, 1, 0.5 and 0.25 um/px",
        pooling="class_and_mean",
    ),
    "h_optimus_0": H_OPTIMUS,
    "h_optimus_1": replace(H_OPTIMUS, repository="bioptimus/H-optimus-1", license=NON_COMMERCIAL),
    "phikon": Encoder(
        "owkin/phikon",
        "Owkin non-commercial",
        "vit_base_patch16_224",
        768,
        gated=False,
        safetensors=True,
        layout="vit",
        norm_eps=1e-12,
    ),
    "phikon_v2": Encoder(
        "owkin/phikon-v2",
        "Owkin non-commercial",
        "vit_large_patch16_224",
        1024,
        {"init_values": 1.0},
        gated=False,
        safetensors=True,
        layout="dinov2",
    ),
}
"""Short name -> encoder. Sources disagree on whether H-optimus-0 is gated (it was open in 2024); it is treated as gated."""


def known_encoder(name: str) -> str | None:
    """Return the short name of a known encoder, given that or its repository (`hf-hub:OWNER/NAME`); None for others."""
    if name in ENCODERS:
        return name
    repository = name.removeprefix("hf-hub:").lower()
    owned = {encoder.repository.lower(): short for short, encoder in ENCODERS.items()}
    return owned.get(repository) if name.startswith("hf-hub:") else None


def pool(tokens: torch.Tensor, n_prefix: int) -> torch.Tensor:
    """Join the class token and the mean of the patch tokens, without the register tokens between them.

    Args:
        tokens: Of a vision transformer, (B, N, D): the class token, the registers, the patches.
        n_prefix: Class and register tokens.

    Returns:
        Features, (B, 2 D).
    """
    return torch.cat([tokens[:, 0], tokens[:, n_prefix:].mean(dim=1)], dim=1)
