"""
Olfactory bulb: train, load into AnnData, find layers
=====================================================

Three sections of the mouse olfactory bulb, two mice. A small network learns on the first mouse to
predict expression from H&E. The other mouse's section then becomes an AnnData with features and
predicted expression in it, and scanpy and squidpy go on from there: do clusters of what the network
saw resemble clusters of what was measured?

Get the data first, 13 MB under the MIT license: ``stexpr data fetch mob -o raw/mob``.
"""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import squidpy as sq
from sklearn.metrics import adjusted_rand_score

import stexpr
from stexpr import choose_runs, export_runs
from stexpr.data.readers import read_section
from stexpr.data.synthetic import write_synthetic

# %%
# ``STEXPR_DATA`` names the folder that holds ``mob``, ``STEXPR_WORK`` the one to write into.

raw = Path(os.environ.get("STEXPR_DATA", "raw")) / "mob"
work = Path(os.environ.get("STEXPR_WORK", "stexpr-tutorials")) / "bulb"
if raw.is_dir():
    card, window_px = stexpr.load_card("mob"), 64
else:
    print(f"There is no {raw}, so this page shows a SYNTHETIC cohort instead:")
    print("its tissues and all numbers below are made up.")
    raw, window_px = work / "raw", 32
    card = stexpr.load_card(
        str(write_synthetic(raw, patients=2, spots_per_section=196, genes=200))
    )
print(card.title)
print(
    ", ".join(f"{entry.section} of {entry.patient}" for entry in card.sections)
)

# %%
# Prepare and train
# -----------------
#
# ``prepare`` cuts a patch around every spot. The study trains on the first patient alone: fold 1 of
# *leave one patient out* tests the second. It also fits the baselines that every result is seen
# beside. The same in a shell: ``stexpr prepare mob --from raw/mob -o cohorts/mob`` and
# ``stexpr train mob``.

cohort = work / "cohort"
stexpr.prepare(
    card, raw, cohort, card.prepare.model_copy(update={"window_px": window_px})
)
study = stexpr.load_study(
    "mob",
    [
        f"cohort={cohort}",
        f"input.window_px={window_px}",
        "model.backbone=tiny",
        "model.auxiliary.weight=0",
        "training.epochs=6",
        "training.lr=2e-3",
        "protocol.validation.rule=epochs",
        "protocol.panel.n_main=100",
        "folds=[1]",
    ],
)
runs = stexpr.run_study(
    study, work / "runs", report=lambda line: print(line.rpartition(" (")[0])
)

# %%
# The network does not beat the color ridge: six epochs on two sections are a lesson, not a model.
# What follows works alike with a better one.
#
# Export
# ------
#
# A run becomes one folder that can be given away, with all that is known of the model: what it was
# trained on, how it scored, and its training features, by which it recognizes foreign tissue. In a
# shell: ``stexpr export RUN -o DIR``.

export_runs(choose_runs(runs[:1]), work / "model")
model = stexpr.load_model(work / "model")
sees, trained = model.preprocessing, model.provenance
print(f"{len(model.genes)} genes, {model.n_features} features")
print(f"input: {sees.window_px} px at {sees.mpp} um/px")
print(
    f"trained on {trained['training_patients']}, {trained['species']}, {trained['tissue']}"
)

# %%
# The other mouse as an AnnData
# -----------------------------
#
# Any AnnData will do that has spot centers in ``obsm["spatial"]``. This one comes from the cohort's
# own files.

held_out = next(
    entry
    for entry in card.sections
    if entry.patient not in trained["training_patients"]
)
section = read_section(held_out, raw, card)
adata = section.spots
stexpr.tl.predict(
    adata,
    model,
    image=raw / held_out.image,
    mpp=section.mpp,
    edge="pad",
    species=card.species,
    preservation=card.preservation,
)
print(adata)

# %%
# How good is the prediction, and how good could it be? The ceiling is the correlation that a
# perfect prediction would reach, given how few molecules were counted.

stexpr.tl.score_prediction(adata)
scores = (
    adata.var[["stexpr_r", "stexpr_ceiling"]]
    .dropna()
    .sort_values("stexpr_r", ascending=False)
)
print(scores.head(8).round(2).to_string())
print(
    f"\nmean r {scores.stexpr_r.mean():.3f}, mean ceiling {scores.stexpr_ceiling.mean():.3f}, {len(scores)} genes"
)

# %%
# Maps
# ----
#
# The gene predicted best was found on these very spots: it shows the method at its best, not what
# to expect of a gene.

best = str(scores.index[0])
image = raw / held_out.image
stexpr.pl.gene_map(adata, best, image=image)

# %%
# Features as colors: their first three principal components are red, green and blue.

stexpr.pl.embedding_map(adata, "X_stexpr", image=image)

# %%
# Layers
# ------
#
# Leiden clusters of the features, of predicted expression, and of measured expression, all in the
# same way.

measured = adata[:, list(model.genes)].copy()
sc.pp.normalize_total(measured, target_sum=1e4)
sc.pp.log1p(measured)
adata.obsm["measured"] = pd.DataFrame(measured.to_df())
for name, key in {
    "features": "X_stexpr",
    "predicted": "stexpr_expression",
    "measured": "measured",
}.items():
    stexpr.tl.spatial_domains(adata, use_rep=key, n_domains=5, key_added=name)
for name in ("features", "predicted"):
    index = adjusted_rand_score(adata.obs[name], adata.obs["measured"])
    print(f"adjusted Rand index of {name:9} against measured: {index:.3f}")

# %%
# An index of 1 would be the same domains, 0 is what chance gives. But measured domains are noisy
# themselves: each molecule goes to one of two halves here, and the domains of one half are held
# against those of the other. That is what to compare the numbers above with.

rng = np.random.default_rng(0)
counts = adata[:, list(model.genes)].to_df().astype(int)
half = pd.DataFrame(rng.binomial(counts, 0.5), counts.index, counts.columns)
for name, part in {"half": half, "other half": counts - half}.items():
    library = np.maximum(part.sum(axis=1), 1)
    adata.obsm[name] = np.log1p(part.div(library, axis=0) * 1e4)
    stexpr.tl.spatial_domains(adata, use_rep=name, n_domains=5, key_added=name)
index = adjusted_rand_score(adata.obs["half"], adata.obs["other half"])
print(f"adjusted Rand index of one half against the other: {index:.3f}")

# %%
# Domains are numbered by their size, so the same color in two maps need not be the same tissue.

upright = adata.copy()
# an image's y runs down, scanpy's up
upright.obsm["spatial"] = adata.obsm["spatial"] * [1, -1]
sc.pl.embedding(
    upright,
    basis="spatial",
    color=["measured", "predicted", "features"],
    ncols=3,
    size=140,
    return_fig=True,
)

# %%
# squidpy on virtual expression
# -----------------------------
#
# With ``as_anndata=True`` the prediction is an AnnData of its own. Predicted maps are smoother than
# measured ones, since the noise of counting is gone and neighbors look alike: a high Moran's I of a
# prediction is no evidence.

virtual = stexpr.tl.predict_expression(
    adata, model, image=image, mpp=section.mpp, edge="pad", as_anndata=True
)
moran = {}
real = ad.AnnData(
    adata.obsm["measured"], obsm={"spatial": adata.obsm["spatial"]}
)
for name, table in {"predicted": virtual, "measured": real}.items():
    sq.gr.spatial_neighbors_grid(table, n_neighs=4)
    sq.gr.spatial_autocorr(
        table, mode="moran", n_jobs=1, show_progress_bar=False
    )
    moran[name] = table.uns["moranI"]["I"]
print(
    pd.DataFrame(moran)
    .sort_values("predicted", ascending=False)
    .head(8)
    .round(2)
    .to_string()
)
