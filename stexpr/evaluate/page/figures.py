"""The interactive figures of the page.

A figure is made without colors: a trace's `meta.role` names what it shows, and page.js paints roles in the colors of the
theme in use and shortens `layout.meta.names` to the width of the screen.
"""

import json
from html import escape
from typing import Any, Final, TypeAlias

import numpy as np

from stexpr.evaluate.page.view import BoardView

__all__ = [
    "FIGURE_GENES",
    "FIGURE_MODELS",
    "POINTS",
    "SCATTERED_MODELS",
    "as_plotly",
    "board_figures",
    "ceiling_figure",
    "distribution_figure",
    "evenly",
    "figure_json",
    "heat_map",
    "library",
    "named_rows",
    "pairs_figure",
    "scores_figure",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FIGURE_MODELS: Final = 40
FIGURE_GENES: Final = 400
SCATTERED_MODELS: Final = 12
POINTS: Final = 2000
SYMBOLS: Final = {"network": "circle", "baseline": "square", "reference": "diamond"}
ROW_PX: Final = 34
BAR: Final = {"thickness": 2.5, "width": 0}
QUANTILES: Final = (5, 25, 50, 75, 95)


def library() -> str:
    """Return plotly's JavaScript."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def board_figures(view: BoardView) -> dict[str, dict[str, Any]]:
    """Return the figures a board has, as plain JSON values, by the name of their place on the page."""
    plots = {"scores": scores_figure(view), "genes-spread": distribution_figure(view), "heat": heat_map(view)}
    if view.has_ceiling:
        plots["ceiling"] = ceiling_figure(view)
    if view.pairs:
        plots["auxiliary"] = pairs_figure(view)
    return plots


def as_plotly(figure: dict[str, Any]) -> Any:
    """Return a figure as a plotly object that stands alone, its rows named: for notebooks and dashboards.

    Args:
        figure: One of `board_figures`.
    """
    import plotly.graph_objects as go

    alone = go.Figure(figure)
    rows = (figure["layout"].get("meta") or {}).get("names")
    if rows:
        alone.update_yaxes(ticktext=rows, tickvals=list(range(len(rows))))
    return alone


def evenly(n: int, most: int) -> Array:
    """Return at most so many of n places, evenly spaced, the first and the last among them.

    Example:
        >>> evenly(9, 3).tolist(), evenly(3, 9).tolist()
        ([0, 4, 8], [0, 1, 2])
    """
    places: Array = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)) if n else np.zeros(0, dtype=int)
    return places


def scores_figure(view: BoardView) -> dict[str, Any]:
    """Draw mean r with its interval, each patient's r and the noise ceiling, one row per model."""
    models = view.models.head(FIGURE_MODELS)
    patients = view.patients.iloc[: len(models)]
    rows, columns = np.nonzero(patients.notna().to_numpy())
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "one patient",
            "x": patients.to_numpy(dtype=np.float32)[rows, columns],
            "y": (rows + 0.26).astype(np.float32),
            "customdata": [escape(str(name)) for name in patients.columns[columns]],
            "marker": {"size": 5},
            "meta": {"role": "patient"},
            "hovertemplate": "patient %{customdata}: r %{x:.3f}<extra></extra>",
        }
    ]
    for kind in dict.fromkeys(models["kind"]):
        own = models[(models["kind"] == kind) & models["r"].notna()]
        if own.empty:
            continue
        r = own["r"].to_numpy(dtype=np.float32)
        low, high = (own[column].to_numpy(dtype=np.float32) for column in ("r_low", "r_high"))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": str(kind),
                "x": r,
                "y": own.index.to_numpy(dtype=np.float32),
                "error_x": {"type": "data", "symmetric": False, "array": high - r, "arrayminus": r - low, **BAR},
                "customdata": [escape(str(name)) for name in own["model"]],
                "marker": {"size": 10, "symbol": SYMBOLS.get(str(kind), "circle")},
                "meta": {"role": str(kind)},
                "hovertemplate": "%{customdata}<br>mean r %{x:.3f}<extra></extra>",
            }
        )
    known = models[models["ceiling"].notna()]
    if len(known):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "noise ceiling",
                "x": known["ceiling"].to_numpy(dtype=np.float32),
                "y": known.index.to_numpy(dtype=np.float32),
                "marker": {"size": 16, "symbol": "line-ns-open", "line": {"width": 2}},
                "meta": {"role": "ceiling"},
                "hovertemplate": "mean noise ceiling %{x:.3f}<extra></extra>",
            }
        )
    note = {"x": 0, "text": "r undefined", "xanchor": "left", "xshift": 6, "showarrow": False}
    notes = [{**note, "y": int(place)} for place in models.index[models["r"].isna()]]
    return figure_json(
        traces, {**named_rows(view.names[: len(models)]), "xaxis": _r_axis("mean r over genes"), "annotations": notes}
    )


def distribution_figure(view: BoardView) -> dict[str, Any]:
    """Draw how r spreads over genes: a box per model, whiskers from the 5th to the 95th percentile."""
    shown = [place for place in range(min(len(view.names), FIGURE_MODELS)) if np.isfinite(view.r[:, place]).any()]
    columns = [(view.r[:, place], str(view.models["kind"].iloc[place]), view.names[place]) for place in shown]
    if view.has_ceiling:
        columns.append((view.genes["ceiling"].to_numpy(dtype=np.float64), "ceiling", "noise ceiling"))
    traces = []
    for row, (values, role, _) in enumerate(columns):
        low, q1, median, q3, high = (float(q) for q in np.nanpercentile(values, QUANTILES))
        traces.append(
            {
                "type": "box",
                "orientation": "h",
                "y": [row],
                "lowerfence": [low],
                "q1": [q1],
                "median": [median],
                "q3": [q3],
                "upperfence": [high],
                "name": "",
                "showlegend": False,
                "width": 0.55,
                "line": {"width": 1.5},
                "meta": {"role": role},
                "hoverinfo": "x",
            }
        )
    layout = {**named_rows([name for _, _, name in columns]), "xaxis": _r_axis("r of one gene")}
    return figure_json(traces, {**layout, "showlegend": False})


def heat_map(view: BoardView) -> dict[str, Any]:
    """Draw r of genes, at evenly spaced ranks, by model."""
    places, n_models = evenly(len(view.genes), FIGURE_GENES), min(len(view.names), FIGURE_MODELS)
    genes, r = view.genes.iloc[places], view.r[places, :n_models].T.astype(np.float32)
    trace = {
        "type": "heatmap",
        "z": r,
        "x": [f"{escape(str(gene))}, rank {rank}" for gene, rank in zip(genes["gene"], genes["rank"], strict=True)],
        "y": [escape(name) for name in view.names[:n_models]],
        "ygap": 1,
        "meta": {"role": "heat", "most": round(float(np.nanmax(np.abs(r), initial=0.1)), 3)},
        "colorbar": {"title": {"text": "r"}, "len": 1, "outlinewidth": 0},
        "hovertemplate": "%{x}<br>%{y}<br>r %{z:.3f}<extra></extra>",
        "hoverongaps": False,
    }
    layout = named_rows(view.names[:n_models], row_px=22)
    title = {"text": "genes, best first"}
    axis = {"type": "category", "title": title, "showgrid": False, "zeroline": False, "showticklabels": False, "ticks": ""}
    return figure_json([trace], {**layout, "yaxis": {**layout["yaxis"], "type": "category"}, "xaxis": axis})


def ceiling_figure(view: BoardView) -> dict[str, Any]:
    """Scatter r against each gene's noise ceiling, one model at a time; the picker of the page chooses it."""
    places = evenly(len(view.genes), POINTS)
    genes = view.genes.iloc[places]
    low, high = _range(view.r[places, :SCATTERED_MODELS], np.array([0.0]))
    left, right = _range(genes["ceiling"].to_numpy(dtype=np.float64), np.array([0.0]))
    traces: list[dict[str, Any]] = [_identity(min(low, left), max(high, right))]
    for column, model in enumerate(view.names[:SCATTERED_MODELS]):
        for bad, name, symbol in ((False, "gene", "circle"), (True, "unpredictable gene", "x")):
            rows = genes["unpredictable"].to_numpy() == bad
            if not rows.any():
                continue
            traces.append(
                {
                    **_points(name, symbol, genes["gene"].to_numpy()[rows]),
                    "x": genes["ceiling"].to_numpy(dtype=np.float32)[rows],
                    "y": view.r[places[rows], column].astype(np.float32),
                    "visible": column == view.leading,
                    "meta": {"role": "warn" if bad else str(view.models["kind"].iloc[column]), "group": model},
                    "hovertemplate": "%{customdata}<br>r %{y:.3f}, ceiling %{x:.3f}<extra></extra>",
                }
            )
    axes = {
        "xaxis": {**_r_axis("noise ceiling of the gene"), "range": [left, right]},
        "yaxis": {**_r_axis("r of the gene"), "range": [low, high]},
    }
    return figure_json(traces, {**axes, "height": 480})


def pairs_figure(view: BoardView) -> dict[str, Any]:
    """Scatter r with against r without auxiliary genes, one network at a time; the picker of the page chooses it."""
    places = evenly(len(view.genes), POINTS)
    low, high = _range(view.r[np.ix_(places, np.array([place for pair in view.pairs for place in (pair.without, pair.added)]))])
    traces: list[dict[str, Any]] = [_identity(low, high)]
    for i, pair in enumerate(view.pairs):
        without, added = (view.r[places, place].astype(np.float32) for place in (pair.without, pair.added))
        traces.append(
            {
                **_points("gene", "circle", view.genes["gene"].to_numpy()[places]),
                "x": without,
                "y": added,
                "visible": i == 0,
                "meta": {"role": "network", "group": view.names[pair.added]},
                "hovertemplate": "%{customdata}<br>r without %{x:.3f}, with %{y:.3f}<extra></extra>",
            }
        )
    axes = {
        "xaxis": {**_r_axis("r without auxiliary genes"), "range": [low, high]},
        "yaxis": {**_r_axis("r with auxiliary genes"), "range": [low, high]},
    }
    return figure_json(traces, {**axes, "height": 480})


def _range(*values: Array) -> tuple[float, float]:
    """Return the lowest and highest defined value with a margin; -1 and 1 where none is defined."""
    known = np.concatenate([part[np.isfinite(part)] for part in values])
    if not len(known):
        return -1.0, 1.0
    margin = 0.05 * (float(np.ptp(known)) or 1.0)
    return float(known.min()) - margin, float(known.max()) + margin


def _identity(low: float, high: float) -> dict[str, Any]:
    line = {"type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "line": {"width": 1, "dash": "dash"}}
    return {**line, "name": "equal", "meta": {"role": "identity"}, "hoverinfo": "skip"}


def _points(name: str, symbol: str, genes: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "customdata": [escape(str(gene)) for gene in genes],
        "marker": {"size": 7, "symbol": symbol, "opacity": 0.75},
    }


def named_rows(names: list[str], row_px: int = ROW_PX) -> dict[str, Any]:
    """Give every name a row, the first on top."""
    places = list(range(len(names)))
    axis = {"tickvals": places, "range": [len(names) - 0.4, -0.6], "showgrid": False, "zeroline": False}
    return {"yaxis": axis, "meta": {"names": names}, "height": 130 + row_px * len(names)}


def _r_axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "zeroline": True}


def figure_json(traces: list[dict[str, Any]], layout: dict[str, Any]) -> dict[str, Any]:
    """Let plotly check the figure and bring it into plain JSON values; the template is left to the page."""
    import plotly.graph_objects as go

    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    figure = go.Figure(traces, {"legend": legend, "hovermode": "closest", **layout, "template": "none"})
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain
