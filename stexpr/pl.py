"""Figures for papers, scanpy style: each call returns a matplotlib Figure and, with `save=`, writes it.

A PDF holds its text as text and neither date nor version, so the same numbers give the same file.
"""

from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float

from stexpr.config.files import write_whole
from stexpr.errors import DataError, GeneError, MetricError, nearest
from stexpr.evaluate import figures
from stexpr.evaluate.leaderboard import Leaderboard
from stexpr.types import MEASURED

__all__ = ["gene_map", "gene_ranks", "leaderboard", "r_vs_ceiling"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FORMATS: Final = (".pdf", ".png", ".svg")


def leaderboard(board: Leaderboard, *, save: str | Path | None = None) -> Any:
    """Draw every model's mean r with its interval, each patient's r and the noise ceiling.

    Args:
        board: From `build_leaderboard`.
        save: File to write, ending in .pdf, .png or .svg.

    Returns:
        A matplotlib Figure, unattached to any window.

    Raises:
        DataError: The file has another ending or cannot be written.
    """
    return _saved(figures.leaderboard_figure(board.title, board.models, board.patients), save)


def gene_map(predictions: Any, gene: str, *, section: str | None = None, save: str | Path | None = None) -> Any:
    """Draw measured beside predicted expression of a gene over the spots of a section.

    Args:
        predictions: AnnData of a run's `predictions.h5ad`, or the path of the file.
        gene: Name of the gene.
        section: Name of the section; may be left out where there is only one.
        save: File to write, ending in .pdf, .png or .svg.

    Returns:
        A matplotlib Figure, unattached to any window.

    Raises:
        GeneError: The predictions do not hold the gene.
        DataError: They do not hold the section, or several and none is chosen; the file cannot be read or written.
    """
    if isinstance(predictions, (str, Path)):
        predictions = _read(Path(predictions))
    if gene not in predictions.var_names:
        raise GeneError(f"the predictions hold no gene {gene!r}; {nearest(gene, predictions.var_names)}")
    sections = predictions.obs["section"].astype(str)
    names = list(dict.fromkeys(sections))
    if section is None and len(names) > 1:
        raise DataError(f"the predictions hold {len(names)} sections; choose one with section=: {', '.join(names[:12])}")
    if section is not None and section not in names:
        raise DataError(f"the predictions hold no section {section!r}; {nearest(section, names)}")
    own = predictions[(sections == (section or names[0])).to_numpy(), gene]
    figure = figures.gene_map_figure(
        own.obs["x_um"].to_numpy(dtype=np.float64),
        own.obs["y_um"].to_numpy(dtype=np.float64),
        np.asarray(own.layers[MEASURED]).ravel(),
        np.asarray(own.X).ravel(),
        f"{gene} in {section or names[0]}",
    )
    return _saved(figure, save)


def r_vs_ceiling(board: Leaderboard, model: str | None = None, *, save: str | Path | None = None) -> Any:
    """Scatter the genes of a model: r against the noise ceiling, unpredictable genes as crosses.

    Args:
        board: From `build_leaderboard`.
        model: Label of the model; the best network by default.
        save: File to write, ending in .pdf, .png or .svg.

    Returns:
        A matplotlib Figure, unattached to any window.

    Raises:
        MetricError: The board has no noise ceilings.
        DataError: It has no such model; the file has another ending or cannot be written.
    """
    model = _model(board, model)
    ceiling = _ceiling(board)
    if not np.isfinite(ceiling).any():
        raise MetricError(f"the board {board.title} holds no noise ceiling; build it from the cohort with stexpr leaderboard")
    bad = board.genes["unpredictable"].to_numpy(dtype=bool) if "unpredictable" in board.genes else np.zeros(len(ceiling), bool)
    kind = str(board.models.set_index("model").loc[model, "kind"])
    r = board.genes[model].to_numpy(dtype=np.float64)
    return _saved(figures.r_vs_ceiling_figure(ceiling, r, bad, f"{model}: {board.title}", kind), save)


def gene_ranks(board: Leaderboard, model: str | None = None, *, n: int = 30, save: str | Path | None = None) -> Any:
    """Draw a model's best genes by mean r, with the noise ceiling of each.

    Which genes are best was seen on test data: the figure describes, it does not select a panel.

    Args:
        board: From `build_leaderboard`.
        model: Label of the model; the best network by default.
        n: How many genes.
        save: File to write, ending in .pdf, .png or .svg.

    Returns:
        A matplotlib Figure, unattached to any window.

    Raises:
        MetricError: The model's r is undefined for every gene.
        DataError: The board has no such model; the file has another ending or cannot be written.
    """
    model = _model(board, model)
    table = pd.DataFrame({"gene": board.genes["gene"], "r": board.genes[model], "ceiling": _ceiling(board)})
    table = table.dropna(subset="r").sort_values(["r", "gene"], ascending=[False, True])
    if table.empty:
        raise MetricError(f"r of {model} is undefined for every gene, so none can be ranked")
    best = table.head(n)
    r, ceiling = (best[column].to_numpy(dtype=np.float64) for column in ("r", "ceiling"))
    title = f"{model}: the best {len(best)} of {len(board.genes):,} genes"
    return _saved(figures.gene_ranks_figure([str(gene) for gene in best["gene"]], r, ceiling, title), save)


def _model(board: Leaderboard, model: str | None) -> str:
    if model is None:
        networks = board.models[board.models["kind"] == "network"]
        return str((networks if len(networks) else board.models)["model"].iloc[0])
    if model not in set(board.models["model"]):
        raise DataError(f"the board has no model {model!r}; {nearest(model, board.models['model'])}")
    return model


def _ceiling(board: Leaderboard) -> Float[Array, "G"]:
    return board.genes.get("ceiling", pd.Series(np.nan, board.genes.index)).to_numpy(dtype=np.float64)


def _read(path: Path) -> Any:
    import anndata

    try:
        return anndata.read_h5ad(path)
    except OSError as err:
        raise DataError(f"cannot read {path}: {err.strerror or err}; give the predictions.h5ad of a run") from err


def _saved(figure: Any, save: str | Path | None) -> Any:
    if save is not None:
        path = Path(save)
        if path.suffix.lower() not in FORMATS:
            raise DataError(f"cannot save a figure as {path.name!r}; the name must end in {', '.join(FORMATS)}")
        kind = path.suffix.lower().removeprefix(".")
        write_whole(path, partial(figures.save_figure, figure, kind=kind))
    return figure
