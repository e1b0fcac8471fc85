"""Measured and predicted expression over the sections, read from runs for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from stexpr.data.manifest import section_files
from stexpr.data.store import PreparedCohort
from stexpr.data.stored import open_h5
from stexpr.errors import DataError, ProtocolError, nearest
from stexpr.evaluate.records import Run, read_predictions
from stexpr.types import MEASURED, SPATIAL

__all__ = ["SectionMap", "load_maps"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MAX_BYTES: Final = 24_000_000
FEWEST_GENES: Final = 20
"""Below this, whole sections are left out instead of more genes."""
INLINE: Final = 4 / 3
"""Characters of base64 per byte."""
PICTURE_BYTES: Final = 60_000


@dataclass(frozen=True)
class SectionMap:
    """One section, with what was measured and predicted over it.

    Attributes:
        section: Its name.
        patient: Its patient.
        x_px: Spot centers in thumbnail pixels, to the right; in microns where there is no thumbnail.
        y_px: The same, downward.
        x_um: Spot centers in microns.
        y_um: The same, downward.
        spot_px: Diameter of a spot in the unit of `x_px`, where it is known.
        thumbnail: The section, small.
        genes: Names of the columns below; empty where the section's maps were left out to keep the page small.
        measured: Measured expression.
        predicted: Predicted expression by model; a model that was not tested on the section is absent.
    """

    section: str
    patient: str
    x_px: Float[Array, "S"]
    y_px: Float[Array, "S"]
    x_um: Float[Array, "S"]
    y_um: Float[Array, "S"]
    spot_px: float | None
    thumbnail: UInt8[Array, "H W 3"] | None
    genes: tuple[str, ...]
    measured: Float[Array, "S G"]
    predicted: Mapping[str, Float[Array, "S G"]]


def load_maps(
    runs: Mapping[str, Sequence[Run]],
    cohort: PreparedCohort | None,
    *,
    models: Sequence[str],
    genes: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> list[SectionMap]:
    """Read the maps of some models from their predictions files.

    Of a model's seeds the lowest is shown: a map is what one trained model gives, not a mean of several. Over the budget,
    genes at evenly spaced ranks are kept, good and bad alike; where even a few genes are too much, the last sections are
    returned without genes, so that the page can name them.

    Args:
        runs: Runs of each model, by label.
        cohort: The cohort the runs were tested on, for its thumbnails.
        models: Labels of the models to show, such as the first few of a board.
        genes: All genes in the order of their ranks; by default in the order of the files.
        max_bytes: Size of all maps on the page.

    Returns:
        Sections in the order of the folds.

    Raises:
        DataError: A model has no runs, or a predictions file is missing, unreadable or unlike another model's.
        ProtocolError: The runs were made on another cohort.
    """
    for label in models:
        if label not in runs:
            raise DataError(f"no runs of the model {label!r}; {nearest(label, runs)}")
    chosen = {label: _lowest_seed(runs[label]) for label in models}
    if not chosen:
        return []
    _check_cohort(chosen, cohort)
    outlines = [_outline(run.folder) for own in chosen.values() for run in own]
    sizes = {section: n for spots, _ in outlines for section, n in spots.items()}
    ranked = list(dict.fromkeys([*(genes or ()), *(gene for _, names in outlines for gene in names)]))
    present = {gene for _, names in outlines for gene in names}
    ranked = [gene for gene in ranked if gene in present]
    kept, shown = within_budget(ranked, sizes, 1 + len(models), max_bytes)
    parts: dict[str, dict[str, _Part]] = {label: {} for label in models}
    for label, own in chosen.items():
        for run in own:
            parts[label].update(_read(run.folder, kept, shown))
    return [
        _section_map(section, {label: parts[label][section] for label in models if section in parts[label]}, cohort)
        for section in sizes
    ]


def within_budget(
    genes: Sequence[str], sizes: Mapping[str, int], arrays: int, max_bytes: int
) -> tuple[list[str], frozenset[str]]:
    """Choose the genes, and if need be the sections, whose maps fit.

    Example:
        >>> within_budget(["a", "b", "c"], {"A1": 100}, arrays=2, max_bytes=1_000_000)
        (['a', 'b', 'c'], frozenset({'A1'}))
    """
    per_gene = {section: n * arrays * INLINE for section, n in sizes.items()}
    affordable = int((max_bytes - PICTURE_BYTES * len(sizes)) / sum(per_gene.values()))
    n = min(len(genes), max(affordable, FEWEST_GENES))
    kept = [genes[i] for i in np.unique(np.linspace(0, len(genes) - 1, n).round().astype(int))]
    shown, left = set(), float(max_bytes)
    for section, bytes_per_gene in per_gene.items():
        left -= bytes_per_gene * n + PICTURE_BYTES
        if left < 0 and n > affordable:
            break
        shown.add(section)
    return kept, frozenset(shown)


@dataclass(frozen=True)
class _Part:
    spots: pd.DataFrame
    genes: tuple[str, ...]
    measured: Float[Array, "S G"]
    predicted: Float[Array, "S G"]


def _lowest_seed(runs: Sequence[Run]) -> list[Run]:
    lowest = min(run.record.seed for run in runs)
    return sorted((run for run in runs if run.record.seed == lowest), key=lambda run: run.record.fold.index)


def _check_cohort(chosen: Mapping[str, Sequence[Run]], cohort: PreparedCohort | None) -> None:
    hashes = {run.record.cohort.hash for runs in chosen.values() for run in runs}
    wanted = hashes if cohort is None else {cohort.hash}
    if len(hashes) > 1 or hashes != wanted:
        raise ProtocolError(
            f"the runs were tested on the cohort {' and '.join(sorted(hashes))}, not on {' and '.join(sorted(wanted))}; "
            "their maps would lie on other pictures; give the cohort the runs were made on"
        )


def _outline(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Return the spots of each section and the genes, without reading a matrix."""
    predictions = read_predictions(folder, backed=True)
    try:
        sections = predictions.obs["section"].astype(str)
        return {name: int((sections == name).sum()) for name in dict.fromkeys(sections)}, list(predictions.var_names)
    finally:
        predictions.file.close()


def _read(folder: Path, genes: Sequence[str], shown: frozenset[str]) -> dict[str, _Part]:
    predictions = read_predictions(folder)
    held = set(predictions.var_names)
    names = tuple(gene for gene in genes if gene in held)
    columns = predictions.var_names.get_indexer(list(names))
    sections = predictions.obs["section"].astype(str).to_numpy()
    parts = {}
    for section in dict.fromkeys(sections):
        rows, own = np.flatnonzero(sections == section), columns if section in shown else columns[:0]
        parts[section] = _Part(
            spots=predictions.obs.iloc[rows],
            genes=names if section in shown else (),
            measured=np.asarray(predictions.layers[MEASURED][np.ix_(rows, own)], dtype=np.float32),
            predicted=np.asarray(predictions.X[np.ix_(rows, own)], dtype=np.float32),
        )
    return parts


def _section_map(section: str, parts: Mapping[str, _Part], cohort: PreparedCohort | None) -> SectionMap:
    first = next(iter(parts.values()))
    for label, part in parts.items():
        if part.genes != first.genes or not part.spots.index.equals(first.spots.index):
            raise DataError(
                f"{label} and {next(iter(parts))} were not tested on the same spots and genes of section {section}; train "
                "the older of them again"
            )
    x_um, y_um = (first.spots[axis].to_numpy(dtype=np.float64) for axis in ("x_um", "y_um"))
    thumbnail, px_per_um, spot_px = (None, 1.0, None) if cohort is None else _thumbnail(cohort, section)
    return SectionMap(
        section=section,
        patient=str(first.spots["patient"].iloc[0]),
        x_px=x_um * px_per_um,
        y_px=y_um * px_per_um,
        x_um=x_um,
        y_um=y_um,
        spot_px=spot_px,
        thumbnail=thumbnail,
        genes=first.genes,
        measured=first.measured,
        predicted={label: part.predicted for label, part in parts.items()},
    )


def _thumbnail(cohort: PreparedCohort, section: str) -> tuple[UInt8[Array, "H W 3"] | None, float, float | None]:
    """Return the picture of a section if there is one, its pixels per micron and the diameter of a spot in its pixels."""
    with open_h5(cohort.path / section_files(section)[0]) as file:
        if f"uns/{SPATIAL}/ST/images/downscaled_fullres" not in file:  # an adopted download may come without a picture
            return None, 1 / cohort.entry(section).level0_mpp, None
        library = file["uns"][SPATIAL]["ST"]
        picture = np.asarray(library["images"]["downscaled_fullres"][:], dtype=np.uint8)
        factors = library["scalefactors"]
        scale = float(factors["tissue_downscaled_fullres_scalef"][()])
        spot = factors.get("spot_diameter_fullres")
        diameter = None if spot is None else float(spot[()]) * scale
    return picture, scale / cohort.entry(section).level0_mpp, diameter
