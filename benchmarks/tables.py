"""Write the tables of benchmarks/README.md from the files in results/; with --check, only tell whether they are up to date.

    .venv/bin/python benchmarks/tables.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between is replaced, the rest is written by hand.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from skill_tables import ablation, ensembles, margins, parts, transfer

from stexpr.evaluate.markdown import number, table

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def models(cohort: str) -> str:
    """Models with r, ceiling and what stands beside r."""
    rows = []
    for row in pd.read_csv(RESULTS / cohort / "leaderboard.csv").to_dict("records"):
        name = row["model"] if row["kind"] == "network" else f"*{row['model']}*"
        bounds = "–" if pd.isna(row["r_low"]) else f"{number(row['r_low'])} to {number(row['r_high'])}"
        rank = "–" if pd.isna(row["rank"]) else f"{row['rank']:.0f}"
        epochs = "–" if pd.isna(row["epochs"]) else row["epochs"]
        spatial = "–" if pd.isna(row["genes_spatial"]) else f"{row['genes_spatial']:.0f}"
        beside = [number(row[key]) for key in ("r_over_ceiling", "r_within_depth", "rmse", "r2", "slope")]
        rows.append([rank, name, number(row["r"]), bounds, *beside, spatial, str(epochs), f"{row['minutes']:.1f}"])
    header = ["rank", "model", "r", "interval", "r / ceiling", "r at like depth", "RMSE", "R²", "slope"]
    return table([*header, "beyond smoothness", "epochs", "minutes"], rows)


def patients(cohort: str) -> str:
    """r by patient."""
    frame = pd.read_csv(RESULTS / cohort / "patients.csv")
    return table(list(frame), [[row[0], *(number(value) for value in row[1:])] for row in frame.to_numpy().tolist()])


def notes(cohort: str) -> str:
    """The notes of the board, as they stand there."""
    text = (RESULTS / cohort / "leaderboard.md").read_text(encoding="utf-8")
    return text.partition("## Notes\n\n")[2].strip()


def ceilings(cohort: str) -> str:
    """Noise ceilings over genes, and how many genes noise hides."""
    genes = pd.read_csv(RESULTS / cohort / "per_gene.csv")
    words = []
    for column, name in (("ceiling", "noise ceiling"), ("ceiling_depth_blind", "depth-blind ceiling")):
        low, middle, high = genes[column].quantile([0.1, 0.5, 0.9])
        words.append(f"{name}: median {middle:.3f} over {len(genes)} genes (10th to 90th percentile {low:.3f} to {high:.3f})")
    return f"{'; '.join(words)}; {int(genes['unpredictable'].sum())} genes below .1."


def inflation(cohort: str) -> str:
    """The same predictions under all protocols."""
    text = (RESULTS / cohort / "inflation.md").read_text(encoding="utf-8")
    return text.partition("\n\n")[2].strip()


def speed(_: str) -> str:
    """Ours beside a peer, of every result of benchmarks/speed that has such rows."""
    rows = []
    for path in sorted(RESULTS.glob("speed-*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")).get("rows", []):
            figures = [f"{row[key]:,.0f}" if row[key] >= 100 else f"{row[key]:.3g}" for key in ("ours", "peer", "ratio")]
            name = row["path"].replace("_", " ")
            bar = f"{row['must']} {row['bar']:g}"
            rows.append([f"[{name}](results/{path.name})", *figures, bar, row["unit"], row["device"].partition(",")[0]])
    return table(["path", "ours", "peer", "ratio", "must reach", "unit", "device"], rows)


def slides(_: str) -> str:
    """Memory and time of predicting slides, by the area of their tissue."""
    found = json.loads((RESULTS / "speed-slide.json").read_text(encoding="utf-8"))
    keys = ("tissue_mm2", "patches", "cpu_s", "peak_mb_above_imports", "file_mb")
    rows = [[f"{row[key]:,g}" for key in keys] for row in found["slides"]]
    line = found["line"]
    return (
        table(["tissue, mm²", "patches", "processor s", "peak MB above the imports", "file, MB"], rows)
        + f"\n\n{line['s_per_mm2']:.3f} s/mm² and {line['s_at_no_tissue']:.1f} s without tissue; a line through the times "
        f"explains {line['r2']:.3%} of their variance."
    )


def coverage(_: str) -> str:
    """How often intervals hold for patients nobody calibrated on, by how they were calibrated."""
    found = json.loads((RESULTS / "conformal.json").read_text(encoding="utf-8"))["coverage"]
    rows = [
        [
            f"{float(asked):.0%}",
            *(f"{by[asked]['mean']:.1%} ({by[asked]['low']:.1%} to {by[asked]['high']:.1%})" for by in columns),
        ]
        for columns in [[found["patient"], found["spot"]]]
        for asked in found["patient"]
    ]
    return table(["asked", "patient by patient", "spots taken for independent"], rows)


def novelty(_: str) -> str:
    """How well foreign patches are told from those of a held-out mouse."""
    found = json.loads((RESULTS / "novelty.json").read_text(encoding="utf-8"))
    rows = [[row["patches"], f"{row['n']}", f"{row['auroc']:.4f}", f"{row['flagged']:.1%}"] for row in found["foreign"]]
    own = found["held_out"]
    return table(["patches", "n", "AUROC", "flagged"], [[own["patches"], f"{own['n']}", "–", f"{own['flagged']:.1%}"], *rows])


def onnx(_: str) -> str:
    """Small backbones in PyTorch and as ONNX files."""
    rows = []
    for row in json.loads((RESULTS / "onnx-latency.json").read_text(encoding="utf-8"))["rows"]:
        figures = [f"{row[key]:.2f}" for key in ("torch_ms", "onnx_ms")]
        rows.append([row["backbone"], f"{row['window_px']}", f"{row['batch_size']}", *figures, f"{row['ratio']:.1f}"])
    return table(["backbone", "window, px", "patches at a time", "PyTorch, ms", "ONNX, ms", "times as fast"], rows)


def mil(_: str) -> str:
    """Accuracy of bag heads over the published folds, beside what was published."""
    found = json.loads((RESULTS / "mil.json").read_text(encoding="utf-8"))
    rows = []
    for kind in found["fox"]:
        row = [kind.replace("_", " ")]
        for name in found["published"]:
            score, published = found[name][kind], found["published"][name].get(kind)
            row += [f"{score['mean']:.3f} ± {score['sd']:.3f}", "–" if published is None else f"{published:.3f}"]
        rows.append(row)
    header = [title for name in found["published"] for title in (f"{name.upper()} (SD over folds)", "published")]
    return table(["head", *header], rows)


def heads(_: str) -> str:
    """Slide heads on synthetic slides, by task."""
    found = json.loads((RESULTS / "slide-heads.json").read_text(encoding="utf-8"))
    names = {"mutation": "planted mutation, AUROC", "ki67": "Ki67, Spearman", "survival": "survival, c"}
    rows = []
    for task, label in names.items():
        for model, row in sorted(found["heads"][task].items(), key=lambda item: -item[1]["value"]):
            rows.append([label, model, number(row["value"]), f"{number(row['low'])} to {number(row['high'])}"])
    return table(["target", "head", "score", "95 %"], rows)


def pairs(_: str) -> str:
    """The trained encoder against the same one untrained, and against colors."""
    found = json.loads((RESULTS / "slide-heads.json").read_text(encoding="utf-8"))["paired"]
    rows = []
    for tests in found.values():
        for test in tests:
            if not test["target"].startswith("mean of") and test["a"].endswith(" on trained features"):
                bounds = f"{number(test['low'])} to {number(test['high'])}"
                rows.append([test["target"], test["a"], test["b"], number(test["difference"]), bounds, f"{test['p']:.4f}"])
    return table(["target", "a", "b", "a − b", "95 %", "p"], rows)


def effect(sweep: str) -> str:
    """The auxiliary effect by backbone, with its interval over seeds."""
    rows = []
    for row in pd.read_csv(RESULTS / sweep / "effect.csv").to_dict("records"):
        figures = [
            "–" if pd.isna(row[key]) else number(row[key]) for key in ("r_without", "r_with", "seed_sd_without", "effect")
        ]
        rows.append([row["backbone"], f"{row['seeds']:.0f}", *figures, f"{number(row['low'])} to {number(row['high'])}"])
    return table(["backbone", "seeds", "r without", "r with", "SD over seeds", "effect", "95 % interval over seeds"], rows)


def same(result: dict[str, Any]) -> str:
    return "all equal" if result["equal"] else "UNEQUAL"


def sweeps(_: str) -> str:
    """What was done to sweeps, and what it cost."""
    kills, ray, overhead = (
        json.loads((RESULTS / f"sweep-{name}.json").read_text(encoding="utf-8")) for name in ("kills", "ray", "overhead")
    )
    hit = [kill["hit"] for kill in kills["kills"]]
    rows = [
        [
            "`sweeps/kills.py`",
            f"{len(hit)} × SIGKILL ({hit.count('sweep')} × sweep, {hit.count('worker')} × worker), {kills['n_runs']} runs",
            f"{kills['lost']} lost, records and predictions against an undisturbed sweep: {same(kills)}; "
            f"{kills['seconds']:.0f} s, undisturbed {kills['seconds_undisturbed']:.0f} s",
        ],
        [
            "`sweeps/ray_cluster.py`",
            f"two Ray nodes, one killed {ray['killed']['after_s']:.0f} s into the sweep ({ray['networks']} networks)",
            f"records and predictions against the local engine: {same(ray)}; {ray['seconds']['ray']:.0f} s",
        ],
        [
            "`sweeps/overhead.py`",
            f"{overhead['n_runs']} runs by the local engine and by hand (bar {overhead['bar']:.0%})",
            f"{overhead['overhead']:+.1%} on the clock, {overhead['overhead_cpu']:+.1%} of processor time",
        ],
        [
            "`sweeps/overhead.py`",
            f"1,000 runs planned, deduplicated and listed (bar {overhead['thousand_bar_s']} s)",
            f"{overhead['thousand_runs_s']:.1f} s",
        ],
    ]
    return table(["script", "what", "measured"], rows)


def domains(_: str) -> str:
    """Agreement of tissue domains with those of measured expression, models first, then references."""
    result = json.loads((RESULTS / "anndata-mob.json").read_text(encoding="utf-8"))

    def indices(found: dict[str, Any] | None) -> list[str]:
        if found is None:
            return ["–", "–"]
        return [f"{number(found[key]['mean'])} ({number(found[key]['low'])} to {number(found[key]['high'])})" for key in found]

    rows = []
    for row in sorted(result["models"], key=lambda row: row["kind"], reverse=True):
        name = row["model"] if row["kind"] == "network" else f"*{row['model']}*"
        r = number(row.get("mean_r", float("nan")))
        rows.append([name, r, *indices(row.get("ari_features")), *indices(row["ari_predicted"])])
    for name, found in result["references"].items():
        both = found if "resolution 1" in found else {"resolution 1": found, "as many domains": found}
        rows.append([f"*{name}*", "–", "–", "–", *indices(both)])
    header = ["model", "r", "features", "features, as many domains", "predicted", "predicted, as many domains"]
    return table(header, rows)


WRITERS = {
    writer.__name__: writer
    for writer in (
        models,
        patients,
        notes,
        ceilings,
        inflation,
        speed,
        margins,
        ablation,
        parts,
        transfer,
        ensembles,
        slides,
        coverage,
        novelty,
        onnx,
        mil,
        heads,
        pairs,
        effect,
        sweeps,
        domains,
    )
}


def written(text: str) -> str:
    """Return the README with its tables made anew."""

    def fill(match: re.Match[str]) -> str:
        cohort, _, name = match["name"].rpartition("-")
        return f"{match[1]}{WRITERS[name](cohort)}\n{match[3]}"

    return MARKED.sub(fill, text)


def main() -> int:
    path = HERE / "README.md"
    before = path.read_text(encoding="utf-8")
    after = written(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    path.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
