"""Labels of single patches, from a stain registered to the H&E: a table per slide, matched to the patches of its bag."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float32

from stexpr.config import content_hash
from stexpr.config.files import hash_file
from stexpr.data.bags import Bag
from stexpr.errors import DataError

__all__ = ["PatchLabels", "read_patch_labels"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
COLUMNS = ("x", "y", "value")


@dataclass(frozen=True)
class PatchLabels:
    """Labels by slide.

    Attributes:
        tables: Slide -> places (level-0 px) and values.
        hash: Identifies the files.
    """

    tables: Mapping[str, tuple[Float32[Array, "M 2"], Float32[Array, "M"]]]
    hash: str
    _matched: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def of(self, bag: Bag) -> Float32[Array, "N"]:
        """Return the label of each patch of a bag: the mean of those whose place lies in it; NaN where there is none.

        Raises:
            DataError: The bag does not say the side of its patches.
        """
        if bag.slide not in self._matched:
            self._matched[bag.slide] = self._match(bag)
        labels: Float32[Array, N] = self._matched[bag.slide]
        return labels

    def _match(self, bag: Bag) -> Float32[Array, "N"]:
        values = np.full(bag.n, np.nan, dtype=np.float32)
        if bag.slide not in self.tables:
            return values
        if bag.side is None:
            raise DataError(f"the bag of slide {bag.slide} does not say the side of its patches; embed the slide again")
        places, labels = self.tables[bag.slide]
        corners = bag.coords()
        for i, (x, y) in enumerate(corners):
            inside = (places[:, 0] >= x) & (places[:, 0] < x + bag.side) & (places[:, 1] >= y) & (places[:, 1] < y + bag.side)
            if inside.any():
                values[i] = labels[inside].mean()
        return values


def read_patch_labels(folder: Path, slides: Mapping[str, Any]) -> PatchLabels:
    """Read `<slide>.csv` of each slide that has one: columns `x`, `y` (level-0 px) and `value`.

    Args:
        folder: Of the tables.
        slides: By name; tables of others are not looked at.

    Raises:
        DataError: No slide has a table, or one cannot be read.
    """
    tables, hashes = {}, {}
    for slide in slides:
        path = folder / f"{slide}.csv"
        if not path.is_file():
            continue
        try:
            table = pd.read_csv(path)
            numbers = table[list(COLUMNS)].to_numpy(dtype=np.float32)
        except (OSError, ValueError, KeyError) as err:
            raise DataError(f"{path} is no table of patch labels ({err}); it needs the columns {', '.join(COLUMNS)}") from err
        if not np.isfinite(numbers).all():
            raise DataError(f"{path} has places or values that are not finite; leave out what was not measured")
        tables[slide] = (numbers[:, :2], numbers[:, 2])
        hashes[slide] = hash_file(path)
    if not tables:
        raise DataError(f"{folder} holds patch labels of none of {len(slides)} slides; name its files <slide>.csv")
    return PatchLabels(tables, content_hash(hashes))
