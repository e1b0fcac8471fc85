"""The gene panel of one fold, from the spots its protocol lets choose genes."""

import scipy.sparse as sp

from stexpr.config import PanelConfig
from stexpr.data.splits import Fold
from stexpr.data.store import PreparedCohort
from stexpr.panel import GenePanel, fit_panel

__all__ = ["fold_panel"]


def fold_panel(rule: PanelConfig, cohort: PreparedCohort, fold: Fold) -> GenePanel:
    """Choose the genes of a fold, from its training spots unless the rule's scope is the whole cohort.

    Args:
        rule: How genes are chosen.
        cohort: Where the counts are.
        fold: Names the training sections.

    Returns:
        The panel.

    Raises:
        GeneError: As `fit_panel`; the note names the fold.
    """
    sections = fold.train_sections if rule.scope == "training" else cohort.sections
    try:
        return fit_panel(
            sp.vstack([cohort.counts(section) for section in sections], format="csr"),
            cohort.genes,
            rule=rule.rule,
            n_main=rule.n_main,
            include=rule.include,
            listed=rule.genes,
            min_detection=rule.min_detection,
            scope=rule.scope,
        )
    except Exception as err:
        err.add_note(f"while choosing the genes of fold {fold.index} of cohort {cohort.name}")
        raise
