"""Self-supervised pre-training as data: how a backbone learns from patches alone before it learns expression."""

from typing import Literal

from pydantic import Field

from stexpr.config.protocol import Unit
from stexpr.config.values import Strict

__all__ = ["PretrainConfig"]


class PretrainConfig(Strict):
    """SimSiam on all patches of the training sections of a fold; the rest of the optimizer is `training`'s."""

    epochs: int = Field(20, ge=1)
    lr: float = Field(1e-3, gt=0)
    batch_size: int = Field(64, ge=4, description="both views of so many patches a step")
    source: Literal["tissue", "spots"] = Field(
        "tissue",
        description="where windows lie: anywhere in the prepared patches, so between the spots too, or on the spots alone",
    )
    crop: float = Field(0.4, gt=0, le=1, description="smallest area of a view, as a share of the window")
    brightness: Unit = 0.1
    contrast: Unit = 0.1
    saturation: Unit = 0.1
    stain_jitter: Unit = Field(0.1, description="SD of the log scale of hematoxylin and eosin densities")
