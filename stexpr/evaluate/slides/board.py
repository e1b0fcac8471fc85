"""Heads on slides ranked and tested, as a pure function of records and the results beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import pandas as pd

from stexpr.config import validated
from stexpr.config.files import write_whole
from stexpr.config.slides import SlideProtocol
from stexpr.errors import ProtocolError
from stexpr.evaluate.lineup import complete_models
from stexpr.evaluate.markdown import refuse_other_board
from stexpr.evaluate.notes import gap_notes
from stexpr.evaluate.protocol import check_comparable, protocol_name, select_runs
from stexpr.evaluate.records import SlideRun, read_records
from stexpr.evaluate.slides.board_notes import slide_notes
from stexpr.evaluate.slides.board_text import render_slides
from stexpr.evaluate.slides.card import slide_card
from stexpr.evaluate.slides.detail_tables import DetailTables, detail_tables
from stexpr.evaluate.slides.head_tests import head_tests
from stexpr.evaluate.slides.heads import HeadLine, read_heads
from stexpr.evaluate.slides.published import published_table
from stexpr.evaluate.slides.ranking import all_scores, models_table, shown_targets
from stexpr.evaluate.slides.resampling import Draws
from stexpr.evaluate.slides.survival_tables import SurvivalTables, survival_tables
from stexpr.evaluate.slides.target_table import target_table
from stexpr.types import Progress, silent

__all__ = ["SlideBoard", "build_slide_board"]

MAIN_TABLES: Final = {
    "leaderboard.csv": "models",
    "targets.csv": "targets",
    "scores.csv": "scores",
    "published.csv": "published",
    "comparisons.csv": "comparisons",
}


@dataclass(frozen=True)
class SlideBoard:
    """One protocol's heads.

    Attributes:
        title: Cohort and protocol.
        card: The protocol in words, heading and sentence.
        models: One row per head, best first, as `models_table` makes it.
        targets: Every head on every target, as `target_table` makes it, heads best first.
        scores: Every measure of every head on every tested target.
        shown: Targets that are compared and looked into one by one.
        published: Scores as a paper printed them, empty where the protocol names none.
        comparisons: Heads against their color baselines, and the leading ones with each other.
        survival: Risk groups, curves, hazard ratios, horizons.
        details: Calibration, agreement, confounders, subgroups.
        notes: Whether heads beat colors, then what was left out, undefined or incomplete.
    """

    title: str
    card: list[tuple[str, str]]
    models: pd.DataFrame
    targets: pd.DataFrame
    scores: pd.DataFrame
    shown: list[str]
    published: pd.DataFrame
    comparisons: pd.DataFrame
    survival: SurvivalTables
    details: DetailTables
    notes: list[str]

    @property
    def leader(self) -> str:
        """The best head that is no baseline, or the best of all where there is none."""
        heads = self.models[self.models["kind"] != "baseline"]
        return str((heads if len(heads) else self.models)["model"].iloc[0])

    def baseline_of(self, head: str) -> str | None:
        """Return the color baseline a head is held against; None where there is none."""
        baselines = set(self.models.loc[self.models["kind"] == "baseline", "model"])
        held_against = self.comparisons.loc[self.comparisons["a"] == head, "b"]
        return next((str(name) for name in held_against if name in baselines), None)

    def markdown(self) -> str:
        """Return the board for people: protocol first, then the tables, then the notes."""
        return render_slides(self)

    def tables(self) -> dict[str, str]:
        """Return the tables that are not empty as CSV, by file name; numbers to six decimals."""
        frames = {name: getattr(self, attribute) for name, attribute in MAIN_TABLES.items()}
        frames |= {f"survival_{field.name}.csv": getattr(self.survival, field.name) for field in fields(self.survival)}
        frames |= {f"{field.name}.csv": getattr(self.details, field.name) for field in fields(self.details)}
        return {
            name: frame.to_csv(index=False, float_format="%.6f", lineterminator="\n")
            for name, frame in frames.items()
            if len(frame)
        }

    def write(self, folder: Path) -> list[Path]:
        """Write the tables, `leaderboard.md` and the pictures, each whole or not at all.

        The same records give the same bytes.

        Raises:
            DataError: The folder cannot be written.
            ProtocolError: It holds the board of another cohort or protocol.
        """
        from stexpr.evaluate.figures import save_figure
        from stexpr.evaluate.slides.figures import slide_figures

        text = self.markdown()
        refuse_other_board(folder / "leaderboard.md", text)
        texts = {**self.tables(), "leaderboard.md": text}
        for name, part in texts.items():
            write_whole(folder / name, partial(Path.write_text, data=part, encoding="utf-8"))
        figures = slide_figures(self)
        for name, figure in figures.items():
            write_whole(folder / name, partial(save_figure, figure))
        return [folder / name for name in (*texts, *figures)]


def build_slide_board(
    source: Path | Sequence[SlideRun],
    *,
    cohort: str | None = None,
    protocol: str | None = None,
    draws: Draws | None = None,
    progress: Progress = silent,
) -> SlideBoard:
    """Rank and test the heads of slide runs.

    Args:
        source: Folder of runs, or finished runs of one protocol, cohort and split.
        cohort: Name or hash, to take only the runs on this cohort.
        protocol: Name or hash, to take only the runs under this protocol.
        draws: How often to draw; by default 1,000 replicates, 999 shuffles and 1,999 swaps.
        progress: Shows what is done.

    Returns:
        The board; heads and runs that lack a fold are named in its notes.

    Raises:
        DataError: The folder holds no run, or a run lacks a file.
        ProtocolError: The runs must not share a table, or none of slides finished.
    """
    runs, unfinished = _runs(source)
    runs = select_runs(runs, cohort, protocol)
    check_comparable([run.record for run in runs])
    complete, incomplete = complete_models(runs, required={})
    if not complete:
        raise ProtocolError(f"no head has all folds that others have: {' '.join(incomplete)}")
    first, draws = runs[0].record, draws or Draws()
    rules = cast(SlideProtocol, validated(SlideProtocol, first.protocol, "the protocol of the runs"))
    lines = read_heads(complete, progress)
    targets, seeds = target_table(lines, rules, draws, progress)
    models = models_table(lines, targets, seeds)
    order = {str(label): place for place, label in enumerate(models["model"])}
    lines.sort(key=lambda line: order[line.label])
    targets = targets.sort_values("model", key=lambda column: column.map(order), kind="stable").reset_index(drop=True)
    shown = shown_targets(targets)
    comparisons = head_tests(lines, targets, shown, draws, progress)
    details = detail_tables(lines, targets, shown, rules, draws, progress)
    records = [record for line in lines for folds in line.records.values() for record in folds]
    return SlideBoard(
        title=f"{first.cohort.name}, protocol {protocol_name(first.protocol)}",
        card=slide_card(records, rules, draws),
        models=models,
        targets=targets,
        scores=all_scores(lines, targets, progress),
        shown=shown,
        published=pd.DataFrame() if rules.published == "none" else published_table(lines, targets, rules.published, draws),
        comparisons=comparisons,
        survival=survival_tables(lines, targets, _covariates(lines, rules), progress),
        details=details,
        notes=[*slide_notes(lines, models, targets, comparisons, shown, details), *incomplete, *gap_notes(records, unfinished)],
    )


def _runs(source: Path | Sequence[SlideRun]) -> tuple[Sequence[SlideRun], list[str]]:
    if not isinstance(source, Path):
        return source, []
    found = read_records(source)
    if not found.slides:
        spots = f"; {len(found.complete)} runs of spots have a board of their own" if found.complete else ""
        raise ProtocolError(f"no run of slides in {source} finished{spots}; start stexpr train again to resume")
    return found.slides, [reason.replace(str(path), path.name) for path, reason in found.incomplete]


def _covariates(lines: Sequence[HeadLine], protocol: SlideProtocol) -> list[str]:
    """What hazard ratios are adjusted for: the confounders, and what any head was given beside its patches."""
    given = [str(name) for line in lines for name in cast(Sequence[Any], line.first.model.get("covariates") or ())]
    return list(dict.fromkeys([*protocol.confounders, *given]))
