"""Everything one section says about each gene: agreement, its ceiling, calibration, depth and space, as one table.

What needs positions of one section (maps, neighbors) is undefined where a protocol pools sections; what needs counts is
undefined for predictions without them.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int

from stexpr.data.neighbors import neighbor_weights
from stexpr.evaluate import diagnostics, domains, metrics, spatial
from stexpr.evaluate.ceiling import REPEATS, Ceiling, noise_ceiling
from stexpr.evaluate.intervals import REPLICATES
from stexpr.evaluate.spatial_null import MOST_SPOTS, SURROGATES, SpatialModes, spatial_modes, spatial_null_p
from stexpr.panel import ExpressionTransform
from stexpr.types import PROVENANCE

__all__ = ["SCORING", "Unit", "gene_table", "transform_of"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

SEED: Final = 0
SCORING: Final = {
    "bootstrap_replicates": REPLICATES,
    "ceiling_repeats": REPEATS,
    "spatial_null_surrogates": SURROGATES,
    "domain_digits": domains.DOMAIN_DIGITS,
    "seed": SEED,
}
"""What the random and rounded parts of a score are made with; it stands in every record."""


@dataclass(frozen=True)
class Unit:
    """Spots that are correlated together: one section, or all of a fold where the protocol pools them.

    Attributes:
        patient: The patient, or several names joined.
        section: The section, or "pooled".
        predicted: Model output.
        measured: Ground truth in the same unit.
        training_mean: Mean expression of the training spots, the zero of R².
        x_um: Spot centers.
        y_um: Spot centers.
        blocks: Spatial block of each spot, its own numbers in each section.
        library: Counts of each spot over the whole library; None where the predictions do not hold it.
        counts: Raw counts of the genes; None where the predictions do not hold them.
    """

    patient: str
    section: str
    predicted: Float[Array, "S G"]
    measured: Float[Array, "S G"]
    training_mean: Float[Array, "G"]
    x_um: Float[Array, "S"]
    y_um: Float[Array, "S"]
    blocks: Int[Array, "S"]
    library: Float[Array, "S"] | None
    counts: sp.csr_matrix | None


def transform_of(predictions: Any) -> ExpressionTransform | None:
    """Return the unit of a predictions file, None where a count-splitting ceiling has no meaning in it.

    That is where the file does not say all of it, and where the measured values were smoothed or normalized over the panel
    alone.
    """
    said = json.loads(predictions.uns.get(PROVENANCE, "{}"))
    unit = said.get("protocol", {}).get("expression", {})
    if unit.get("smoothing", "none") != "none" or unit.get("library", "whole") != "whole" or "kind" not in unit:
        return None
    n_genes = int(said.get("n_genes", 0))
    if unit["kind"] == "stnet" and not n_genes:
        return None
    return ExpressionTransform(unit["kind"], float(unit["target_sum"]), n_genes=n_genes)


def gene_table(unit: Unit, genes: Sequence[str], transform: ExpressionTransform | None, *, one_section: bool) -> pd.DataFrame:
    """Score every gene of a unit.

    Args:
        unit: What is correlated together.
        genes: Names, in the order of the columns.
        transform: Unit of expression, for the ceiling.
        one_section: Whether positions belong to one section, so that maps and neighbors mean something.

    Returns:
        One row per gene: the five metrics, what calibration, depth, counting noise and space add to them, and the moments
        from which pooled correlations are put together. `domain_ari` and `domain_nmi` are the section's, the same in every
        row.

    Raises:
        MetricError: Fewer than two spots, unlike shapes, or a value that is not finite.
    """
    predicted, measured = unit.predicted, unit.measured
    values = {
        "pearson": metrics.pearson_per_gene(predicted, measured),
        "spearman": metrics.spearman_per_gene(predicted, measured),
        "rmse": metrics.rmse_per_gene(predicted, measured),
        "mae": metrics.mae_per_gene(predicted, measured),
        "r2": metrics.r2_per_gene(predicted, measured, unit.training_mean),
        "slope": diagnostics.calibration_slope_per_gene(predicted, measured),
        "r_within_depth": np.nan,
        **dict.fromkeys(("ceiling", "ceiling_low", "ceiling_high", "ceiling_depth_blind"), np.nan),
        **dict.fromkeys(("ssim", "moran_measured", "moran_predicted", "bivariate_moran", "spatial_p"), np.nan),
        **dict.fromkeys(("domain_ari", "domain_nmi"), np.nan),
        **{f"{side}_{name}": moment for side, name, moment in _moments(predicted, measured)},
        "n_spots": len(predicted),
        "measured_constant": metrics.constant_per_gene(measured),
        "predicted_constant": metrics.constant_per_gene(predicted),
    }
    if unit.library is not None:
        strata = min(diagnostics.STRATA, len(predicted) // diagnostics.SPOTS_PER_STRATUM)
        if strata:
            values["r_within_depth"] = diagnostics.depth_stratified_pearson(predicted, measured, unit.library, strata)
        if unit.counts is not None and transform is not None:
            values |= _ceilings(unit, transform)
    if one_section:
        values |= _maps(unit)
    return pd.DataFrame({"patient": unit.patient, "section": unit.section, "gene": list(genes), **values})


def _moments(predicted: Array, measured: Array) -> list[tuple[str, str, Array]]:
    return [
        (side, name, getattr(values, name.replace("sd", "std"))(axis=0, dtype=np.float64))
        for side, values in (("predicted", predicted), ("measured", measured))
        for name in ("mean", "sd")
    ]


def _maps(unit: Unit) -> dict[str, Any]:
    predicted, measured, x, y = unit.predicted, unit.measured, unit.x_um, unit.y_um
    if not (np.ptp(x) or np.ptp(y)):
        return {}
    weights = neighbor_weights(x, y)
    tested = len(x) <= MOST_SPOTS  # the patterns of more spots would take hours
    p = spatial_null_p(predicted, measured, _modes(x, y), seed=SEED).p if tested else np.nan
    clustered = len(x) > domains.GRAPH_NEIGHBORS
    ari, nmi = domains.domain_agreement(predicted, measured, seed=SEED) if clustered else (np.nan, np.nan)
    return {
        "ssim": spatial.ssim_per_gene(predicted, measured, x, y),
        "moran_measured": spatial.moran_per_gene(measured, weights),
        "moran_predicted": spatial.moran_per_gene(predicted, weights),
        "bivariate_moran": spatial.bivariate_moran_per_gene(predicted, measured, weights),
        "spatial_p": p,
        "domain_ari": ari,
        "domain_nmi": nmi,
    }


class _Recent(OrderedDict[bytes, Any]):
    """What depends on the measured data alone, kept for the next models that are scored on the same sections."""

    MOST = 32

    def once(self, parts: Sequence[Array], make: Any) -> Any:
        key = sha256(b"".join(sha256(np.ascontiguousarray(part).tobytes()).digest() for part in parts)).digest()
        if key not in self:
            self[key] = make()
            if len(self) > self.MOST:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]


_CEILINGS, _MODES = _Recent(), _Recent()


def _modes(x_um: Float[Array, "S"], y_um: Float[Array, "S"]) -> SpatialModes:
    modes: SpatialModes = _MODES.once((x_um, y_um), lambda: spatial_modes(x_um, y_um))
    return modes


def _ceilings(unit: Unit, transform: ExpressionTransform) -> dict[str, Array]:
    counts, library = unit.counts, unit.library
    assert counts is not None
    assert library is not None
    named = np.frombuffer(repr(transform).encode(), dtype=np.uint8)
    parts = (counts.data, counts.indices, counts.indptr, library, unit.blocks, named)
    ceiling: Ceiling = _CEILINGS.once(parts, lambda: noise_ceiling(counts, library, transform, unit.blocks, seed=SEED))
    return {
        "ceiling": ceiling.value,
        "ceiling_low": ceiling.low,
        "ceiling_high": ceiling.high,
        "ceiling_depth_blind": ceiling.depth_blind,
    }
