"""How the runs of a project are looked at on Weights & Biases: a report as plain JSON values, and its creation.

Types and fields are those of the package wandb-workspaces, which is used where it is installed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stexpr.config import load_study
from stexpr.errors import ConfigError
from stexpr.evaluate.records import CONFIG, read_records
from stexpr.train.mirror_sync import require_server
from stexpr.train.wandb_client import default_entity, register_chart

__all__ = ["create_report", "has_workspaces", "report_definition", "report_of_runs"]

BACKBONE: Final = "config.model.backbone"
AUXILIARY: Final = "config.model.auxiliary.weight"
CHART: Final = "stexpr-gene-heat-map"
HEAT_MAP: Final[dict[str, Any]] = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "title": {"text": "${string:title}"},
    "data": {"name": "wandb"},
    "mark": {"type": "rect", "tooltip": True},
    "encoding": {
        "x": {"field": "${field:run}", "type": "nominal", "title": None},
        "y": {
            "field": "${field:gene}",
            "type": "nominal",
            "sort": {"op": "mean", "field": "${field:r}", "order": "descending"},
        },
        "color": {
            "field": "${field:r}",
            "aggregate": "mean",
            "type": "quantitative",
            "title": "r",
            "scale": {"domain": [-1, 1], "scheme": "blueorange"},
        },
    },
}
"""Genes by runs, colored by r; sections of one gene are averaged."""


def report_of_runs(runs: Path, project: str | None = None) -> dict[str, Any]:
    """Define the report of the networks below a folder.

    Args:
        runs: A folder of runs.
        project: Where they were mirrored; by default the project their configuration names.

    Raises:
        DataError: There is no finished run.
        ConfigError: There are only baselines, or runs of several projects.
    """
    found = [run for run in read_records(runs).complete if run.record.kind == "network"]
    if not found:
        raise ConfigError(f"{runs} holds no run of a network, and baselines are not mirrored")
    named = {load_study(run.folder / CONFIG).runtime.wandb_project for run in found} if project is None else {project}
    if len(named) > 1:
        raise ConfigError(f"{runs} holds runs of the projects {', '.join(sorted(named))}; choose one with --project")
    return report_definition(named.pop(), sorted({run.record.study for run in found}))


def report_definition(project: str, studies: Sequence[str] = ()) -> dict[str, Any]:
    """Define the report of a project: learning curves, r with and without the auxiliary head, and genes.

    Args:
        project: The project.
        studies: Show only these; none shows every run that trained a network.
    """
    shown = f" and Group in {list(studies)!r}" if studies else ""
    runset = {"type": "Runset", "project": project, "filters": f"JobType = 'train'{shown}".replace("'", '"')}
    band = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    curves = [
        {"type": "LinePlot", "title": title, "x": "epoch", "y": [metric], "layout": {"x": 12 * place, "w": 12, "h": 8}, **band}
        for place, (title, metric) in enumerate(
            [("Validation r by backbone", "val/pearson"), ("Training loss by backbone", "train/loss")]
        )
    ]
    bars = {
        "type": "BarPlot",
        "title": "Test r by backbone, with and without the auxiliary head",
        "metrics": [{"type": "SummaryMetric", "name": "pearson"}],
        "layout": {"w": 24, "h": 10},
        **band,
    }
    genes = {
        "type": "CustomChart",
        "query": {"summaryTable": {"tableKey": "per_gene"}},
        "chart_name": CHART,
        "chart_fields": {"run": "name", "gene": "gene", "r": "pearson"},
        "chart_strings": {"title": "r by gene and run"},
        "layout": {"w": 24, "h": 20},
    }
    grids = [({"groupby": [BACKBONE]}, curves), ({"groupby": [BACKBONE, AUXILIARY]}, [bars]), ({}, [genes])]
    return {
        "project": project,
        "title": f"stexpr: {', '.join(studies) or project}"[:128],
        "blocks": [{"type": "PanelGrid", "runsets": [{**runset, **grouped}], "panels": panels} for grouped, panels in grids],
        "charts": {CHART: HEAT_MAP},
    }


def has_workspaces() -> bool:
    """Whether wandb-workspaces is installed, which creates reports."""
    try:
        import wandb_workspaces.reports.v2  # noqa: F401
    except ImportError:
        return False
    return True


def create_report(definition: Mapping[str, Any]) -> str:
    """Create a report from its definition, and the charts it needs.

    Args:
        definition: As `report_definition` gives it.

    Returns:
        Where it is.

    Raises:
        ConfigError: Nobody is logged in.
        TrainingError: The server refuses the key, or does not answer.
    """
    require_server()
    entity = default_entity()
    charts = {name: register_chart(entity, name, name, spec) for name, spec in definition["charts"].items()}
    report = as_report(definition, entity, charts)
    report.save(draft=True)
    return str(report.url)


def as_report(definition: Mapping[str, Any], entity: str, charts: Mapping[str, str]) -> Any:
    """Build the objects of wandb-workspaces, without the network.

    Args:
        definition: As `report_definition` gives it.
        entity: The account.
        charts: Full names of its charts.
    """
    import wandb_workspaces.reports.v2 as reports

    def build(value: Any) -> Any:
        if isinstance(value, list):
            return [build(item) for item in value]
        if not isinstance(value, dict) or "type" not in value:
            return value
        fields = {name: build(item) for name, item in value.items() if name != "type"}
        if "layout" in fields:
            fields["layout"] = reports.Layout(**fields["layout"])
        if "chart_name" in fields:
            fields["chart_name"] = charts.get(fields["chart_name"], fields["chart_name"])
        if value["type"] == "Runset":
            fields["entity"] = entity
        return getattr(reports, value["type"])(**fields)

    return reports.Report(
        project=definition["project"], entity=entity, title=definition["title"], blocks=build(definition["blocks"])
    )
