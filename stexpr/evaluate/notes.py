"""The sentences below a leaderboard: what beat what, what was left out, what is undefined, what is missing."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stexpr.evaluate.intervals import Interval
from stexpr.evaluate.records import RunRecord

__all__ = ["gap_notes", "gene_notes", "network_notes"]


def network_notes(
    networks: Sequence[tuple[str, float, Interval]],
    ridge: str,
    ridge_r: float,
    comparisons: pd.DataFrame,
    imageless: Mapping[str, float],
) -> list[str]:
    """Say whether networks beat the color ridge and the baselines that see no image.

    Args:
        networks: Label of each network, best first, the difference of its mean r to the color ridge and its interval.
        ridge: Label of the color ridge.
        ridge_r: Its mean r.
        comparisons: Tests over patients, as `compare_models` makes them.
        imageless: Mean r of the baselines that see no image, by label.

    Returns:
        One sentence or a few per note, the most important first; none where there is no network.
    """
    if not networks:
        return []
    leader, difference, _ = networks[0]
    verdict = _against_ridge(networks, ridge)
    above = {label: r for label, r in imageless.items() if r >= ridge_r + difference}
    if above:
        named = " and ".join(f"{label} ({r:.3f})" for label, r in above.items())
        verdict += (
            f" Without any image, {named} reaches the r of the best network ({ridge_r + difference:.3f}) or more: part of what "
            "image models show here may be depth or layout that follows the tissue. Depth only reads the measured depth of the "
            "test spots, which no image model can; compare r at like depth."
        )
    return [verdict, *_over_patients(leader, ridge, comparisons)]


def gene_notes(left_out: pd.DataFrame, constant: Mapping[str, tuple[int, int]]) -> list[str]:
    """Name the genes left out, and the models whose predictions are constant.

    Args:
        left_out: (patient, section, gene) whose measured values are constant.
        constant: By model: how many gene x section it predicts constant, and 1 where its mean r is undefined for it.
    """
    notes = []
    if len(left_out):
        names = [f"{gene} ({section})" for gene, section in zip(left_out["gene"], left_out["section"], strict=True)]
        notes.append(
            "Left out for every model alike, because the measured values are constant in the section: "
            f"{', '.join(sorted(names))}."
        )
    for label, (count, undefined) in constant.items():
        if undefined:
            notes.append(
                f"{label} predicts one value for all spots of every gene: its r is undefined (–), and it is ranked by R²."
            )
        elif count:
            notes.append(f"{label} predicts a constant for {count} gene × section, which enter its mean r as 0.")
    return notes


def gap_notes(records: Sequence[RunRecord], unfinished: Sequence[str]) -> list[str]:
    """Say what a board is made of that one would not expect: unlike versions, unfinished runs.

    Args:
        records: Of all runs on the board.
        unfinished: Runs without a record, in words.
    """
    notes = []
    for package in sorted({package for record in records for package in record.versions}):
        found = sorted({record.versions.get(package, "unknown") for record in records})
        if len(found) > 1:
            notes.append(f"The runs were made with unlike versions of {package}: {', '.join(found)}.")
    if unfinished:
        notes.append(f"{len(unfinished)} runs without a record were not read: {'; '.join(unfinished)}.")
    return notes


def _over_patients(leader: str, ridge: str, comparisons: pd.DataFrame) -> list[str]:
    """Say what the test over patients says of the leading network, and how many patients would be enough."""
    notes = []
    for row in comparisons[(comparisons["a"] == leader) & (comparisons["b"] == ridge)].to_dict("records"):
        words = f"Over patients (sign flips of one difference each), {leader} against the {ridge}: {row['verdict']}."
        if row["patients_needed"] != "–":
            words += f" To show this difference, if it is the true one, takes about {row['patients_needed']} patients."
        notes.append(words)
    return notes


def _against_ridge(networks: Sequence[tuple[str, float, Interval]], ridge: str) -> str:
    verdicts = [(label, point, interval) for label, point, interval in networks if not np.isnan(point)]
    if not verdicts:
        return f"No network has a defined r, so none beats the {ridge}."
    better = [label for label, point, interval in verdicts if point > 0 and interval.low > 0]
    label, point, interval = verdicts[0]
    bounds = "" if np.isnan(interval.low) else f", {interval.low:+.3f} to {interval.high:+.3f} ({interval.kind})"
    difference = f"mean r {point:+.3f} against it{bounds}"
    if better:
        others = f"{len(better)} of {len(networks)} networks beat the {ridge} by more than the interval of the difference"
        return f"{others}: {', '.join(better)}. The best network, {label}: {difference}."
    if point > 0:
        return f"No network beats the {ridge} by more than the interval of the difference. The best, {label}: {difference}."
    return f"No network beats the {ridge}. The best, {label}: {difference}."
