"""A board as the page needs it: every column in its place, so that nothing further in has to ask."""

import re
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float

from stexpr.evaluate.leaderboard import Leaderboard

__all__ = ["BoardView", "Pair", "board_view"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

WARNING: Final = "Warning"
GENE_NUMBERS: Final = ("ceiling", "ceiling_low", "ceiling_high", "ceiling_depth_blind")
AUXILIARY = re.compile(r"(.+) \+ (?:\S+ )?aux")


@dataclass(frozen=True)
class Pair:
    """A network without and with the auxiliary head, by their places among the models."""

    without: int
    added: int


@dataclass(frozen=True)
class BoardView:
    """What a page shows.

    Attributes:
        title: Cohort and protocol.
        lead: How many models on how much data.
        verdict: The first note where a network is on the board, else empty.
        warnings: Sentences of the card that warn of a protocol with leakage.
        card: The rest of the protocol.
        models: The board's models; `ceiling` is NaN where the board has none.
        patients: r, models x patients, in the order of `models`.
        genes: rank, gene, n_patients, the four ceilings (NaN where the board has none) and `unpredictable`.
        r: Mean r, genes x models.
        pairs: Networks with and without auxiliary genes.
        comparisons: The board's tests between models.
        notes: All but the verdict.
    """

    title: str
    lead: str
    verdict: str
    warnings: list[str]
    card: list[tuple[str, str]]
    models: pd.DataFrame
    patients: pd.DataFrame
    genes: pd.DataFrame
    r: Float[Array, "G M"]
    pairs: list[Pair]
    comparisons: pd.DataFrame
    notes: list[str]

    @property
    def names(self) -> list[str]:
        """Labels of the models, best first."""
        return [str(name) for name in self.models["model"]]

    @property
    def leading(self) -> int:
        """Place of the best network, or of the best model where there is no network."""
        networks = np.flatnonzero((self.models["kind"] == "network").to_numpy())
        return int(networks[0]) if len(networks) else 0

    @property
    def has_ceiling(self) -> bool:
        """Whether any gene's noise ceiling is known."""
        return bool(self.genes["ceiling"].notna().any())


def board_view(board: Leaderboard) -> BoardView:
    """Bring a board into the page's form; what an older board lacks is undefined, never guessed."""
    models = board.models.reset_index(drop=True)
    if "ceiling" not in models:
        models = models.assign(ceiling=np.nan)
    names = [str(name) for name in models["model"]]
    genes = board.genes[["rank", "gene", "n_patients"]].assign(
        **{
            column: pd.to_numeric(board.genes[column]) if column in board.genes and column not in names else np.nan
            for column in GENE_NUMBERS
        },
        unpredictable=board.genes["unpredictable"].fillna(False).astype(bool) if "unpredictable" in board.genes else False,
    )
    networks = bool((models["kind"] == "network").any())
    notes, first = list(board.notes), models.iloc[0]
    verdict = notes.pop(0) if networks and notes else ""
    count = f"{len(models)} model{'s' if len(models) != 1 else ''}"
    return BoardView(
        title=board.title,
        lead=(
            f"{count} on {first['n_patients']} patients, {first['n_sections']} sections, {first['n_spots']:,} spots, "
            f"{len(genes):,} genes"
        ),
        verdict=verdict,
        warnings=[sentence for heading, sentence in board.card if heading == WARNING],
        card=[(heading, sentence) for heading, sentence in board.card if heading != WARNING],
        models=models,
        patients=board.patients.loc[names],
        genes=genes,
        r=board.genes[names].to_numpy(dtype=np.float64),
        pairs=find_pairs(names),
        comparisons=board.comparisons,
        notes=notes,
    )


def find_pairs(names: list[str]) -> list[Pair]:
    """Match every model with an auxiliary head to the same model without.

    Example:
        >>> find_pairs(["tiny + aux", "b0", "tiny", "b0 + 0.5 aux", "other + aux"])
        [Pair(without=2, added=0), Pair(without=1, added=3)]
    """
    matches = [(AUXILIARY.fullmatch(name), place) for place, name in enumerate(names)]
    return [Pair(names.index(match[1]), place) for match, place in matches if match and match[1] in names]
