"""A folder of slides becomes a folder of bags, slide by slide, on any engine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stexpr.data.bags import Bag, read_bag
from stexpr.data.slide_files import SlideFiles, find_slides
from stexpr.data.tables import named
from stexpr.engines.tasks import Engine, Outcome, Task
from stexpr.errors import ConfigError, ModelError, TrainingError
from stexpr.inference.bags import EmbedSettings, asked_of, check_settings
from stexpr.train.checkpoint import StopFlag, stop_on_signals
from stexpr.train.folder import exclusive
from stexpr.train.slides.embed_folder import QUARANTINE, SUMMARY, Quarantine, Summary, read_bags
from stexpr.train.slides.embed_job import EncoderSource, shared_argument, task_of
from stexpr.types import Progress, silent

__all__ = ["STATE", "EmbedResult", "embed_slides"]

STATE: Final = ".embed"
"""Folder, among the bags, of lock and logs of what fills it."""
STOP: Final = "stop"
_ROI_SUFFIXES: Final = (".geojson", ".json")


@dataclass(frozen=True)
class EmbedResult:
    """What one call of `embed_slides` did.

    Attributes:
        n_before: Bags that were there already.
        n_done: Bags made now.
        n_left: Slides not begun or not finished.
        quarantined: Slides whose file is at fault -> why.
        without_tissue: Slides in which no patch was found.
        twice: Slides that are the same as another -> that one.
        without_rois: Slides taken whole, because there is no file of regions for them.
        missing: Slides of the table that have no file.
        ignored: Files that are no slides, by ending.
        notes: What else was found.
    """

    n_before: int
    n_done: int
    n_left: int
    quarantined: Mapping[str, str] = field(default_factory=dict)
    without_tissue: tuple[str, ...] = ()
    twice: Mapping[str, str] = field(default_factory=dict)
    without_rois: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every slide with tissue has its bag."""
        return not self.quarantined and not self.n_left

    def in_words(self, bags: Path) -> str:
        """Say what was done and name every slide that is not as the others, a line each."""
        lines = [f"{self.n_done:,} bags made now, {self.n_before:,} before, in {bags}; {bags / SUMMARY} lists them"]
        lines += [f"{self.n_left:,} slides are left; the same command goes on"] if self.n_left else []
        lines += [f"slide {slide} in quarantine: {error}" for slide, error in self.quarantined.items()]
        if self.quarantined:
            lines.append(f"{bags / QUARANTINE} keeps them; --retry tries them again")
        for slides, what in (
            (self.without_tissue, "without a patch of tissue"),
            (self.without_rois, "taken whole: no regions of interest are given for them"),
            (self.missing, "of the table without a file"),
        ):
            lines += [f"{named('slide', slides)} {what}"] if slides else []
        lines += [f"slide {slide} is the same as {first}: keep one of them" for slide, first in self.twice.items()]
        if self.ignored:
            lines.append(f"files that are no slides: {', '.join(f'{n:,} {ending}' for ending, n in self.ignored.items())}")
        return "\n".join([*lines, *self.notes])


def embed_slides(
    slides: str | Path,
    encoder: EncoderSource,
    bags: Path,
    engine: Engine,
    *,
    settings: EmbedSettings | None = None,
    rois: Path | None = None,
    retry: bool = False,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> EmbedResult:
    """Make the bags that a folder lacks; a slide that cannot be read is put in quarantine and the others go on.

    Bags of this encoder and these settings are left as they are; of a slide whose file or regions changed since, the bag is
    made anew. A kill at any moment costs the slides it interrupts.

    Args:
        slides: A folder of slides or a slide table, see `find_slides`.
        encoder: What turns patches into features.
        bags: The folder.
        engine: Where slides are embedded.
        settings: What the bags are to hold.
        rois: Folder with `<slide>.geojson` of regions of interest; a slide without is taken whole, and named.
        retry: Try slides in quarantine again.
        progress: Shows the slides done.
        report: Receives one line per slide.

    Returns:
        What was done, and what is missing still; the same call goes on.

    Raises:
        DataError: There are no slides, or two of one name.
        ConfigError: The folder holds bags of another encoder or other settings, which are named; an option is impossible.
        ModelError: The encoder cannot be loaded or does not do what is asked.
        BusyError: The folder is being filled already.
        InterruptedTrainingError: SIGINT or SIGTERM arrived; what was done is kept.
        TrainingError: The disk is full.
    """
    settings = settings or EmbedSettings()
    found = find_slides(slides)
    model = encoder.open()
    check_settings(settings, model)
    hash = model.hash
    del model
    regions = {slide: _rois_of(slide, rois) for slide in found.paths}
    with exclusive(bags / STATE, "being filled"), stop_on_signals() as stop:
        stop_file = bags / STATE / STOP
        stop_file.unlink(missing_ok=True)
        asked = {slide: asked_of(path, settings, regions[slide]) for slide, path in found.paths.items()}
        standing, notes = _standing(bags, hash, asked)
        quarantine = Quarantine(bags)
        quarantine.release(_to_try_again(quarantine, found, all_of_them=retry))
        summary = Summary(bags, standing, quarantine)
        todo = [slide for slide in found.paths if slide not in standing and slide not in quarantine.slides]
        shared = shared_argument(bags, stop_file, encoder, hash, settings)
        tasks = [task_of(slide, found.paths[slide], regions[slide], shared) for slide in todo]
        filling = _Filling(bags, found, quarantine, summary, stop_file)
        outcomes = _outcomes(engine, tasks, stop, stop_file)
        for n, outcome in enumerate(progress(outcomes, "slides", len(tasks)), start=1):
            if words := filling.settle(outcome):
                report(f"[{n}/{len(tasks)}] {outcome.key}: {words}")
        summary.write()
        filling.raise_if_ended()
        stop.raise_if_set()
    here = {slide: quarantine.slides[slide] for slide in found.paths if slide in quarantine.slides}
    return EmbedResult(
        n_before=sum(slide in standing for slide in found.paths),
        n_done=filling.n_done,
        n_left=len(todo) - filling.n_done - sum(slide in here for slide in todo),
        quarantined={slide: entry.error for slide, entry in here.items() if entry.became != "no tissue"},
        without_tissue=tuple(slide for slide, entry in here.items() if entry.became == "no tissue"),
        twice=summary.twice,
        without_rois=tuple(slide for slide, path in regions.items() if path is None) if rois is not None else (),
        missing=found.missing,
        ignored=found.ignored,
        notes=tuple(notes),
    )


class _Filling:
    """Takes the outcomes of slides into a folder of bags."""

    def __init__(self, bags: Path, found: SlideFiles, quarantine: Quarantine, summary: Summary, stop_file: Path) -> None:
        self.n_done = 0
        self._bags, self._found, self._quarantine, self._summary = bags, found, quarantine, summary
        self._stop_file = stop_file
        self._ended: tuple[str, str] | None = None

    def settle(self, outcome: Outcome) -> str | None:
        """Take the outcome of a slide in and say what became of it; None where it was only stopped."""
        value: dict[str, Any] = outcome.value if outcome.error is None else {"became": "failed", "error": outcome.error}
        became, slide = value["became"], outcome.key
        if became == "stopped":
            return None
        if became in ("no model", "disk full"):
            self._ended = became, value["error"]
            self._stop_file.touch()
            return f"FAILED: {value['error']}"
        if became == "done":
            bag = read_bag(self._bags / f"{slide}.h5")
            self.n_done += 1
            self._summary.add(bag, value["seconds"])
            words = f"{bag.n:,} patches in {value['seconds']:.1f} s"
        else:
            self._quarantine.add(slide, self._found.paths[slide], became, value["error"])
            words = f"{'no patch' if became == 'no tissue' else 'QUARANTINED'}: {value['error']}"
        self._summary.write()
        return words

    def raise_if_ended(self) -> None:
        """Raise what is no slide's fault and ended the embedding."""
        if self._ended is not None and self._ended[0] == "disk full":
            raise TrainingError(f"the disk of {self._bags} is full; free space, and the same command goes on")
        if self._ended is not None:
            raise ModelError(self._ended[1])


def _standing(bags: Path, hash: str, asked: Mapping[str, Any]) -> tuple[dict[str, Bag], list[str]]:
    """Return the bags that are as asked for, and what has to be said of the others.

    Raises:
        ConfigError: Bags are of another encoder or of other settings.
    """
    found, damaged = read_bags(bags)
    if others := [slide for slide, bag in found.items() if bag.encoder != hash]:
        raise ConfigError(
            f"{bags} holds bags of another encoder ({found[others[0]].encoder}, this one is {hash}): {named('slide', others)}; "
            "take another folder, or delete them"
        )
    notes = [f"the bag of slide {slide} could not be read and is made anew: {why}" for slide, why in damaged.items()]
    wanted = next(iter(asked.values()))["settings"]
    for slide, bag in list(found.items()):
        own = _asked(bag, wanted)
        if differing := [key for key, value in wanted.items() if own.get("settings", {}).get(key) != value]:
            key = differing[0]
            raise ConfigError(
                f"{bags} holds bags of other settings: slide {slide} has {key} = {own.get('settings', {}).get(key)}, asked for "
                f"is {wanted[key]}; take another folder, or delete them"
            )
        if slide in asked and own != asked[slide]:
            what = "file" if own.get("bytes") != asked[slide]["bytes"] else "regions of interest"
            notes.append(f"the {what} of slide {slide} changed since it was embedded: its bag is made anew")
            del found[slide]
    return found, notes


def _asked(bag: Bag, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a bag was asked for; of a slide that says its scale, the one given for others is of no account."""
    own = dict(bag.provenance.get("asked", {}))
    if bag.provenance.get("mpp_source") == "file":
        own["settings"] = {**own.get("settings", {}), "mpp": wanted["mpp"]}
    return own


def _to_try_again(quarantine: Quarantine, found: SlideFiles, *, all_of_them: bool) -> list[str]:
    """Return the slides in quarantine that are tried again: all if asked for, else those whose file was touched."""
    known = {slide: found.paths[slide] for slide in quarantine.slides if slide in found.paths}
    return [slide for slide, path in known.items() if all_of_them or quarantine.slides[slide].modified != path.stat().st_mtime]


def _outcomes(engine: Engine, tasks: Sequence[Task], stop: StopFlag, stop_file: Path) -> Iterator[Outcome]:
    def stopped() -> bool:
        if stop.signal_number is not None:
            stop_file.touch()  # workers on other hosts hear no signal
        return stop_file.exists()

    yield from engine.run(tasks, stopped)


def _rois_of(slide: str, folder: Path | None) -> Path | None:
    """Return the regions of a slide, None where there are none."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; regions of interest are given as FOLDER/<slide>.geojson")
    paths = (folder / f"{slide}{suffix}" for suffix in _ROI_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)
