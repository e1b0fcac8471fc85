"""What a run fitted, fitted again: its gene panel and its statistics must be those of the training spots alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Float64

from stexpr.config import PanelConfig, StudyConfig, content_hash
from stexpr.data.datasets import SpotDataset
from stexpr.data.panels import fold_panel
from stexpr.data.splits import Fold
from stexpr.data.store import PreparedCohort
from stexpr.evaluate.audit.findings import Finding, not_done
from stexpr.evaluate.records import Record
from stexpr.models.export import LoadedModel
from stexpr.models.objectives import Objective, make_objective
from stexpr.panel import ExpressionTransform, GenePanel

__all__ = ["check_panel", "check_statistics"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Statistics: TypeAlias = dict[str, Float[Array, "K"]]

TOLERANCE = 1e-4
"""Largest difference, in standard deviations of the training spots, between statistics that count as the same: single
precision stays 100 times below, one spot more among 1,000 far above."""
TOWARD = 0.9
"""Cosine between how a statistic differs from that of the training spots and how that of all spots, the test spots or one test
section does. Test spots mixed in move a mean exactly that way, however few; anything else moves each gene its own way."""


class Off(NamedTuple):
    """How far statistics are from those of the training spots.

    Attributes:
        distance: Largest difference, in SDs of the gene; relative to its size where a statistic has none.
        toward_test: Cosine of the difference with the one that test spots make, from -1 to 1.
    """

    distance: float
    toward_test: float


def check_panel(
    config: StudyConfig, cohort: PreparedCohort, fold: Fold, record: Record, panels: Mapping[str, Sequence[str]]
) -> Finding:
    """Choose the main genes again from the training spots, and compare.

    A panel that differs is compared with the one all spots give, test spots included: nearer to that is a leak, anything
    else a flag, since another version of a library may rank genes differently.

    Args:
        config: The run's study.
        cohort: Its cohort.
        fold: Its fold.
        record: Its record.
        panels: Main genes as the run's files hold them, by file.
    """
    rule = config.protocol.panel
    honest = fold_panel(_scoped(rule, "training"), cohort, fold).main
    if rule.rule == "list":
        sentence = f"{len(honest)} genes were listed by hand; whether test data had a part in the list cannot be seen here"
        return Finding("panel", "information", sentence, {"rule": rule.rule})
    everything = fold_panel(_scoped(rule, "cohort"), cohort, fold).main
    changed = len(set(everything) - set(honest))
    if "cohort" in (rule.scope, record.panel.scope):
        sentence = (
            f"declared by the protocol: all spots chose the genes, test spots included (scope = cohort); {changed} of "
            f"{len(everything)} main genes would not be there otherwise; set protocol.panel.scope=training"
        )
        return Finding("panel", "leak", sentence, {"declared": True, "changed": changed})
    held = {"record.json": record.panel.hash, **{name: content_hash(list(genes)) for name, genes in panels.items()}}
    wrong = {name: own for name, own in held.items() if own != content_hash(list(honest))}
    if not wrong:
        same = "" if changed else "; all spots would give the same genes"
        sentence = f"the {len(honest)} main genes are those the training spots give, in that order{same}"
        return Finding("panel", "passed", sentence, {"hash": record.panel.hash, "changed_by_test_spots": changed})
    votes = [_nearer(panels[name], honest, everything) for name in wrong if name in panels]
    from_all = content_hash(list(everything)) in wrong.values() or any(votes)
    sentence = f"the main genes in {', '.join(wrong)} are not those that the training spots of fold {fold.index} give"
    sentence += ", but those of all spots, test spots included" if from_all else ", nor those of all spots"
    return Finding("panel", "leak" if from_all else "flag", f"{sentence}; delete the run and train again", {"files": wrong})


def check_statistics(
    config: StudyConfig,
    cohort: PreparedCohort,
    fold: Fold,
    *,
    model: LoadedModel | None,
    genes: Sequence[str],
    training_mean: Float[Array, "G"] | None,
) -> Finding:
    """Fit means, standard deviations and rates again on the training spots, and compare.

    A difference that points to the statistics of all spots, or of the test spots, is a leak; any other is a flag, such as a
    model fitted on a part of the training spots.

    Args:
        config: The run's study.
        cohort: Its cohort.
        fold: Its fold.
        model: Its exported model; None for a baseline.
        genes: Main genes of its predictions.
        training_mean: What its predictions call the training mean; None if there are no predictions.
    """
    fitted: dict[str, tuple[Statistics, dict[str, Statistics]]] = {}
    if training_mean is not None:
        sides = _sides(config, cohort, fold, GenePanel(tuple(genes), (), "list", "training", 0.0))
        again = {side: _mean_sd(spots, config, len(cohort.genes)) for side, spots in sides.items()}
        fitted["training mean of the predictions"] = {"mean": training_mean.astype(np.float64)}, again
    if model is not None:
        sides = _sides(config, cohort, fold, model.panel)
        for role, objective in (("main", model.model.main_objective), ("auxiliary", model.model.auxiliary_objective)):
            if objective is not None:
                again = {side: _statistics(_refitted(objective, spots, role)) for side, spots in sides.items()}
                fitted[f"{role} objective of the model"] = _statistics(objective), again
    if not fitted:
        return not_done("statistics", "the run has neither a model nor predictions that can be read", "flag")
    off = {what: _off(given, again) for what, (given, again) in fitted.items()}
    details = {what: values._asdict() for what, values in off.items()}
    wrong = {what: values for what, values in off.items() if values.distance > TOLERANCE}
    if not wrong:
        n = sum(cohort.counts(section).shape[0] for section in fold.train_sections)
        return Finding("statistics", "passed", f"{', '.join(fitted)}: as the {n} training spots alone give them", details)
    leak = any(values.toward_test >= TOWARD for values in wrong.values())
    words = "; ".join(
        f"the {what} is up to {values.distance:.3g} SD off that of the training spots"
        + (", the way test spots would move it" if values.toward_test >= TOWARD else "")
        for what, values in wrong.items()
    )
    return Finding("statistics", "leak" if leak else "flag", f"{words}; delete the run and train again", details)


def _scoped(rule: PanelConfig, scope: str) -> PanelConfig:
    return rule.model_copy(update={"scope": scope})


def _nearer(genes: Sequence[str], honest: Sequence[str], everything: Sequence[str]) -> bool:
    """Whether a panel shares more genes with that of all spots than with that of the training spots."""
    return len(set(genes) & set(everything)) > len(set(genes) & set(honest))


def _sides(config: StudyConfig, cohort: PreparedCohort, fold: Fold, panel: GenePanel) -> dict[str, SpotDataset]:
    sides = {"training": fold.train_sections, "all": (*fold.train_sections, *fold.test_sections), "test": fold.test_sections}
    sides |= {section: (section,) for section in fold.test_sections}
    unit, window = config.protocol.expression, cohort.window_px
    return {
        side: SpotDataset(cohort, sections, panel, window_px=window, in_memory=False, expression=unit)
        for side, sections in sides.items()
    }


def _mean_sd(spots: SpotDataset, config: StudyConfig, n_genes: int) -> Statistics:
    unit = config.protocol.expression
    transform = ExpressionTransform(unit.kind, unit.target_sum, n_genes=n_genes)
    expression = transform(spots.counts_main.numpy(), spots.library.numpy()).astype(np.float64)
    return {"mean": expression.mean(axis=0), "sd": expression.std(axis=0)}


def _refitted(objective: Objective, spots: SpotDataset, role: str) -> Objective:
    counts = spots.counts_main if role == "main" else spots.counts_auxiliary
    standardize = bool(objective.settings().get("standardize", True))
    return make_objective(
        objective.kind,
        counts=counts.numpy(),
        library=spots.library.numpy(),
        transform=objective.transform,
        standardize=standardize,
    )


def _statistics(objective: Objective) -> Statistics:
    return {name: np.atleast_1d(value.numpy().astype(np.float64)) for name, value in objective.named_buffers()}


def _off(given: Statistics, again: Mapping[str, Statistics]) -> Off:
    """Compare statistics with those of the training spots: how far, and whether towards those that saw test spots."""
    training = again["training"]
    distance, toward = 0.0, -1.0
    for name, value in given.items():
        scale = training["sd"] if "sd" in training else np.maximum(np.abs(training[name]), 1.0)
        own, *others = (
            (one - training[name]) / np.where(scale > 0, scale, 1.0)
            for one in (value, *(fitted[name] for side, fitted in again.items() if side != "training"))
        )
        if not np.isfinite(own).all():
            return Off(float("inf"), -1.0)
        distance = max(distance, float(np.abs(own).max()))
        if np.abs(own).max() > TOLERANCE and len(own) > 2:  # one number, such as a median library, has no direction
            toward = max(toward, *(_cosine(own, other) for other in others))
    return Off(distance, toward)


def _cosine(one: Float64[Array, "K"], other: Float64[Array, "K"]) -> float:
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size > 0 else 0.0
