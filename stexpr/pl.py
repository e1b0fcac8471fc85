"""Figures for papers, scanpy style: each call returns a matplotlib Figure and, with `save=`, writes it.

A PDF holds its text as text and neither date nor version, so the same numbers give the same file.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from stexpr.config.files import write_whole
from stexpr.data.tissue_image import ImageSource, find_image, spot_centers
from stexpr.errors import DataError, GeneError, MetricError, ModelError, nearest
from stexpr.evaluate import figures, tissue_maps
from stexpr.evaluate.leaderboard import Leaderboard
from stexpr.evaluate.measured import measured_of
from stexpr.evaluate.risk_coverage import RiskCoverage
from stexpr.types import MEASURED

if TYPE_CHECKING:
    from stexpr.models.export import LoadedModel
else:  # torch takes seconds to import, and only one figure needs a model
    LoadedModel = Any

__all__ = ["embedding_map", "gene_map", "gene_ranks", "leaderboard", "r_vs_ceiling", "risk_coverage"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FORMATS: Final = (".pdf", ".png", ".svg")
BACKGROUND_PX: Final = 2000


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


def gene_map(
    predictions: Any,
    gene: str,
    *,
    section: str | None = None,
    section_key: str = "section",
    key: str = "stexpr_expression",
    layer: str | None = None,
    gene_symbols: str | None = None,
    image: ImageSource | bool = False,
    library_id: str | None = None,
    save: str | Path | None = None,
) -> Any:
    """Draw measured beside predicted expression of a gene over the spots of a section.

    Takes the predictions of a run (measured and predicted side by side), an AnnData after `stexpr.tl.predict_expression` (the
    prediction in `obsm[key]`, beside it what was measured of the gene, if it was), or the new AnnData that this function
    returns (the prediction alone).

    Args:
        predictions: AnnData, or the path of a run's `predictions.h5ad`.
        gene: Name of the gene, as the model has it.
        section: Name of the section; may be left out where there is only one.
        section_key: Column of `obs` with the sections; without such a column all spots are of one.
        key: Key of the prediction in `obsm`.
        layer: Where the raw counts are, after `predict_expression`; as in `stexpr.tl.score_prediction`.
        gene_symbols: Column of `var` with the model's gene names, likewise.
        image: Draw over the tissue: True takes the picture of `uns["spatial"]`, else the full-resolution image.
        library_id: Key in `uns["spatial"]`; needed for `image=True` where there are several.
        save: File to write, ending in .pdf, .png or .svg.

    Returns:
        A matplotlib Figure, unattached to any window.

    Raises:
        GeneError: The predictions do not hold the gene.
        DataError: They do not hold the section, or several and none is chosen; there are neither counts nor an image where they
            are asked for; the file cannot be read or written.
    """
    if isinstance(predictions, (str, Path)):
        predictions = _read(Path(predictions))
    table = predictions.obsm.get(key)
    genes = predictions.var_names if table is None else table.columns
    if gene not in genes:
        raise GeneError(f"the predictions hold no gene {gene!r}; {nearest(gene, genes)}")
    rows, name = _section(predictions, section, section_key)
    measured = None
    if table is not None:
        predicted = table[gene].to_numpy(dtype=np.float64)
        measured = measured_of(predictions, key, gene, layer=layer, gene_symbols=gene_symbols)
    else:
        own = predictions[:, gene]
        predicted = np.asarray(own.X, dtype=np.float64).ravel()
        if MEASURED in predictions.layers:
            measured = np.asarray(own.layers[MEASURED], dtype=np.float64).ravel()
    x, y, background = _places(predictions, rows, image, library_id)
    title = f"{gene} in {name}" if name else gene
    shown = None if measured is None else measured[rows]
    return _saved(tissue_maps.gene_map_figure(x, y, shown, predicted[rows], title, background), save)


def embedding_map(
    adata: Any,
    key: str = "X_stexpr",
    *,
    section: str | None = None,
    section_key: str = "section",
    image: ImageSource | bool = False,
    library_id: str | None = None,
    save: str | Path | None = None,
) -> Any:
    """Draw features over the tissue, or a column of `obs` such as domains or novelty.

    Features become colors by their first three principal components (red, green, blue) over all spots of `adata`, so that
    sections can be compared. Spots without a value are gray.

    Args:
        adata: After `stexpr.tl.embed`.
        key: Key in `obsm`, or a column of `obs`: categories get a color each, numbers a scale.
        section: Name of the section; may be left out where there is only one.
        section_key: Column of `obs` with the sections; without such a column all spots are of one.
        image: As in `gene_map`.
        library_id: As in `gene_map`.
        save: File to write, ending in .pdf, .png or .svg.

    Returns:
        A matplotlib Figure, unattached to any window.

    Raises:
        DataError: There is no such key or section, or no image where one is asked for; the file cannot be written.
    """
    if key not in adata.obsm and key not in adata.obs:
        raise DataError(f"neither obsm nor obs has {key!r}; {nearest(key, [*adata.obsm, *map(str, adata.obs.columns)])}")
    rows, name = _section(adata, section, section_key)
    x, y, background = _places(adata, rows, image, library_id)
    title = f"{key} in {name}" if name else key
    if key in adata.obsm:
        values = np.asarray(adata.obsm[key], dtype=np.float64)
        colors, shares = tissue_maps.feature_colors(values)
        parts = ", ".join(f"{color} {share:.0%}" for color, share in zip(("red", "green", "blue"), shares, strict=True))
        caption = f"principal components: {parts} of variance"
        return _saved(tissue_maps.rgb_map_figure(x, y, colors[rows], title, caption, background), save)
    column = adata.obs[key].iloc[rows]
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return _saved(tissue_maps.value_map_figure(x, y, column.to_numpy(dtype=np.float64), title, background), save)
    domains = adata.obs[key].astype("category").cat
    names = [str(domain) for domain in domains.categories]
    codes = domains.codes.to_numpy()[rows].astype(np.int64)
    return _saved(tissue_maps.domain_map_figure(x, y, codes, names, title, background), save)


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


def risk_coverage(model: LoadedModel | str | Path, *, save: str | Path | None = None) -> Any:
    """Draw what abstaining where a patch is foreign is worth: the error of held-out spots against the share of them kept.

    Args:
        model: From `stexpr.load_model`, or the folder that `stexpr export` wrote.
        save: File to write, ending in .pdf, .png or .svg.

    Returns:
        A matplotlib Figure, unattached to any window.

    Raises:
        ModelError: The model cannot be read, or was not exported with its cohort at hand.
        DataError: The file has another ending or cannot be written.
    """
    from stexpr.models.export import load_model

    loaded = load_model(model) if isinstance(model, str | Path) else model
    if loaded.release.risk_coverage is None:
        raise ModelError("the model knows no held-out patches; export its runs with stexpr export, with the cohort at hand")
    curve = RiskCoverage.from_dict(loaded.release.risk_coverage)
    title = f"{loaded.provenance.get('label', 'model')}: abstaining by novelty saves {curve.gain:.1%}"
    return _saved(figures.risk_coverage_figure(curve, title), save)


def _model(board: Leaderboard, model: str | None) -> str:
    if model is None:
        networks = board.models[board.models["kind"] == "network"]
        return str((networks if len(networks) else board.models)["model"].iloc[0])
    if model not in set(board.models["model"]):
        raise DataError(f"the board has no model {model!r}; {nearest(model, board.models['model'])}")
    return model


def _ceiling(board: Leaderboard) -> Float[Array, "G"]:
    return board.genes.get("ceiling", pd.Series(np.nan, board.genes.index)).to_numpy(dtype=np.float64)


def _section(adata: Any, section: str | None, section_key: str) -> tuple[Int[Array, "S"], str]:
    """Return the spots of a section, and its name (empty: none)."""
    if section_key not in adata.obs:
        if section is not None:
            raise DataError(f"there is no section {section!r}: obs has no column {section_key!r}; name it with section_key=")
        return np.arange(adata.n_obs), ""
    sections = adata.obs[section_key].astype(str)
    names = list(dict.fromkeys(sections))
    if section is None and len(names) > 1:
        raise DataError(f"the predictions hold {len(names)} sections; choose one with section=: {', '.join(names[:12])}")
    if section is not None and section not in names:
        raise DataError(f"the predictions hold no section {section!r}; {nearest(section, names)}")
    return np.flatnonzero(sections == (section or names[0])), section or names[0]


def _places(
    adata: Any, rows: Int[Array, "S"], image: Any, library_id: str | None
) -> tuple[Float[Array, "S"], Float[Array, "S"], tissue_maps.Background | None]:
    """Return where to draw the spots, and over what."""
    if image is False and {"x_um", "y_um"} <= set(adata.obs):
        x, y = (adata.obs[axis].to_numpy(dtype=np.float64)[rows] for axis in ("x_um", "y_um"))
        return x, y, None
    x, y = spot_centers(adata)[rows].T
    if image is False:
        return x, y, None
    found = find_image(adata, None if image is True else image, library_id)
    with found.image as opened:
        pixels = opened.thumbnail(BACKGROUND_PX)
        return x, y, tissue_maps.Background(pixels, opened.width / found.scale, opened.height / found.scale)


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
        write_whole(path, partial(figures.save_figure, figure, kind=path.suffix.lower().removeprefix(".")))
    return figure
