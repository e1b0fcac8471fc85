"""A trained model inside LazySlide: as the encoder of its tiles, and as its feature-prediction model.

LazySlide takes any object with the methods of its protocols, so nothing of it is imported here; it comes with the extra
`lazyslide`. It cuts the tiles, so it has to be told the model's scale:

    import lazyslide as zs, stexpr
    encoder = stexpr.tl.lazyslide.Encoder("model")
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, encoder.tile_px, stride_px=encoder.stride_px, mpp=encoder.mpp)
    zs.tl.feature_extraction(wsi, encoder)
    zs.tl.feature_prediction(wsi, stexpr.tl.lazyslide.ExpressionHead(encoder.model))
    wsi["stexpr_expression_tiles"]  # AnnData, tiles x genes
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from stexpr.errors import ModelError
from stexpr.models.export import LoadedModel, load_model

__all__ = ["Encoder", "ExpressionHead"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
NAME: Final = "stexpr"


class Encoder:
    """A model as LazySlide's image model: `zs.tl.feature_extraction(wsi, Encoder("model"))`.

    Attributes:
        model: The loaded model.
        name: What LazySlide names the table of features by.
    """

    name = NAME

    def __init__(self, model: LoadedModel | str | Path) -> None:
        """Take a loaded model, or the folder of one.

        Raises:
            ModelError: The model cannot be read, or was trained on normalized stain, which LazySlide does not fit.
        """
        self.model = model if isinstance(model, LoadedModel) else load_model(model)
        if self.model.preprocessing.stain != "none":
            raise ModelError(
                f"the model was trained on {self.model.preprocessing.stain} normalized patches, and LazySlide's tiles are not; "
                "use stexpr predict"
            )

    @property
    def tile_px(self) -> int:
        """Side of the tiles it takes, for `zs.pp.tile_tissues`."""
        return self.model.preprocessing.window_px

    @property
    def stride_px(self) -> int:
        """From a tile to the next: their side, or that of the smallest of several fields of view, for `zs.pp.tile_tissues`."""
        return self.model.preprocessing.spot_px

    @property
    def mpp(self) -> float:
        """Microns per pixel of the tiles it takes, for `zs.pp.tile_tissues`."""
        return self.model.preprocessing.mpp

    def get_transform(self) -> Callable[[Any], Tensor]:
        """Return what turns a tile into its input: the pixels as they are."""
        return self._tensor

    def to(self, device: Any) -> "Encoder":
        """Move the weights to a device."""
        self.model.to(device)
        return self

    def try_compile(self, **options: Any) -> None:
        """Leave the model as it is: a model on disk is run the same way everywhere."""

    def encode_image(self, image: UInt8[Tensor, "B 3 H W"]) -> Float32[Tensor, "B D"]:
        """Return the features of tiles."""
        return self.model(image).features

    def _tensor(self, tile: UInt8[Array, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
        if tile.shape[:2] != (self.tile_px, self.tile_px):
            raise ModelError(
                f"a tile has {tile.shape[1]} x {tile.shape[0]} px; the model takes {self.tile_px}: cut them with "
                f"zs.pp.tile_tissues(wsi, {self.tile_px}, mpp={self.mpp:g})"
            )
        return torch.from_numpy(np.array(tile)).permute(2, 0, 1)


class ExpressionHead:
    """A model as LazySlide's feature-prediction model: from the features of `Encoder` to the expression of genes.

    Attributes:
        model: The loaded model.
        name: What LazySlide names the table of predictions by.
        features_model_name: Whose features it takes, where LazySlide is not told.
    """

    name = f"{NAME}_expression"
    features_model_name = NAME

    def __init__(self, model: LoadedModel | str | Path) -> None:
        """Take a loaded model, or the folder of one.

        Raises:
            ModelError: The model cannot be read.
        """
        self.model = model if isinstance(model, LoadedModel) else load_model(model)

    def get_transform(self) -> None:
        """Return nothing: features need no transform."""

    def to(self, device: Any) -> "ExpressionHead":
        """Move the weights to a device."""
        self.model.to(device)
        return self

    def try_compile(self, **options: Any) -> None:
        """Leave the model as it is."""

    def predict(self, features: Any, coords: Any = None) -> dict[str, Float32[Array, "S"]]:
        """Return the expression of each gene.

        Args:
            features: Of `Encoder`, tiles x features.
            coords: Not used: a prediction is a function of the tile alone.

        Raises:
            ModelError: They are the features of another model.
        """
        values = torch.as_tensor(np.asarray(features), dtype=torch.float32, device=self.model.device)
        if values.ndim != 2 or values.shape[1] != self.model.n_features:
            raise ModelError(f"features have shape {tuple(values.shape)}; this model's are tiles x {self.model.n_features}")
        expression = self.model.expression_of(values).cpu().numpy()
        return dict(zip(self.model.genes, expression.T, strict=True))
