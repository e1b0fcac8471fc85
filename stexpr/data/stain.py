"""Stain normalization: one transform per section.

A profile is fitted by torchstain on the tissue pixels of a whole section and applied to all its patches. Never per patch: a
patch of fat and one of tumor would each be stretched to the same mean color and stain maximum, which erases the
difference in nuclear density that expression follows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from stexpr.errors import DataError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
StainTransform: TypeAlias = Callable[[UInt8[Array, "H W 3"]], UInt8[Array, "H W 3"]]

_LIGHT = 240.0
"""Transmitted light of torchstain's optical density; a pixel at this intensity absorbs nothing."""
_FEWEST = 1000
"""Pixels below which a color distribution is not worth fitting."""


@dataclass(frozen=True)
class MacenkoProfile:
    """Colors of hematoxylin and eosin in optical density, and how strong each gets.

    Attributes:
        stains: Unit optical density of the two stains, one per column.
        maxima: 99th percentile of their concentrations.

    Reference:
        Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009.
    """

    stains: Float[Array, "3 2"]
    maxima: Float[Array, "2"]

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": "macenko", "stains": self.stains.tolist(), "maxima": self.maxima.tolist()}

    def to(self, reference: "MacenkoProfile") -> StainTransform:
        """Return the map of patches of this section to the reference's stains and strengths."""
        # Unmixing, rescaling and mixing again are linear in optical density, so one 3 x 3 matrix does all three.
        mix = reference.stains * (reference.maxima / self.maxima) @ np.linalg.pinv(self.stains)
        density = -np.log((np.arange(256) + 1) / _LIGHT)

        def transform(patch: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
            light = _LIGHT * np.exp(-(density[patch] @ mix.T))
            return np.minimum(light, 255).astype(np.uint8)

        return transform


@dataclass(frozen=True)
class ReinhardProfile:
    """Mean and standard deviation of each CIELAB channel.

    Reference:
        Reinhard et al., Color transfer between images, IEEE CG&A 2001.
    """

    mean: Float[Array, "3"]
    sd: Float[Array, "3"]

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": "reinhard", "mean": self.mean.tolist(), "sd": self.sd.tolist()}

    def to(self, reference: "ReinhardProfile") -> StainTransform:
        """Return the map of patches of this section to the reference's mean and spread."""
        from torchstain.numpy.utils.lab2rgb import lab2rgb
        from torchstain.numpy.utils.rgb2lab import rgb2lab

        gain = reference.sd / self.sd

        # torchstain's arrays carry L x 2.55, a + 128, b + 128; its statistics are in plain L, a, b.
        scale, shift = np.array([2.55, 1, 1]), np.array([0, 128, 128])

        def transform(patch: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
            lab = (rgb2lab(patch.astype(np.float32) / 255) - shift) / scale
            moved = ((lab - self.mean) * gain + reference.mean) * scale + shift
            image: Array = (lab2rgb(moved) * 255).astype(np.uint8)
            return image

        return transform


StainProfile: TypeAlias = MacenkoProfile | ReinhardProfile


def fit_stain(kind: Literal["macenko", "reinhard"], pixels: UInt8[Array, "P 3"]) -> StainProfile:
    """Fit torchstain's normalizer to the tissue pixels of one section.

    Args:
        kind: `macenko` or `reinhard`.
        pixels: RGB of tissue; background would drag the statistics toward white.

    Raises:
        DataError: Too few pixels, one color only, or no two stains to tell apart.
    """
    if len(pixels) < _FEWEST:
        raise DataError(f"stain normalization has {len(pixels)} tissue pixels, it needs {_FEWEST}; use stain: none")
    return _fit_macenko(pixels) if kind == "macenko" else _fit_reinhard(pixels)


def profile_of(described: Mapping[str, Any]) -> StainProfile:
    """Rebuild a profile from what its `describe` gave.

    Raises:
        DataError: It is not that.
    """
    try:
        if described["kind"] == "macenko":
            stains, maxima = (np.asarray(described[key], dtype=float) for key in ("stains", "maxima"))
            profile: StainProfile = MacenkoProfile(stains, maxima)
            fits = stains.shape == (3, 2) and maxima.shape == (2,) and bool((maxima > 0).all())
        else:
            mean, sd = (np.asarray(described[key], dtype=float) for key in ("mean", "sd"))
            profile = ReinhardProfile(mean, sd)
            fits = described["kind"] == "reinhard" and mean.shape == sd.shape == (3,) and bool((sd > 0).all())
    except (KeyError, TypeError, ValueError) as err:
        raise DataError(f"not a stain profile: {err!r}; fit the stain again") from err
    if not fits:
        raise DataError("not a stain profile: its arrays have other shapes or values; fit the stain again")
    return profile


def stain_transform(source: StainProfile, reference: StainProfile) -> StainTransform:
    """Return the map from a section's colors to the reference's; both profiles are of one kind."""
    if isinstance(source, MacenkoProfile) and isinstance(reference, MacenkoProfile):
        return source.to(reference)
    if isinstance(source, ReinhardProfile) and isinstance(reference, ReinhardProfile):
        return source.to(reference)
    raise DataError(f"cannot bring a {type(source).__name__} to a {type(reference).__name__}: fit both with one kind")


def _fit_macenko(pixels: UInt8[Array, "P 3"]) -> MacenkoProfile:
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    # torchstain leaves out pixels this faint; with hardly any left its covariance is not defined.
    stained = (-np.log((pixels.astype(float) + 1) / _LIGHT) >= 0.15).all(axis=1).sum()
    if stained < _FEWEST:
        raise DataError(f"macenko has {stained} stained pixels, it needs {_FEWEST}; use stain: reinhard or none")
    normalizer = NumpyMacenkoNormalizer()
    normalizer.fit(pixels)
    profile = MacenkoProfile(np.asarray(normalizer.HERef, dtype=float), np.asarray(normalizer.maxCRef, dtype=float))
    separation = np.linalg.svd(profile.stains, compute_uv=False)[-1]
    if not np.isfinite(profile.stains).all() or separation < 0.01 or (profile.maxima <= 0).any():
        raise DataError("macenko finds no two stains in this section: its tissue has one color; use stain: reinhard or none")
    return profile


def _fit_reinhard(pixels: UInt8[Array, "P 3"]) -> ReinhardProfile:
    from torchstain.numpy.normalizers import NumpyReinhardNormalizer

    normalizer = NumpyReinhardNormalizer()
    normalizer.fit(pixels[None])
    profile = ReinhardProfile(np.asarray(normalizer.target_means, dtype=float), np.asarray(normalizer.target_stds, dtype=float))
    if (profile.sd < 1e-3).any():
        raise DataError("reinhard finds one color only in the tissue of this section; use stain: none")
    return profile
