"""Stain normalization: one transform per section.

A profile is fitted on the tissue pixels of a whole section (by torchstain, but for the plain mean and spread of each channel)
and applied to all its patches. Never per patch: a
patch of fat and one of tumor would each be stretched to the same mean color and stain maximum, which erases the
difference in nuclear density that expression follows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8

from stexpr.errors import DataError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
StainTransform: TypeAlias = Callable[[UInt8[Array, "H W 3"]], UInt8[Array, "H W 3"]]

_LIGHT = 240.0
"""Transmitted light of torchstain's optical density; a pixel at this intensity absorbs nothing."""
_FEWEST = 1000
"""Pixels below which a color distribution is not worth fitting."""
_PATCHES = 64
_PIXELS = 1_000_000
_DIMMEST_WHITE = 200
_LIT = 0.85
"""Share of the background's light that passes where there is no tissue: a pixel is tissue if some channel has less."""


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


@dataclass(frozen=True)
class ChannelProfile:
    """Mean and standard deviation of red, green and blue.

    Attributes:
        mean: In [0, 255].
        sd: In the same units.
    """

    mean: Float[Array, "3"]
    sd: Float[Array, "3"]

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": "standardized", "mean": self.mean.tolist(), "sd": self.sd.tolist()}

    def table(self, reference: "ChannelProfile") -> UInt8[Array, "256 3"]:
        """Return what each value of each channel becomes."""
        values = (np.arange(256)[:, None] - self.mean) / self.sd * reference.sd + reference.mean
        table: Array = np.clip(np.round(values), 0, 255).astype(np.uint8)
        return table

    def to(self, reference: "ChannelProfile") -> StainTransform:
        """Return the map of patches of this section to the reference's mean and spread."""
        return partial(recolored, table=self.table(reference))


def recolored(patches: UInt8[Array, "*N H W 3"], table: UInt8[Array, "256 3"]) -> UInt8[Array, "*N H W 3"]:
    """Look every value of every channel up in a table."""
    changed = np.empty_like(patches)
    for channel in range(3):
        np.take(table[:, channel], patches[..., channel], out=changed[..., channel])
    return changed


StainProfile: TypeAlias = MacenkoProfile | ReinhardProfile | ChannelProfile
StainKind: TypeAlias = Literal["macenko", "reinhard", "standardized"]

STANDARD: Final = ChannelProfile(np.array([165.0, 150.0, 190.0]), np.array([45.0, 42.0, 34.0]))
"""What `standardized` brings every section to: about what H&E looks like, with room for four SDs below and two above."""


def fit_stain(kind: StainKind, pixels: UInt8[Array, "P 3"]) -> StainProfile:
    """Fit a profile to the tissue pixels of one section; `macenko` and `reinhard` are torchstain's.

    Args:
        kind: Which profile.
        pixels: RGB of tissue; background would drag the statistics toward white.

    Raises:
        DataError: Too few pixels, one color only, or no two stains to tell apart.
    """
    if len(pixels) < _FEWEST:
        raise DataError(f"stain normalization has {len(pixels)} tissue pixels, it needs {_FEWEST}; use stain: none")
    if kind == "standardized":
        return _fit_channels(pixels)
    return _fit_macenko(pixels) if kind == "macenko" else _fit_reinhard(pixels)


def sampled(n_patches: int) -> list[int]:
    """Return which of a section's patches a profile is fitted on: at most 64, spread evenly."""
    return np.linspace(0, n_patches - 1, min(n_patches, _PATCHES)).astype(int).tolist()  # type: ignore[no-any-return]


def thinned(pixels: UInt8[Array, "P 3"]) -> UInt8[Array, "Q 3"]:
    """Return every pixel, or every n-th where there are more than a million."""
    return np.ascontiguousarray(pixels[:: len(pixels) // _PIXELS + 1])


def fit_channels(patches: UInt8[Array, "S H W 3"]) -> ChannelProfile:
    """Fit the mean and spread of each channel over the tissue in some patches of a section, those of `sampled`.

    Raises:
        DataError: Too little tissue, or one color only.
    """
    pixels = thinned(patches.reshape(-1, 3))
    profile = fit_stain("standardized", pixels[_absorbing(pixels)])
    assert isinstance(profile, ChannelProfile)
    return profile


def _absorbing(pixels: UInt8[Array, "P 3"]) -> Bool[Array, "P"]:
    """Return which pixels are tissue, judged by their color alone.

    The light of the background is the brightest that covers two percent of the pixels, in each channel and never less than
    200 of 255; where some channel has less than 85 % of it, tissue absorbs.
    """
    light = np.maximum(np.percentile(pixels, 98, axis=0), _DIMMEST_WHITE)
    absorbs: Array = (pixels < _LIT * light).any(axis=1)
    return absorbs


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
            profile = ChannelProfile(mean, sd) if described["kind"] == "standardized" else ReinhardProfile(mean, sd)
            known = described["kind"] in ("reinhard", "standardized")
            fits = known and mean.shape == sd.shape == (3,) and bool((sd > 0).all())
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
    if isinstance(source, ChannelProfile) and isinstance(reference, ChannelProfile):
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


def _fit_channels(pixels: UInt8[Array, "P 3"]) -> ChannelProfile:
    profile = ChannelProfile(pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=np.float64))
    if (profile.sd < 0.5).any():
        raise DataError("the tissue of this section has one color only, so its colors cannot be standardized")
    return profile
