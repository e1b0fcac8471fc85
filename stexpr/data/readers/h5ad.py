"""AnnData files and the image that their spots lie on."""

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from stexpr.data.cards import DataCard, SectionEntry
from stexpr.data.rasters import reason
from stexpr.data.readers.assembly import named_file, repeated_names_pass, section_of_card, spots_of_card
from stexpr.data.section import Section
from stexpr.errors import DataError
from stexpr.types import SPATIAL


def read_h5ad_with_image(entry: SectionEntry, folder: Path, card: DataCard) -> Section:
    """Read an AnnData file and the image its spots lie on.

    Counts come from `layers["counts"]` if there is one, else from `X`; spot centers from `obsm["spatial"]`, in image
    pixels (after the entry's `pixel_scale`), x then y; `obs["in_tissue"]` is kept.
    """
    import anndata

    path = folder / named_file(entry, "counts")
    try:
        with repeated_names_pass():
            file = anndata.read_h5ad(path)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path} is not an AnnData file that can be read ({reason(err)}); fetch or export it again") from err
    counts = file.layers.get("counts", file.X)
    if counts is None:
        raise DataError(f'{path} has neither layers["counts"] nor X; store raw counts in one of them')
    if SPATIAL not in file.obsm:
        raise DataError(f'{path} has no obsm["spatial"]; store spot centers there, in image pixels, x then y')
    centers = np.asarray(file.obsm[SPATIAL], dtype=np.float64)
    if centers.ndim != 2 or centers.shape[1] < 2:
        raise DataError(f'{path}: obsm["spatial"] has shape {centers.shape}, not spots x 2')
    centers = centers[:, :2] * entry.pixel_scale
    matrix = sp.csr_matrix(counts if sp.issparse(counts) else np.asarray(counts))
    in_tissue = file.obs.get("in_tissue")
    spots = spots_of_card(list(map(str, file.obs_names)), list(map(str, file.var_names)), matrix, centers, folder, card)
    if in_tissue is not None:
        spots.obs["in_tissue"] = in_tissue.astype(str).str.lower().isin(["1", "1.0", "true"]).to_numpy()
    return section_of_card(entry, folder, card, spots, {}, centers)
