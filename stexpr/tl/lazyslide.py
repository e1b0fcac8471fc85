"""A trained model inside LazySlide: as the encoder of its tiles, and as its feature-prediction model.

LazySlide takes any object with the methods of its protocols, so nothing of it is imported here; it comes with the extra
`lazyslide`. It cuts the tiles, so it has to be told how large:

    import lazyslide as zs, stexpr
    encoder = stexpr.tl.lazyslide.Encoder("model", wsi=wsi)
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, encoder.tile_px, stride_px=encoder.stride_px, mpp=encoder.mpp)
    zs.tl.feature_extraction(wsi, encoder)
    zs.tl.feature_prediction(wsi, stexpr.tl.lazyslide.ExpressionHead(encoder.model))
    wsi["stexpr_expression_tiles"]  # AnnData, tiles x genes

There is one encoder for each slide, which knows the slide's resolution and, of a model trained on standardized colors (as that
of `stexpr train` is) or on normalized stain, its colors; `stexpr.load_model` reads the weights once for many.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from stexpr.data.images import ArrayImage, SlideImage
from stexpr.data.section import check_mpp
from stexpr.data.stain import StainTransform
from stexpr.errors import DataError, ModelError, ScaleError
from stexpr.inference.layout import lay_out
from stexpr.models.export import LoadedModel, load_model

__all__ = ["Encoder", "ExpressionHead"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
NAME: Final = "stexpr"
ROUNDING: Final = 1e-6


class Encoder:
    """A model as LazySlide's image model: `zs.tl.feature_extraction(wsi, Encoder("model", wsi=wsi))`.

    With the slide at hand, tiles are to be cut at the resolution of one of its levels, and what `get_transform` returns brings
    them to the model's resolution and colors, as `embed_slide` does. Colors are fitted as it does, too: on the tissue that
    stexpr finds in the slide's file, whichever tissue and tiles LazySlide has. At the same places the pixels are those of
    `embed_slide`, but where one of the model's is four or more of the level's wide: what averages those starts at the corner of
    the tile, not of the slide, which changes values by about 2 of 255.

    Without the slide, tiles are to be cut at the model's resolution, to which LazySlide shrinks them in a way of its own: they
    are sharper than those a model was trained on, and features differ.

    Attributes:
        model: The loaded model.
        name: What LazySlide names the table of features by.
        mpp: Microns per pixel of the tiles it takes, for `zs.pp.tile_tissues`.
    """

    name = NAME

    def __init__(self, model: LoadedModel | str | Path, *, wsi: Any = None) -> None:
        """Take a loaded model, or the folder of one, and the slide it is for.

        Args:
            model: The model.
            wsi: What `open_wsi` gave; needed where the model was trained on standardized colors or normalized stain. The
                encoder must not be used on another slide then: LazySlide does not tell it whose tiles it is given.

        Raises:
            ModelError: The model cannot be read, or needs the slide and has none, or does not say what it was trained on.
            ScaleError: The microns per pixel of the slide are unknown or absurd.
            DataError: Colors are to be fitted, and the slide's file cannot be read, is not what LazySlide has open, or has no
                tissue.
        """
        self.model = model if isinstance(model, LoadedModel) else load_model(model)
        self.mpp = self.model.preprocessing.mpp if wsi is None else _level_mpp(wsi, self.model.preprocessing.mpp)
        self._stain: StainTransform | None = None
        if self.model.preprocessing.stain == "none":
            return
        if wsi is None:
            raise ModelError(
                f"the model was trained on patches of {self.model.preprocessing.stain} colors, which are fitted on the tissue "
                "of each slide; give the slide, Encoder(model, wsi=wsi), and take a new encoder for each"
            )
        with lay_out(_file_of(wsi), self.model, mpp=wsi.properties.mpp) as laid:
            _check_same(wsi, laid.image)
            self._stain = laid.cutter().stain

    @property
    def tile_px(self) -> int:
        """Side of the tiles it takes, for `zs.pp.tile_tissues`."""
        return math.ceil(self._side - ROUNDING)

    @property
    def stride_px(self) -> int:
        """From a tile to the next: their side, or that of the smallest of several fields of view, for `zs.pp.tile_tissues`."""
        seen = self.model.preprocessing
        return max(1, round(seen.spot_px * seen.mpp / self.mpp))

    def get_transform(self) -> Callable[[Any], Tensor]:
        """Return what turns a tile into its input: the pixels, in the colors the model was trained on."""
        return self._tensor

    def to(self, device: Any) -> "Encoder":
        """Move the weights to a device."""
        self.model.to(device)
        return self

    def try_compile(self, **options: Any) -> None:
        """Leave the model as it is: a model on disk is run the same way everywhere."""

    def encode_image(self, image: UInt8[Tensor, "B 3 H W"]) -> Float32[Tensor, "B D"]:
        """Return the features of tiles that went through `get_transform`."""
        return self.model(image).features

    @property
    def _side(self) -> float:
        """Side of the model's field of view in pixels of a tile."""
        seen = self.model.preprocessing
        return seen.window_px * seen.mpp / self.mpp

    def _tensor(self, tile: UInt8[Array, "H W 3"]) -> UInt8[Tensor, "3 S S"]:
        if tile.shape[:2] != (self.tile_px, self.tile_px):
            raise ModelError(
                f"a tile has {tile.shape[1]} x {tile.shape[0]} px; the model takes {self.tile_px}: cut them with "
                f"zs.pp.tile_tissues(wsi, {self.tile_px}, stride_px={self.stride_px}, mpp=encoder.mpp)"
            )
        patch = ArrayImage(tile).read(0, 0, self._side, self.model.preprocessing.window_px)
        return torch.from_numpy(patch if self._stain is None else self._stain(patch)).permute(2, 0, 1)


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


def _level_mpp(wsi: Any, mpp: float) -> float:
    """Return the microns per pixel of the level that `SlideImage.read` would take for a model's `mpp`.

    Raises:
        ScaleError: LazySlide does not know those of the slide.
    """
    own = wsi.properties.mpp
    if own is None:
        raise ScaleError(f"slide {wsi.reader.file} does not say its microns per pixel; say them with wsi.set_mpp(...)")
    check_mpp(own, f"slide {wsi.reader.file}")
    down = max(d for d in wsi.properties.level_downsample if d <= max(1.0, mpp / own) * 1.001)
    # LazySlide takes the coarsest level not above the pixels asked for: a rounding error must not make it the next finer.
    return float(own * down if down == 1 else own * down * (1 + ROUNDING**2))


def _file_of(wsi: Any) -> Path:
    path = Path(str(wsi.reader.file))
    if not path.exists():
        raise DataError(
            f"LazySlide's slide {path} is no file here, and the colors of a slide are fitted on its file; write the image to "
            "one and open that"
        )
    return path


def _check_same(wsi: Any, image: SlideImage) -> None:
    (height, width), scene = wsi.properties.shape, getattr(wsi, "scene", None) or 0
    if (image.width, image.height) != (width, height) or scene:
        raise DataError(
            f"{image.path} has {image.width} x {image.height} px, LazySlide has {width} x {height} px of it open, scene "
            f"{scene}; colors can be fitted on the first scene of a file alone"
        )
