"""Many genes or targets at once: which mutations does a head see, allowing for the number of genes tried?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from stexpr.errors import DataError
from stexpr.evaluate.intervals import REPLICATES
from stexpr.evaluate.slides.binary import auprc, auroc
from stexpr.evaluate.slides.held_out import HeldOut, score_folds
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.resampling import PERMUTATIONS, bootstrap_interval, permutation_p
from stexpr.evaluate.testing import ALPHA, benjamini_hochberg

__all__ = ["screen_genes"]

FEWEST = 5


def screen_genes(
    predicted: Float[Array, "P G"],
    mutated: Float[Array, "P G"],
    genes: Sequence[str],
    held_out: HeldOut,
    *,
    fewest: int = FEWEST,
    alpha: float = ALPHA,
    permutations: int = PERMUTATIONS,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> pd.DataFrame:
    """Score and test every gene, with the false discovery rate over those tested.

    Args:
        predicted: Score of being mutated, on held-out patients.
        mutated: 1 or 0, NaN where unknown; such patients are left out of that gene alone.
        genes: Name of each column.
        held_out: Patients and folds of the rows.
        fewest: Genes with fewer positive (or negative) patients are not tested, nor counted among the hypotheses.
        alpha: False discovery rate.
        permutations: The smallest p is 1 / (permutations + 1), which the rate has to be able to reach over all genes.
        replicates: Of the bootstrap, drawn within labels.
        seed: Recorded with the scores.

    Returns:
        By gene, in the order given: `n_patients`, `n_positive`, `n_folds` (defined), `auroc`, `low`, `high`, `auprc`,
        `auroc_pooled`, `p`, `q`, `significant`, `interval` (what it covers, or why there is none), `reason` (why not tested, or
        which folds are undefined; else empty).

    Raises:
        DataError: Unlike shapes, a gene twice, a label other than 0, 1 and NaN, or a prediction that is not finite.

    Reference:
        Kather et al. (2020), Nature Cancer 1:789-799 (five positives, BH over genes).
    """
    _check(predicted, mutated, genes, held_out)
    rows = []
    for column, _ in enumerate(genes):
        known = np.flatnonzero(~np.isnan(mutated[:, column]))
        positive, score = mutated[known, column] == 1, predicted[known, column]
        counts = (len(known), int(positive.sum()))
        if min(counts[1], counts[0] - counts[1]) < fewest:
            reason = f"not tested: {counts[1]} positive of {counts[0]} patients, needs {fewest} of each"
            rows.append((*counts, 0, *[np.nan] * 6, "", reason))
            continue
        kept = held_out.only(known)
        scores = score_folds(auroc, kept, score, positive)
        interval = bootstrap_interval(
            auroc, kept, score, positive, strata=positive.astype(str).tolist(), n=replicates, seed=seed
        )
        p = permutation_p(auroc, kept, score, positive, n=permutations, seed=seed)
        reason = "; ".join(f"fold {fold}: {why}" for fold, why in scores.undefined.items())
        precision = score_folds(auprc, kept, score, positive).mean
        folds = len(scores.values) - len(scores.undefined)
        rows.append(
            (*counts, folds, scores.mean, interval.low, interval.high, precision, scores.pooled, p, interval.kind, reason)
        )
    numbers = ["n_patients", "n_positive", "n_folds", "auroc", "low", "high", "auprc", "auroc_pooled", "p"]
    columns = [*numbers, "interval", "reason"]
    table = pd.DataFrame(rows, index=pd.Index(genes, name="gene"), columns=columns)
    q, significant = benjamini_hochberg(table["p"].to_numpy(dtype=np.float64), alpha)
    table.insert(9, "q", q)
    table.insert(10, "significant", significant)
    return table


def _check(predicted: Array, mutated: Array, genes: Sequence[str], held_out: HeldOut) -> None:
    shape = (len(held_out), len(genes))
    if not predicted.shape == mutated.shape == shape or len(set(genes)) != len(genes):
        raise DataError(
            f"predicted has shape {predicted.shape}, mutated {mutated.shape}; both must be patients x genes, {shape}, and no "
            "gene may stand twice"
        )
    if not np.isin(mutated[~np.isnan(mutated)], (0, 1)).all():
        raise DataError("mutated takes 1, 0 and NaN (unknown) only")
