"""A model over the spots of an AnnData: features, predicted expression, and how foreign each patch is."""

from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd

from stexpr.data.provenance import note
from stexpr.errors import DataError
from stexpr.models.export import LoadedModel
from stexpr.tl.sections import Applied, ApplyOptions, apply_model
from stexpr.tl.target import target, write
from stexpr.types import FEATURES, SPATIAL, SPREAD

__all__ = ["embed", "predict", "predict_expression"]

EXPRESSION, STEM = "stexpr_expression", "stexpr"


def embed(
    adata: Any,
    model: LoadedModel | str | Path,
    *,
    key_added: str = FEATURES,
    copy: bool = False,
    **options: Unpack[ApplyOptions],
) -> Any:
    """Compute the features of every spot's patch of tissue.

    Patches are cut around `obsm["spatial"]` and resampled to the model's pixel size, whatever the image's is. Where the image
    is coarser than the model's pixels, or of another species, tissue, preservation or technology than the model was trained
    on, a `DomainWarning` says so.

    Args:
        adata: Spots with their centers in `obsm["spatial"]`, in full-resolution pixels, x then y.
        model: From `stexpr.load_model`, or its folder.
        key_added: Key in `obsm`.
        copy: Return a copy and leave `adata` as it is.
        **options: See `ApplyOptions`: `image`, `mpp`, `library_id`, `library_key`, `edge`, `symmetries`, `species`, …

    Returns:
        None, or the copy. Set are `obsm[key_added]`, spots x features, NaN where a patch leaves the image; where the model
        knows its training patches, `obs["stexpr_novelty"]`, the distance from them in thresholds (above 1 a patch is foreign);
        and `uns["stexpr"]`, how they were made.

    Raises:
        DataError: No spot centers, no image, no patch inside it, an unknown library; `adata` is backed.
        ScaleError: The microns per pixel are unknown or absurd.
        ModelError: The model cannot be read, or there is no memory for one patch.

    Example:
        >>> import stexpr
        >>> stexpr.tl.embed(adata, "model", image="tissue.tif", species="Homo sapiens")  # doctest: +SKIP
        >>> sc.pp.neighbors(adata, use_rep="X_stexpr")  # doctest: +SKIP
    """
    own = target(adata, copy)
    done = apply_model(own, model, **options)
    _add(own, done, embedding=key_added, stem=_stem(key_added))
    return own if copy else None


def predict_expression(
    adata: Any,
    model: LoadedModel | str | Path,
    *,
    key_added: str = EXPRESSION,
    as_anndata: bool = False,
    copy: bool = False,
    **options: Unpack[ApplyOptions],
) -> Any:
    """Predict the expression of the model's genes from every spot's patch of tissue.

    Args:
        adata: As in `embed`.
        model: As in `embed`.
        key_added: Key in `obsm`.
        as_anndata: Leave `adata` as it is and return a new AnnData with the model's genes.
        copy: Return a copy and leave `adata` as it is.
        **options: See `ApplyOptions`.

    Returns:
        None, or the copy. Set are `obsm[key_added]`, a table of spots x genes in the unit of the model (log1p of normalized
        counts, unless it was trained otherwise), NaN where a patch leaves the image; of an ensemble also
        `obsm["stexpr_spread"]`, the standard deviation between its networks; `obs["stexpr_novelty"]` and `uns["stexpr"]` as in
        `embed`. With `as_anndata`, a new AnnData with the prediction in `X`, the spread in `layers["spread"]`, the features in
        `obsm["X_stexpr"]`, half-widths of the model's prediction intervals in `var`, and the spots' `obs` and positions.

    Raises:
        DataError: As in `embed`.
        ScaleError: As in `embed`.
        ModelError: As in `embed`.

    Example:
        >>> import stexpr
        >>> virtual = stexpr.tl.predict_expression(adata, "model", as_anndata=True)  # doctest: +SKIP
    """
    own = target(adata, copy and not as_anndata)
    done = apply_model(own, model, **options)
    if as_anndata:
        return _new(own, done, key_added)
    _add(own, done, expression=key_added, stem=_stem(key_added))
    return own if copy else None


def predict(
    adata: Any,
    model: LoadedModel | str | Path,
    *,
    key_added: str = STEM,
    copy: bool = False,
    **options: Unpack[ApplyOptions],
) -> Any:
    """Do what `embed` and `predict_expression` do, in one pass over the image.

    Args:
        adata: As in `embed`.
        model: As in `embed`.
        key_added: What the keys hold: `obsm["X_<key_added>"]`, `obsm["<key_added>_expression"]` and so on.
        copy: Return a copy and leave `adata` as it is.
        **options: See `ApplyOptions`.

    Returns:
        None, or the copy.

    Raises:
        DataError: As in `embed`.
        ScaleError: As in `embed`.
        ModelError: As in `embed`.

    Example:
        >>> import stexpr
        >>> stexpr.tl.predict(adata, "model", image="tissue.tif", mpp=0.5)  # doctest: +SKIP
    """
    own = target(adata, copy)
    done = apply_model(own, model, **options)
    _add(own, done, embedding=f"X_{key_added}", expression=f"{key_added}_expression", stem=key_added)
    return own if copy else None


def _stem(key: str) -> str:
    return key.removeprefix("X_").removesuffix("_expression")


def _add(adata: Any, done: Applied, *, stem: str, embedding: str | None = None, expression: str | None = None) -> None:
    """Write what was asked for into the AnnData, and how each was made."""
    obsm: dict[str, Any] = {}
    if embedding is not None:
        obsm[embedding] = done.outputs.features
    if expression is not None:
        obsm[expression] = _table(adata, done, done.outputs.expression)
        if len(done.model.networks) > 1:
            obsm[f"{stem}_{SPREAD}"] = _table(adata, done, done.outputs.spread)
    obs = {f"{stem}_novelty": done.outputs.novelty} if done.model.has_reference else {}
    write(adata, obsm=obsm, obs=obs)
    for key in (*obsm, *obs):
        note(adata, key, done.provenance)


def _table(adata: Any, done: Applied, values: Any) -> pd.DataFrame:
    genes = done.model.genes
    if slashed := [gene for gene in genes if "/" in gene]:
        raise DataError(
            f"{len(slashed)} genes have a slash in their name, such as {slashed[0]!r}, which HDF5 takes for a folder: a table "
            "in obsm could not be written; take predict_expression(..., as_anndata=True)"
        )
    return pd.DataFrame(values, index=adata.obs_names, columns=list(genes))


def _new(adata: Any, done: Applied, key: str) -> Any:
    """Make an AnnData of the model's genes on the same spots."""
    import anndata

    model, outputs, stem = done.model, done.outputs, _stem(key)
    var = pd.DataFrame(index=pd.Index(model.genes, dtype=object))
    layers = {}
    if len(model.networks) > 1:
        layers[SPREAD] = outputs.spread
        var["n_networks"] = np.array(model.n_networks)
    if model.intervals is not None:
        for column, coverage in enumerate(model.intervals.coverages):
            var[f"half_width_{coverage:g}"] = model.intervals.half_width[:, column]
    obs = adata.obs.copy()
    if model.has_reference:
        obs[f"{stem}_novelty"] = outputs.novelty
    made = anndata.AnnData(
        X=outputs.expression,
        obs=obs,
        var=var,
        layers=layers,
        obsm={SPATIAL: np.array(adata.obsm[SPATIAL]), f"X_{stem}": outputs.features},
        uns={SPATIAL: adata.uns[SPATIAL]} if SPATIAL in adata.uns else {},
    )
    note(made, "X", done.provenance)
    note(made, f"X_{stem}", done.provenance)
    return made
