"""Scores of one encoder on the HEST-Benchmark: per gene and fold, their means, and how they are printed and written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from stexpr.config.files import write_together
from stexpr.config.versions import PACKAGES, versions
from stexpr.evaluate.hest.folder import PATCH_UM
from stexpr.evaluate.hest.probe import N_COMPONENTS, SEED, VARIANTS, Variant, VariantScore

__all__ = ["FoldScore", "HestBenchmark", "TaskScore", "result_notes"]

Value: TypeAlias = Literal["r", "rmse"]

RESULTS, TABLE, TEXT = "hest_bench.json", "hest_bench.csv", "hest_bench.md"
FORMAT = 1
READING = (
    "**HEST** is the benchmark as published: Pearson's r per gene over the pooled test spots, mean over genes, then folds, "
    "then tasks; in brackets the SD over folds. Each other column changes one thing. **+ intercept** fits one: PCA centers "
    "the features, so r hardly moves and the RMSE does. **Training genes** are chosen on the training samples, not on all "
    "samples. **Within-section r** is taken in each test sample, then averaged: a pooled r also rewards telling samples "
    "apart. – is undefined, never 0."
)


@dataclass(frozen=True)
class FoldScore:
    """One fold: who was tested, on how many spots, with what result."""

    index: int
    train: tuple[str, ...]
    test: tuple[str, ...]
    n_train_spots: int
    n_test_spots: int
    n_components: int
    variants: Mapping[Variant, VariantScore]

    def mean(self, variant: Variant, value: Value = "r") -> float:
        """Mean over genes.

        Of `hest` r it is the plain mean, NaN as soon as one gene has no r, because HEST's own is; elsewhere genes without
        a value are left out, and counted in `n_undefined`.
        """
        score = self.variants[variant]
        if value == "rmse":
            return score.mean_rmse
        return float(np.mean(score.r)) if variant == "hest" else score.mean_r


@dataclass(frozen=True)
class TaskScore:
    """One task of the benchmark."""

    name: str
    sha256: str
    folds: tuple[FoldScore, ...]

    def mean(self, variant: Variant, value: Value = "r") -> float:
        """Mean over folds, NaN if that of one fold is."""
        return float(np.mean([fold.mean(variant, value) for fold in self.folds]))

    def sd(self, variant: Variant) -> float:
        """Standard deviation of r over folds (divisor: folds, as in HEST)."""
        return float(np.std([fold.mean(variant) for fold in self.folds]))

    def undefined(self, variant: Variant) -> tuple[int, int]:
        """How many r of all folds are undefined, and how many there are."""
        scores = [fold.variants[variant] for fold in self.folds]
        return sum(score.n_undefined for score in scores), sum(score.n_values for score in scores)


@dataclass(frozen=True)
class HestBenchmark:
    """The score of one encoder.

    Attributes:
        encoder: What was scored: name, architecture, input, hash of the weights.
        tasks: In the order asked for.
        device: Where features were computed.
        notes: What a reader should know, sentences.
    """

    encoder: Mapping[str, Any]
    tasks: tuple[TaskScore, ...]
    device: str
    notes: tuple[str, ...]

    def mean(self, variant: Variant, value: Value = "r") -> float:
        """Plain mean over tasks, NaN if that of one task is."""
        return float(np.mean([task.mean(variant, value) for task in self.tasks]))

    def table(self, value: Value = "r") -> pd.DataFrame:
        """Return one row per task and a last row `mean`, the plain mean over tasks.

        Args:
            value: `r`, or `rmse` in log1p counts.

        Returns:
            Columns: `hest`, `hest_sd` (over folds; r only), the variants, `n_folds`, and `n_undefined` of `hest` (r only).
        """
        rows = [{variant: task.mean(variant, value) for variant in VARIANTS} for task in self.tasks]
        table = pd.DataFrame([*rows, {variant: self.mean(variant, value) for variant in VARIANTS}])
        table.index = pd.Index([*(task.name for task in self.tasks), "mean"], name="task")
        folds = [len(task.folds) for task in self.tasks]
        table["n_folds"] = [*folds, sum(folds)]
        if value == "r":
            undefined = [task.undefined("hest")[0] for task in self.tasks]
            table["n_undefined"] = [*undefined, sum(undefined)]
            table.insert(1, "hest_sd", [*(task.sd("hest") for task in self.tasks), np.nan])
        return table

    def markdown(self) -> str:
        """Return both tables, how to read them and the notes, as Markdown."""
        encoder = self.encoder
        parts = [
            f"# HEST-Benchmark: {encoder['name']}",
            f"`{encoder['timm_name']}`, {encoder['n_features']} features at {encoder['input_px']} px, weights "
            f"`{encoder['weights_sha256'][:16]}`.",
            "## Pearson's r",
            _markdown_table(self.table()),
            READING,
            "## RMSE, log1p counts",
            _markdown_table(self.table("rmse")),
            "## Notes",
            "\n".join(f"- {note}" for note in self.notes) if self.notes else "None.",
        ]
        return "\n\n".join(parts) + "\n"

    def results(self) -> dict[str, Any]:
        """Return everything as plain JSON values, undefined ones null: means, and r and RMSE by task, fold, variant, gene."""
        return {
            "format": FORMAT,
            "benchmark": "HEST-Benchmark",
            "encoder": dict(self.encoder),
            "protocol": {
                "features": f"StandardScaler, PCA({N_COMPONENTS}, random_state={SEED})",
                "regression": "Ridge(lsqr, alpha=100/(components x genes))",
                "target": "log1p(count)",
                "patch_um": PATCH_UM,
            },
            "mean": {variant: _plain(self.mean(variant)) for variant in VARIANTS},
            "tasks": [_task_results(task) for task in self.tasks],
            "notes": list(self.notes),
            "device": self.device,
            "versions": versions((*PACKAGES, "scanpy", "anndata")),
        }

    def write(self, folder: Path) -> Path:
        """Write `hest_bench.md`, `hest_bench.csv` and, last, `hest_bench.json`.

        Args:
            folder: Made if need be; earlier files of these names are replaced.

        Returns:
            The JSON file.

        Raises:
            DataError: The folder cannot be written.
        """
        text = json.dumps(self.results(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_together(folder, {TEXT: self.markdown().encode(), TABLE: self.table().to_csv().encode(), RESULTS: text.encode()})
        return folder / RESULTS


def result_notes(tasks: Sequence[TaskScore]) -> list[str]:
    """Say what the tables do not: undefined values, fewer components or genes than the benchmark asks for."""
    notes = []
    for task in tasks:
        for variant, heading in VARIANTS.items():
            undefined, n = task.undefined(variant)
            if undefined:
                rest = float(np.mean([fold.variants[variant].mean_r for fold in task.folds]))
                how = "HEST's plain mean is undefined with them; without" if variant == "hest" else "left out of the mean;"
                notes.append(f"task {task.name}, {heading}: {undefined} of {n} r are undefined, {how} r = {_number(rest)}")
        fewer = [fold for fold in task.folds if fold.n_components < N_COMPONENTS]
        notes += [
            f"task {task.name}, fold {fold.index}: {fold.n_components} components, as {fold.n_train_spots} training spots and "
            f"the encoder's features give no more; HEST takes {N_COMPONENTS} and would stop here"
            for fold in fewer
        ]
        for fold in task.folds:
            own, asked = (len(fold.variants[variant].genes) for variant in ("training_genes", "hest"))
            if own < asked:
                notes.append(f"task {task.name}, fold {fold.index}: {own} instead of {asked} training genes pass the filter")
    return notes


def _task_results(task: TaskScore) -> dict[str, Any]:
    def fold_results(fold: FoldScore) -> dict[str, Any]:
        sizes = {key: getattr(fold, key) for key in ("n_train_spots", "n_test_spots", "n_components")}
        variants = {
            variant: {
                "r": _plain(fold.mean(variant)),
                "r_defined": _plain(score.mean_r),
                "rmse": _plain(fold.mean(variant, "rmse")),
                "n_undefined": score.n_undefined,
                "n_values": score.n_values,
                "genes": {
                    gene: {"r": _plain(r), "rmse": _plain(rmse)}
                    for gene, r, rmse in zip(score.genes, score.r, score.rmse, strict=True)
                },
            }
            for variant, score in fold.variants.items()
        }
        return {"fold": fold.index, "train": list(fold.train), "test": list(fold.test), **sizes, "variants": variants}

    means = {variant: _plain(task.mean(variant)) for variant in VARIANTS}
    folds = [fold_results(fold) for fold in task.folds]
    return {"task": task.name, "sha256": task.sha256, "mean": means, "hest_sd": _plain(task.sd("hest")), "folds": folds}


def _markdown_table(table: pd.DataFrame) -> str:
    headings = {"n_folds": "folds", "n_undefined": "undefined", **{str(key): heading for key, heading in VARIANTS.items()}}
    columns = [column for column in table.columns if column != "hest_sd"]
    lines = [["task", *(headings[column] for column in columns)], ["---"] * (len(columns) + 1)]
    for name, row in table.iterrows():
        cells = [str(int(row[column])) if column.startswith("n_") else _number(row[column]) for column in columns]
        if not np.isnan(sd := row.get("hest_sd", np.nan)):
            cells[0] += f" ({sd:.4f})"
        lines.append([f"**{name}**" if name == "mean" else str(name), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
