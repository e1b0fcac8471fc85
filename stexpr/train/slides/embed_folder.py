"""What stands beside the bags of a folder: a summary of all slides, and those that gave no bag."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from stexpr.config.files import write_whole
from stexpr.data.bags import Bag, read_bag
from stexpr.errors import ConfigError, DataError

__all__ = ["QUARANTINE", "SUMMARY", "Quarantine", "Quarantined", "SlideRow", "Summary", "read_bags"]

QUARANTINE: Final = "quarantine.json"
SUMMARY: Final = "slides.csv"


@dataclass(frozen=True)
class Quarantined:
    """A slide that gave no bag.

    Attributes:
        slide: Its name.
        file: Its file, without folders.
        modified: When the file was, seconds since 1970: a file that was touched since is tried again.
        became: `no tissue`, where nothing is wrong with the file, or `failed`.
        error: Why.
        when: UTC.
    """

    slide: str
    file: str
    modified: float
    became: str
    error: str
    when: str


class Quarantine:
    """The slides of a folder of bags that gave none."""

    def __init__(self, bags: Path) -> None:
        """Read what there is.

        Raises:
            ConfigError: The file is damaged.
        """
        self._path = bags / QUARANTINE
        self.slides: dict[str, Quarantined] = {}
        if not self._path.exists():
            return
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
            self.slides = {entry["slide"]: Quarantined(**entry) for entry in entries}
        except (OSError, ValueError, TypeError, KeyError) as err:
            raise ConfigError(f"{self._path} cannot be read ({err}); delete it, and its slides are tried again") from err

    def add(self, slide: str, file: Path, became: str, error: str) -> None:
        """Put a slide in, and write the file."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        self.slides[slide] = Quarantined(slide, file.name, file.stat().st_mtime, became, error, when)
        self._write()

    def release(self, slides: Iterable[str]) -> None:
        """Take slides out, and write the file."""
        before = len(self.slides)
        for slide in slides:
            self.slides.pop(slide, None)
        if len(self.slides) < before:
            self._write()

    def _write(self) -> None:
        text = json.dumps([asdict(entry) for _, entry in sorted(self.slides.items())], indent=1) + "\n"
        write_whole(self._path, lambda part: part.write_text(text, encoding="utf-8"))


@dataclass(frozen=True)
class SlideRow:
    """A line of the summary; numbers are empty where there is no bag.

    Attributes:
        slide: Its name.
        file: Its file, without folders.
        patches: In the bag, 0 without one.
        level0_mpp: Microns per level-0 pixel.
        left_out: Places of the grid that are no patch, by reason.
        rois: How many regions of interest; empty where the whole slide was taken.
        seconds: It took, where that is known.
        sha256: Of the slide's files.
        same_as: The first slide with the same, where there is one.
        notes: In what the slide differs from what its file or the model says, or why there is no bag.
    """

    slide: str
    file: str
    patches: int
    level0_mpp: str = ""
    left_out: str = ""
    rois: str = ""
    seconds: str = ""
    sha256: str = ""
    same_as: str = ""
    notes: str = ""


class Summary:
    """The table of all slides of a folder of bags, written anew after each of them."""

    def __init__(self, bags: Path, standing: Mapping[str, Bag], quarantine: Quarantine) -> None:
        self._path = bags / SUMMARY
        self._bags = dict(standing)
        self._seconds = self._known_seconds()
        self._quarantine = quarantine

    def add(self, bag: Bag, seconds: float) -> None:
        """Take a bag in."""
        self._bags[bag.slide] = bag
        self._seconds[bag.slide] = f"{seconds:.2f}"

    @property
    def twice(self) -> dict[str, str]:
        """Slides whose files hold the same as those of an earlier one, and that one, by name."""
        first: dict[str, str] = {}
        again: dict[str, str] = {}
        for slide, bag in sorted(self._bags.items()):
            if sha256 := str(bag.provenance.get("slide", {}).get("sha256", "")):
                earlier = first.setdefault(sha256, slide)
                again |= {} if earlier == slide else {slide: earlier}
        return again

    def write(self) -> None:
        """Write the table."""
        twice = self.twice
        rows = [_row(bag, self._seconds.get(slide, ""), twice.get(slide, "")) for slide, bag in self._bags.items()]
        for entry in self._quarantine.slides.values():
            if entry.slide not in self._bags:
                rows.append(SlideRow(entry.slide, entry.file, 0, notes=f"{entry.became}: {entry.error}"))
        text = io.StringIO()
        table = csv.DictWriter(text, [field.name for field in fields(SlideRow)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in sorted(rows, key=lambda row: row.slide))
        write_whole(self._path, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))

    def _known_seconds(self) -> dict[str, str]:
        """Read back what no bag says."""
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                return {row["slide"]: row["seconds"] for row in csv.DictReader(file)}
        except (OSError, KeyError, csv.Error):
            return {}


def read_bags(folder: Path) -> tuple[dict[str, Bag], dict[str, str]]:
    """Read the headers of a folder's bags.

    Returns:
        The bags by slide; and those that cannot be read, with the reason.
    """
    found, damaged = {}, {}
    for path in sorted(folder.glob("*.h5")):
        if path.name.startswith("."):
            continue
        try:
            found[path.stem] = read_bag(path)
        except DataError as err:
            damaged[path.stem] = str(err)
    return found, damaged


def _row(bag: Bag, seconds: str, same_as: str) -> SlideRow:
    made: Mapping[str, Any] = bag.provenance
    rois = made.get("rois")
    return SlideRow(
        slide=bag.slide,
        file=str(made.get("slide", {}).get("file", "")),
        patches=bag.n,
        level0_mpp="" if bag.level0_mpp is None else f"{bag.level0_mpp:g}",
        left_out="; ".join(f"{n} {reason}" for reason, n in made.get("grid", {}).get("left_out", {}).items()),
        rois="" if rois is None else str(sum(rois["classes"].values())),
        seconds=seconds,
        sha256=str(made.get("slide", {}).get("sha256", "")),
        same_as=same_as,
        notes="; ".join(made.get("warnings", ())),
    )
