"""
A whole slide to virtual expression
===================================

From a slide without any measured spot to an AnnData with a patch in each row: tissue is found,
patches are cut on a grid, and each gets predicted expression, an interval, and a number that tells
how foreign it is to the model.

First a slide of the kind the model was trained on (synthetic, so the truth is known), then a real
one, which the model has to recognize as foreign. Run :doc:`the second tutorial <plot_2_visium>`
before: its model is used here.
"""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import squidpy as sq

import stexpr
from stexpr.data.synthetic import read_truth, write_synthetic
from stexpr.evaluate.overview import overview_figure
from stexpr.inference.geojson import write_geojson
from stexpr.inference.slide_file import most_varied

data = Path(os.environ.get("STEXPR_DATA", "raw"))
work = Path(os.environ.get("STEXPR_WORK", "stexpr-tutorials"))
model = stexpr.load_model(work / "synthetic" / "model")
out = work / "slides"
out.mkdir(parents=True, exist_ok=True)

# %%
# A slide
# -------
#
# The picture of a fourth patient, whom no network of the ensemble has seen. A PNG does not say its
# microns per pixel, and stexpr does not guess them:

truth_card = write_synthetic(
    out / "raw", patients=4, spots_per_section=100, genes=200
)
slide = out / "raw" / "P4S1.png"
try:
    stexpr.predict_slide(slide, model, out / "slide.h5ad")
except stexpr.StexprError as error:
    print(f"{type(error).__name__}: {error}")

# %%
# With them it works; in a shell, ``stexpr predict P4S1.png -m model -o slide.h5ad --mpp 1``.

done = stexpr.predict_slide(
    slide, model, out / "slide.h5ad", mpp=1.0, features=True
)
rows, columns = done.grid.shape
print(
    f"{len(done.grid)} patches of {rows} x {columns} places; left out: {done.grid.left_out}"
)
print(f"{done.n_foreign} patches are foreign to the model")

# %%
# So many are a false alarm: the tissue is of the kind the model knows, but the threshold was set on the patches of three
# patients, and every patient of this cohort has a stain of its own. With few patients, read novelty as a ranking.
#
# The overview: tissue and grid, how foreign each patch is, and the genes whose prediction varies
# most.

genes = most_varied(done.path, 4)
overview_figure(done.read(genes), done.mask)

# %%
# The file in scanpy and squidpy
# ------------------------------
#
# It is an ordinary ``.h5ad``: ``scanpy.read_h5ad`` opens it.

virtual = done.read()
print(virtual)
sq.gr.spatial_neighbors_grid(virtual, n_neighs=4)
sq.gr.spatial_autocorr(virtual, mode="moran", n_jobs=1, show_progress_bar=False)
print(virtual.uns["moranI"].head(5).round(3).to_string())

# %%
# How sure is it?
# ---------------
#
# ``half_width_0.9`` is the half-width of an interval in which nine of ten *measurements* of a spot
# like the patch lie: they are noisy, so it is wide. ``layers["spread"]`` is the disagreement of the
# networks. How far the intervals hold is said by their label.

print(json.loads(virtual.uns["stexpr"])["intervals"])
table = virtual.var[
    ["predicted_mean", "predicted_sd", "half_width_0.9"]
].assign(spread=virtual.layers["spread"].mean(axis=0))
print(table.head(5).round(2).to_string())

# %%
# Here the truth is known, at a hundred places. The prediction of the nearest patch against it:

truth = read_truth(truth_card)
expected = truth.expression["P4S1"]
column, row = np.array(
    [name.split("x") for name in expected.index], dtype=int
).T
places = np.column_stack([column, row]) * 100.0 + 120  # spots lie 100 um apart
distance = np.linalg.norm(
    places[:, None] - virtual.obsm["spatial"][None], axis=2
)
near = distance.min(axis=1) < 60
predicted = virtual.to_df().to_numpy()[distance.argmin(axis=1)][near]
true = expected.loc[near, list(truth.planted)]
planted = [gene for gene in virtual.var_names if gene in truth.planted]
r = [
    np.corrcoef(predicted[:, virtual.var_names.get_loc(gene)], true[gene])[0, 1]
    for gene in planted
]
print(
    f"{len(planted)} genes that follow the tissue, at {near.sum()} places: median r {np.median(r):.2f}"
)

# %%
# For QuPath
# ----------
#
# One square per patch, its predictions as measurements: drop the file on the open slide.

write_geojson(done.read(genes), out / "slide.geojson")
first = json.loads((out / "slide.geojson").read_text())["features"][0]
print(json.dumps(first["properties"], indent=1))

# %%
# A foreign slide
# ---------------
#
# A scan of human tissue, and a model of made-up tissue: no prediction here means anything. stexpr
# warns of what it was told, and recognizes the patches by itself. With ``abstain=True`` they stay
# empty.

real = data / "wsi" / "cmu_small_region.svs"
figure = None
if real.is_file():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        foreign = stexpr.predict_slide(
            real,
            model,
            out / "foreign.h5ad",
            abstain=True,
            about={"species": "Homo sapiens", "preservation": "FFPE"},
        )
    print(
        "\n\n".join(f"{one.category.__name__}: {one.message}" for one in said)
    )
    print(f"\n{foreign.n_foreign} of {len(foreign.grid)} patches are foreign")
    figure = overview_figure(foreign.read(genes[:1]), foreign.mask)
else:
    print(
        f"There is no {real}: this part of the page needs a real slide, and was left out."
    )
figure
