"""Models as data: networks, the null baselines that stand on every board, and the reference beside them."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from stexpr.config.values import Strict

ALPHAS: Final = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
RADII_PX: Final = (4, 8, 16, 32, 64, 128)
Role: TypeAlias = Literal["network", "baseline", "reference"]


class AuxiliaryConfig(Strict):
    """The auxiliary head, which predicts every filtered gene outside the main panel."""

    weight: float = Field(1.0, ge=0, description="lambda: loss = main + lambda * auxiliary")
    standardize: bool = Field(True, description="false reproduces BrST-Net, whose auxiliary targets are not standardized")


class NetworkConfig(Strict):
    """A backbone with a main and an auxiliary head."""

    kind: Literal["network"] = "network"
    role: ClassVar[Role] = "network"
    backbone: str = "resnet18"
    pretrained: bool = Field(False, description="load timm's weights (needs the network or a filled cache)")
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    loss: Literal["mse", "mse_pearson", "negative_binomial"] = "mse"
    bias_init: Literal["zero", "training_mean"] = Field("zero", description="`training_mean` starts as ST-Net does")

    @property
    def label(self) -> str:
        """Name on a leaderboard."""
        parts = [self.backbone]
        if self.auxiliary.weight:
            parts.append("+ aux" if self.auxiliary.weight == 1 else f"+ {self.auxiliary.weight:g} aux")
        parts += [self.loss.replace("_", " ")] if self.loss != "mse" else []
        parts += ["pretrained"] if self.pretrained else []
        return " ".join(parts)


class TrainingMeanConfig(Strict):
    """Baseline: every spot gets the training spots' mean expression."""

    kind: Literal["training_mean"] = "training_mean"
    role: ClassVar[Role] = "baseline"
    label: ClassVar[str] = "training mean"


class DepthOnlyConfig(Strict):
    """Baseline: what a spot's own sequencing depth says; it sees no image."""

    kind: Literal["depth_only"] = "depth_only"
    role: ClassVar[Role] = "baseline"
    label: ClassVar[str] = "depth only"


class SpotCoordinatesConfig(Strict):
    """Baseline: what a spot's place in its section says; it sees no image."""

    kind: Literal["spot_coordinates"] = "spot_coordinates"
    role: ClassVar[Role] = "baseline"
    label: ClassVar[str] = "spot coordinates"
    alphas: tuple[float, ...] = ALPHAS


class ColorRidgeConfig(Strict):
    """Baseline: ridge regression on means and SDs of RGB in discs around the spot."""

    kind: Literal["color_ridge"] = "color_ridge"
    role: ClassVar[Role] = "baseline"
    label: ClassVar[str] = "color ridge"
    radii_px: tuple[int, ...] = Field(RADII_PX, description="those that fit the prepared window are used")
    alphas: tuple[float, ...] = ALPHAS


class NearestColorConfig(Strict):
    """Baseline: the measured expression of the training patch that is nearest in color."""

    kind: Literal["nearest_color"] = "nearest_color"
    role: ClassVar[Role] = "baseline"
    label: ClassVar[str] = "nearest training patch by color"
    radii_px: tuple[int, ...] = Field(RADII_PX, description="those that fit the prepared window are used")


class PermutedGenesConfig(Strict):
    """Baseline: the color ridge's prediction of another gene, which scores what all genes share."""

    kind: Literal["permuted_genes"] = "permuted_genes"
    role: ClassVar[Role] = "baseline"
    label: ClassVar[str] = "color ridge, genes permuted"
    ridge: ColorRidgeConfig = ColorRidgeConfig()
    permutation_seed: int = Field(0, ge=0)


class NeighborOracleConfig(Strict):
    """Reference: the mean measured expression of the nearest test spots. It sees the test data and bounds nothing."""

    kind: Literal["neighbor_oracle"] = "neighbor_oracle"
    role: ClassVar[Role] = "reference"
    label: ClassVar[str] = "neighbor oracle (sees the test data)"
    neighbors: int = Field(8, ge=1)


BaselineConfig: TypeAlias = (
    TrainingMeanConfig
    | DepthOnlyConfig
    | SpotCoordinatesConfig
    | ColorRidgeConfig
    | NearestColorConfig
    | PermutedGenesConfig
    | NeighborOracleConfig
)
BASELINES: Final[tuple[BaselineConfig, ...]] = (
    TrainingMeanConfig(),
    DepthOnlyConfig(),
    SpotCoordinatesConfig(),
    ColorRidgeConfig(),
    NearestColorConfig(),
    PermutedGenesConfig(),
    NeighborOracleConfig(),
)
"""What stands on every board beside the networks."""


def _kind(value: Any) -> Any:
    """A model without a kind is a network; anything but keys and values is no model."""
    return value.get("kind", "network") if isinstance(value, Mapping) else getattr(value, "kind", None)


ModelConfig: TypeAlias = Annotated[
    Annotated[NetworkConfig, Tag("network")]
    | Annotated[TrainingMeanConfig, Tag("training_mean")]
    | Annotated[DepthOnlyConfig, Tag("depth_only")]
    | Annotated[SpotCoordinatesConfig, Tag("spot_coordinates")]
    | Annotated[ColorRidgeConfig, Tag("color_ridge")]
    | Annotated[NearestColorConfig, Tag("nearest_color")]
    | Annotated[PermutedGenesConfig, Tag("permuted_genes")]
    | Annotated[NeighborOracleConfig, Tag("neighbor_oracle")],
    Discriminator(_kind),
]
