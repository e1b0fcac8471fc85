"""What is planted in a made-up slide: regions of enlarged nuclei, and mitosis-like ones among those of the tumor.

A mean color hardly shows either: enlarged nuclei are as many fewer as they are larger, mitosis-like ones about as much
darker as they are smaller.
"""

from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped
from scipy.ndimage import gaussian_filter

from stexpr.data.synthetic_image import INK_PER_DARKNESS
from stexpr.data.synthetic_tissue import PER_COARSE_PX, TISSUES, Layout, Nuclei, Tissue, smooth_noise

__all__ = ["condense", "enlarge", "measure_squares"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_EVEN = 0.5  # of the usual variation of size and darkness, so that what is planted stands out
_ENLARGED = 2.0  # SDs of that variation
_CONDENSED = 0.72  # radius of a mitosis-like nucleus over what it would be
_STRETCHED = 1.5  # its elongation, likewise
_INK = 2.0  # its absorption, likewise
_LOG_ODDS_SD = 0.4  # of mitosis within a slide


def enlarge(rng: np.random.Generator, layout: Layout, share: float) -> tuple[Layout, Bool[Array, "h w"]]:
    """Let nuclei be large in some regions, preferably of tumor.

    Args:
        rng: Where the regions are drawn from.
        layout: A section; with or without such regions, size and darkness of its nuclei are made more even.
        share: Of the section that the regions take.

    Returns:
        The new layout, and the regions on the coarse grid.
    """
    inside = layout.inside > 0.5
    wish = smooth_noise(rng, len(inside), 16.0) + 3.5 * layout.fractions[0] - 2 * layout.fractions[3]
    regions = inside & (wish > np.quantile(wish[inside], 1 - share))
    soft = gaussian_filter(regions.astype(np.float32), 2.0)
    size = (1 - soft) * _EVEN * layout.size + soft * _ENLARGED
    return replace(layout, size=size.astype(np.float32), darkness=_EVEN * layout.darkness), regions


def condense(rng: np.random.Generator, nuclei: Nuclei, log_odds: float, side_px: int) -> tuple[Nuclei, Bool[Array, "n"]]:
    """Let some nuclei of the tumor look mitotic: small, dark and long.

    Args:
        rng: Where they are drawn from.
        nuclei: Of a slide.
        log_odds: Of a nucleus of the tumor to be mitosis-like, on average over the slide.
        side_px: Side of the slide.

    Returns:
        The nuclei, and which of them are mitosis-like.
    """
    field = log_odds + _LOG_ODDS_SD * smooth_noise(rng, side_px // PER_COARSE_PX, 16.0)
    row, column = (np.clip(at // PER_COARSE_PX, 0, len(field) - 1).astype(int) for at in (nuclei.y, nuclei.x))
    mitotic: Array = (nuclei.kind == 0) & (rng.random(len(nuclei.x)) < 1 / (1 + np.exp(-field[row, column])))
    changed = replace(
        nuclei,
        radius=np.where(mitotic, _CONDENSED, 1.0) * nuclei.radius,
        elongation=np.where(mitotic, _STRETCHED, 1.0) * nuclei.elongation,
        darkness=np.where(mitotic, np.log(_INK) / INK_PER_DARKNESS, 0.0) + nuclei.darkness,
    )
    return changed, mitotic


def measure_squares(tissue: Tissue, regions: Bool[Array, "h w"], mitotic: Bool[Array, "n"], side_px: int) -> pd.DataFrame:
    """Measure what lies in the squares of a grid over a slide.

    Args:
        tissue: The slide; a whole number of squares wide.
        regions: Of enlarged nuclei, on the coarse grid.
        mitotic: Which nuclei are mitosis-like.
        side_px: Of a square, a multiple of 4.

    Returns:
        A row for each square that holds tissue: center `x` and `y`; the shares of its area that are `tissue` and `planted`, and
        tumor, stroma, immune and fat; the number of `tumor_nuclei`, and of `mitoses` among them.
    """
    step, n = side_px // PER_COARSE_PX, tissue.side_px // side_px

    def shares(of: Shaped[Array, "h w"]) -> Float[Array, "Q"]:
        means: Array = of.reshape(n, step, n, step).mean(axis=(1, 3), dtype=np.float64).ravel()
        return means

    nuclei = tissue.nuclei
    row, column = (np.clip(at // side_px, 0, n - 1).astype(int) for at in (nuclei.y, nuclei.x))
    rows, columns = np.divmod(np.arange(n * n), n)
    table: dict[str, Array] = {"x": (columns + 0.5) * side_px, "y": (rows + 0.5) * side_px}
    table |= {"tissue": shares(tissue.inside), "planted": shares(regions)}
    table |= {kind: shares(fraction) for kind, fraction in zip(TISSUES, tissue.fractions, strict=True)}
    for name, counted in (("tumor_nuclei", nuclei.kind == 0), ("mitoses", mitotic)):
        table[name] = np.bincount((row * n + column)[counted], minlength=n * n)
    squares = pd.DataFrame(table)
    return squares[squares["tissue"] > 0].reset_index(drop=True)
