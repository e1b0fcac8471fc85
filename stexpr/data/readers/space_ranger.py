"""Visium: the `outs` folder of Space Ranger 1 to 4, of a slide with fiducials or of CytAssist."""

from pathlib import Path

from stexpr.data.readers.folder import FolderRequest, agreed_mpp, check_inside, section_of_folder
from stexpr.data.readers.outs import Outs, outs_files, read_outs, spots_at
from stexpr.data.readers.positions import lattice_steps_px
from stexpr.data.section import Section
from stexpr.errors import ScaleError

PITCH_UM = 100.0
DIAMETER_UM = 55.0
_DIAMETERS_UM = (65.0, 55.0)
"""What `spot_diameter_fullres` measures: 10x Genomics documents "a theoretical 65 um spot", not the 55 um of the slide."""
_STEPS = ((0, 2), (1, 1), (1, -1))
"""The neighbors of a spot on the hexagonal array, whose rows use every second column."""
_SKEW = 0.05


def space_ranger_files(request: FolderRequest) -> list[Path]:
    """List the files that `read_space_ranger` reads.

    Raises:
        DataError: One is missing.
    """
    return outs_files(request, request.folder)


def read_space_ranger(request: FolderRequest) -> Section:
    """Read a Visium section.

    Centers are (`pxl_col_in_fullres`, `pxl_row_in_fullres`) of the image given to Space Ranger: with CytAssist the
    microscope's, not the instrument's. Without that image, the folder's small one is taken, and noted. The pixel size is
    measured on the array, whose spots lie 100 um apart, and held against the spot diameter and the image file. Features that
    are no genes are left out and counted; spots outside tissue keep `in_tissue` False.
    """
    outs = read_outs(request, request.folder)
    mpp = agreed_mpp(request, outs.image, *_measured(outs))
    centers = outs.positions.centers[outs.rows] * outs.scale
    within = outs.positions.in_tissue[outs.rows]
    check_inside(request, outs.image, centers, within)
    spots, namespace, notes = spots_at(request, outs.matrix, centers)
    spots.obs["in_tissue"] = within
    spots.obs[["array_row", "array_col"]] = outs.positions.grid[outs.rows]
    return section_of_folder(
        request, spots, namespace, outs.image, mpp, left_out=outs.unmeasured(), diameter_um=DIAMETER_UM, pitch_um=PITCH_UM,
        notes=(*outs.notes, *notes),
    )  # fmt: skip


def _measured(outs: Outs) -> tuple[float, str, dict[str, float]]:
    """Measure the pixel size on the array, and tell what the spot diameter makes it."""
    steps = lattice_steps_px(outs.positions, _STEPS)
    if steps.max() > (1 + _SKEW) * steps.min():
        raise ScaleError(
            f"{outs.positions.path}: neighbors on the array are {', '.join(f'{step:.4g}' for step in steps)} px apart, not "
            "equally far: rows and columns are swapped, or this is no Visium array"
        )
    pitch_px = float(steps.mean()) * outs.scale
    others = {}
    if diameter := outs.factors.get("spot_diameter_fullres"):
        sizes = {um / diameter / outs.scale: f"spot_diameter_fullres ({um:g} um)" for um in _DIAMETERS_UM}
        nearest = min(sizes, key=lambda size: abs(size - PITCH_UM / pitch_px))
        others[sizes[nearest]] = nearest
    return PITCH_UM / pitch_px, f"spot pitch ({PITCH_UM:g} um / {pitch_px:.4g} px)", others
