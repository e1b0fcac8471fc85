"""Procedural H&E: sections whose every nucleus is known, so that expression can be tied to what the image really shows.

Four tissues (tumor, stroma, immune, fat) share a section by smooth noise. Three further smooth fields vary inside every
tissue: how large nuclei are, how much of the area they cover and how dark they are. Nuclei are placed so that their size
leaves the covered area unchanged: a mean color cannot tell large nuclei from many small ones, a texture can.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Integer, UInt8
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

Array: TypeAlias = np.ndarray[Any, Any]

TISSUES = ("tumor", "stroma", "immune", "fat")
MORPHOLOGY = (*TISSUES, "nuclear_size", "nuclear_cover", "nuclear_darkness")
"""What a spot's expression may follow, in the order of the columns of `measure_spots`."""

_PER_COARSE_PX = 4  # tissue varies over hundreds of microns, so its maps are drawn coarsely and enlarged
_RADIUS_PX = np.array([4.4, 3.6, 2.7, 2.8])  # of a typical nucleus of each tissue (1 micron per pixel)
_COVER = np.array([0.32, 0.10, 0.42, 0.02])  # area fraction under nuclei
_ELONGATION = np.array([1.15, 2.1, 1.05, 1.8])
_EOSIN = np.array([0.62, 0.95, 0.32, 0.03])
_HEMATOXYLIN = np.array([0.16, 0.04, 0.10, 0.0])  # outside nuclei
_SIZE_LOG_SD = 0.33
_COVER_LOG_SD = 0.30
_FIELD_LIMIT = 1.9
_HALF_STAMP_PX = 12
_HEMATOXYLIN_OD = np.array([0.62, 0.72, 0.30])  # optical density per unit of stain, red, green, blue
_EOSIN_OD = np.array([0.07, 0.74, 0.33])


@dataclass(frozen=True)
class Stain:
    """How one patient's slides came out of the staining machine."""

    hematoxylin: Float[Array, "3"]
    eosin: Float[Array, "3"]
    background: Float[Array, "3"]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Stain":
        """Vary strength and hue about a typical H&E."""
        strength = np.exp(rng.normal(0, 0.12, size=2))
        return cls(
            hematoxylin=_HEMATOXYLIN_OD * strength[0] * np.exp(rng.normal(0, 0.06, size=3)),
            eosin=_EOSIN_OD * strength[1] * np.exp(rng.normal(0, 0.06, size=3)),
            background=np.array([244.0, 242.0, 245.0]) + rng.normal(0, 2, size=3),
        )


@dataclass(frozen=True)
class Nuclei:
    """Every nucleus of a section: one entry per nucleus in each array, lengths in pixels."""

    x: Float[Array, "n"]
    y: Float[Array, "n"]
    radius: Float[Array, "n"]
    elongation: Float[Array, "n"]
    angle: Float[Array, "n"]
    size: Float[Array, "n"]
    darkness: Float[Array, "n"]


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
    field = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), length, mode="wrap")
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def grow(rng: np.random.Generator, centers: Float[Array, "S 2"], side_px: int) -> Tissue:
    """Lay out tissues and nuclei so that every spot lies on the section.

    Args:
        rng: Where everything random is drawn from.
        centers: Spot centers in pixels, x then y.
        side_px: Side of the image, a multiple of 4.
    """
    side = side_px // _PER_COARSE_PX
    fields = np.stack([smooth_noise(rng, side, 26) for _ in TISSUES])
    logits = 3.2 * fields + np.array([0.7, 0.6, -0.9, -1.3], dtype=np.float32)[:, None, None]
    weights = np.exp(logits - logits.max(axis=0))
    inside = _outline(rng, centers, side)
    fractions = (weights / weights.sum(axis=0) * inside).astype(np.float32)
    size, cover, darkness = (np.clip(smooth_noise(rng, side, length), -_FIELD_LIMIT, _FIELD_LIMIT) for length in (20, 16, 22))
    waves = 90 * smooth_noise(rng, side, 24)
    return Tissue(side_px, fractions, inside, waves, _place_nuclei(rng, fractions, (size, cover, darkness), waves))


def _outline(rng: np.random.Generator, centers: Float[Array, "S 2"], side: int) -> Float32[Array, "h w"]:
    """Cover every spot and about half a pitch around it, with a wavy rim."""
    grid = (np.indices((side, side)).reshape(2, -1).T[:, ::-1] + 0.5) * _PER_COARSE_PX
    distance = cKDTree(centers).query(grid)[0].reshape(side, side)
    rim = gaussian_filter(distance, 6) + 8 * smooth_noise(rng, side, 8)
    return np.clip((84 - np.minimum(rim, distance + 20)) / 8, 0, 1).astype(np.float32)


def _place_nuclei(
    rng: np.random.Generator,
    fractions: Float32[Array, "4 h w"],
    fields: tuple[Float32[Array, "h w"], Float32[Array, "h w"], Float32[Array, "h w"]],
    waves: Float32[Array, "h w"],
) -> Nuclei:
    """Scatter nuclei of the kind and density of the tissue they fall on, and take out those that collide."""
    size, cover, darkness = fields
    side = size.shape[0]
    scale = np.exp(_SIZE_LOG_SD * size)
    wanted = fractions * (_COVER / (np.pi * _RADIUS_PX**2))[:, None, None] * np.exp(_COVER_LOG_SD * cover) / scale**2
    per_cell = rng.poisson(wanted * _PER_COARSE_PX**2 * 1.35)  # collisions take about a quarter away
    kind, row, column = (np.repeat(index, per_cell.ravel()) for index in np.indices(per_cell.shape).reshape(3, -1))
    order = rng.permutation(len(kind))
    kind, row, column = kind[order], row[order], column[order]
    x, y = ((index + rng.random(len(index))) * _PER_COARSE_PX for index in (column, row))
    radius = _RADIUS_PX[kind] * scale[row, column] * np.exp(rng.normal(0, 0.08, len(kind)))
    pairs = cKDTree(np.column_stack([x, y])).query_pairs(2 * _HALF_STAMP_PX * 0.8, output_type="ndarray")
    near = np.hypot(x[pairs[:, 0]] - x[pairs[:, 1]], y[pairs[:, 0]] - y[pairs[:, 1]])
    collides = near < 0.78 * (radius[pairs[:, 0]] + radius[pairs[:, 1]])
    kept = np.ones(len(kind), dtype=bool)
    kept[pairs[collides].max(axis=1, initial=0)] = False  # of two that collide, the later one goes
    kind, row, column = kind[kept], row[kept], column[kept]
    down, right = np.gradient(waves / _PER_COARSE_PX)
    course = np.arctan2(-right, 1 + down)[row, column]  # stromal nuclei lie along the fibers
    return Nuclei(
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
    steps = np.arange(-reach + 2, reach, _PER_COARSE_PX)
    dx, dy = (offset.ravel() for offset in np.meshgrid(steps, steps))
    disc = np.hypot(dx, dy) <= reach
    column, row = (
        np.clip((centers[:, axis, None] + offset[disc]) // _PER_COARSE_PX, 0, tissue.inside.shape[0] - 1).astype(int)
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


def draw(rng: np.random.Generator, tissue: Tissue, stain: Stain) -> UInt8[Array, "H W 3"]:
    """Draw a section as a microscope would show it: stains absorb light (Beer-Lambert).

    Args:
        rng: Where texture and noise are drawn from.
        tissue: What lies where.
        stain: The patient's stains.
    """
    side = tissue.side_px
    fractions = [_enlarge(fraction, side) for fraction in tissue.fractions]
    eosin = sum(fraction * np.float32(density) for fraction, density in zip(fractions, _EOSIN, strict=True))
    hematoxylin = sum(fraction * np.float32(density) for fraction, density in zip(fractions, _HEMATOXYLIN, strict=True))
    fibers = np.clip(1.6 * fractions[1] - 0.3, 0, 1) * _fibers(rng, _enlarge(tissue.waves, side))
    eosin = eosin * (1 + 0.18 * smooth_noise(rng, side, 2.5) + 0.30 * fibers)
    eosin = eosin + _membranes(rng, fractions[3])
    nuclear = _stamp_nuclei(tissue.nuclei, side)
    grain = 1 + 0.16 * smooth_noise(rng, side, 1.0)
    hematoxylin = np.maximum(hematoxylin * (1 + 0.25 * smooth_noise(rng, side, 3)), nuclear * grain)
    eosin = np.maximum(eosin, 0) * (1 - 0.55 * np.minimum(nuclear, 1))
    absorbed = np.stack(
        [hematoxylin * np.float32(h) + eosin * np.float32(e) for h, e in zip(stain.hematoxylin, stain.eosin, strict=True)],
        axis=2,
    )
    light = stain.background.astype(np.float32) * np.exp(-absorbed)
    light += 2.0 * rng.standard_normal((side, side, 1), dtype=np.float32)  # the camera
    return np.clip(light, 0, 255).astype(np.uint8)


def _enlarge(field: Float32[Array, "h w"], side: int) -> Float32[Array, "H W"]:
    from PIL import Image

    return np.asarray(Image.fromarray(field).resize((side, side), Image.Resampling.BICUBIC))


def _fibers(rng: np.random.Generator, waves: Float32[Array, "H W"]) -> Float32[Array, "H W"]:
    """Draw collagen: noise stretched along one direction, its course bent by `waves`."""
    side = waves.shape[0]
    straight = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), (1.7, 14), mode="wrap", truncate=2.5)
    rows, columns = np.indices((side, side), dtype=np.float32)
    bent: Float32[Array, "H W"] = map_coordinates(straight, [rows + waves, columns], order=1, mode="grid-wrap")
    return bent / bent.std()


def _membranes(rng: np.random.Generator, fat: Float32[Array, "H W"]) -> Float32[Array, "H W"]:
    """Draw fat cells: empty, about 45 microns wide, with thin eosinophilic walls."""
    side = fat.shape[0]
    eosin = np.zeros_like(fat)
    rows, columns = np.nonzero(fat > 0.25)
    pitch = 44
    grid = np.indices((side // pitch + 2, side // pitch + 2)).reshape(2, -1).T * pitch
    cells = cKDTree(grid + rng.uniform(-14, 14, size=grid.shape))
    if len(rows):
        distance = cells.query(np.column_stack([rows, columns]), k=2)[0]
        eosin[rows, columns] = np.exp(-((distance[:, 1] - distance[:, 0]) ** 2) / 5) * np.minimum(fat[rows, columns] * 1.5, 1)
    return 0.75 * eosin


def _stamp_nuclei(nuclei: Nuclei, side: int) -> Float32[Array, "H W"]:
    """Draw every nucleus as an ellipse with a soft edge and a darker rim; where two overlap the darker one shows."""
    canvas = np.zeros(side * side, dtype=np.float32)
    offsets = np.arange(-_HALF_STAMP_PX, _HALF_STAMP_PX + 1)
    for start in range(0, len(nuclei.x), 4096):  # bounds the memory of the stamps
        own = slice(start, start + 4096)
        x, y = nuclei.x[own], nuclei.y[own]
        columns = np.floor(x).astype(int)[:, None, None] + offsets[None, None, :]
        rows = np.floor(y).astype(int)[:, None, None] + offsets[None, :, None]
        dx = (columns + 0.5 - x[:, None, None]).astype(np.float32)
        dy = (rows + 0.5 - y[:, None, None]).astype(np.float32)
        cosine, sine = (f(nuclei.angle[own]).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        stretch = np.sqrt(nuclei.elongation[own]).astype(np.float32)[:, None, None]
        radius = nuclei.radius[own].astype(np.float32)[:, None, None]
        away = np.hypot((dx * cosine + dy * sine) / stretch, (dy * cosine - dx * sine) * stretch) / radius
        ink = (1.05 * np.exp(0.22 * nuclei.darkness[own])).astype(np.float32)[:, None, None]
        density = ink * (0.82 + 0.25 * away**4) * np.clip((1 - away) * radius + 0.5, 0, 1)
        seen: Bool[Array, "n h w"] = (density > 0) & (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
        pixel: Integer[Array, "n h w"] = rows * side + columns
        np.maximum.at(canvas, pixel[seen], density[seen])
    return canvas.reshape(side, side)


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
    return centers.astype(np.float64), -(-side // _PER_COARSE_PX) * _PER_COARSE_PX
