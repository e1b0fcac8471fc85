"""The prediction of a slide as `.h5ad`: written a batch at a time, read whole or some genes of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Float64

from stexpr.errors import GeneError, nearest
from stexpr.inference.patches import Outputs
from stexpr.types import APPLICABLE, FEATURES, NOVELTY, SPATIAL, SPREAD

__all__ = ["PredictionFile", "check_genes", "foreign_patches", "most_varied", "read_prediction"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FOREIGN_ABOVE = 1.0
"""Novelty, in thresholds, above which a patch is not of the kind the model was trained on."""
_ROWS_AT_A_TIME = 8192
_MOMENTS = ("predicted_mean", "predicted_sd")


class PredictionFile:
    """An `.h5ad` whose matrices are filled row by row on the disk; in memory stays one number of each patch."""

    def __init__(self, path: Path, n: int, genes: Sequence[str], *, n_features: int, spread: bool, novelty: bool) -> None:
        """Make the file.

        Args:
            path: The file.
            n: Patches to come.
            genes: Of the predictions.
            n_features: Features to keep of each patch; 0 keeps none.
            spread: Whether the spread between networks is kept.
            novelty: Whether the model measures it.
        """
        from anndata.io import write_elem

        self._genes = list(genes)
        self._novelty = np.full(n if novelty else 0, np.nan, dtype=np.float32)
        self._done = 0
        self._shift: Float64[Array, G] | None = None
        self._sums = np.zeros((2, len(self._genes)))
        self._counted = 0
        self._file = h5py.File(path, "w")
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for group in ("layers", "obsm"):
            write_elem(self._file, group, {})
        self._matrices = {"expression": self._matrix("X", n, len(self._genes))}
        if spread:
            self._matrices["spread"] = self._matrix(f"layers/{SPREAD}", n, len(self._genes))
        if n_features:
            self._matrices["features"] = self._matrix(f"obsm/{FEATURES}", n, n_features)

    def __enter__(self) -> "PredictionFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, outputs: Outputs, *, abstain: bool) -> None:
        """Write the next patches.

        Args:
            outputs: Of the model.
            abstain: Withhold the predictions of foreign patches: they become NaN.
        """
        rows = slice(self._done, self._done + len(outputs.novelty))
        self._done = rows.stop
        fitting = np.ones(len(outputs.novelty), dtype=bool)
        if len(self._novelty):
            self._novelty[rows] = outputs.novelty
            fitting = outputs.novelty <= FOREIGN_ABOVE
        self._count(outputs.expression[fitting])
        values = outputs._asdict()
        if abstain and not fitting.all():
            for name in ("expression", "spread"):
                values[name] = np.where(fitting[:, None], values[name], np.float32(np.nan))
        for name, matrix in self._matrices.items():
            matrix[rows] = values[name]

    def finish(
        self,
        obs: pd.DataFrame,
        centers: Float64[Array, "N 2"],
        half_widths: Mapping[str, Float32[Array, "G"]],
        uns: dict[str, Any],
    ) -> None:
        """Write what stands beside the matrices.

        Args:
            obs: Of each patch; its novelty is added.
            centers: Level-0 px, x then y.
            half_widths: Of the prediction intervals of each gene, by column name.
            uns: As in AnnData.
        """
        from anndata.io import write_elem

        if len(self._novelty):
            obs = obs.assign(**{NOVELTY: self._novelty, APPLICABLE: self.applicable})
        var = pd.DataFrame({**self._moments(), **half_widths}, index=pd.Index(self._genes, dtype=object))
        for key, value in {"obs": obs, "var": var, f"obsm/{SPATIAL}": centers, "uns": uns}.items():
            write_elem(self._file, key, value)

    @property
    def applicable(self) -> Bool[Array, "N"]:
        """Which patches are of the kind the model was trained on; empty where the model cannot tell."""
        return self._novelty <= FOREIGN_ABOVE

    def _matrix(self, name: str, n: int, width: int) -> Any:
        matrix = self._file.create_dataset(name, shape=(n, width), dtype=np.float32)
        matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return matrix

    def _count(self, expression: Float32[Array, "B G"]) -> None:
        if not len(expression):
            return
        if self._shift is None:  # sums of differences keep their digits
            self._shift = expression.mean(axis=0, dtype=np.float64)
        away = expression - self._shift
        self._sums += np.stack([away.sum(axis=0), (away**2).sum(axis=0)])
        self._counted += len(expression)

    def _moments(self) -> dict[str, Float64[Array, "G"]]:
        """Return mean and SD of each gene over the applicable patches; NaN where there are none."""
        if self._shift is None:
            return {key: np.full(len(self._genes), np.nan) for key in _MOMENTS}
        mean, square = self._sums / self._counted
        return dict(zip(_MOMENTS, (self._shift + mean, np.sqrt(np.maximum(square - mean**2, 0))), strict=True))


def check_genes(asked: Iterable[str], known: Collection[str]) -> None:
    """Refuse genes that a model does not predict.

    Raises:
        GeneError: There is one.
    """
    for gene in asked:
        if gene not in known:
            raise GeneError(f"gene {gene!r} is not among the {len(known)} the model predicts; {nearest(gene, known)}")


def read_prediction(path: Path, genes: Sequence[str] | None = None) -> Any:
    """Read what `PredictionFile` wrote.

    Args:
        path: The file.
        genes: Read the predictions of these only, in this order, and neither spread nor features; None reads all there is.

    Returns:
        An AnnData.

    Raises:
        GeneError: The file lacks a gene.
    """
    import anndata
    from anndata.io import read_elem

    if genes is None:
        return anndata.read_h5ad(path)
    with h5py.File(path, "r") as file:
        var = read_elem(file["var"])
        check_genes(genes, var.index)
        columns = var.index.get_indexer(pd.Index(genes))
        whole = file["X"]
        expression = np.empty((len(whole), len(columns)), dtype=np.float32)
        for start in range(0, len(whole), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            expression[rows] = whole[rows][:, columns]
        obsm = {SPATIAL: read_elem(file[f"obsm/{SPATIAL}"])}
        return anndata.AnnData(
            expression, obs=read_elem(file["obs"]), var=var.iloc[columns], obsm=obsm, uns=read_elem(file["uns"])
        )


def foreign_patches(patches: Any) -> Bool[Array, "N"]:
    """Return which patches of a prediction are foreign; none where the model could not tell."""
    if APPLICABLE not in patches.obs:
        return np.zeros(patches.n_obs, dtype=bool)
    foreign: Array = ~patches.obs[APPLICABLE].to_numpy(dtype=bool)
    return foreign


def most_varied(path: Path, n: int = 3) -> list[str]:
    """Name the genes whose prediction varies most over the applicable patches of a slide, the most varied first."""
    from anndata.io import read_elem

    with h5py.File(path, "r") as file:
        spread = read_elem(file["var"])[_MOMENTS[1]]
    return [str(gene) for gene in spread.sort_values(ascending=False, kind="stable").index[:n]]
