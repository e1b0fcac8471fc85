"""A folder of bags that one head can learn from: one encoder, one number of features."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from stexpr.data.bags import Bag, read_bag
from stexpr.data.tables import named
from stexpr.errors import DataError, nearest

__all__ = ["BagStore"]


class BagStore:
    """A folder of bags of one encoder.

    Attributes:
        path: The folder.
        bags: Slide -> bag, by name.
        width: Features of every patch.
    """

    def __init__(self, path: Path, bags: Mapping[str, Bag]) -> None:
        if not bags:
            raise DataError(
                f"{path} holds no bags; it needs a .h5 file per slide, as stexpr, TRIDENT, CLAM and STAMP write them"
            )
        _agree(bags, "features per patch", {slide: str(bag.width) for slide, bag in bags.items()})
        _agree(bags, "encoder", {slide: bag.encoder for slide, bag in bags.items() if bag.encoder is not None})
        self.path = path
        self.bags = dict(bags)
        self.width = next(iter(self.bags.values())).width

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


def _agree(bags: Mapping[str, Bag], what: str, held: Mapping[str, str | None]) -> None:
    counts = Counter(held.values())
    if len(counts) > 1:
        (usual, n), *_ = counts.most_common()
        odd = [slide for slide, value in held.items() if value != usual]
        raise DataError(
            f"slides differ in {what}: {usual} in {n} of {len(bags)}, {held[odd[0]]} in slide {odd[0]}; "
            f"{named('slide', odd)} must be embedded again with one encoder"
        )
