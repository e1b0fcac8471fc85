"""What is fitted on training spots and travels with a model: genes, expression units, scaling, image preprocessing.

Every function here takes arrays of the spots it may see, so a caller decides what that is; nothing in this file can
reach a test spot by itself.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float32

from stexpr.errors import ConfigError, GeneError, nearest

PanelRule: TypeAlias = Literal["top_mean", "highly_variable", "spatially_variable", "list"]
PanelScope: TypeAlias = Literal["training", "cohort"]
ExpressionKind: TypeAlias = Literal["library_log1p", "log1p", "stnet"]
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class GenePanel:
    """The ordered genes a model predicts, and the rule that chose them.

    Main genes are scored; auxiliary genes only help training. `detection` is the fraction of the fitting spots in which
    a main gene has at least one count, so a gene included by name shows how sparse it is.
    """

    main: tuple[str, ...]
    auxiliary: tuple[str, ...]
    rule: PanelRule
    scope: PanelScope
    min_detection: float
    included: tuple[str, ...] = ()
    detection: Mapping[str, float] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Identify the ordered genes; two panels with one hash predict the same genes in the same order."""
        return hashlib.sha256(json.dumps([self.main, self.auxiliary]).encode()).hexdigest()[:16]

    def without_auxiliary(self) -> "GenePanel":
        """Return the main genes alone."""
        return replace(self, auxiliary=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GenePanel":
        """Read what `to_dict` wrote."""
        tuples = {key: tuple(values[key]) for key in ("main", "auxiliary", "included")}
        return cls(**{**values, **tuples})


def fit_panel(
    counts: sp.csr_matrix,
    genes: Sequence[str],
    *,
    rule: PanelRule = "top_mean",
    n_main: int = 250,
    include: Sequence[str] = (),
    listed: Sequence[str] = (),
    structure: Float[Array, "G"] | None = None,
    min_detection: float = 0.10,
    scope: PanelScope = "training",
) -> GenePanel:
    """Choose the main genes; every other gene that passes the filter is auxiliary.

    A gene passes the filter when it has a count in at least `min_detection` of the spots given. Genes of `include` (and
    of `listed`, for the rule `list`) are main whatever their detection. Included genes take places of the `n_main`, so
    panels with and without them have the same size. Ties are broken by name, so the order of the file does not matter.

    Args:
        counts: Raw counts of the spots the panel may see, spots x genes.
        genes: Gene names, in the order of the columns.
        rule: `top_mean` = highest mean raw count; `highly_variable` = scanpy's `seurat` dispersions on log
            normalized counts; `spatially_variable` = highest `structure`; `list` = exactly `listed`.
        n_main: Number of main genes; ignored by the rule `list`.
        include: Genes that must be main.
        listed: The main genes of the rule `list`, in order.
        structure: How smooth each gene is over the tissue, for the rule `spatially_variable`; counts do not know where their
            spots lie, so whoever does computes it. A gene that is NaN comes last.
        min_detection: Fraction of spots in [0, 1].
        scope: What the caller passed: training spots or the whole cohort. Recorded, not checked.

    Returns:
        The panel; main genes in the order of the rule (included ones first), auxiliary genes in the order of `genes`.

    Raises:
        GeneError: A named gene is absent, fewer than `n_main` genes pass the filter, or the rule lacks its `structure`.
    """
    column = {gene: i for i, gene in enumerate(genes)}
    for gene in (*include, *listed):
        if gene not in column:
            raise GeneError(f"gene {gene!r} of the panel is not in the cohort ({len(genes)} genes); {nearest(gene, genes)}")
    # counted, then divided: a mean of sparse ones adds up fractions, and misses 100 % by a rounding error
    detection = np.asarray((counts > 0).sum(axis=0)).ravel() / counts.shape[0]
    passing = {gene for gene, rate in zip(genes, detection, strict=True) if rate >= min_detection}
    if rule == "list":
        chosen = list(dict.fromkeys([*include, *listed]))
    else:
        ranked = _ranked(_worth(rule, counts, genes, structure), genes)
        chosen = list(dict.fromkeys([*include, *(gene for gene in ranked if gene in passing)]))[:n_main]
        if len(chosen) < n_main:
            raise GeneError(
                f"the panel asks for {n_main} main genes, but only {len(chosen)} of {len(genes)} genes have a count in at "
                f"least {min_detection:.0%} of the {counts.shape[0]} spots; lower protocol.panel.n_main or .min_detection"
            )
    main = set(chosen)
    return GenePanel(
        main=tuple(chosen),
        auxiliary=tuple(gene for gene in genes if gene in passing and gene not in main),
        rule=rule,
        scope=scope,
        min_detection=min_detection,
        included=tuple(include),
        detection={gene: round(float(detection[column[gene]]), 6) for gene in chosen},
    )


def _worth(
    rule: PanelRule, counts: sp.csr_matrix, genes: Sequence[str], structure: Float[Array, "G"] | None
) -> Float[Array, "G"]:
    if rule == "top_mean":
        means: Array = np.asarray(counts.mean(axis=0)).ravel()
        return means
    if rule == "highly_variable":
        return _dispersion(counts, genes)
    if structure is None or len(structure) != len(genes):
        raise GeneError(
            f"the rule {rule} needs the spatial structure of {len(genes)} genes, and got "
            f"{'none' if structure is None else len(structure)}; choose genes with stexpr.data.panels.fold_panel"
        )
    worth: Array = np.nan_to_num(np.asarray(structure, dtype=float), nan=-np.inf)
    return worth


def _ranked(worth: Float[Array, "G"], genes: Sequence[str]) -> list[str]:
    return [genes[i] for i in sorted(range(len(genes)), key=lambda i: (-worth[i], genes[i]))]


def _dispersion(counts: sp.csr_matrix, genes: Sequence[str]) -> Float[Array, "G"]:
    import anndata
    import scanpy

    spots = anndata.AnnData(counts.astype(np.float32))
    spots.var_names = list(genes)
    scanpy.pp.normalize_total(spots, target_sum=1e4)
    scanpy.pp.log1p(spots)
    table = scanpy.pp.highly_variable_genes(spots, flavor="seurat", inplace=False)
    dispersion: Array = np.asarray(table["dispersions_norm"], dtype=float)
    return np.nan_to_num(dispersion, nan=-np.inf)


@dataclass(frozen=True)
class ExpressionTransform:
    """The step from raw counts to expression.

    `library_log1p` is log1p(counts / library * target_sum), the library over every gene the cohort measured; `log1p` is
    log1p(counts); `stnet` is log((counts + 1) / (library + n_genes)) (He et al. 2020). Works on NumPy arrays and torch
    tensors alike, since it only uses arithmetic and the `log` functions handed in by `forward`.
    """

    kind: ExpressionKind = "library_log1p"
    target_sum: float = 1e4
    n_genes: int = 0

    def __post_init__(self) -> None:
        if self.kind == "stnet" and self.n_genes < 1:
            raise ConfigError("the stnet transform needs n_genes, the number of genes of the cohort")

    @property
    def lowest(self) -> float:
        """What no measured expression is below: 0, or no bound where the logarithm is of a share of the library."""
        return -np.inf if self.kind == "stnet" else 0.0

    def __call__(self, counts: Any, library: Any) -> Any:
        """Transform counts.

        Args:
            counts: Raw counts, spots x genes (NumPy array or torch tensor).
            library: Total counts of each spot over the whole library, one per spot, above 0.

        Returns:
            Expression in the shape and kind of `counts`.
        """
        per_spot = library[:, None]
        if self.kind == "library_log1p":
            return _log1p(counts / per_spot * self.target_sum)
        if self.kind == "log1p":
            return _log1p(counts)
        return _log1p(counts) - _log1p(per_spot + (self.n_genes - 1))


def _log1p(values: Any) -> Any:
    return np.log1p(values) if isinstance(values, np.ndarray) else values.log1p()


@dataclass(frozen=True)
class ExpressionScaler:
    """Per-gene mean and standard deviation of the training spots' expression.

    A gene that is constant over the training spots has no scale: its `sd` is 1, so its target is 0 everywhere.
    """

    mean: Float32[Array, "K"]
    sd: Float32[Array, "K"]

    @classmethod
    def fit(cls, expression: Float[Array, "S K"]) -> "ExpressionScaler":
        """Fit on the spots given, training spots only.

        Raises:
            GeneError: No spot, or a value that is not finite.
        """
        if not len(expression) or not np.isfinite(expression).all():
            raise GeneError(f"cannot scale expression of shape {expression.shape}: it is empty or not finite everywhere")
        mean = expression.mean(axis=0, dtype=np.float64)
        sd = expression.std(axis=0, dtype=np.float64)
        constant = sd <= 1e-6 * np.maximum(1.0, np.abs(mean))
        return cls(mean.astype(np.float32), np.where(constant, 1.0, sd).astype(np.float32))


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input.

    Attributes:
        mpp: Microns per pixel of the patches.
        window_px: Side of the field of view, in pixels at `mpp`; of several, of the largest, which is the patch.
        input_px: Side after resizing to what the backbone takes; equal to that of the smallest field of view unless that is
            below its minimum.
        stain: Color treatment of the patches: `none`, `reinhard`, `macenko` or `standardized`.
        mean: Per-channel mean subtracted after scaling to [0, 1].
        sd: Per-channel standard deviation divided by.
        fields_px: Sides of the centered fields of view the backbone sees, ascending; where none is given, the window alone.

    Raises:
        ConfigError: The fields of view are not as `checked_fields` wants them.
    """

    mpp: float
    window_px: int
    input_px: int
    stain: str
    mean: tuple[float, float, float]
    sd: tuple[float, float, float]
    fields_px: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields_px", checked_fields(self.fields_px, self.window_px))

    @property
    def spot_px(self) -> int:
        """Side of the smallest field of view: what a prediction is of, where the others are its surroundings."""
        return self.fields_px[0]

    @property
    def in_words(self) -> str:
        """What the backbone sees, such as `64 px at 0.5 um/px`."""
        scale = f"px at {self.mpp:g} um/px"
        if len(self.fields_px) == 1:
            return f"{self.window_px} {scale}"
        sides = f"{', '.join(map(str, self.fields_px[:-1]))} and {self.window_px}"
        return f"{self.window_px} {scale}, of which the network sees the middle {sides} px, each resized to {self.input_px} px"


def checked_fields(fields_px: Sequence[int], window_px: int) -> tuple[int, ...]:
    """Return the sides of the fields of view in a window; where none is given, it is one.

    Raises:
        ConfigError: They do not ascend from at least 1 px to the window's side.
    """
    fields = tuple(fields_px) or (window_px,)
    if fields[0] < 1 or fields[-1] != window_px or any(a >= b for a, b in pairwise(fields)):
        raise ConfigError(
            f"the fields of view {', '.join(map(str, fields))} px do not ascend to the side of the window, {window_px} px"
        )
    return fields
