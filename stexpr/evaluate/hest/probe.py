"""The HEST-Benchmark probe: PCA and ridge regression on the features of a frozen encoder, and three variants of it.

Read from the benchmark's own code (github.com/mahmoodlab/HEST, src/hest/bench), because the paper leaves out what decides
the third digit: PCA with seed 1 after standardizing, components rounded to float32, then ridge in float64 by LSQR at
scikit-learn's default tolerance, alpha = 100 / (components x genes), no intercept.

Reference:
    Jaume et al., HEST-1k: a dataset for spatial transcriptomics and histology image analysis, NeurIPS 2024.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Float64

from stexpr.errors import DataError, GeneError
from stexpr.evaluate.metrics import constant_per_gene, pearson_per_gene, rmse_per_gene
from stexpr.panel import fit_panel

__all__ = ["VARIANTS", "ProbeSection", "VariantScore", "probe", "training_genes"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Variant: TypeAlias = Literal["hest", "intercept", "training_genes", "within_section"]

VARIANTS: Final[dict[Variant, str]] = {
    "hest": "HEST",
    "intercept": "+ intercept",
    "training_genes": "training genes",
    "within_section": "within-section r",
}
"""Variant -> heading. Each changes one thing of the first."""
N_COMPONENTS: Final = 256
SEED: Final = 1
MIN_DETECTION: Final = 0.10
NO_GENES: Final = ("BLANK", "Control")
"""What marks a Xenium probe that is no gene; HEST leaves these out when it chooses genes."""


@dataclass(frozen=True)
class ProbeSection:
    """One sample of the benchmark: features and raw counts of the same spots in the same order."""

    sample: str
    features: Float32[Array, "S D"]
    genes: tuple[str, ...]
    counts: sp.csr_matrix

    def expression(self, genes: Sequence[str]) -> Float64[Array, "S G"]:
        """Return log1p of the raw counts of these genes, without any library size, as the benchmark does."""
        column = {gene: i for i, gene in enumerate(self.genes)}
        chosen: Array = self.counts[:, [column[gene] for gene in genes]].toarray()
        return np.log1p(chosen.astype(np.float64))


@dataclass(frozen=True)
class VariantScore:
    """One variant on one fold.

    Attributes:
        genes: Names, in the order of the arrays.
        r: Pearson's r per gene over the test spots; NaN where undefined. Of `within_section` the mean over the sections
            where it is defined.
        rmse: Root mean squared error per gene, log1p counts; of `within_section` the mean over sections.
        n_undefined: How many r are undefined (a constant gene or prediction), of `n_values`.
        n_values: Genes; of `within_section` genes x sections.
    """

    genes: tuple[str, ...]
    r: Float64[Array, "G"]
    rmse: Float64[Array, "G"]
    n_undefined: int
    n_values: int

    @property
    def mean_r(self) -> float:
        """Mean r over the genes that have one; NaN if none has."""
        return _mean(self.r)

    @property
    def mean_rmse(self) -> float:
        """Mean RMSE over the genes that have one; NaN if none has."""
        return _mean(self.rmse)


def probe(
    train: Sequence[ProbeSection], test: Sequence[ProbeSection], genes: Sequence[str]
) -> tuple[Mapping[Variant, VariantScore], int]:
    """Fit the probe on the training samples and score it on the test samples, in all variants.

    `hest` is the benchmark. `intercept` also fits one; as PCA centers the training features, it moves every prediction of
    a gene by the same amount, so r stays within the solver's tolerance and only the error shrinks. `training_genes` scores
    genes chosen on the training samples alone. `within_section` takes r per test sample, then their mean: a pooled r also
    rewards telling two samples apart.

    A gene that is constant in training has nothing to be learned from: its prediction is constant and its r NaN, in every
    variant, where the plain solver would leave rounding to be correlated.

    The components are the first 256, or where there are fewer features or training spots, all features or one less than
    the spots; the benchmark's own code stops there.

    Returns:
        The scores by variant, and the number of components.

    Raises:
        DataError: Fewer than two training spots.
        MetricError: Fewer than two test spots.
        GeneError: No gene can be chosen on the training samples.
    """
    train_x, test_x = _components(*(np.concatenate([s.features for s in side]) for side in (train, test)))
    sizes = [len(section.features) for section in test]

    def measure(side: Sequence[ProbeSection], names: Sequence[str]) -> Float64[Array, "S G"]:
        return np.concatenate([section.expression(names) for section in side])

    given, own = tuple(genes), training_genes(train, test, len(genes))
    train_y, test_y = measure(train, given), measure(test, given)
    plain = _ridge(train_x, train_y, test_x)
    shifted = _ridge(train_x, train_y, test_x, intercept=True)
    refitted = _ridge(train_x, measure(train, own), test_x)
    return {
        "hest": _pooled(given, plain, test_y),
        "intercept": _pooled(given, shifted, test_y),
        "training_genes": _pooled(own, refitted, measure(test, own)),
        "within_section": _by_section(given, plain, test_y, sizes),
    }, train_x.shape[1]


def training_genes(train: Sequence[ProbeSection], test: Sequence[ProbeSection], n_genes: int) -> tuple[str, ...]:
    """Choose the most variable genes of the training samples, among the genes that every sample of the fold names.

    The rule is `fit_panel`'s `highly_variable` (scanpy's `seurat` on library-size-normalized log counts, genes in at least
    10 % of the training spots); of the test samples only the gene names are read. Where fewer genes pass, all of them are
    taken.

    Raises:
        GeneError: No gene passes.
    """
    shared = set.intersection(*(set(section.genes) for section in (*train, *test)))
    names = sorted(gene for gene in shared if not any(mark in gene for mark in NO_GENES))
    parts = []
    for section in train:
        column = {gene: i for i, gene in enumerate(section.genes)}
        parts.append(section.counts[:, [column[gene] for gene in names]])
    counts = sp.csr_matrix(sp.vstack(parts, format="csr"))
    passing = int((np.asarray((counts > 0).mean(axis=0)).ravel() >= MIN_DETECTION).sum())
    if not passing:
        raise GeneError(f"none of the {len(names)} genes of all samples is seen in {MIN_DETECTION:.0%} of the training spots")
    panel = fit_panel(counts, names, rule="highly_variable", n_main=min(n_genes, passing), min_detection=MIN_DETECTION)
    return panel.main


def _components(
    train: Float32[Array, "N D"], test: Float32[Array, "S D"]
) -> tuple[Float64[Array, "N K"], Float64[Array, "S K"]]:
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n = min(N_COMPONENTS, train.shape[1], len(train) - 1)
    if n < 1:
        raise DataError(f"{len(train)} training spots have no components; the probe needs at least 2")
    pipeline = make_pipeline(StandardScaler(), PCA(n_components=n, random_state=SEED))
    # the benchmark puts the components into torch's float32, of which scikit-learn's regression makes float64 again
    train_x: Array = pipeline.fit_transform(train).astype(np.float32).astype(np.float64)
    test_x: Array = pipeline.transform(test).astype(np.float32).astype(np.float64)
    return train_x, test_x


def _ridge(
    train_x: Float64[Array, "N K"], train_y: Float64[Array, "N G"], test_x: Float64[Array, "S K"], *, intercept: bool = False
) -> Float64[Array, "S G"]:
    from sklearn.linear_model import Ridge

    alpha = 100 / (train_x.shape[1] * train_y.shape[1])
    model = Ridge(solver="lsqr", alpha=alpha, random_state=SEED, fit_intercept=intercept, max_iter=1000)
    predicted: Array = model.fit(train_x, train_y).predict(test_x).reshape(len(test_x), -1)
    constant = constant_per_gene(train_y)
    predicted[:, constant] = train_y[0, constant] if intercept else 0
    return predicted


def _pooled(genes: tuple[str, ...], predicted: Float64[Array, "S G"], measured: Float64[Array, "S G"]) -> VariantScore:
    r = pearson_per_gene(predicted, measured)
    return VariantScore(genes, r, rmse_per_gene(predicted, measured), int(np.isnan(r).sum()), r.size)


def _by_section(
    genes: tuple[str, ...], predicted: Float64[Array, "S G"], measured: Float64[Array, "S G"], sizes: Sequence[int]
) -> VariantScore:
    r, rmse = np.full((2, len(sizes), len(genes)), np.nan)
    for i, rows in enumerate(np.split(np.arange(len(predicted)), np.cumsum(sizes)[:-1])):
        if len(rows) > 1:  # a single spot has no spread
            r[i] = pearson_per_gene(predicted[rows], measured[rows])
            rmse[i] = rmse_per_gene(predicted[rows], measured[rows])
    means = [np.array([_mean(column) for column in values.T]) for values in (r, rmse)]
    return VariantScore(genes, means[0], means[1], int(np.isnan(r).sum()), r.size)


def _mean(values: Float64[Array, "N"]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
