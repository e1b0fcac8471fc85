"""A slide divided into patches: its scale, its tissue and the grid of a model's field of view over it."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import UInt8

from stexpr.config.versions import PACKAGES, versions
from stexpr.data.grid import SlideGrid, tissue_grid
from stexpr.data.images import ArrayImage, SlideImage, open_image
from stexpr.data.rois import Rois
from stexpr.data.section import check_mpp
from stexpr.data.slide_files import slide_bytes
from stexpr.data.tissue import TissueMask, find_tissue
from stexpr.errors import ConfigError, DataError, DomainWarning, ScaleError
from stexpr.inference.domain import TISSUE_KEYS, warn_of_foreign
from stexpr.inference.encoder import ModelInput, PatchModel
from stexpr.inference.patches import PatchCutter
from stexpr.types import Progress

__all__ = ["SlideLayout", "lay_out"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_PICTURE_PX: Final = 2048
"""Longer side of the picture in which tissue is looked for."""
_MPP_TOLERANCE: Final = 0.02
_USER: Final = 5
"""Frames from where a warning is given to the caller of what lays a slide out."""


@dataclass(frozen=True)
class SlideLayout:
    """An open slide and the patches of it that a model is to see.

    Attributes:
        slide: The file.
        image: The slide, open inside the block of `lay_out`.
        model: Whose field of view the patches have.
        mpp: Microns per level-0 pixel.
        mpp_source: Whether the `file` said so or it was `given`.
        picture: The whole slide, small.
        mask: Its tissue.
        grid: The patches.
        min_tissue: Least share of tissue in one.
        warnings: In what the slide differs from what its file or the model says.
    """

    slide: Path
    image: SlideImage
    model: PatchModel | ModelInput
    mpp: float
    mpp_source: str
    picture: UInt8[Array, "H W 3"]
    mask: TissueMask
    grid: SlideGrid
    min_tissue: float
    warnings: tuple[str, ...]

    def cutter(self) -> PatchCutter:
        """Prepare to cut the patches; where the model was trained on normalized stain, the slide's own is fitted.

        Raises:
            ModelError: The model does not say which stain it was trained on.
            DataError: The tissue has no stain to fit.
        """
        return PatchCutter.of(self.model, self.image, self.mpp, self.mask, self.grid.centers)

    def batches(self, cutter: PatchCutter, batch_size: int, progress: Progress) -> Iterator[UInt8[Array, "B H W 3"]]:
        """Cut the patches in the order of the grid, a batch at a time."""
        n_batches = math.ceil(len(self.grid) / batch_size)
        yield from progress(cutter.batches(self.grid.centers, batch_size), self.slide.name, n_batches)

    def described(self, symmetries: bool | None) -> dict[str, Any]:
        """Describe slide, model and grid in plain JSON values.

        Args:
            symmetries: As given to `run_model`.
        """
        model, grid = self.model, self.grid
        own = model.preprocessing
        return {
            "slide": {"file": self.slide.name, "bytes": slide_bytes(self.slide), "read_by": self.image.backend},
            "mpp": self.mpp,
            "mpp_source": self.mpp_source,
            "min_tissue": self.min_tissue,
            "symmetries": model.release.symmetries if symmetries is None else symmetries,
            "device": model.device.type,
            "warnings": list(self.warnings),
            "model": {
                "hash": model.hash,
                **{key: model.provenance.get(key) for key in ("label", "cohort", "cohort_hash", *TISSUE_KEYS)},
            },
            "stain": own.stain,
            "patch": {
                "px": own.window_px,
                "fields_px": list(own.fields_px),
                "mpp": own.mpp,
                "side_um": grid.side * self.mpp,
            },
            "stride_um": grid.stride * self.mpp,
            "grid": {"rows": grid.shape[0], "columns": grid.shape[1], "patches": len(grid), "left_out": grid.left_out},
            "versions": versions((*PACKAGES, "anndata", "openslide-python", "tifffile")),
        }


@contextmanager
def lay_out(
    slide: Path,
    model: PatchModel | ModelInput,
    *,
    mpp: float | None = None,
    stride_um: float | None = None,
    min_tissue: float = 0.5,
    about: Mapping[str, str | None] | None = None,
    rois: Rois | None = None,
) -> Iterator[SlideLayout]:
    """Open a slide and divide its tissue into patches.

    Args:
        slide: The image file; of a DICOM slide its folder will do.
        model: Says the field of view.
        mpp: Microns per level-0 pixel, where the file does not say or is wrong.
        stride_um: From the center of a patch to the next; None takes the side of a patch, where the model sees several
            fields of view in it that of the smallest.
        min_tissue: Least share of tissue in a patch.
        about: What is known of the slide, of `domain.TISSUE_KEYS`; what differs from the model's training data is warned of.
        rois: Only patches whose center lies in these.

    Raises:
        ScaleError: The microns per pixel are unknown or absurd.
        NoTissueError: There is no tissue, or none in the regions.
        DataError: The slide cannot be read or is smaller than a patch.
        ConfigError: An option is impossible.
    """
    with open_image(slide) as image:
        own_mpp, source, notes = _scale(image, mpp)
        notes += warn_of_foreign(model, own_mpp, about or {}, stacklevel=_USER)
        # Read once: of a slide without levels this is all of it.
        picture = image.thumbnail(_PICTURE_PX)
        try:
            mask, grid = _divided(image, picture, own_mpp, model, stride_um, min_tissue)
            if rois is not None:
                grid = grid.only(rois.contains(grid.centers), "center outside of the regions of interest")
        except (ConfigError, DataError) as err:
            err.add_note(f"slide {image.path}, {own_mpp:.4g} um/px")
            raise
        yield SlideLayout(slide, image, model, own_mpp, source, picture, mask, grid, min_tissue, notes)


def _scale(image: SlideImage, mpp: float | None) -> tuple[float, str, tuple[str, ...]]:
    """Return the microns per level-0 pixel, where they come from, and what is odd about them."""
    if mpp is None:
        if image.mpp is None:
            raise ScaleError(
                f"slide {image.path} does not say its microns per pixel; give them (--mpp): often 0.25 for a scan at 40x and "
                "0.5 for one at 20x, but look it up"
            )
        return image.mpp, "file", ()
    check_mpp(mpp, f"slide {image.path}")
    if image.mpp is None or abs(image.mpp - mpp) <= _MPP_TOLERANCE * mpp:
        return mpp, "given", ()
    odd = f"the file says {image.mpp:.4g} um/px, {mpp:.4g} was given and is used"
    warnings.warn(odd, DomainWarning, stacklevel=_USER)
    return mpp, "given", (odd,)


def _divided(
    image: SlideImage,
    picture: UInt8[Array, "H W 3"],
    mpp: float,
    model: PatchModel | ModelInput,
    stride_um: float | None,
    min_tissue: float,
) -> tuple[TissueMask, SlideGrid]:
    """Find the tissue in a picture of the whole slide and lay the grid of the model's field of view over it."""
    input_ = model.preprocessing
    side, spot = (px * input_.mpp / mpp for px in (input_.window_px, input_.spot_px))
    small = find_tissue(ArrayImage(picture), mpp * max(image.width, image.height) / max(picture.shape[:2]))
    mask = TissueMask(small.mask, image.width, image.height)
    stride = spot if stride_um is None else stride_um / mpp
    return mask, tissue_grid(mask, side=side, stride=stride, min_tissue=min_tissue)
