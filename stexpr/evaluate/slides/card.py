"""The protocol of a slide board in words, as it stands above every table."""

from collections.abc import Sequence
from typing import Final

from stexpr.config.slides import SlideProtocol, SurvivalTarget, TargetConfig
from stexpr.evaluate.records import SlideRecord
from stexpr.evaluate.slides.measures import MEASURES
from stexpr.evaluate.slides.published import PUBLISHED_WORDS
from stexpr.evaluate.slides.resampling import BOOTSTRAP, Draws
from stexpr.evaluate.testing import ALPHA

__all__ = ["kind_words", "slide_card"]

KINDS: Final = {
    "binary": "yes or no",
    "multiclass": "one of several classes",
    "ordinal": "classes in an order",
    "fraction": "a share",
    "continuous": "a number",
    "survival": "time to an event",
}
NAMED: Final = 12


def kind_words(kind: str) -> str:
    """Say what a kind of target is."""
    return KINDS[kind]


def slide_card(records: Sequence[SlideRecord], protocol: SlideProtocol, draws: Draws) -> list[tuple[str, str]]:
    """Say in words what was predicted, on whom it was tested and how it was scored.

    Args:
        records: Comparable records.
        protocol: Theirs.
        draws: How often the board drew.

    Returns:
        Pairs of a heading and a sentence.
    """
    first = records[0]
    tested = {patient for record in records for patient in record.fold.test_patients}
    folds = sorted({record.fold.index for record in records})
    details = "".join(f", {key} {value}" for key, value in first.cohort.details.items() if value is not None)
    encoders = sorted({record.bags.encoder for record in records})
    bags = len({record.bags.hash for record in records})
    card = [
        ("Protocol", f"{protocol.name} ({first.protocol_hash})"),
        ("Cohort", f"{first.cohort.name} ({first.cohort.hash}){details}"),
        ("Tested", f"{len(tested)} of {len(first.cohort.patients)} patients, each by a head that never saw them"),
        ("Targets", "; ".join(map(_target, protocol.targets))),
        ("Split", _split(protocol, folds)),
        ("Bags", f"of {', '.join(encoders)} ({bags} set{'s' if bags != 1 else ''} of bags); {_slides(protocol)}"),
        (
            "Score",
            "computed within each fold and averaged over folds, since outputs of unlike networks share no scale; pooled "
            "values, over all patients at once, stand in columns of their own",
        ),
        ("Interval", f"{BOOTSTRAP}, {draws.replicates:,} replicates; labels and events are drawn as often as they stand"),
        (
            "p",
            f"one-sided, of at least {draws.permutations:,} shuffles of predictions within folds; q: Benjamini and Hochberg "
            f"over the yes-or-no targets of a head, significant at {ALPHA:.0%}; fewer than {protocol.min_positives} positive "
            "(or negative) patients, or events, are not tested",
        ),
        (
            "Seeds and partitions",
            "scored one by one; scores, bounds and p are averaged. Curves, calibration, strata and subgroups are of the first "
            "seed and partition",
        ),
        (
            "Compared",
            f"{draws.swaps:,} random swaps of two heads' outputs, patient by patient; two-sided, Holm over the pairs on a "
            "target",
        ),
    ]
    if protocol.published != "none":
        card.append(("As published", PUBLISHED_WORDS[protocol.published]))
    if protocol.confounders:
        card.append(("Confounders", f"{', '.join(protocol.confounders)}: AUROC among patients of one stratum, strata shuffled"))
    if protocol.subgroups:
        card.append(("Subgroups", f"{', '.join(protocol.subgroups)}; no test is made of them"))
    if any(isinstance(target, SurvivalTarget) for target in protocol.targets):
        times = ", ".join(f"{time:g}" for time in protocol.horizons) or "the quartiles of training events"
        card.append(("Horizons", f"{times}; risk groups are cut at the median of the training patients of the fold"))
    return card


def _target(target: TargetConfig) -> str:
    columns = getattr(target, "columns", None)
    columns = columns or ((target.event,) if isinstance(target, SurvivalTarget) else (target.column,))  # type: ignore[union-attr]
    names = ", ".join(columns[:NAMED]) + (f" and {len(columns) - NAMED} more" if len(columns) > NAMED else "")
    headings = ", ".join(measure.heading for measure in MEASURES[target.kind])
    return f"{names} ({KINDS[target.kind]}): {headings}"


def _split(protocol: SlideProtocol, folds: Sequence[int]) -> str:
    split = protocol.split
    words = [f"{split.k} folds over patients, labels dealt evenly (seed {split.seed})"]
    words += [f"{split.repeats} partitions"] if split.repeats > 1 else []
    words += ["no site on both sides"] if split.preserve_sites else []
    words += [
        f"{split.inner_k} inner folds of training patients choose epochs, temperatures and thresholds"
        if split.inner_k
        else "no inner folds, so neither temperature nor threshold of yes-or-no targets"
    ]
    if len(folds) < split.k * split.repeats:
        words.append(f"only {len(folds)} of {split.k * split.repeats} folds were run")
    return "; ".join(words)


def _slides(protocol: SlideProtocol) -> str:
    several = {"bags": "put together into one bag", "outputs": "predicted one by one and averaged"}
    return f"several slides of a patient are {several[protocol.several_slides]}"
