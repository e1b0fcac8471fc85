"""What the regression of the best studies is made of, and what is lost on the way to another patient; no network.

    .venv/bin/python benchmarks/skill/regression.py best_mob

First its parts on inner validation, one changed at a time: fitted on the inner training spots of each fold, scored by the mean
r of a section of the inner validation; test patients are not looked at. Then, for every test section, the same regression
trained on the other patients and on the patient's own other sections, the same genes both times: the second sees the patient,
which no honest split allows, and tells how much of what is missing is the step to another patient. Beside them, how well the
image tells the measured depth, and the r of measured depth itself. Writes benchmarks/results/regression-<study>.json.
"""

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from stexpr.config import NetworkConfig, StudyConfig, load_study
from stexpr.config.versions import versions
from stexpr.data.datasets import SpotDataset
from stexpr.data.panels import fold_panel
from stexpr.data.splits import Fold
from stexpr.models.components import PENALTIES, VIEWS, View, component_axes, fit_view, gaussians, joined
from stexpr.models.descriptors import Descriptors
from stexpr.panel import ExpressionTransform
from stexpr.train.fused import left_out_together
from stexpr.train.run import window_px
from stexpr.train.spots import SpotStudy
from stexpr.train.validation import section_pearson

RESULTS = Path(__file__).resolve().parents[1] / "results"
NEIGHBORS = 8, 24


@dataclass(frozen=True)
class Recipe:
    """A regression.

    Attributes:
        views: Averaged.
        components: Of expression.
        one_penalty: The same for all components.
        colors: Of the patches.
        neighbors: Descriptors are joined by their mean over so many nearest spots of the section, for each number.
    """

    views: Sequence[View] = VIEWS
    components: int = 20
    one_penalty: bool = False
    colors: str = "standardized"
    neighbors: tuple[int, ...] = ()


CANDIDATES = {
    "as shipped": Recipe(),
    "one penalty for all components": Recipe(one_penalty=True),
    "5 components": Recipe(components=5),
    "10 components": Recipe(components=10),
    "40 components": Recipe(components=40),
    "250 components: every gene for itself": Recipe(components=250),
    "colors, linear": Recipe(views=VIEWS[:1]),
    "colors, linear and Gaussian": Recipe(views=VIEWS[:2]),
    "colors and textures, Gaussian": Recipe(views=VIEWS[2:]),
    "textures alone, Gaussian": Recipe(views=(View(("texture",), "gaussian"),)),
    "colors, linear, one penalty, every gene: a color ridge": Recipe(views=VIEWS[:1], one_penalty=True, components=250),
    "colors as prepared": Recipe(colors="as_prepared"),
    "with means over 8 neighbors": Recipe(neighbors=NEIGHBORS[:1]),
    "with means over 8 and 24 neighbors": Recipe(neighbors=NEIGHBORS),
}


class Regressions:
    """Fits recipes on spots of a study.

    Args:
        config: The study.
        opened: The study, opened.
        fold: Whose genes are predicted.
    """

    def __init__(self, config: StudyConfig, opened: SpotStudy, fold: Fold) -> None:
        unit = config.protocol.expression
        panel = fold_panel(config.protocol.panel, opened.cohort, fold)
        self.transform = ExpressionTransform(unit.kind, unit.target_sum, n_genes=len(opened.cohort.genes))
        sections = list(opened.cohort.patient_of)
        window, genes = window_px(config, opened.cohort), panel.without_auxiliary()
        self.data = {
            colors: SpotDataset(opened.cohort.colored(colors), sections, genes, window_px=window)  # type: ignore[arg-type]
            for colors in ("standardized", "as_prepared")
        }
        self.spots = self.data["standardized"]
        assert isinstance(config.model, NetworkConfig)
        assert config.model.fusion is not None
        self.fusion = config.model.fusion
        self.expression = self.transform(self.spots.counts_main.numpy(), self.spots.library.numpy()).astype(float)
        self.depth = np.log(self.spots.library.numpy().astype(float))
        self.described = {colors: self._describe(data) for colors, data in self.data.items()}

    def _describe(self, data: SpotDataset) -> dict[str, Any]:
        descriptors = Descriptors(data.window_px, self.fusion.radii_px)
        with torch.inference_mode():
            parts = [
                descriptors(batch.patches)
                for batch in data.batches(torch.arange(len(data)).split(32), device=torch.device("cpu"))
            ]
        return {group: np.concatenate([part[group].numpy() for part in parts]) for group in ("color", "texture")}

    def _descriptors(self, recipe: Recipe, view: View) -> np.ndarray:
        own = joined(self.described[recipe.colors], view)
        return np.concatenate([own, *(self._means(own, k) for k in recipe.neighbors)], axis=1)

    def _means(self, values: np.ndarray, k: int) -> np.ndarray:
        means = np.empty_like(values)
        for rows in self.spots.spots.groupby("section").indices.values():
            places = self.spots.spots.iloc[rows][["x_um", "y_um"]].to_numpy(float)
            _, nearest = cKDTree(places).query(places, k + 1)
            means[rows] = values[rows][nearest[:, 1:]].mean(axis=1)
        return means

    def predict(self, recipe: Recipe, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fit on some spots; return expression and log depth of others."""
        mean, sd = self.expression[train].mean(axis=0), self.expression[train].std(axis=0)
        standardized = (self.expression[train] - mean) / np.where(sd > 0, sd, 1)
        axes = component_axes(standardized, recipe.components)
        wanted = np.column_stack([standardized @ axes.T, self.depth[train]])
        predicted = np.mean([self._view(recipe, view, wanted, train, test) for view in recipe.views], axis=0)
        return predicted[:, :-1] @ axes * sd + mean, predicted[:, -1]

    def _view(self, recipe: Recipe, view: View, wanted: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        described, groups = self._descriptors(recipe, view), left_out_together(self.spots.spots.iloc[train])
        penalties = PENALTIES
        if recipe.one_penalty:
            held_out = [fit_view(view.kernel, described[train], wanted, groups, penalties=(p,)).held_out for p in PENALTIES]
            penalties = (PENALTIES[int(np.argmin([np.square(out - wanted)[:, :-1].sum() for out in held_out]))],)
        fitted = fit_view(view.kernel, described[train], wanted, groups, penalties=penalties)
        at = (described[test] - fitted.center) / fitted.scale
        features = gaussians(at, fitted.landmarks) if view.kernel == "gaussian" else at
        return np.asarray(features @ fitted.weight + fitted.bias)

    def score(self, predicted: np.ndarray, rows: np.ndarray) -> float:
        """Return the mean over sections of the mean r of a gene."""
        return section_pearson(predicted.astype(np.float32), self.spots, torch.from_numpy(rows), self.transform)


def parts(regressions: list[Regressions], folds: Sequence[Fold]) -> list[dict[str, Any]]:
    """Return one row for each candidate: r of the inner validation of each fold."""
    rows: list[dict[str, Any]] = []
    for name, recipe in CANDIDATES.items():
        by_fold = []
        for own, fold in zip(regressions, folds, strict=True):
            scores = []
            for inner in fold.inner:
                train, held = (own.spots.rows(part).numpy() for part in (inner.train, inner.validation))
                scores.append(own.score(own.predict(recipe, train, held)[0], held))
            by_fold.append(float(np.mean(scores)))
        rows.append(
            {"candidate": name, "r_validation": round(float(np.mean(by_fold)), 4), "by_fold": np.round(by_fold, 4).tolist()}
        )
        rows[-1]["difference"] = round(rows[-1]["r_validation"] - rows[0]["r_validation"], 4)
        print(f"{rows[-1]['r_validation']:.3f} {rows[-1]['difference']:+.3f}  {rows[-1]['by_fold']}  {name}", flush=True)
    return rows


def to_another_patient(own: Regressions, fold: Fold) -> list[dict[str, Any]]:
    """Return, for each test section, r of a regression on the training patients and of one on the patient's other sections."""
    spots, rows = own.spots, []
    section_of, patient_of = (spots.spots[column].to_numpy() for column in ("section", "patient"))
    for section in fold.test_sections:
        test = np.flatnonzero(section_of == section)
        others = np.flatnonzero(np.isin(section_of, fold.train_sections))
        same = np.flatnonzero((patient_of == patient_of[test[0]]) & (section_of != section))
        row: dict[str, Any] = {"section": section, "patient": str(patient_of[test[0]])}
        for name, train in (("other_patients", others), ("own_other_sections", same)):
            if len(train):
                expression, depth = own.predict(Recipe(), train, test)
                r = own.score(expression, test)
                row[name] = {
                    "spots": len(train),
                    "r": round(r, 4),
                    "r_of_depth": round(float(np.corrcoef(depth, own.depth[test])[0, 1]), 4),
                }
        by_depth = np.repeat(own.depth[test][:, None], own.expression.shape[1], axis=1)
        row["measured_depth"] = round(own.score(by_depth, test), 4)
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="best_mob or best_her2st")
    options = parser.parse_args()
    opened = SpotStudy(load_study(options.study))
    regressions = [Regressions(opened.config, opened, fold) for fold in opened.folds]
    found = {
        "command": f"python benchmarks/skill/regression.py {options.study}",
        "cohort_hash": opened.cohort.hash,
        "device": platform.processor() or platform.machine(),
        "versions": versions(),
        "parts": parts(regressions, opened.folds),
        "to_another_patient": [
            row for own, fold in zip(regressions, opened.folds, strict=True) for row in to_another_patient(own, fold)
        ],
    }
    path = RESULTS / f"regression-{options.study}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
