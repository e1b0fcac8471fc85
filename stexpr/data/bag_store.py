"""A folder of bags that one head can learn from: one encoder, one number of features."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from stexpr.config import content_hash
from stexpr.data.bags import Bag, Instances, read_bag
from stexpr.data.tables import named
from stexpr.errors import DataError, nearest

__all__ = ["BagStore"]


class BagStore:
    """A folder of bags of one encoder.

    Attributes:
        path: The folder.
        bags: Slide -> bag, by name.
        width: Features of every patch.
        genes: Of every bag's expression, in its order; empty where no bag holds expression.
    """

    def __init__(self, path: Path, bags: Mapping[str, Bag]) -> None:
        if not bags:
            raise DataError(
                f"{path} holds no bags; it needs a .h5 file per slide, as stexpr, TRIDENT, CLAM and STAMP write them"
            )
        _agree(bags, "features per patch", {slide: str(bag.width) for slide, bag in bags.items()})
        _agree(bags, "encoder", {slide: bag.encoder for slide, bag in bags.items() if bag.encoder is not None})
        _agree(bags, "genes of the predicted expression", {slide: _genes_in_words(bag) for slide, bag in bags.items()})
        self.path = path
        self.bags = dict(bags)
        first = next(iter(self.bags.values()))
        self.width = first.width
        self.genes = first.genes

    @classmethod
    def open(cls, path: str | Path, slides: Iterable[str] | None = None) -> "BagStore":
        """Read the headers of a folder's bags.

        Args:
            path: The folder; files in folders below it are not looked at.
            slides: Names of slides; None takes every `.h5` file.

        Raises:
            DataError: There is no bag, a slide has none, a file is no bag or empty, or slides differ in width or encoder.
        """
        folder = Path(path)
        files = {file.stem: file for file in sorted(folder.glob("*.h5")) if not file.name.startswith(".")}
        if slides is not None:
            for slide in (slides := list(slides)):
                if slide not in files:
                    raise DataError(f"slide {slide!r} has no bag in {folder}; {nearest(slide, files)}")
            files = {slide: files[slide] for slide in slides}
        return cls(folder, {slide: read_bag(file) for slide, file in files.items()})

    def __getitem__(self, slide: str) -> Bag:
        """Return the bag of a slide.

        Raises:
            DataError: There is none; the nearest name is suggested.
        """
        if slide not in self.bags:
            raise DataError(f"slide {slide!r} has no bag in {self.path}; {nearest(slide, self.bags)}")
        return self.bags[slide]

    def width_of(self, instances: Instances) -> int:
        """Return how many numbers stand for a patch, in every bag.

        Raises:
            DataError: A bag does not hold these instances, or they differ in number.
        """
        _agree(self.bags, f"{instances} per patch", {slide: str(bag.width_of(instances)) for slide, bag in self.bags.items()})
        return next(iter(self.bags.values())).width_of(instances)

    @cached_property
    def hash(self) -> str:
        """Hash of everything the bags hold, of their encoder and scale, whatever folder they lie in.

        Bags that stexpr wrote carry the hash of their rows; other files are read for it, whole.
        """
        said = {slide: [bag.hash(), bag.mpp, bag.patch_px, bag.side, bag.encoder] for slide, bag in self.bags.items()}
        return content_hash(said)


def _genes_in_words(bag: Bag) -> str:
    return f"{len(bag.genes):,} ({content_hash(bag.genes)[:8]})" if bag.genes else "none"


def _agree(bags: Mapping[str, Bag], what: str, held: Mapping[str, str | None]) -> None:
    counts = Counter(held.values())
    if len(counts) > 1:
        (usual, n), *_ = counts.most_common()
        odd = [slide for slide, value in held.items() if value != usual]
        raise DataError(
            f"slides differ in {what}: {usual} in {n} of {len(bags)}, {held[odd[0]]} in slide {odd[0]}; "
            f"{named('slide', odd)} must be embedded again with one encoder"
        )
