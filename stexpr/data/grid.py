"""A grid of squares over the tissue of a slide."""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32

from stexpr.data.tissue import TissueMask
from stexpr.errors import ConfigError, DataError

__all__ = ["NoTissueError", "SlideGrid", "tissue_grid"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_ROUNDING = 1e-6


class NoTissueError(DataError):
    """A slide without a patch to look at: nothing is wrong with its file."""


@dataclass(frozen=True)
class SlideGrid:
    """The cells of a regular grid that hold enough tissue, row by row, each from left to right.

    In this order patches are read fastest: the next patch lies in tiles that are decoded already.

    Attributes:
        side: Of a square, level-0 px.
        stride: From the center of a cell to the next, level-0 px.
        origin: Center of the cell in row 0 and column 0, x then y, level-0 px.
        shape: Rows and columns of the whole grid.
        rows: Row of each cell kept.
        columns: Column of each.
        tissue_fraction: Share of tissue in the square of each, in [0, 1].
        left_out: Cells without, and with too little tissue, and those left out since, by reason.
    """

    side: float
    stride: float
    origin: tuple[float, float]
    shape: tuple[int, int]
    rows: Int32[Array, "N"]
    columns: Int32[Array, "N"]
    tissue_fraction: Float32[Array, "N"]
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def centers(self) -> Float64[Array, "N 2"]:
        """Centers of the cells, x then y, level-0 px."""
        return np.array(self.origin) + self.stride * np.stack([self.columns, self.rows], axis=1).astype(np.float64)

    def only(self, kept: Bool[Array, "N"], reason: str) -> "SlideGrid":
        """Keep some of the cells, and count the others as left out.

        Raises:
            NoTissueError: None is kept.
        """
        if not kept.any():
            raise NoTissueError(f"all {len(self)} patches of tissue are left out: {reason}")
        return replace(
            self,
            rows=self.rows[kept],
            columns=self.columns[kept],
            tissue_fraction=self.tissue_fraction[kept],
            left_out={**self.left_out, reason: int((~kept).sum())},
        )


def tissue_grid(mask: TissueMask, *, side: float, stride: float, min_tissue: float) -> SlideGrid:
    """Lay a grid over a slide and keep the cells whose square holds enough tissue.

    Every square lies wholly inside the image; the grid is centered, so what remains at the edges is less than one stride and
    alike on opposite sides. Memory grows with the cells kept, not with those looked at.

    Args:
        mask: The tissue.
        side: Of a square, level-0 px.
        stride: From the center of a cell to the next, level-0 px, at least 1.
        min_tissue: Least share of tissue in a square, in [0, 1]; a cell without any is never kept.

    Raises:
        ConfigError: The stride or the share is impossible.
        DataError: The slide is smaller than one square.
        NoTissueError: It has no tissue, or no square holds enough.
    """
    if not stride >= 1:
        raise ConfigError(f"a stride of {stride:.3g} level-0 px is impossible; it is at least 1 px")
    if not 0 <= min_tissue <= 1:
        raise ConfigError(f"the least share of tissue is {min_tissue:g}; it lies between 0 and 1")
    if not mask.mask.any():
        raise NoTissueError("no tissue was found; is it an H&E slide, and are its microns per pixel right?")
    if side > min(mask.width, mask.height) + 1e-6:
        raise DataError(
            f"the image has {mask.width} x {mask.height} px, but one field of view of the model covers {side:.0f} x {side:.0f} "
            "of them; take a larger image, or check its microns per pixel"
        )
    n_columns, n_rows = (int((length - side) / stride + 1e-9) + 1 for length in (mask.width, mask.height))
    first = tuple((length - (n - 1) * stride) / 2 for length, n in ((mask.width, n_columns), (mask.height, n_rows)))
    x = first[0] + stride * np.arange(n_columns) - side / 2
    kept: list[tuple[Array, Array, Array]] = []
    left_out = {"no tissue": 0, "too little tissue": 0}
    for row in range(n_rows):
        corners = np.stack([x, np.full(n_columns, first[1] + stride * row - side / 2)], axis=1)
        fractions = mask.fractions(corners, side)
        some = fractions > _ROUNDING
        enough = some & (fractions >= min_tissue - _ROUNDING)
        left_out["no tissue"] += int((~some).sum())
        left_out["too little tissue"] += int((some & ~enough).sum())
        columns = np.flatnonzero(enough).astype(np.int32)
        kept.append((np.full(len(columns), row, dtype=np.int32), columns, fractions[enough].astype(np.float32)))
    rows, columns, tissue_fraction = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    if not len(rows):
        raise NoTissueError(
            f"none of the {n_rows} x {n_columns} fields of view holds {min_tissue:.0%} tissue; lower the least share of tissue"
        )
    return SlideGrid(side, stride, (first[0], first[1]), (n_rows, n_columns), rows, columns, tissue_fraction, left_out)
