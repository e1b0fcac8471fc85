"""A bag: what is known of the patches of one slide, read from its file only when asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import h5py
import numpy as np
from jaxtyping import Float, Float64, Int, UInt8

from stexpr.config.files import hash_file
from stexpr.config.slides import InstanceKind
from stexpr.data.bags.files import COLOR, COORDS, EXPRESSION, PATCHES, check_finite, dataset_of, feature_key, open_bag
from stexpr.errors import DataError

__all__ = ["Bag", "Instances"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Layout: TypeAlias = Literal["stexpr", "trident", "clam", "stamp"]
Instances: TypeAlias = InstanceKind
"""What stands for a patch: the encoder's features, predicted expression, both side by side in this order, or color alone."""

FEATURES: Final = "features"
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "features": (FEATURES,),
    "expression": (EXPRESSION,),
    "both": (FEATURES, EXPRESSION),
    "color": (COLOR,),
}
_ROWS: Final = 4096
_BLOCK: Final = 256
"""Rows that are read together where single ones are asked for: those that lie in one stored piece of our own files."""


@dataclass(frozen=True)
class Bag:
    """One slide's patches, read only when asked for.

    Attributes:
        slide: Name of the slide, the file's name without `.h5`.
        path: The file.
        layout: Who wrote it.
        n: Patches, at least 1.
        width: Features of each.
        unit: Unit of the coordinates: level-0 pixels, or microns in STAMP's files.
        side: Side of a patch in that unit; None where the file does not say.
        mpp: Microns per pixel at which the encoder saw the patches; None where the file does not say.
        patch_px: Side of the patches that the encoder saw; None where the file does not say.
        encoder: Name or hash of the encoder; None where the file does not say.
        genes: Of the predicted expression, in its order; empty without expression.
        n_color: Numbers that say the color of a patch; 0 without color.
        has_patches: Whether the pixels of the patches are kept.
        level0_mpp: Microns per level-0 pixel of the slide; None where the file does not say.
        size_px: Width and height of the slide, level-0 px; None where the file does not say.
        content: Hash of all rows as they were written; None in files that are not ours, or of an earlier version.
        provenance: How the bag was made, plain JSON values; empty where the file does not say.
    """

    slide: str
    path: Path
    layout: Layout
    n: int
    width: int
    unit: Literal["px", "um"] = "px"
    side: float | None = None
    mpp: float | None = None
    patch_px: int | None = None
    encoder: str | None = None
    genes: tuple[str, ...] = ()
    n_color: int = 0
    has_patches: bool = False
    level0_mpp: float | None = None
    size_px: tuple[int, int] | None = None
    content: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def has(self, instances: Instances | Literal["patches"]) -> bool:
        """Whether the file holds these instances, or the pixels of the patches."""
        if instances == "patches":
            return self.has_patches
        return all(self._widths[part] for part in _PARTS[instances])

    def width_of(self, instances: Instances) -> int:
        """Return how many numbers stand for a patch.

        Raises:
            DataError: The file does not hold these instances.
        """
        self._check_has(instances)
        return sum(self._widths[part] for part in _PARTS[instances])

    def chunks(self, rows: int = _ROWS, instances: Instances = "features") -> Iterator[Float[Array, "N D"]]:
        """Read the instances in order, at most `rows` patches at a time, in the precision of the file.

        Raises:
            DataError: The file does not hold these instances, they are not finite, or the file was replaced by one of another
                size.
        """
        if rows < 1:
            raise DataError(f"chunks of {rows} rows cannot be read; give at least 1")
        self._check_has(instances)
        with open_bag(self.path, self.slide) as file:
            parts = self._datasets(file, instances)
            for start in range(0, self.n, rows):
                yield self._rows(parts, start, min(start + rows, self.n))

    def features(self, instances: Instances = "features") -> Float[Array, "N D"]:
        """Read the instances of all patches, in the precision of the file.

        Raises:
            DataError: As `chunks`.
        """
        whole: Array | None = None
        done = 0
        for chunk in self.chunks(4 * _BLOCK, instances):  # into one array: a list of chunks would need the memory twice
            whole = np.empty((self.n, chunk.shape[1]), chunk.dtype) if whole is None else whole
            whole[done : done + len(chunk)] = chunk
            done += len(chunk)
        assert whole is not None, "no bag is empty"
        return whole

    def read(self, index: Int[Array, "M"], instances: Instances = "features") -> Float[Array, "M D"]:
        """Read the instances of some patches, in the precision of the file.

        Args:
            index: Their numbers, each once and in rising order.
            instances: What is read of each.

        Raises:
            DataError: As `chunks`; or the numbers are out of order or range.
        """
        self._check_has(instances)
        self._check_index(index)
        with open_bag(self.path, self.slide) as file:
            parts = self._datasets(file, instances)
            found = [np.empty((0, self.width_of(instances)), np.result_type(*(part.dtype for part in parts.values())))]
            for block in np.split(index, np.flatnonzero(np.diff(index // _BLOCK)) + 1) if len(index) else ():
                first = int(block[0])
                found.append(self._rows(parts, first, int(block[-1]) + 1)[block - first])
        return np.concatenate(found)

    def coords(self) -> Float64[Array, "N 2"]:
        """Read the top-left corner of each patch, x then y, in `unit`.

        Raises:
            DataError: They are not finite.
        """
        with open_bag(self.path, self.slide) as file:
            coords = np.asarray(dataset_of(file, COORDS, self.slide)[:], dtype=np.float64)
        check_finite(coords, self.slide, 0, "coordinates")
        return coords

    def patches(self, index: Int[Array, "M"]) -> UInt8[Array, "M H W 3"]:
        """Read the pixels of some patches, just as the encoder saw them.

        Args:
            index: Their numbers, each once and in rising order.

        Raises:
            DataError: The file does not hold pixels, or the numbers are out of order or range.
        """
        if not self.has_patches:
            raise DataError(f"the bag of slide {self.slide} ({self.path}) holds no patches; stexpr slides embed --patches does")
        self._check_index(index)
        with open_bag(self.path, self.slide) as file:
            stored = dataset_of(file, PATCHES, self.slide)
            pixels = np.empty((len(index), *stored.shape[1:]), np.uint8)
            for i, row in enumerate(index):
                pixels[i] = stored[int(row)]
        return pixels

    def hash(self) -> str:
        """Return a hash of what the bag holds; a file that is not ours is read for it, whole.

        Raises:
            DataError: The file cannot be read.
        """
        return self.content or hash_file(self.path)[:16]

    @property
    def _widths(self) -> dict[str, int]:
        return {FEATURES: self.width, EXPRESSION: len(self.genes), COLOR: self.n_color}

    def _check_has(self, instances: Instances) -> None:
        for part in _PARTS[instances]:
            if not self._widths[part]:
                how = "stexpr slides embed --expression" if part == EXPRESSION else "stexpr slides embed"
                raise DataError(f"the bag of slide {self.slide} ({self.path}) holds no {part}; {how} writes it")

    def _check_index(self, index: Int[Array, "M"]) -> None:
        if len(index) and (index[0] < 0 or index[-1] >= self.n or (np.diff(index) <= 0).any()):
            raise DataError(
                f"patches of slide {self.slide} are asked for by number, each once, in rising order, from 0 to {self.n - 1}"
            )

    def _datasets(self, file: h5py.File, instances: Instances) -> dict[str, h5py.Dataset]:
        """Return the arrays of these instances, which have to be as large as when the header was read."""
        found = {}
        for part in _PARTS[instances]:
            found[part] = dataset_of(file, feature_key(file, self.slide) if part == FEATURES else part, self.slide)
            if found[part].shape != (self.n, self._widths[part]):
                raise DataError(f"the bag of slide {self.slide} ({self.path}) changed while it was used; open the store again")
        return found

    def _rows(self, parts: Mapping[str, h5py.Dataset], start: int, stop: int) -> Float[Array, "N D"]:
        found = {part: dataset[start:stop] for part, dataset in parts.items()}
        for part, values in found.items():
            check_finite(values, self.slide, start, part)
        return next(iter(found.values())) if len(found) == 1 else np.concatenate(list(found.values()), axis=1)
