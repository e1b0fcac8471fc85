"""One section into its four files: counts, patches, metadata, picture."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import UInt8

from stexpr.config import PrepareConfig
from stexpr.data.cards import DataCard
from stexpr.data.hest import on_axis, write_metadata, write_patches, write_picture, write_spots
from stexpr.data.manifest import PreparedSection, section_files, stored_file
from stexpr.data.qc import Selection, draw_qc, select_spots, windows_of
from stexpr.data.section import Section
from stexpr.data.stain import StainProfile, StainTransform, stain_transform
from stexpr.data.tissue import TissueMask, find_tissue, tissue_overview
from stexpr.types import SPATIAL

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_THUMBNAIL_PX = 1000
_UPSAMPLED = 0.95


def section_stain(section: Section, config: PrepareConfig) -> StainProfile:
    """Fit the stain of a section on the tissue in a sample of its kept spots' patches, read at the cohort's mpp.

    Raises:
        DataError: No spot is kept, or the tissue has no two stains to tell apart.
    """
    mask = find_tissue(section.image, section.mpp)
    return _fit(section, mask, select_spots(section, mask, config), config)


def write_section(
    folder: Path,
    section: Section,
    genes: Sequence[str],
    card: DataCard,
    config: PrepareConfig,
    *,
    fingerprint: str,
    reference: StainProfile | None,
) -> PreparedSection:
    """Check the spots of a section, cut their patches and write its files.

    Args:
        folder: Where `st/`, `patches/`, `metadata/` and `qc/` are.
        section: Counts and image.
        genes: The cohort's gene axis.
        card: The cohort's card, which metadata repeats.
        config: Pixel size, window, checks and stain.
        fingerprint: Recorded as it is.
        reference: Stain to bring the section to; None leaves colors alone.

    Raises:
        DataError: No spot is left, the stain cannot be fitted, or the folder cannot be written.
    """
    overview = tissue_overview(section.image, section.mpp)
    mask = find_tissue(overview, section.mpp)
    selection = select_spots(section, mask, config)
    own = _fit(section, mask, selection, config) if reference is not None else None
    transform = stain_transform(own, reference) if own is not None and reference is not None else None
    spots = _kept_spots(section, selection, genes)
    counts_file, patches_file, metadata_file, picture_file = (folder / name for name in section_files(section.name))

    thumbnail = overview.thumbnail(_THUMBNAIL_PX)
    scale = max(thumbnail.shape[:2]) / max(section.image.width, section.image.height)
    diameter = section.spot_diameter_um / section.mpp if section.spot_diameter_um else None
    pixels = write_patches(
        patches_file,
        _patches(section, selection, config, transform),
        selection.corners[selection.kept],
        list(spots.obs_names),
        window_px=config.window_px,
        side=selection.side,
    )
    content = _content(spots, pixels)
    write_spots(counts_file, spots, thumbnail, scale=scale, spot_px=diameter)
    notes = _notes(section, config)
    write_metadata(metadata_file, _metadata(section, card, config, selection, notes, own))
    write_picture(picture_file, draw_qc(section, mask, selection, overview))
    return PreparedSection(
        section=section.name,
        patient=section.patient,
        n_spots=spots.n_obs,
        left_out=_left_out(section, selection),
        level0_mpp=section.mpp,
        mpp_source=section.mpp_source,
        content=content,
        fingerprint=fingerprint,
        files={name: stored_file(folder / name) for name in section_files(section.name)},
        notes=notes,
    )


def _patches(
    section: Section, selection: Selection, config: PrepareConfig, transform: StainTransform | None
) -> Iterator[UInt8[Array, "H W 3"]]:
    patches = windows_of(section, config).read_all(selection.corners[selection.kept])
    return patches if transform is None else map(transform, patches)


def _fit(section: Section, mask: TissueMask, selection: Selection, config: PrepareConfig) -> StainProfile:
    assert config.stain != "none"
    return windows_of(section, config).fit_stain(config.stain, mask, selection.corners[selection.kept])


def _kept_spots(section: Section, selection: Selection, genes: Sequence[str]) -> Any:
    """Return an AnnData of the kept spots on the gene axis."""
    import anndata
    import pandas as pd

    kept = selection.kept
    obs = pd.DataFrame(
        {
            "library": selection.library[kept],
            "tissue_fraction": selection.tissue[kept],
            "in_tissue": np.ones(kept.sum(), dtype=bool),
        },
        index=pd.Index(section.spots.obs_names[kept], dtype=object),
    )
    spots = anndata.AnnData(
        on_axis(sp.csr_matrix(section.spots.X)[kept], section.spots.var_names, genes),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(list(genes), dtype=object)),
    )
    if "symbol" in section.spots.var:
        spots.var["symbol"] = section.spots.var["symbol"].reindex(genes).fillna("").to_numpy(dtype=object)
    spots.obsm[SPATIAL] = np.asarray(section.spots.obsm[SPATIAL], dtype=np.float64)[kept]
    return spots


def _content(spots: Any, pixels: str) -> str:
    """Hash what a study can read of a section, whatever library wrote the files."""
    digest = hashlib.sha256(pixels.encode())
    for names in (spots.obs_names, spots.var_names):
        digest.update("\n".join(names).encode())
    arrays = [spots.X.indptr.astype("<i8"), spots.X.indices.astype("<i8"), spots.X.data.astype("<f8")]
    arrays += [spots.obsm[SPATIAL].astype("<f8"), *(spots.obs[key].to_numpy("<f8") for key in ("library", "tissue_fraction"))]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _notes(section: Section, config: PrepareConfig) -> tuple[str, ...]:
    if config.mpp >= section.mpp * _UPSAMPLED:
        return section.notes
    return (
        *section.notes,
        f"upsampled from {section.mpp:g} to {config.mpp:g} um/px: the patches hold no more detail than the image",
    )


def _left_out(section: Section, selection: Selection) -> dict[str, int]:
    """Join the reader's drops with ours; a reason both use is added up."""
    both = Counter(section.left_out)
    both.update(selection.dropped)
    return {reason: n for reason, n in both.items() if n}


def _metadata(
    section: Section,
    card: DataCard,
    config: PrepareConfig,
    selection: Selection,
    notes: Sequence[str],
    stain: StainProfile | None,
) -> dict[str, Any]:
    """Describe a section: HEST's keys first, then ours."""
    names = section.spots.obs_names
    dropped: dict[str, list[str]] = {reason: [] for reason in selection.dropped}
    for name, reason in zip(names, selection.reason, strict=True):
        if reason:
            dropped[reason].append(str(name))
    return {
        "id": section.name,
        "patient": section.patient,
        "species": card.species,
        "organ": card.tissue,
        "st_technology": card.technology,
        "pixel_size_um_estimated": section.mpp,
        "fullres_px_width": section.image.width,
        "fullres_px_height": section.image.height,
        "spots_under_tissue": int(selection.kept.sum()),
        "nb_genes": section.spots.n_vars,
        "spot_diameter": section.spot_diameter_um,
        "inter_spot_dist": section.spot_pitch_um,
        "mpp_source": section.mpp_source,
        "prepare": config.model_dump(mode="json"),
        "patch_side_level0_px": selection.side,
        "gene_namespace": section.gene_namespace,
        "left_out": _left_out(section, selection),
        "dropped_barcodes": dropped,
        "stain": None if stain is None else stain.describe(),
        "notes": list(notes),
    }
