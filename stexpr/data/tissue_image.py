"""The picture under the spots of an AnnData, and how large its pixels are: given, stored in `uns`, or named there."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Float64, UInt8

from stexpr.data.images import ArrayImage, SlideImage, open_image
from stexpr.data.section import check_mpp
from stexpr.errors import DataError, DataWarning, ScaleError, nearest
from stexpr.types import SPATIAL

__all__ = ["ImageSource", "PixelSize", "TissueImage", "find_image", "library_of", "pixel_size", "spot_centers"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
ImageSource: TypeAlias = str | Path | SlideImage | Array
"""A file, an opened image, or RGB pixels."""

STORED: Final = ("hires", "downscaled_fullres", "lowres")
"""Pictures of `uns["spatial"][library]["images"]`, the finest first; the second is HEST's."""
SAME_SIZE: Final = 0.02
SAME_MPP: Final = 0.02


@dataclass(frozen=True)
class TissueImage:
    """A picture of the tissue.

    Attributes:
        image: The picture.
        scale: Its pixels per pixel of `obsm["spatial"]`.
        source: Where it comes from.
    """

    image: SlideImage
    scale: float
    source: str


@dataclass(frozen=True)
class PixelSize:
    """Microns per pixel of `obsm["spatial"]`.

    Attributes:
        mpp: The size.
        source: How it is known.
    """

    mpp: float
    source: str


def spot_centers(adata: Any) -> Float64[Array, "S 2"]:
    """Return where the spots of an AnnData lie, in full-resolution pixels, x then y.

    Raises:
        DataError: It does not say, or not of every spot.
    """
    if SPATIAL not in adata.obsm:
        raise DataError('the AnnData has no obsm["spatial"]; store spot centers there, in full-resolution pixels, x then y')
    centers = np.asarray(adata.obsm[SPATIAL], dtype=np.float64)
    if centers.ndim != 2 or centers.shape[1] < 2 or not len(centers) or not np.isfinite(centers[:, :2]).all():
        raise DataError(f'obsm["spatial"] has shape {centers.shape}; it must hold two finite numbers for each spot, x then y')
    return centers[:, :2]


def library_of(adata: Any, library_id: str | None) -> dict[str, Any]:
    """Return what `uns["spatial"]` says of a library, empty where it says nothing.

    Args:
        adata: The AnnData.
        library_id: Name of the library; None takes the only one, and nothing where there are several.

    Raises:
        DataError: There is no such library.
    """
    libraries = _libraries(adata)
    if library_id is None:
        return dict(next(iter(libraries.values()))) if len(libraries) == 1 else {}
    if libraries and library_id not in libraries:
        raise DataError(f'uns["spatial"] holds no library {library_id!r}; {nearest(library_id, map(str, libraries))}')
    return dict(libraries.get(library_id, {}))


def find_image(adata: Any, image: ImageSource | None = None, library_id: str | None = None) -> TissueImage:
    """Find the picture under the spots.

    Args:
        adata: The AnnData.
        image: The picture whose pixels `obsm["spatial"]` counts: a file, an opened image or RGB pixels. By default the file
            that `uns["spatial"]` names as its source, or else the picture stored there, `hires` first.
        library_id: Of which library of `uns["spatial"]`; may be left out where there is only one.

    Raises:
        DataError: There is no picture, it is none, or its size is not the one the stored picture was made from.
    """
    library = library_of(adata, library_id)
    if image is not None:
        found = _given(image)
        _check_size(found, library)
        return found
    named, trouble = _named_file(library)
    if named is not None:
        found = TissueImage(open_image(named), 1.0, str(named))
        _check_size(found, library)
        return found
    stored = _stored(library)
    if stored is None:
        libraries = _libraries(adata)
        choice = f"; choose one of its libraries with library_id=: {', '.join(map(str, libraries))}"
        several = choice if len(libraries) > 1 and library_id is None else ""
        raise DataError(
            f'there is no image: none was given, and uns["spatial"] holds no picture{trouble or several}; pass image=, the '
            "full-resolution image"
        )
    if trouble:
        warnings.warn(f"{stored.source} is taken as the image{trouble}; pass image=", DataWarning, stacklevel=4)
    return stored


def pixel_size(
    found: TissueImage, library: Mapping[str, Any], mpp: float | None = None, spot_diameter_um: float | None = None
) -> PixelSize:
    """Tell how large a pixel of `obsm["spatial"]` is; it is never guessed.

    Args:
        found: The picture; the file may say.
        library: From `library_of`; its scale factors may say.
        mpp: Microns per pixel, if known: it is believed.
        spot_diameter_um: What `spot_diameter_fullres` of the scale factors spans.

    Raises:
        ScaleError: Nothing says, or what is said is absurd.
    """
    factors = library.get("scalefactors", {})
    said: dict[str, float] = {}
    if found.image.mpp is not None:
        said["image file"] = found.image.mpp * found.scale
    if factors.get("microns_per_pixel"):
        said["scale factors"] = float(factors["microns_per_pixel"])
    if spot_diameter_um is not None and factors.get("spot_diameter_fullres"):
        said[f"spots of {spot_diameter_um:g} um"] = spot_diameter_um / float(factors["spot_diameter_fullres"])
    if mpp is not None:
        said = {"argument": mpp, **said}
    if not said:
        spots = ""
        if factors.get("spot_diameter_fullres"):
            spots = (
                f", or spot_diameter_um=, what the {factors['spot_diameter_fullres']:.4g} px of spot_diameter_fullres span "
                "(65 where Space Ranger wrote it for Visium, though spots have 55)"
            )
        raise ScaleError(
            f'microns per pixel are unknown: neither {found.source} nor uns["spatial"] says; pass mpp=, the microns per pixel '
            f'of obsm["spatial"]{spots}'
        )
    source, size = next(iter(said.items()))
    check_mpp(size, source)
    others = [f"{other} says {value:.4g}" for other, value in said.items() if abs(value - size) > SAME_MPP * size]
    return PixelSize(size, "; ".join([source, *others]))


def _libraries(adata: Any) -> dict[str, Any]:
    libraries = adata.uns.get(SPATIAL, {})
    return dict(libraries) if isinstance(libraries, Mapping) else {}


def _given(image: ImageSource) -> TissueImage:
    if isinstance(image, SlideImage):
        return TissueImage(image, 1.0, str(image.path))
    if isinstance(image, (str, Path)):
        return TissueImage(open_image(Path(image)), 1.0, str(image))
    return TissueImage(ArrayImage(_pixels(image, "the image given"), name="the image given"), 1.0, "the image given")


def _named_file(library: Mapping[str, Any]) -> tuple[Path | None, str]:
    """Return the file that the metadata name, or why it cannot be taken."""
    named = library.get("metadata", {}).get("source_image_path")
    if named is None:
        return None, ""
    path = Path(str(named))
    if not path.is_absolute():
        return None, f": its source_image_path {str(named)!r} is relative, to a folder that it does not say"
    if not path.is_file():
        return None, f": its source_image_path {str(named)!r} does not exist"
    return path, ""


def _stored(library: Mapping[str, Any]) -> TissueImage | None:
    images, factors = library.get("images", {}), library.get("scalefactors", {})
    for name in STORED:
        if name not in images:
            continue
        where = f'the picture {name!r} of uns["spatial"]'
        key = f"tissue_{name}_scalef"
        if key not in factors:
            raise DataError(f"{where} has no scale: scalefactors lack {key!r}; add it, or pass image=")
        return TissueImage(ArrayImage(_pixels(np.asarray(images[name]), where), name=name), float(factors[key]), where)
    return None


def _check_size(found: TissueImage, library: Mapping[str, Any]) -> None:
    """Refuse an image of another size than the one that the stored picture was made from."""
    images, factors = library.get("images", {}), library.get("scalefactors", {})
    for name in STORED:
        scale = factors.get(f"tissue_{name}_scalef")
        if name not in images or not scale:
            continue
        height, width = (side / float(scale) for side in np.shape(images[name])[:2])
        own = found.image.width, found.image.height
        # the stored picture's sides are whole pixels
        slack = SAME_SIZE * max(width, height) + 1 / float(scale)
        if abs(own[0] - width) > slack or abs(own[1] - height) > slack:
            raise DataError(
                f'{found.source} has {own[0]} x {own[1]} px, but obsm["spatial"] counts pixels of an image of about '
                f'{width:.0f} x {height:.0f} px, says the picture {name!r} of uns["spatial"]; pass that full-resolution image'
            )
        return


def _pixels(values: Array, where: str) -> UInt8[Array, "H W 3"]:
    """Return pixels as 8-bit RGB: floats from 0 to 1 become 0 to 255, what is transparent becomes white."""
    if values.ndim != 3 or values.shape[2] not in (3, 4) or 0 in values.shape:
        raise DataError(f"{where} has shape {values.shape}; RGB pixels have height x width x 3")
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        values = np.round(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise DataError(f"{where} holds {values.dtype} pixels; give 8-bit RGB (0 to 255), or floats from 0 to 1")
    if values.shape[2] == 4:
        alpha = values[..., 3:].astype(np.float32) / 255
        values = np.round(values[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(values)
