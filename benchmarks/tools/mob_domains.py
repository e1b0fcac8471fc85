"""Tissue domains of MOB3 by models that never saw its mouse, through stexpr.tl, scanpy and squidpy.

    .venv/bin/python benchmarks/tools/mob_domains.py runs/mob/* --data ../shared/data/mob

Takes the runs in which MOB3's mouse is held out and leaves out the others, by name. Of each network: Leiden domains of its
features and of its predicted expression, against those of measured expression (adjusted Rand index). Baselines have no
features. What an index can be is shown by references: measured domains of another seed, of one half of the counts against the
other half, and domains of the spots' coordinates alone, which know no tissue.

Writes benchmarks/results/anndata-mob.json, and pictures into a folder that git ignores. Some minutes on two cores.
"""

import argparse
import contextlib
import json
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import squidpy as sq
from sklearn.metrics import adjusted_rand_score

import stexpr
from stexpr.data.cards import load_card
from stexpr.data.readers import read_section
from stexpr.errors import MetricError
from stexpr.evaluate.domains import find_domains, neighbor_graph, wanted_domains
from stexpr.panel import ExpressionTransform

SECTION = "MOB3"
SEEDS = range(10)
RESULTS = Path(__file__).resolve().parents[1] / "results" / "anndata-mob.json"


def main(runs: list[Path], data: Path, pictures: Path) -> None:
    pictures.mkdir(parents=True, exist_ok=True)
    card = load_card("mob")
    section = read_section(next(entry for entry in card.sections if entry.section == SECTION), data, card)
    image = data / section.image.path.name
    chosen, refused = [], []
    for run in runs:
        record = json.loads((run / "record.json").read_text())
        (chosen if section.patient in record["fold"]["test_patients"] else refused).append((run, record))
    print(f"{len(refused)} runs left out, trained on {section.patient}: {', '.join(run.name for run, _ in refused)}")
    networks = [(run, record) for run, record in chosen if record["kind"] == "network"]
    if not networks:
        raise SystemExit(f"none of {len(runs)} runs is a network tested on {section.patient}, the mouse of {SECTION}")
    genes = list(anndata.read_h5ad(networks[0][0] / "predictions.h5ad", backed="r").var_names)
    spots = section.spots
    spots.obsm["measured"] = measured(spots, genes)
    truth = Domains(spots.obsm["measured"])
    references = reference_indices(spots, truth)
    rows = [baseline_row(spots, run, record, truth) for run, record in chosen if record["kind"] == "baseline"]
    for run, record in networks:
        rows.append(network_row(spots.copy(), run, record, image, section.mpp, pictures, truth))
        print(json.dumps(rows[-1], indent=1), flush=True)
    done = {
        "command": f"python benchmarks/tools/mob_domains.py {runs[0].parent}/* --data {data}",
        "section": SECTION,
        "spots": spots.n_obs,
        "genes": len(genes),
        "seeds": len(SEEDS),
        "measured_domains": [int(found.max()) + 1 for found in truth.found],
        "references": references,
        "models": rows,
        "versions": {name: version(name) for name in ("stexpr", "torch", "scanpy", "squidpy", "anndata", "igraph")},
    }
    RESULTS.write_text(json.dumps(done, indent=1) + "\n")
    print(json.dumps(references, indent=1), f"\n{RESULTS}")


def measured(spots: Any, genes: list[str]) -> pd.DataFrame:
    """Measured expression of some genes in the unit of the models."""
    counts = sp.csr_matrix(spots.X)
    library = np.asarray(counts.sum(axis=1), dtype=np.float32).ravel()
    own = counts[:, spots.var_names.get_indexer(genes)].toarray().astype(np.float32)
    return pd.DataFrame(ExpressionTransform()(own, np.maximum(library, 1)), index=spots.obs_names, columns=genes)


class Domains:
    """Domains of one table over seeds of the clustering, from one graph of neighbors: those of tl.spatial_domains."""

    def __init__(self, values: Any) -> None:
        self.graph = neighbor_graph(np.asarray(values, dtype=float))
        self.found = [find_domains(self.graph, seed=seed) for seed in SEEDS]

    def against(self, other: "Domains") -> dict[str, Any]:
        """Adjusted Rand index at resolution 1, and with as many domains as the other has, over seeds."""
        same = []
        for seed, theirs in zip(SEEDS, other.found, strict=True):
            with contextlib.suppress(MetricError):  # no resolution makes as many
                same.append(adjusted_rand_score(wanted_domains(self.graph, int(theirs.max()) + 1, seed=seed)[0], theirs))
        pairs = [adjusted_rand_score(*pair) for pair in zip(self.found, other.found, strict=True)]
        return {"resolution 1": summary(pairs), "as many domains": {**summary(same), "seeds": len(same)}}


def summary(values: list[float]) -> dict[str, float]:
    return {name: round(float(f(values)), 4) for name, f in (("mean", np.mean), ("low", np.min), ("high", np.max))}


def reference_indices(spots: Any, truth: Domains) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    half = spots.copy()
    counts = sp.csr_matrix(spots.X).astype(np.int64)
    one = counts.copy()
    one.data = rng.binomial(counts.data, 0.5)
    halves = []
    for part in (one, counts - one):
        half.X = part
        halves.append(Domains(measured(half, list(spots.obsm["measured"].columns))))
    return {
        "measured, another seed": summary([adjusted_rand_score(a, b) for a, b in combinations(truth.found, 2)]),
        "half of the counts against the other half": halves[0].against(halves[1]),
        "coordinates against measured": Domains(spots.obsm["spatial"]).against(truth),
    }


def network_row(
    adata: Any, run: Path, record: dict[str, Any], image: Path, mpp: float, pictures: Path, truth: Domains
) -> dict[str, Any]:
    model = stexpr.load_model(run / "model")
    symmetries = record["settings"]["input"]["test_symmetries"]
    about = {"species": "Mus musculus", "tissue": "olfactory bulb", "preservation": "fresh frozen"}
    stexpr.tl.predict(adata, model, image=image, mpp=mpp, symmetries=symmetries, **about)
    stexpr.tl.score_prediction(adata)
    predicted = adata.obsm["stexpr_expression"]
    adata.obsm["measured"] = measured(adata, list(predicted.columns))
    of_run = anndata.read_h5ad(run / "predictions.h5ad")[[f"{SECTION}:{spot}" for spot in adata.obs_names], predicted.columns]
    for key, name in (("X_stexpr", "features"), ("stexpr_expression", "predicted"), ("measured", "measured")):
        stexpr.tl.spatial_domains(adata, use_rep=key, key_added=f"domains of {name}")
    draw(adata, run, image, pictures / f"{run.name}-{record['model_label'].replace(' ', '')}")
    return {
        "model": record["model_label"],
        "kind": "network",
        "run": run.name,
        "mean_r": round(float(adata.var["stexpr_r"].mean()), 4),
        "mean_r_of_record": round(record["values"]["pearson"]["value"], 4),
        "largest_difference_from_the_run": float(np.abs(of_run.X - predicted.to_numpy()).max()),
        "ari_features": Domains(adata.obsm["X_stexpr"]).against(truth),
        "ari_predicted": Domains(predicted).against(truth),
        "domains_features": int(adata.obs["domains of features"].nunique()),
        "domains_predicted": int(adata.obs["domains of predicted"].nunique()),
        **moran(adata),
    }


def baseline_row(spots: Any, run: Path, record: dict[str, Any], truth: Domains) -> dict[str, Any]:
    of_run = anndata.read_h5ad(run / "predictions.h5ad")[[f"{SECTION}:{spot}" for spot in spots.obs_names]]
    constant = np.ptp(of_run.X, axis=0).max() < 1e-6  # the training mean
    return {
        "model": record["model_label"],
        "kind": "baseline",
        "run": run.name,
        "ari_predicted": None if constant else Domains(of_run.X).against(truth),
    }


def moran(adata: Any) -> dict[str, float]:
    """Moran's I by squidpy on predicted and on measured expression, in AnnDatas of their own."""
    found = {}
    for key in ("stexpr_expression", "measured"):
        table = adata.obsm[key]
        own = anndata.AnnData(table.to_numpy(), obs=adata.obs[[]], var=pd.DataFrame(index=table.columns))
        own.obsm["spatial"] = np.asarray(adata.obsm["spatial"], dtype=float)
        sq.gr.spatial_neighbors_grid(own, n_neighs=4)
        sq.gr.spatial_autocorr(own, mode="moran", show_progress_bar=False, n_jobs=1)
        found[key] = own.uns["moranI"].loc[list(table.columns), "I"].to_numpy()
    predicted, real = found.values()
    return {
        "median_moran_predicted": round(float(np.median(predicted)), 4),
        "median_moran_measured": round(float(np.median(real)), 4),
        "correlation_of_morans_i": round(float(np.corrcoef(predicted, real)[0, 1]), 4),
    }


def draw(adata: Any, run: Path, image: Path, stem: Path) -> None:
    gene = str(adata.var["stexpr_r"].idxmax())
    stexpr.pl.gene_map(adata, gene, image=image, save=stem.with_name(f"{stem.name}-gene.png"))
    stexpr.pl.embedding_map(adata, image=image, save=stem.with_name(f"{stem.name}-features.png"))
    for name in ("features", "predicted", "measured"):
        save = stem.with_name(f"{stem.name}-domains-{name}.png")
        stexpr.pl.embedding_map(adata, f"domains of {name}", image=image, save=save)
    upright = adata.copy()
    upright.obsm["spatial"] = np.asarray(adata.obsm["spatial"]) * [1, -1]  # an image's y runs down
    columns = [f"domains of {name}" for name in ("measured", "predicted", "features")]
    figure = sc.pl.embedding(upright, basis="spatial", color=columns, ncols=3, show=False, return_fig=True)
    figure.savefig(stem.with_name(f"{stem.name}-scanpy.png"), dpi=90, bbox_inches="tight")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with MOB3's counts, spots and image")
    parser.add_argument("--pictures", type=Path, default=Path("boards/anndata-mob"), help="where the pictures go")
    options = parser.parse_args()
    main(options.runs, options.data, options.pictures)
