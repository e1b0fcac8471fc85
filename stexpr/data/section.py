"""A section as it was measured: raw counts per spot, spot centers, and the image they lie on.

This is the border: what a reader returns is checked here once, and trusted from here on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from stexpr.data.images import SlideImage
from stexpr.data.rasters import MPP_RANGE
from stexpr.errors import DataError, GeneError, ScaleError
from stexpr.types import SPATIAL

if TYPE_CHECKING:
    from anndata import AnnData
else:  # anndata takes two seconds to import, and cards and images do without it
    AnnData = Any

AbsentGenes: TypeAlias = Literal["zero", "intersect", "refuse"]
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
GeneNamespace: TypeAlias = Literal["ensembl", "symbol", "other"]

PITCH_TOLERANCE = 0.15
"""How far the spot pitch measured on the image may be from the published one before the pixel size must be wrong."""
_SPOTS_FOR_PITCH = 10
_EXAMPLES = 5


@dataclass
class Section:
    """One tissue section with its spots.

    Attributes:
        name: Unique in the cohort.
        patient: Whose tissue it is.
        spots: `X` raw counts (CSR, whole numbers), `obs_names` barcodes, `var_names` gene ids without version suffix,
            `obsm["spatial"]` spot centers in level-0 pixels of `image` (x, y), `obs["in_tissue"]`.
        image: The H&E image, decoded when first read.
        mpp: Microns per level-0 pixel of `image`.
        mpp_source: How `mpp` is known.
        gene_namespace: What the gene names are.
        left_out: What the reader left out, by reason.
        spot_diameter_um: Diameter of a capture spot.
        spot_pitch_um: Distance from a spot's center to the nearest one's.
        notes: What a reader of results should know, such as features that are no genes and were left out.
    """

    name: str
    patient: str
    spots: AnnData
    image: SlideImage
    mpp: float
    mpp_source: str
    gene_namespace: GeneNamespace
    left_out: dict[str, int] = field(default_factory=dict)
    spot_diameter_um: float | None = None
    spot_pitch_um: float | None = None
    notes: tuple[str, ...] = ()


def check_section(section: Section) -> None:
    """Check what a reader made.

    Raises:
        DataError: As `check_outline` and `check_counts`.
        GeneError: A gene twice.
        ScaleError: `mpp` is impossible for a microscope image, or contradicts the spot pitch.
    """
    check_outline(section)
    check_counts(section.spots, section.name)


def check_outline(section: Section) -> None:
    """Check all of a section but its counts.

    Raises:
        DataError: No spot or no gene, a barcode twice, centers that are not two finite numbers each.
        GeneError: A gene twice.
        ScaleError: `mpp` is impossible for a microscope image, or contradicts the spot pitch.
    """
    spots = section.spots
    if 0 in spots.shape:
        left_out = ", ".join(f"{n} {reason}" for reason, n in section.left_out.items() if n)
        raise DataError(
            f"section {section.name} is empty: {spots.n_obs} spots x {spots.n_vars} genes (left out: {left_out or 'nothing'}); "
            "check that its counts and spot files belong together"
        )
    if repeated := _repeated(spots.obs_names):
        raise DataError(f"section {section.name} has barcodes more than once: {repeated}; each spot needs its own")
    if repeated := _repeated(spots.var_names):
        raise GeneError(
            f"section {section.name} has genes more than once: {repeated}; sum or drop them in the counts file "
            "(ids that differ only in their version suffix are one gene)"
        )
    _check_scale(section)


def check_counts(spots: AnnData, name: str) -> None:
    """Refuse an `X` that holds anything but whole numbers from 0.

    Raises:
        DataError: It names the section, and one such value with its spot and gene.
    """
    counts = sp.csr_matrix(spots.X)
    values = np.asarray(counts.data, dtype=np.float64)
    wrong = ~np.isfinite(values) | (values < 0) | (values != np.round(values))
    if wrong.any():
        first = int(np.argmax(wrong))
        row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
        raise DataError(
            f"section {name} has {int(wrong.sum())} values that are not counts, such as {values[first]:g} at spot "
            f"{spots.obs_names[row]}, gene {spots.var_names[counts.indices[first]]}; raw counts are whole "
            "numbers from 0: give the file before normalization, smoothing or imputation"
        )


def _check_scale(section: Section) -> None:
    check_mpp(section.mpp, f"section {section.name}")
    centers = np.asarray(section.spots.obsm[SPATIAL], dtype=np.float64)
    if centers.shape != (section.spots.n_obs, 2) or not np.isfinite(centers).all():
        raise DataError(f"section {section.name} has spot centers that are not two finite numbers each; check its spot file")
    pitch_px = spot_pitch_px(centers)
    if section.spot_pitch_um is None or pitch_px is None or section.mpp_source.startswith("spot pitch"):
        return
    pitch_um = pitch_px * section.mpp
    if abs(pitch_um - section.spot_pitch_um) > PITCH_TOLERANCE * section.spot_pitch_um:
        raise ScaleError(
            f"section {section.name}: its spots lie {pitch_px:.4g} px apart, {pitch_um:.4g} um at {section.mpp:.4g} um/px "
            f"({section.mpp_source}), but the card's spot_pitch_um is {section.spot_pitch_um:g}; correct mpp, pixel_scale or "
            "spot_pitch_um"
        )


def check_mpp(mpp: float, where: str) -> None:
    """Refuse a pixel size no microscope has.

    Raises:
        ScaleError: Outside 0.05 to 20 um/px.
    """
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise ScaleError(
            f"{where}: {mpp:g} um/px is absurd; microns per pixel lie between {MPP_RANGE[0]:g} and {MPP_RANGE[1]:g}"
        )


def spot_pitch_px(centers: Float[Array, "S 2"]) -> float | None:
    """Measure the spot pitch: the median distance from a spot to the nearest other one.

    Returns:
        Pixels; None with fewer than ten spots, too few to tell a pitch from a gap.
    """
    from scipy.spatial import cKDTree

    if len(centers) < _SPOTS_FOR_PITCH:
        return None
    distances, _ = cKDTree(centers).query(centers, k=2)
    return float(np.median(distances[:, 1])) or None


def join_genes(sections: Sequence[Section], absent: AbsentGenes) -> tuple[list[str], dict[str, int]]:
    """Find the gene axis of sections, checked; see `join_gene_names`."""
    return join_gene_names({section.name: list(section.spots.var_names) for section in sections}, absent)


def join_gene_names(genes_of: Mapping[str, Sequence[str]], absent: AbsentGenes) -> tuple[list[str], dict[str, int]]:
    """Find the gene axis of sections whose files may hold different genes.

    Args:
        genes_of: Genes of each section of a cohort, none twice in a section.
        absent: What a gene that some sections lack means. `zero`: the files leave out undetected genes, so it has 0 counts
            there; `intersect`: it was not measured there, so it is left out everywhere; `refuse`: nobody said.

    Returns:
        Genes in order of first appearance, and how many were left out by reason.

    Raises:
        GeneError: No section, nothing in common, or genes differ and `absent` is `refuse`.
    """
    if not genes_of:
        raise GeneError("no sections to join the genes of")
    order = list(dict.fromkeys(gene for genes in genes_of.values() for gene in genes))
    shared = set(order).intersection(*genes_of.values())
    incomplete = [gene for gene in order if gene not in shared]
    if not incomplete or absent == "zero":
        return order, {}
    if absent == "refuse":
        lacking = next(section for section, genes in genes_of.items() if incomplete[0] not in genes)
        raise GeneError(
            f"{len(incomplete)} of {len(order)} genes are missing in some section, such as "
            f"{', '.join(incomplete[:_EXAMPLES])} ({incomplete[0]} in section {lacking}); set absent_genes on the card: "
            "`zero` if the files leave out undetected genes, `intersect` to keep the shared ones only"
        )
    if not shared:
        raise GeneError(f"the {len(genes_of)} sections share none of their {len(order)} genes; do all use one gene_namespace?")
    return [gene for gene in order if gene in shared], {"missing in some section": len(incomplete)}


def _repeated(names: Any) -> str:
    """Name the first few that stand more than once; empty if none does."""
    twice = list(dict.fromkeys(names[names.duplicated()]))
    more = f" and {len(twice) - _EXAMPLES} more" if len(twice) > _EXAMPLES else ""
    return ", ".join(map(str, twice[:_EXAMPLES])) + more
