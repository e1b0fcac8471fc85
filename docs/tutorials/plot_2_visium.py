"""
A Visium section and a trained encoder
======================================

A model goes to a section it has never seen, as Space Ranger wrote it: read the folder, predict,
score against what was measured, find domains; and what stexpr says when image and model do not fit
together.

Both the training cohort and the Visium section are synthetic, so that this page needs no download
and the truth is known. Tissue and genes are made up; the files and the calls are the real ones.
"""

import json
import os
import warnings
from pathlib import Path

import scanpy as sc
from made_visium import write_made_visium

import stexpr
from stexpr import choose_runs, export_runs
from stexpr.data.synthetic import write_synthetic

work = Path(os.environ.get("STEXPR_WORK", "stexpr-tutorials")) / "synthetic"

# %%
# A model
# -------
#
# Three patients, three folds: the exported model is the ensemble of the three networks. Each
# patient was held out once, which gives intervals and scores.

card = stexpr.load_card(
    str(
        write_synthetic(
            work / "raw", patients=3, spots_per_section=100, genes=200
        )
    )
)
stexpr.prepare(card, work / "raw", work / "cohort", card.prepare)
study = stexpr.load_study(
    "demo",
    [
        f"cohort={work / 'cohort'}",
        "model.auxiliary.weight=0",
        "training.epochs=16",
        "protocol.validation.rule=epochs",
        "protocol.panel.n_main=30",
    ],
)
runs = stexpr.run_study(study, work / "runs")
model = export_runs(choose_runs(runs[:3]), work / "model")
scores = model.release.scores
print(
    f"mean r on held-out patients {scores['pearson']:.3f}, ceiling {scores['ceiling']:.3f}"
)
print(f"prediction intervals: {model.intervals.label}")

# %%
# The section
# -----------
#
# :download:`made_visium.py <made_visium.py>` draws a section of another patient and writes ``outs``
# as Space Ranger does. For a folder of yours, start here.

image = write_made_visium(work / "visium", genes=200)
section = stexpr.read_folder(
    work / "visium", image=image, gene_namespace="symbol"
)
adata = section.spots
print(
    f"{adata.n_obs} spots, {adata.n_vars} genes, {section.mpp:.3f} um/px ({section.mpp_source})"
)

# %%
# Predict
# -------
#
# The image has 1 um/px, the model wants 1.5: patches are resampled. Nothing is to be warned of.

stexpr.tl.predict(adata, model, image=section.image, mpp=section.mpp)
print(adata)
print(
    f"\nforeign spots (novelty above 1): {(adata.obs['stexpr_novelty'] > 1).sum()} of {adata.n_obs}"
)

# %%
# Score
# -----
#
# Some genes follow the morphology, others nothing that an image shows. The ceiling is about
# counting noise only: a high ceiling and a low r is a gene that this model cannot predict, or no
# image can.

stexpr.tl.score_prediction(adata)
scores = (
    adata.var[["stexpr_r", "stexpr_ceiling"]]
    .dropna()
    .sort_values("stexpr_r", ascending=False)
)
print(scores.round(2).to_string())

# %%
# Maps and domains
# ----------------

stexpr.pl.gene_map(adata, str(scores.index[0]), image=section.image)

# %%

stexpr.tl.spatial_domains(adata, n_domains=4)
stexpr.pl.embedding_map(adata, "stexpr_domains", image=section.image)

# %%
# The domains come from the image alone. Which measured genes tell them apart is a question for
# scanpy.

counted = adata.copy()
sc.pp.normalize_total(counted)
sc.pp.log1p(counted)
sc.tl.rank_genes_groups(counted, "stexpr_domains", method="wilcoxon")
ranked = sc.get.rank_genes_groups_df(counted, group=None).groupby(
    "group", observed=True
)
print(
    ranked.head(3)[["group", "names", "logfoldchanges", "pvals_adj"]].to_string(
        index=False
    )
)

# %%

markers = list(dict.fromkeys(ranked.head(1)["names"]))
# an image's y runs down, scanpy's up
counted.obsm["spatial"] = adata.obsm["spatial"] * [1, -1]
sc.pl.embedding(
    counted, basis="spatial", color=markers, ncols=2, size=160, return_fig=True
)

# %%
# What does not fit is said
# -------------------------
#
# Without the microscope's image there is only the small one of the folder. It is coarser than the
# model's pixels, and of another species (so we say). The prediction is made, with a
# ``DomainWarning`` for each.

coarse = stexpr.read_folder(work / "visium", gene_namespace="symbol")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    stexpr.tl.predict(
        coarse.spots,
        model,
        image=coarse.image,
        mpp=coarse.mpp,
        species="Homo sapiens",
    )
print("\n\n".join(f"{one.category.__name__}: {one.message}" for one in said))

# %%
# Whether it matters is for the scores to say. These genes follow what a coarse image still shows,
# such as stain and the share of each tissue.

stexpr.tl.score_prediction(coarse.spots)
for name, table in {
    "full resolution": adata,
    "small image": coarse.spots,
}.items():
    print(f"{name:15}: mean r {table.var['stexpr_r'].mean():.3f}")

# %%
# Microns per pixel that nobody knows are an error, not a guess.

try:
    stexpr.tl.predict(
        adata.copy(),
        model,
        image=work / "visium" / "outs" / "spatial" / "tissue_hires_image.png",
    )
except stexpr.StexprError as error:
    print(f"{type(error).__name__}: {error}")

# %%
# How each thing was made stands in the AnnData, as JSON, and is written with it.

made = json.loads(adata.uns["stexpr"])
print(json.dumps(made, indent=1)[:1500])
