"""How raw sections, or a download in the HEST-1k layout, become a prepared cohort."""

from typing import Literal

from pydantic import Field, model_validator

from stexpr.config.protocol import Stain, Unit
from stexpr.config.values import Strict

__all__ = ["AdoptConfig", "PrepareConfig"]


class PrepareConfig(Strict):
    """How raw sections become a prepared cohort."""

    mpp: float = Field(gt=0, description="microns per pixel of the patches")
    window_px: int = Field(ge=16, le=2048, description="side of the cut patches; studies take center crops of it")
    min_counts: int = Field(1, ge=1, description="spots with fewer counts are dropped, and counted")
    min_tissue: Unit = Field(0.0, description="spots whose patch has less tissue are dropped, and counted")
    stain: Stain = "none"
    stain_reference: str | None = Field(None, description="section whose stain the others are brought to")

    @model_validator(mode="after")
    def _reference_named(self) -> "PrepareConfig":
        if (self.stain != "none") != (self.stain_reference is not None):
            raise ValueError("stain normalization needs stain_reference, the section to bring the others to, and only then")
        return self


class AdoptConfig(Strict):
    """How a download in the HEST-1k layout becomes a prepared cohort without a change to its files."""

    name: str | None = Field(None, min_length=1, description="of the cohort; null takes the folder's")
    mpp: float = Field(0.5, gt=0, description="microns per pixel of the patches; HEST-1k cuts all of its at 0.5")
    min_counts: int = Field(1, ge=1, description="spots with fewer counts are left out, and counted")
    absent_genes: Literal["intersect", "zero"] = Field(
        "intersect", description="genes that some section lacks: left out everywhere, or undetected there and so 0"
    )
    gene_namespace: Literal["ensembl", "symbol", "other"] = "other"
    library: Literal["whole", "subset"] = Field("whole", description="`subset` where only a chosen panel of genes is counted")
    leave_out: tuple[str, ...] = Field((), description="sections to leave out")
