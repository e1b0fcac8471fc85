"""Models as data: networks, the null baselines that stand on every board, and the reference beside them."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from stexpr.config.files import hash_file
from stexpr.config.values import Strict
from stexpr.errors import DataError

FOLDER: Final = "local-dir:"
ALPHAS: Final = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
FROZEN_ALPHAS: Final = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6)
RADII_PX: Final = (4, 8, 16, 32, 64, 128)
Role: TypeAlias = Literal["network", "baseline", "reference"]


class AuxiliaryConfig(Strict):
    """The auxiliary head, which predicts filtered genes outside the main panel: all of them, or those of most counts."""

    LATER: ClassVar[tuple[str, ...]] = ("n_genes",)
    weight: float = Field(1.0, ge=0, description="lambda: loss = main + lambda * auxiliary")
    standardize: bool = Field(True, description="false reproduces BrST-Net, whose auxiliary targets are not standardized")
    n_genes: int | None = Field(
        None, ge=1, description="auxiliary genes: those of the highest mean count on training spots; null takes all"
    )


class FusionConfig(Strict):
    """Late fusion: components of expression regressed on colors and textures in closed form, averaged with the network."""

    share: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto",
        description="of the regression in the prediction: 1 leaves the network unheard, `auto` takes what is best on inner "
        "validation, and one half where there is none",
    )
    components: int = Field(20, ge=1, description="principal components of the training spots' standardized expression")
    radii_px: tuple[int, ...] = Field(RADII_PX, description="of the discs described; those that fit the window are used")
    landmarks: int = Field(2000, ge=2, description="most training spots that the Gaussians are about; a random part of more")


class BackboneConfig(Strict):
    """Which backbone, and where its weights come from."""

    LATER: ClassVar[tuple[str, ...]] = ("weights",)
    backbone: str = Field(
        "resnet18", description="a short name, any name of timm, hf-hub:OWNER/NAME, or local-dir:PATH in timm's format"
    )
    pretrained: bool = Field(False, description="load the weights that belong to the name (see runtime.download)")
    weights: Path | None = Field(None, description="a safetensors file with weights of the architecture named, instead")

    @property
    def loads_weights(self) -> bool:
        """Whether the backbone starts from weights somebody else trained."""
        return self.pretrained or self.weights is not None

    @property
    def backbone_label(self) -> str:
        """The backbone without a path or an owner, and the file of its weights where one is given."""
        name = Path(self.backbone.partition(":")[2]).name if ":" in self.backbone else self.backbone
        return f"{name} of {self.weights.name}" if self.weights is not None else name

    def described(self) -> dict[str, Any]:
        """Return what decides a result, in plain JSON values and without paths: local weights by their content.

        Raises:
            DataError: A file of weights cannot be read.
        """
        values = super().described()
        files = []
        if self.backbone.startswith(FOLDER):
            folder = Path(self.backbone.removeprefix(FOLDER))
            values["backbone"] = f"{FOLDER}{folder.name}"
            if not folder.is_dir():
                raise DataError(f"there is no folder {folder}, which model.backbone names")
            # what is missing, the backbone has better words for
            names = ("config.json", "model.safetensors") if self.pretrained else ("config.json",)
            files += [folder / name for name in names if (folder / name).is_file()]
        if self.weights is not None:
            values["weights"] = self.weights.name
            files.append(self.weights)
        return {**values, "sha256": [_content(path) for path in files]} if files else values


def _content(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError as err:
        raise DataError(f"the weights {path} cannot be read: {err.strerror or err}") from err
    return _content_once(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _content_once(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file once; it may have gigabytes and is asked for with every fold."""
    return hash_file(path)


class NetworkConfig(BackboneConfig):
    """A backbone with a main and an auxiliary head, trained by gradient steps."""

    LATER: ClassVar[tuple[str, ...]] = ("weights", "freeze", "rank", "fusion")
    kind: Literal["network"] = "network"
    role: ClassVar[Role] = "network"
    freeze: Literal["none", "all"] = Field("none", description="`all` trains the heads alone, on a backbone left as it is")
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    loss: Literal["mse", "mse_pearson", "huber", "negative_binomial"] = Field(
        "mse",
        description="`huber` is squared up to 1 (an SD of a gene where targets are standardized) and linear beyond; "
        "`mse_pearson` adds 0.5 (1 - r over the batch); `negative_binomial` is a likelihood of counts",
    )
    bias_init: Literal["zero", "training_mean"] = Field("zero", description="`training_mean` starts as ST-Net does")
    fusion: FusionConfig | None = Field(None, description="{} takes the defaults; null leaves the network alone")
    rank: int | None = Field(
        None,
        ge=1,
        description="factors the main genes share: the head learns them, the principal components of the training spots' "
        "standardized expression turn them into genes; null learns each gene apart; needs the loss mse or huber",
    )

    @model_validator(mode="after")
    def _fusion_has_components(self) -> "NetworkConfig":
        if self.fusion is not None and self.loss == "negative_binomial":
            raise ValueError(
                "model.fusion adds components of standardized expression, which a negative binomial does not predict"
            )
        return self

    @model_validator(mode="after")
    def _rank_of_a_regression(self) -> "NetworkConfig":
        if self.rank is not None and self.loss not in ("mse", "huber"):
            raise ValueError(
                f"model.rank = {self.rank} makes factors of standardized expression, which the loss {self.loss} does not "
                "compare gene by gene; take model.loss=mse or huber, or model.rank=null"
            )
        return self

    @property
    def label(self) -> str:
        """Name on a leaderboard."""
        if self.fusion is not None and self.fusion.share == 1:
            return "descriptors alone"
        parts = [self.backbone_label]
        if self.auxiliary.weight:
            parts.append("+ aux" if self.auxiliary.weight == 1 else f"+ {self.auxiliary.weight:g} aux")
            parts += [f"of {self.auxiliary.n_genes} genes"] if self.auxiliary.n_genes is not None else []
        parts += [self.loss.replace("_", " ")] if self.loss != "mse" else []
        parts += ["+ descriptors"] if self.fusion else []
        parts += [f"rank {self.rank}"] if self.rank is not None else []
        parts += ["pretrained"] if self.pretrained else []
        parts += ["frozen"] if self.freeze == "all" else []
        return " ".join(parts)


class FrozenConfig(BackboneConfig):
    """A backbone as it is, with ridge regression on its features: no gradient steps, no epochs."""

    kind: Literal["frozen"] = "frozen"
    role: ClassVar[Role] = "network"
    pretrained: bool = Field(True, description="load the weights that belong to the name (see runtime.download)")
    mpp: Annotated[float, Field(gt=0)] | Literal["window"] | None = Field(
        None,
        description="microns per pixel at which the backbone sees tissue; null takes those published of it, or the whole "
        "window where none are known; `window` takes it always",
    )
    components: int | None = Field(256, ge=1, description="principal components the ridge regression sees; null gives it all")
    alphas: tuple[float, ...] = Field(FROZEN_ALPHAS, description="penalties, chosen by leaving training patients out")

    @property
    def label(self) -> str:
        """Name on a leaderboard."""
        parts = [self.backbone_label, "+ ridge"]
        if self.components != FrozenConfig.model_fields["components"].default:
            parts.append("of all features" if self.components is None else f"of {self.components}")
        parts += ["of the window" if self.mpp == "window" else f"at {self.mpp:g} um/px"] if self.mpp is not None else []
        parts += [] if self.loads_weights else ["untrained"]
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
    | Annotated[FrozenConfig, Tag("frozen")]
    | Annotated[TrainingMeanConfig, Tag("training_mean")]
    | Annotated[DepthOnlyConfig, Tag("depth_only")]
    | Annotated[SpotCoordinatesConfig, Tag("spot_coordinates")]
    | Annotated[ColorRidgeConfig, Tag("color_ridge")]
    | Annotated[NearestColorConfig, Tag("nearest_color")]
    | Annotated[PermutedGenesConfig, Tag("permuted_genes")]
    | Annotated[NeighborOracleConfig, Tag("neighbor_oracle")],
    Discriminator(_kind),
]


def described(model: ModelConfig) -> dict[str, Any]:
    """Return what a model is, in plain JSON values and without paths: local weights by their content.

    Raises:
        DataError: A file of weights cannot be read.
    """
    return model.described()
