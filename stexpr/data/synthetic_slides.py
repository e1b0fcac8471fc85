"""A cohort of whole slides of which the truth is known: what is planted in them follows from what is drawn.

Slides, clinical table, slide table, patch labels and regions come as any cohort's would; which patches show what, and each
patient's true hazard, is written beside them.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float32, UInt8
from pydantic import Field

from stexpr.config import Strict, Unit, validated
from stexpr.config.files import hash_file, writable
from stexpr.data.synthetic_image import draw
from stexpr.data.synthetic_lesions import condense, enlarge, measure_squares
from stexpr.data.synthetic_patients import COLUMNS, PatientPlan, clinical_table, plan_patients
from stexpr.data.synthetic_tissue import PER_COARSE_PX, lay_out, populate, spot_grid
from stexpr.data.tables import FILENAME, PATIENT
from stexpr.errors import DataError
from stexpr.types import Progress, silent

__all__ = ["SlideTruth", "SyntheticSlidesConfig", "read_slide_truth", "write_synthetic_slides"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

RECIPE: Final = 1
"""Raised when the same choices come to mean other files."""
DESCRIPTION: Final = "synthetic_slides.json"
SQUARE_PX: Final = 96
"""Side of the squares that are labelled, 1 um/px: the field of view of `stexpr demo`; every slide is a whole number wide."""

_FOLDERS: Final = ("slides", "patch_labels", "rois")
_TABLES: Final = ("clinical.csv", "slides.csv", "truth.csv", "truth_patches.csv")
_FEWEST_NUCLEI: Final = 5  # of the tumor in a square that is labelled
_LEVELS: Final = (1, 4)
_SMALLEST_ROI: Final = 36  # pixels of the coarse grid

_ABOUT: Final = {
    "slides/": "H&E-like slides, 1 um per pixel, tiled and pyramidal TIFF",
    "clinical.csv": "one row per patient",
    "slides.csv": "whose each slide is",
    "patch_labels/": "per slide, as from registered IHC: squares of 96 px about x, y (level-0 px) with at least 5 nuclei of "
    "the tumor; value, the Ki67 of the square, is the share of mitosis-like ones among these tumor_nuclei. A patient's KI67: "
    "their mean, weighted by tumor_nuclei",
    "rois/": "regions of tumor, as QuPath exports them",
    "truth.csv": "per patient: whether the morphology was planted and in what share of the tissue, ki67, shares of tumor and "
    "immune cells, and the log hazards of OS and PFI",
    "truth_patches.csv": "per square of each slide: shares of tissue, of planted regions and of each tissue; nuclei",
}


class SyntheticSlidesConfig(Strict):
    """What a synthetic slide cohort is made of; every field changes the files."""

    patients: int = Field(60, ge=4, le=999)
    two_slides: Unit = Field(0.2, description="share of patients with two slides")
    squares_per_slide: int = Field(53, ge=4, le=2000, description="squares of 96 px wholly on the tissue")
    mutated: Unit = Field(0.4, description="share of patients with the planted mutation")
    planted_share: Unit = Field(0.07, description="share of the tissue that shows it, in slides of these patients")
    effect: float = Field(2.0, ge=0, description="log hazard per SD of the difference between tumor and immune shares")
    censored: float = Field(0.4, gt=0, lt=1, description="share of patients expected to be censored")
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class SlideTruth:
    """What a synthetic slide cohort was drawn from.

    Attributes:
        patients: By patient: `mutated`, `planted` (share of the tissue), `ki67`, `tumor`, `immune`, `log_hazard` (of OS) and
            `log_hazard_pfi`.
        patches: A row per square with tissue: `slide`, center `x` and `y` in level-0 px; shares of `tissue` and of `planted`
            regions, of `tumor`, `stroma`, `immune` and `fat`; `tumor_nuclei`, and `mitoses` among them.
    """

    patients: pd.DataFrame
    patches: pd.DataFrame


def write_synthetic_slides(target: Path, *, progress: Progress = silent, **choices: Any) -> Path:
    """Write the slides, tables and labels of a synthetic cohort.

    In the folder are `slides/*.tif`, `clinical.csv`, `slides.csv`, `patch_labels/<slide>.csv`, `rois/<slide>.geojson`,
    `truth.csv`, `truth_patches.csv` and, written last, the description. Equal choices give equal files, byte for byte on one
    machine; a folder that holds them already is left as it is. A failure leaves an earlier cohort whole.

    Args:
        target: Folder for the files, made if need be.
        progress: Shows how far it is.
        choices: Fields of `SyntheticSlidesConfig`.

    Returns:
        The description, `synthetic_slides.json` in the folder.

    Raises:
        ConfigError: A choice is unknown or refused.
        DataError: The folder cannot be written, or holds something else.
    """
    config = validated(SyntheticSlidesConfig, choices, "synthetic slide cohort")
    assert isinstance(config, SyntheticSlidesConfig)
    description, partial = target / DESCRIPTION, target / ".part"
    if target.exists() and not description.exists() and not (target.is_dir() and set(target.iterdir()) <= {partial}):
        raise DataError(f"{target} holds something that is not a synthetic slide cohort; give another folder, or empty it")
    if _is_there(description, config):
        return description
    with writable(target):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _write(partial, config, progress)
            description.unlink(missing_ok=True)  # until the new files are in place the folder holds no cohort
            for name in (*_FOLDERS, *_TABLES, DESCRIPTION):
                if name in _FOLDERS:
                    shutil.rmtree(target / name, ignore_errors=True)
                (partial / name).replace(target / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return description


def read_slide_truth(folder: Path) -> SlideTruth:
    """Read what a synthetic slide cohort was drawn from.

    Raises:
        DataError: The folder holds no such cohort.
    """
    try:
        json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        patients, patches = (pd.read_csv(folder / name) for name in _TABLES[2:])
        return SlideTruth(patients.set_index(PATIENT), patches)
    except (OSError, ValueError, KeyError) as err:
        raise DataError(f"{folder} is not a synthetic slide cohort ({err}); write it again") from err


def _is_there(description: Path, config: SyntheticSlidesConfig) -> bool:
    try:
        found = json.loads(description.read_text(encoding="utf-8"))
        same = (found["recipe"], found["choices"]) == (RECIPE, config.model_dump(mode="json"))
        return same and found["sha256"] == _hashes(description.parent)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    paths = [*(path for name in _FOLDERS for path in sorted((folder / name).iterdir())), *(folder / name for name in _TABLES)]
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}


def _write(folder: Path, config: SyntheticSlidesConfig, progress: Progress) -> None:
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True)
    plans = plan_patients(config.seed, config.patients, mutated=config.mutated, two_slides=config.two_slides)
    slides = [(plan, i, s) for i, plan in enumerate(plans) for s in range(plan.n_slides)]
    squares = []
    for plan, patient, slide in progress(slides, "drawing synthetic slides", len(slides)):
        name = f"{plan.name}{'ab'[slide]}"
        table = _write_slide(folder, name, plan, np.random.default_rng([config.seed, 4, patient, slide]), config)
        squares.append(table.assign(slide=name, patient=plan.name))
    patches = pd.concat(squares, ignore_index=True)
    patients = _patients(patches).assign(mutated=[plan.mutated for plan in plans])
    clinical, hazards = clinical_table(config.seed, plans, patients, effect=config.effect, censored=config.censored)
    whose = patches[["patient", "slide"]].drop_duplicates().set_axis([PATIENT, FILENAME], axis=1)
    truth = patients.join(hazards).rename_axis(PATIENT).reset_index()
    of_squares = patches[["slide", *(column for column in patches if column not in ("slide", "patient"))]]
    for name, table in zip(_TABLES, (clinical, whose, truth, of_squares), strict=True):
        _write_csv(table, folder / name)
    described = {"recipe": RECIPE, "choices": config.model_dump(mode="json"), "files": _ABOUT, "clinical": COLUMNS}
    text = json.dumps({**described, "sha256": _hashes(folder)}, indent=1)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def _patients(patches: pd.DataFrame) -> pd.DataFrame:
    """Sum up what the slides of each patient show, in the order of the patients."""
    labelled = _labelled(patches).groupby("patient", sort=False)[["mitoses", "tumor_nuclei"]].sum()
    areas = patches.groupby("patient", sort=False)[["tissue", "planted", "tumor", "immune"]].sum()
    shares = areas[["planted", "tumor", "immune"]].div(areas["tissue"], axis=0)
    return shares.assign(ki67=labelled["mitoses"] / labelled["tumor_nuclei"])


def _write_slide(
    folder: Path, name: str, plan: PatientPlan, rng: np.random.Generator, config: SyntheticSlidesConfig
) -> pd.DataFrame:
    """Draw one slide and what belongs to it; return what its squares show."""
    centers, side = spot_grid(config.squares_per_slide, SQUARE_PX, SQUARE_PX + SQUARE_PX // 2)
    layout, planted = enlarge(rng, lay_out(rng, centers, side, plan.mix), config.planted_share if plan.mutated else 0.0)
    tissue = populate(rng, layout)
    nuclei, mitotic = condense(rng, tissue.nuclei, plan.mitosis, side)
    tissue = replace(tissue, nuclei=nuclei)
    _write_tiff(folder / "slides" / f"{name}.tif", draw(rng, tissue, plan.stain))
    _write_rois(folder / "rois" / f"{name}.geojson", tissue.fractions[0])
    squares = measure_squares(tissue, planted, mitotic, SQUARE_PX)
    labelled = _labelled(squares)
    labels = labelled.assign(value=labelled["mitoses"] / labelled["tumor_nuclei"])[["x", "y", "value", "tumor_nuclei"]]
    _write_csv(labels, folder / "patch_labels" / f"{name}.csv")
    return squares


def _labelled(squares: pd.DataFrame) -> pd.DataFrame:
    return squares[squares["tumor_nuclei"] >= _FEWEST_NUCLEI]


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def _write_tiff(path: Path, pixels: UInt8[Array, "H W 3"]) -> None:
    import tifffile
    from PIL import Image

    with tifffile.TiffWriter(path) as file:
        for down in _LEVELS:
            file.write(
                np.asarray(Image.fromarray(pixels).reduce(down)),
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 92},
                subfiletype=1 if down > 1 else 0,
                metadata=None,
                resolution=(1e4 / down, 1e4 / down),
                resolutionunit="CENTIMETER",
            )


def _write_rois(path: Path, tumor: Float32[Array, "h w"]) -> None:
    """Outline where most of the tissue is tumor, as QuPath does; small holes and islands are passed over."""
    from scipy.ndimage import binary_fill_holes, label
    from skimage.measure import find_contours

    islands, n = label(binary_fill_holes(tumor > 0.5))
    features = []
    for i in range(1, n + 1):
        island = np.pad(islands == i, 1)
        if island.sum() < _SMALLEST_ROI:
            continue
        outline = max(find_contours(island.astype(float), 0.5), key=len)  # type: ignore[no-untyped-call]
        corners = (outline[:, ::-1] - 0.5) * PER_COARSE_PX  # pixel centers of the padded grid -> level-0 corners, x then y
        properties = {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}
        geometry = {"type": "Polygon", "coordinates": [corners.round(1).tolist()]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n", encoding="utf-8")
