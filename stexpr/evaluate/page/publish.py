"""From a folder of runs to tables and a page with maps."""

from collections.abc import Sequence
from pathlib import Path

from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError, StexprError, nearest
from stexpr.evaluate.leaderboard import Leaderboard, leaderboard, runs_of_board
from stexpr.evaluate.lineup import complete_models
from stexpr.evaluate.page.build import write_page
from stexpr.evaluate.page.maps import load_maps
from stexpr.evaluate.records import CONFIG, Run
from stexpr.types import Progress, silent

__all__ = ["publish"]

NETWORKS_SHOWN = 2


def publish(
    folder: Path,
    output: Path,
    *,
    cohort: str | None = None,
    protocol: str | None = None,
    models: Sequence[str] = (),
    images: Path | None = None,
    progress: Progress = silent,
) -> tuple[Leaderboard, list[str]]:
    """Rank the runs of a folder and write their tables, and a page with maps of some models.

    Args:
        folder: Folder of runs.
        output: Folder of the tables and the page.
        cohort: Name or hash, to take only the runs on this cohort.
        protocol: Name or hash, to take only the runs under this protocol.
        models: Labels of the models whose maps are shown; by default the two best networks and the color ridge.
        images: The prepared cohort, whose small pictures lie under the maps; by default where the runs read it.
        progress: Shows the runs read.

    Returns:
        The board, and what the page lacks, in words.

    Raises:
        DataError: The folder holds no run, or a run lacks a file; the output cannot be written.
        ProtocolError: The runs must not share a table.
    """
    runs, unfinished = runs_of_board(folder, cohort, protocol)
    board = leaderboard(runs, unfinished=unfinished, progress=progress)
    board.write(output)
    lineup, _ = complete_models(runs)
    for label in models:
        if label not in lineup:
            raise DataError(f"no model {label!r} on this board; {nearest(label, lineup)}")
    prepared, lacking = _cohort(images, runs)
    by_label = {label: [run for own in seeds.values() for run in own] for label, seeds in lineup.items()}
    maps = load_maps(by_label, prepared, models=models or _shown(board), genes=board.genes["gene"].tolist())
    write_page(board, output, maps=maps)
    return board, lacking


def _shown(board: Leaderboard) -> list[str]:
    table = board.models
    networks = table.loc[table["kind"] == "network", "model"].tolist()[:NETWORKS_SHOWN]
    return [*networks, *(label for label in table["model"] if label.startswith("color ridge") and "permuted" not in label)]


def _cohort(images: Path | None, runs: Sequence[Run]) -> tuple[PreparedCohort | None, list[str]]:
    """Open the cohort the runs were tested on, if it is still there."""
    from stexpr.config import load_study

    try:
        place = images or load_study(runs[0].folder / CONFIG).cohort
        found = PreparedCohort.open(place)
    except StexprError as err:
        if images is not None:
            raise
        return None, [f"The maps lie on no picture: {err}"]
    if found.hash != runs[0].record.cohort.hash:
        if images is not None:
            raise DataError(
                f"{images} is not the cohort of these runs: its hash is {found.hash}, theirs {runs[0].record.cohort.hash}"
            )
        return None, [f"The maps lie on no picture: {place} is not the cohort as it was when the runs were trained."]
    return found, []
