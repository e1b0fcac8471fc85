"""The interactive figures of a slide board; page.js gives them their colors, see `page.figures`."""

from html import escape
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float

from stexpr.evaluate.page.figures import BAR, FIGURE_MODELS, SYMBOLS, figure_json, named_rows
from stexpr.evaluate.slides.board import SlideBoard
from stexpr.evaluate.slides.figures import legible, volcano_points
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.measures import MEASURES, heading_of
from stexpr.evaluate.slides.survival_tables import GROUPS
from stexpr.evaluate.testing import ALPHA

__all__ = [
    "agreement_figures",
    "choices",
    "compared_heads",
    "forest",
    "label_of",
    "ranking",
    "reliability",
    "survival_curves",
    "volcano",
]

RISK_ROLES: Final = {GROUPS[0]: "network", GROUPS[1]: "warn"}
NAME_WIDTH: Final = 0.16
APART: Final = 0.16
"""Rows a head and its baseline lie above and below their target."""


def label_of(target: object, model: object) -> str:
    """Name one head on one target in a picker."""
    return f"{target}: {model}"


def choices(frame: pd.DataFrame) -> list[str]:
    """Name what a picker offers: target by target, heads best first."""
    pairs = dict.fromkeys(zip(frame["target"], frame["model"], strict=True))
    targets = list(dict.fromkeys(target for target, _ in pairs))
    return [label_of(*pair) for pair in sorted(pairs, key=lambda pair: targets.index(pair[0]))]


def compared_heads(board: SlideBoard) -> list[str]:
    """Return the heads that are held against their color baselines, best first; all where there are only baselines."""
    heads = board.models.loc[board.models["kind"] != "baseline", "model"].tolist()
    return heads or board.models["model"].tolist()


def ranking(board: SlideBoard) -> dict[str, Any]:
    """Draw the mean score of every head and, as dots, its single targets."""
    models = board.models.head(FIGURE_MODELS)
    place = {name: row for row, name in enumerate(models["model"])}
    single = board.targets[
        board.targets["model"].isin(place)
        & (board.targets["measure"] == models["measure"].iloc[0])
        & board.targets["score"].notna()
    ]
    hover = [f"{escape(str(target))}: %{{x:.3f}}" for target in single["target"]]
    traces: list[dict[str, Any]] = [
        {
            **_markers("one target", "patient", size=5),
            "x": _plain(single["score"]),
            "y": [place[name] + 0.26 for name in single["model"]],
            "hovertemplate": [f"{text}<extra></extra>" for text in hover],
        }
    ]
    for kind in dict.fromkeys(models["kind"]):
        own = models[(models["kind"] == kind) & models["score"].notna()]
        traces.append(
            {
                **_markers(str(kind), str(kind), symbol=SYMBOLS.get(str(kind), "circle"), size=10),
                "x": _plain(own["score"]),
                "y": [place[name] for name in own["model"]],
                **_bars(own),
                "customdata": [escape(str(name)) for name in own["model"]],
                "hovertemplate": "%{customdata}<br>mean %{x:.3f}<extra></extra>",
            }
        )
    axis = {"title": {"text": f"mean {heading_of(models['measure'].iloc[0])} over tested targets"}, "zeroline": False}
    note = {"x": 0.5, "xref": "paper", "text": "score undefined", "showarrow": False}
    notes = [{**note, "y": place[name]} for name in models.loc[models["score"].isna(), "model"]]
    return figure_json(traces, {**named_rows([str(name) for name in place]), "xaxis": axis, "annotations": notes})


def forest(board: SlideBoard, kind: str, targets: list[str]) -> dict[str, Any]:
    """Draw one head's score on every target with its interval, and that of its color baseline below; a picker takes the head.

    Args:
        board: The board.
        kind: Of the targets.
        targets: At most so many rows, in their order.
    """
    measure = MEASURES[kind][0]  # type: ignore[index]
    place = {name: row for row, name in enumerate(targets)}
    own = board.targets[board.targets["target"].isin(place) & board.targets["score"].notna()]
    traces: list[dict[str, Any]] = []
    if measure.chance is not None:
        traces.append(_line("chance", [measure.chance] * 2, [-0.6, len(targets) - 0.4]))
    for head in compared_heads(board):
        for model, shift in ((head, -APART), (board.baseline_of(head), APART)):
            part = own[own["model"] == model]
            if model is None or part.empty:
                continue
            role = str(part["kind"].iloc[0])
            traces.append(
                {
                    **_markers(
                        "color baseline" if role == "baseline" else "head",
                        role,
                        symbol=SYMBOLS.get(role, "circle"),
                        size=8,
                        group=head,
                    ),
                    "x": _plain(part["score"]),
                    "y": [place[name] + shift for name in part["target"]],
                    **_bars(part),
                    "customdata": [f"{escape(str(row['target']))}, p {row['p']:.2g}" for row in part.to_dict("records")],
                    "hovertemplate": f"%{{customdata}}<br>{measure.heading} %{{x:.3f}}<extra></extra>",
                }
            )
    axis = {"title": {"text": f"{measure.heading} within folds"}, "zeroline": False}
    return figure_json(traces, {**named_rows(targets), "xaxis": axis})


def volcano(board: SlideBoard) -> dict[str, Any]:
    """Draw effect against p of the yes-or-no targets; a picker takes the head, its color baseline stays behind."""
    every = pd.concat([volcano_points(board, name) for name in board.models["model"]])
    traces = [_line("chance", [0.5, 0.5], [0.0, float(every["log_p"].max())])]
    for head in compared_heads(board):
        baseline = board.baseline_of(head)
        if baseline is not None:
            traces.append(_genes(volcano_points(board, baseline), "color baseline", "baseline", "square", head))
        found = volcano_points(board, head)
        for seen, role, name in ((True, "network", f"q ≤ {ALPHA}"), (False, "patient", f"q > {ALPHA}")):
            part = found[found["significant"] == seen]
            if len(part):
                traces.append(_genes(part, name, role, "circle", head, named=seen))
    layout = {
        "xaxis": {"title": {"text": "AUROC within folds"}, "zeroline": False},
        "yaxis": {"title": {"text": "−log10 p"}, "rangemode": "tozero"},
        "height": 460,
    }
    return figure_json(traces, layout)


def _genes(part: pd.DataFrame, name: str, role: str, symbol: str, group: str, named: bool = False) -> dict[str, Any]:
    names = [escape(str(target)) for target in part["target"]]
    top = legible(part, NAME_WIDTH)
    written = {
        "mode": "markers+text",
        "text": [text if target in top else "" for text, target in zip(names, part["target"], strict=True)],
        "textposition": "top center",
        "textfont": {"size": 11},
        "cliponaxis": False,
    }
    return {
        **_markers(name, role, symbol=symbol, size=8 if role == "network" else 6, group=group),
        **(written if named else {}),
        "x": _plain(part["score"]),
        "y": _plain(part["log_p"]),
        "customdata": [f"{text}<br>p {p:.2g}, q {q:.2g}" for text, p, q in zip(names, part["p"], part["q"], strict=True)],
        "hovertemplate": "%{customdata}<br>AUROC %{x:.3f}<extra></extra>",
    }


def survival_curves(board: SlideBoard) -> dict[str, Any]:
    """Draw Kaplan-Meier curves of risk groups, the patients at risk below; a picker takes head and target."""
    traces: list[dict[str, Any]] = []
    keys = ["target", "model", "group"]
    at_risk = dict(list(board.survival.at_risk.groupby(keys, sort=False)))
    for (target, model, group), part in board.survival.curves.groupby(keys, sort=False):
        common = {"type": "scatter", "meta": {"role": RISK_ROLES[str(group)], "group": label_of(target, model)}}
        edge = part[part["low"].notna()]
        line = {**common, "mode": "lines", "line": {"width": 0, "shape": "hv"}, "showlegend": False, "hoverinfo": "skip"}
        traces += [
            {**line, "x": _plain(edge["time"]), "y": _plain(edge["high"])},
            {**line, "x": _plain(edge["time"]), "y": _plain(edge["low"]), "fill": "tonexty"},
            {
                **common,
                "mode": "lines",
                "name": group,
                "x": _plain(part["time"]),
                "y": _plain(part["survival"]),
                "line": {"width": 2, "shape": "hv"},
                "customdata": part["at_risk"].tolist(),
                "hovertemplate": f"{group}, time %{{x:.3g}}: %{{y:.3f}}, %{{customdata}} at risk<extra></extra>",
            },
        ]
        lost, table = part[part["censored"] > 0], at_risk[(target, model, group)]
        ticks = {"size": 8, "symbol": "line-ns-open", "line": {"width": 1.5}}
        traces.append(
            {
                **{**common, "mode": "markers", "marker": ticks, "showlegend": False, "hoverinfo": "skip"},
                **{"x": _plain(lost["time"]), "y": _plain(lost["survival"])},
            }
        )
        traces.append(
            {
                **{**common, "mode": "text", "yaxis": "y2", "showlegend": False, "hoverinfo": "skip", "textfont": {"size": 12}},
                "x": _plain(table["time"]),
                "y": [float(GROUPS[::-1].index(group))] * len(table),
                "text": [str(n) for n in table["at_risk"]],
                "cliponaxis": False,
            }
        )
    below = {"tickvals": [0, 1], "ticktext": [f"at risk, {name.split()[0]}" for name in GROUPS[::-1]], "range": [-0.7, 1.7]}
    layout = {
        "xaxis": {"title": {"text": "time"}, "zeroline": False, "anchor": "y"},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal"},
        "yaxis": {"title": {"text": "without the event"}, "domain": [0.32, 1], "range": [0, 1.03]},
        "yaxis2": {**below, "domain": [0, 0.13], "showgrid": False, "zeroline": False},
        "height": 500,
    }
    return figure_json(traces, layout)


def reliability(board: SlideBoard) -> dict[str, Any]:
    """Draw observed against predicted shares with 95 % bounds; a picker takes head and target."""
    traces = [_line("calibrated", [0.0, 1.0], [0.0, 1.0])]
    for (target, model), part in board.details.reliability.groupby(["target", "model"], sort=False):
        observed = part["observed"].to_numpy(dtype=np.float64)
        up, down = (np.maximum(gap, 0).tolist() for gap in (part["high"] - observed, observed - part["low"]))
        traces.append(
            {
                **_markers("share observed", "network", size=8, group=label_of(target, model)),
                "mode": "lines+markers",
                "line": {"width": 1.5},
                "x": _plain(part["predicted"]),
                "y": observed.tolist(),
                "error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **BAR},
                "customdata": part["n_patients"].tolist(),
                "hovertemplate": "predicted %{x:.3f}, observed %{y:.3f}<br>%{customdata} patients<extra></extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": "predicted probability"}, "range": [0, 1], "zeroline": False},
        "yaxis": {"title": {"text": "share observed"}, "range": [-0.03, 1.03], "zeroline": False},
        "height": 440,
    }
    return figure_json(traces, layout)


def agreement_figures(board: SlideBoard) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw predicted against measured values, and their differences after Bland and Altman; a picker takes head and target."""
    scatter: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    limits = {key: part.iloc[0] for key, part in board.details.agreement.groupby(["target", "model"])}
    for (target, model), part in board.details.points.groupby(["target", "model"], sort=False):
        group, measured, predicted = label_of(target, model), part["measured"].to_numpy(), part["predicted"].to_numpy()
        middle, ends = (measured + predicted) / 2, [float(min(measured.min(), predicted.min()))]
        ends.append(float(max(measured.max(), predicted.max())))
        common = {
            **_markers("one patient", "network", size=6, group=group),
            "customdata": [escape(str(patient)) for patient in part["patient"]],
        }
        tip = "%{customdata}<br>measured %{x:.3f}, predicted %{y:.3f}<extra></extra>"
        scatter += [
            _line("equal", ends, ends, group),
            {**common, "x": measured.tolist(), "y": predicted.tolist(), "hovertemplate": tip},
        ]
        tip = "%{customdata}<br>mean %{x:.3f}, difference %{y:.3f}<extra></extra>"
        differences.append({**common, "x": middle.tolist(), "y": (predicted - measured).tolist(), "hovertemplate": tip})
        for name, words in (("bias", "bias"), ("low", "95 % from"), ("high", "95 % to")):
            value = float(limits[target, model][name])
            line = _line(f"{words} {value:+.3f}", [float(middle.min()), float(middle.max())], [value] * 2, group)
            differences.append({**line, "meta": {**line["meta"], "role": "ink"}})
    first = {"xaxis": {"title": {"text": "measured"}}, "yaxis": {"title": {"text": "predicted"}}, "height": 440}
    axes = {"xaxis": {"title": {"text": "mean of both"}}, "yaxis": {"title": {"text": "predicted − measured"}}, "height": 440}
    return figure_json(scatter, first), figure_json(differences, axes)


def _markers(name: str, role: str, *, symbol: str = "circle", size: int = 6, group: str | None = None) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "marker": {"size": size, "symbol": symbol, "opacity": 0.85},
        "meta": {"role": role} | ({} if group is None else {"group": group}),
    }


def _line(name: str, x: list[float], y: list[float], group: str | None = None) -> dict[str, Any]:
    line = {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": {"width": 1, "dash": "dash"}}
    return {**line, "meta": {"role": "identity"} | ({} if group is None else {"group": group}), "hoverinfo": "skip"}


def _bars(frame: pd.DataFrame) -> dict[str, Any]:
    score, low, high = (frame[name].to_numpy(dtype=np.float64) for name in ("score", "low", "high"))
    up, down = _plain(high - score), _plain(score - low)
    return {"error_x": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **BAR}}


def _plain(values: "Float[Array, 'N'] | pd.Series[Any]") -> list[float | None]:
    return [round(float(value), 6) if np.isfinite(value) else None for value in values]
