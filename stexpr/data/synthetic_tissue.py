"""Made-up sections whose every nucleus is known, so that expression can be tied to what the image really shows.

Four tissues (tumor, stroma, immune, fat) share a section by smooth noise. Three further smooth fields vary inside every
tissue: how large nuclei are, how much of the area they cover and how dark they are. Nuclei are placed so that their size
leaves the covered area unchanged: a mean color cannot tell large nuclei from many small ones, a texture can.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

TISSUES = ("tumor", "stroma", "immune", "fat")
MORPHOLOGY = (*TISSUES, "nuclear_size", "nuclear_cover", "nuclear_darkness")
"""What a spot's expression may follow, in the order of the columns of `measure_spots`."""

PER_COARSE_PX = 4  # tissue varies over hundreds of microns, so its maps are drawn coarsely and enlarged
_RADIUS_PX = np.array([4.4, 3.6, 2.7, 2.8])  # of a typical nucleus of each tissue (1 micron per pixel)
_COVER = np.array([0.32, 0.10, 0.42, 0.02])  # area fraction under nuclei
_ELONGATION = np.array([1.15, 2.1, 1.05, 1.8])
_TYPICAL_MIX = np.array([0.7, 0.6, -0.9, -1.3], dtype=np.float32)  # logits
_SIZE_LOG_SD = 0.33
_COVER_LOG_SD = 0.30
_FIELD_LIMIT = 1.9
_CLOSEST = 0.78  # distance of two nuclei over the sum of their radii; a little overlap is what a thick section shows


@dataclass(frozen=True)
class Nuclei:
    """Every nucleus of a section: one entry per nucleus in each array, lengths in pixels; `kind` is its place in `TISSUES`."""

    kind: Int[Array, "n"]
    x: Float[Array, "n"]
    y: Float[Array, "n"]
    radius: Float[Array, "n"]
    elongation: Float[Array, "n"]
    angle: Float[Array, "n"]
    size: Float[Array, "n"]
    darkness: Float[Array, "n"]


@dataclass(frozen=True)
class Layout:
    """What lies where, before nuclei are placed; all maps are on the coarse grid.

    Attributes:
        side_px: Side of the square image, 1 micron per pixel.
        fractions: Share of each tissue, 0 outside the section.
        inside: Share of each coarse pixel inside the section.
        waves: How far collagen is shifted from a straight course, in pixels.
        size: How large nuclei are, in SDs.
        cover: How much of the area they cover, likewise.
        darkness: How dark they are, likewise.
    """

    side_px: int
    fractions: Float32[Array, "4 h w"]
    inside: Float32[Array, "h w"]
    waves: Float32[Array, "h w"]
    size: Float32[Array, "h w"]
    cover: Float32[Array, "h w"]
    darkness: Float32[Array, "h w"]


@dataclass(frozen=True)
class Tissue:
    """A section before it is drawn: what lies where.

    Attributes:
        side_px: Side of the square image, 1 micron per pixel.
        fractions: Share of each tissue, 0 outside the section, on the coarse grid.
        inside: Share of each coarse pixel inside the section.
        waves: How far collagen is shifted from a straight course, in pixels, on the coarse grid.
        nuclei: The nuclei placed.
    """

    side_px: int
    fractions: Float32[Array, "4 h w"]
    inside: Float32[Array, "h w"]
    waves: Float32[Array, "h w"]
    nuclei: Nuclei


def smooth_noise(rng: np.random.Generator, side: int, length: float) -> Float32[Array, "h w"]:
    """Draw a smooth random field of mean 0 and SD 1.

    Args:
        rng: Where it is drawn from.
        side: Side of the square field, in its own pixels.
        length: SD of the Gaussian that smooths it, in its own pixels.
    """
    field: Array = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), length, mode="wrap")
    field -= field.mean()
    field /= field.std()
    return field


def grow(rng: np.random.Generator, centers: Float[Array, "S 2"], side_px: int) -> Tissue:
    """Lay out tissues and nuclei so that every spot lies on the section.

    Args:
        rng: Where everything random is drawn from.
        centers: Spot centers in pixels, x then y.
        side_px: Side of the image, a multiple of 4.
    """
    return populate(rng, lay_out(rng, centers, side_px))


def lay_out(
    rng: np.random.Generator, centers: Float[Array, "S 2"], side_px: int, mix: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
) -> Layout:
    """Lay out tissues and the fields that nuclei follow.

    Args:
        rng: Where everything random is drawn from.
        centers: Spot centers in pixels, x then y; all lie on the section.
        side_px: Side of the image, a multiple of 4.
        mix: How much more there is of each of `TISSUES` than in a typical section, in logits.
    """
    side = side_px // PER_COARSE_PX
    fields = np.stack([smooth_noise(rng, side, 26.0) for _ in TISSUES])
    logits = 3.2 * fields + (_TYPICAL_MIX + np.array(mix, dtype=np.float32))[:, None, None]
    weights = np.exp(logits - logits.max(axis=0))
    inside = _outline(rng, centers, side)
    fractions = (weights / weights.sum(axis=0) * inside).astype(np.float32)
    size, cover, darkness = (
        np.clip(smooth_noise(rng, side, length), -_FIELD_LIMIT, _FIELD_LIMIT) for length in (20.0, 16.0, 22.0)
    )
    return Layout(side_px, fractions, inside, 90 * smooth_noise(rng, side, 24.0), size, cover, darkness)


def populate(rng: np.random.Generator, layout: Layout) -> Tissue:
    """Place the nuclei of a layout."""
    return Tissue(layout.side_px, layout.fractions, layout.inside, layout.waves, _place_nuclei(rng, layout))


def _outline(rng: np.random.Generator, centers: Float[Array, "S 2"], side: int) -> Float32[Array, "h w"]:
    """Cover every spot and about half a pitch around it, with a wavy rim."""
    grid = (np.indices((side, side)).reshape(2, -1).T[:, ::-1] + 0.5) * PER_COARSE_PX
    distance = cKDTree(centers).query(grid)[0].reshape(side, side)
    rim = gaussian_filter(distance, 6) + 8 * smooth_noise(rng, side, 8.0)
    inside: Array = np.clip((84 - np.minimum(rim, distance + 20)) / 8, 0, 1).astype(np.float32)
    return inside


def _place_nuclei(rng: np.random.Generator, layout: Layout) -> Nuclei:
    """Scatter nuclei of the kind and density of the tissue they fall on, and take out those that collide."""
    size, cover, darkness = layout.size, layout.cover, layout.darkness
    scale = np.exp(_SIZE_LOG_SD * size)
    wanted = layout.fractions * (_COVER / (np.pi * _RADIUS_PX**2))[:, None, None] * np.exp(_COVER_LOG_SD * cover) / scale**2
    per_cell = rng.poisson(wanted * PER_COARSE_PX**2 * 1.35)  # collisions take about a quarter away
    kind, row, column = (np.repeat(index, per_cell.ravel()) for index in np.indices(per_cell.shape).reshape(3, -1))
    order = rng.permutation(len(kind))
    kind, row, column = kind[order], row[order], column[order]
    x, y = ((index + rng.random(len(index))) * PER_COARSE_PX for index in (column, row))
    radius = _RADIUS_PX[kind] * scale[row, column] * np.exp(rng.normal(0, 0.08, len(kind)))
    pairs = cKDTree(np.column_stack([x, y])).query_pairs(_CLOSEST * 2 * radius.max(initial=0), output_type="ndarray")
    near = np.hypot(x[pairs[:, 0]] - x[pairs[:, 1]], y[pairs[:, 0]] - y[pairs[:, 1]])
    collides = near < _CLOSEST * (radius[pairs[:, 0]] + radius[pairs[:, 1]])
    kept = np.ones(len(kind), dtype=bool)
    kept[pairs[collides].max(axis=1)] = False  # of two that collide, the later one goes
    kind, row, column = kind[kept], row[kept], column[kept]
    down, right = np.gradient(layout.waves / PER_COARSE_PX)
    course = np.arctan2(-right, 1 + down)[row, column]  # stromal nuclei lie along the fibers
    return Nuclei(
        kind=kind,
        x=x[kept],
        y=y[kept],
        radius=radius[kept],
        elongation=_ELONGATION[kind] * np.exp(rng.normal(0, 0.1, len(kind))),
        angle=np.where(kind == 1, course, np.pi * rng.random(len(kind))) + rng.normal(0, 0.2, len(kind)),
        size=size[row, column].astype(np.float64),
        darkness=darkness[row, column].astype(np.float64),
    )


def measure_spots(tissue: Tissue, centers: Float[Array, "S 2"], diameter_px: float) -> Float[Array, "S 7"]:
    """Measure what lies under each spot's disc.

    Args:
        tissue: The section.
        centers: Spot centers in pixels, x then y.
        diameter_px: Diameter of the capture disc.

    Returns:
        Columns of `MORPHOLOGY`: the four tissue fractions; the nuclear size (mean over the nuclei, in SDs of its field,
        shrunk toward 0 where nuclei are few); the area fraction under nuclei; and their darkness, given as the size is.
    """
    reach = diameter_px / 2
    steps = np.arange(-reach + 2, reach, PER_COARSE_PX)
    dx, dy = (offset.ravel() for offset in np.meshgrid(steps, steps))
    disc = np.hypot(dx, dy) <= reach
    column, row = (
        np.clip((centers[:, axis, None] + offset[disc]) // PER_COARSE_PX, 0, tissue.inside.shape[0] - 1).astype(int)
        for axis, offset in ((0, dx), (1, dy))
    )
    fractions = tissue.fractions[:, row, column].mean(axis=2).T.astype(np.float64)
    nuclei = tissue.nuclei
    members = cKDTree(np.column_stack([nuclei.x, nuclei.y])).query_ball_point(centers, reach)
    count = np.array([len(own) for own in members])
    size, darkness = (
        np.array([values[own].sum() for own in members]) / (count + 3) for values in (nuclei.size, nuclei.darkness)
    )
    cover = np.array([(np.pi * nuclei.radius[own] ** 2).sum() for own in members]) / (np.pi * reach**2)
    return np.column_stack([fractions, size, cover, darkness])


def spot_grid(n_spots: int, pitch_px: int, margin_px: int) -> tuple[Float[Array, "S 2"], int]:
    """Lay spots on a square grid, the most central ones of it, and size the image around them.

    Returns:
        Centers in pixels (x, y), row by row, and the side of the image.
    """
    n = int(np.ceil(np.sqrt(1.2 * n_spots)))
    rows, columns = np.indices((n, n)).reshape(2, -1)
    middle = (n - 1) / 2
    # a rounded square: between the circle's exponent 2 and the square's infinite one
    outward = np.abs(rows - middle) ** 3 + np.abs(columns - middle) ** 3
    chosen = np.sort(np.argsort(outward, kind="stable")[:n_spots])
    centers = np.column_stack([columns, rows])[chosen] * pitch_px + float(margin_px)
    side = 2 * margin_px + (n - 1) * pitch_px
    return centers.astype(np.float64), -(-side // PER_COARSE_PX) * PER_COARSE_PX
