"""Draw a made-up section as a microscope would show it."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Integer, UInt8
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from stexpr.data.synthetic_tissue import Nuclei, Tissue, smooth_noise

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_EOSIN = (0.62, 0.95, 0.32, 0.03)  # of tumor, stroma, immune, fat
_HEMATOXYLIN = (0.16, 0.04, 0.10, 0.0)  # likewise, outside nuclei
_HEMATOXYLIN_OD = np.array([0.62, 0.72, 0.30])  # optical density per unit of stain: red, green, blue
_EOSIN_OD = np.array([0.07, 0.74, 0.33])
_HALF_STAMP_PX = 12  # reaches over the largest nucleus
_FAT_CELL_PX = 44
INK_PER_DARKNESS = 0.22
"""How much more light a nucleus absorbs per SD of its darkness, in logs."""


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


def draw(rng: np.random.Generator, tissue: Tissue, stain: Stain) -> UInt8[Array, "H W 3"]:
    """Draw a section; its stains absorb light (Beer-Lambert).

    Args:
        rng: Where texture and noise are drawn from.
        tissue: What lies where.
        stain: The patient's stains.
    """
    side = tissue.side_px
    fractions = [_enlarge(fraction, side) for fraction in tissue.fractions]
    eosin, hematoxylin = np.zeros_like(fractions[0]), np.zeros_like(fractions[0])
    for fraction, pink, blue in zip(fractions, _EOSIN, _HEMATOXYLIN, strict=True):
        eosin += pink * fraction
        hematoxylin += blue * fraction
    fibers = np.clip(1.6 * fractions[1] - 0.3, 0, 1) * _fibers(rng, _enlarge(tissue.waves, side))
    eosin *= 1 + 0.18 * smooth_noise(rng, side, 2.5) + 0.30 * fibers
    eosin += _membranes(rng, fractions[3])
    nuclear = _stamp_nuclei(tissue.nuclei, side)
    grain = 1 + 0.16 * smooth_noise(rng, side, 1.0)
    hematoxylin = np.maximum(hematoxylin * (1 + 0.25 * smooth_noise(rng, side, 3.0)), nuclear * grain)
    eosin = np.maximum(eosin, 0) * (1 - 0.55 * np.minimum(nuclear, 1))
    absorbed = np.stack(
        [hematoxylin * np.float32(h) + eosin * np.float32(e) for h, e in zip(stain.hematoxylin, stain.eosin, strict=True)],
        axis=2,
    )
    light: Array = stain.background.astype(np.float32) * np.exp(-absorbed)
    light += 2 * rng.standard_normal((side, side, 1), dtype=np.float32)  # the camera
    return np.clip(light, 0, 255).astype(np.uint8)


def _enlarge(field: Float32[Array, "h w"], side: int) -> Float32[Array, "H W"]:
    from PIL import Image

    large: Array = np.asarray(Image.fromarray(field).resize((side, side), Image.Resampling.BICUBIC))
    return large


def _fibers(rng: np.random.Generator, waves: Float32[Array, "H W"]) -> Float32[Array, "H W"]:
    """Draw collagen: noise stretched along one direction, its course bent by `waves`."""
    side = waves.shape[0]
    straight = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), (1.7, 14), mode="wrap", truncate=2.5)
    rows, columns = np.indices((side, side), dtype=np.float32)
    bent: Array = map_coordinates(straight, [rows + waves, columns], order=1, mode="grid-wrap")
    bent /= bent.std()
    return bent


def _membranes(rng: np.random.Generator, fat: Float32[Array, "H W"]) -> Float32[Array, "H W"]:
    """Draw fat cells: empty, about 40 microns wide, with thin eosinophilic walls."""
    side = fat.shape[0]
    eosin = np.zeros_like(fat)
    rows, columns = np.nonzero(fat > 0.25)
    grid = np.indices((side // _FAT_CELL_PX + 2, side // _FAT_CELL_PX + 2)).reshape(2, -1).T * _FAT_CELL_PX
    cells = cKDTree(grid + rng.uniform(-14, 14, size=grid.shape))
    if len(rows):
        distance = cells.query(np.column_stack([rows, columns]), k=2)[0]
        wall = np.exp(-((distance[:, 1] - distance[:, 0]) ** 2) / 5)
        eosin[rows, columns] = 0.75 * wall * np.minimum(fat[rows, columns] * 1.5, 1)
    return eosin


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
        ink = (1.05 * np.exp(INK_PER_DARKNESS * nuclei.darkness[own])).astype(np.float32)[:, None, None]
        density = ink * (0.82 + 0.25 * away**4) * np.clip((1 - away) * radius + 0.5, 0, 1)
        seen: Bool[Array, "n h w"] = (density > 0) & (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
        pixel: Integer[Array, "n h w"] = rows * side + columns
        np.maximum.at(canvas, pixel[seen], density[seen])
    return canvas.reshape((side, side))
