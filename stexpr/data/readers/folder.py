"""What the readers of instrument folders share: the request, the choice of image, the agreement on the pixel size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64

from stexpr.data.cards import DataCard, FolderKind, Matrix, SectionEntry
from stexpr.data.images import SlideImage, open_image
from stexpr.data.section import PITCH_TOLERANCE, GeneNamespace, Section, check_mpp
from stexpr.errors import ConfigError, DataError, ScaleError
from stexpr.types import T

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_SAID = 0.02
"""Two pixel sizes further apart than this are told of; beyond `PITCH_TOLERANCE` they contradict each other."""
_INSIDE = 0.5


@dataclass(frozen=True, kw_only=True)
class FolderRequest:
    """What is asked of an instrument's folder: the fields of a card's section, as paths; see `read_folder`."""

    folder: Path
    section: str
    patient: str
    image: Path | None = None
    mpp: float | None = None
    mpp_source: str = ""
    pixel_scale: float = 1.0
    blank: tuple[tuple[int, int, int, int], ...] = ()
    blank_below: int | None = None
    gene_namespace: GeneNamespace | None = None
    matrix: Matrix | None = None
    bin_um: int | None = None
    pseudo_spot_um: float | None = None
    alignment: Path | None = None

    def open_image(self, path: Path) -> SlideImage:
        """Open an image with what is blank on it."""
        return open_image(path, blank=self.blank, blank_below=self.blank_below)


def request_of_card(entry: SectionEntry, folder: Path, card: DataCard) -> FolderRequest:
    """Turn a section on a card into a request."""
    assert entry.folder is not None
    same = {key: getattr(entry, key) for key in ("section", "patient", "mpp", "pixel_scale", "blank", "blank_below", "matrix")}
    return FolderRequest(
        **same,
        folder=outs_of(folder / entry.folder),
        image=None if entry.image is None else folder / entry.image,
        mpp_source=f"card{': ' if entry.mpp_source else ''}{entry.mpp_source}",
        gene_namespace=card.gene_namespace,
        bin_um=entry.bin_um,
        pseudo_spot_um=entry.pseudo_spot_um,
        alignment=None if entry.alignment is None else folder / entry.alignment,
    )


def outs_of(folder: Path) -> Path:
    """Return the folder itself, or its `outs` where Space Ranger put one.

    Raises:
        DataError: There is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; give the output folder of Space Ranger (outs) or of a Xenium Analyzer")
    return folder / "outs" if (folder / "outs").is_dir() else folder


def detect_kind(folder: Path) -> FolderKind:
    """Tell by its files what wrote a folder.

    Raises:
        DataError: None of the known ones did.
    """
    if (folder / "experiment.xenium").is_file() or (folder / "transcripts.parquet").is_file():
        return "xenium"
    if (folder / "binned_outputs").is_dir():
        return "visium_hd"
    if folder.parent.name == "binned_outputs" or folder.name.startswith("square_"):
        raise DataError(f"{folder} is one bin size of a Visium HD folder; give the one above binned_outputs, and say bin_um")
    if (folder / "spatial").is_dir():
        return "space_ranger"
    raise DataError(
        f"{folder} is no output folder that stexpr knows: it holds neither spatial/ (Space Ranger), binned_outputs/ "
        "(Visium HD) nor experiment.xenium (Xenium)"
    )


def stated(value: T | None, option: str, request: FolderRequest, example: str) -> T:
    """Return an option that has no default.

    Raises:
        ConfigError: It was not given.
    """
    if value is None:
        raise ConfigError(f"section {request.section}: say {option}, {example}")
    return value


def existing(paths: Sequence[Path], what: str, folder: Path) -> Path:
    """Return the first path that exists.

    Raises:
        DataError: None does.
    """
    for path in paths:
        if path.exists():
            return path
    names = " or ".join(str(path.relative_to(folder)) for path in paths)
    raise DataError(f"{folder} lacks {what}: {names}; copy the whole output folder")


def agreed_mpp(
    request: FolderRequest, image: SlideImage, measured: float, source: str, others: Mapping[str, float] | None = None
) -> tuple[float, str]:
    """Decide on the pixel size, and hold every other word on it against the decision.

    Args:
        request: Its `mpp`, if given, decides, and what disagrees with it is told of; that the spots lie as far apart as they
            should is checked on the section.
        image: Its own pixel size is compared.
        measured: Pixel size according to the folder; decides otherwise.
        source: How `measured` is known.
        others: Further pixel sizes to compare, by how they are known.

    Returns:
        Microns per level-0 pixel and how they are known, with what disagrees a little.

    Raises:
        ScaleError: Absurd, or nobody decided and two words are more than 15 % apart.
    """
    mpp, how = (request.mpp, request.mpp_source) if request.mpp is not None else (measured, source)
    check_mpp(mpp, f"section {request.section}, {how}")
    words = {**(others or {})} if request.mpp is None else {source: measured, **(others or {})}
    if image.mpp is not None:
        words[f"the image file ({image.backend})"] = image.mpp
    for word, other in words.items():
        apart = abs(other - mpp) / mpp
        if request.mpp is None and not apart <= PITCH_TOLERANCE:
            raise ScaleError(
                f"section {request.section}: {mpp:.4g} um/px ({how}) contradicts {other:.4g} um/px ({word}); is "
                f"{image.path.name} the image that the positions refer to? Else correct mpp or pixel_scale"
            )
        if apart > _SAID:
            how += f"; {word} says {other:.4g}"
    return mpp, how


def check_inside(
    request: FolderRequest, image: SlideImage, centers: Float64[Array, "S 2"], in_tissue: Bool[Array, "S"]
) -> None:
    """Refuse an image that most spots in tissue miss: it is not the one that the positions refer to.

    Raises:
        DataError: Fewer than half of them lie on it.
    """
    chosen = centers[in_tissue]
    inside = ((chosen >= 0) & (chosen <= [image.width, image.height])).all(axis=1)
    if len(chosen) and inside.mean() < _INSIDE:
        low, high = chosen.min(axis=0), chosen.max(axis=0)
        raise DataError(
            f"section {request.section}: only {int(inside.sum())} of {len(chosen)} spots lie on {image.path.name} "
            f"({image.width} x {image.height} px): they span x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}; "
            "give the image that the positions refer to"
        )


def section_of_folder(
    request: FolderRequest,
    spots: Any,
    namespace: GeneNamespace,
    image: SlideImage,
    scale: tuple[float, str],
    *,
    left_out: Mapping[str, int],
    diameter_um: float,
    pitch_um: float,
    notes: tuple[str, ...],
) -> Section:
    """Put a section together.

    Args:
        request: Names it.
        spots: Counts and centers.
        namespace: What its genes are named by.
        image: Which the centers refer to.
        scale: Microns per pixel, and how they are known.
        left_out: Spots left out, by reason.
        diameter_um: Of a spot, or its side.
        pitch_um: From a spot to the nearest one.
        notes: What a reader of results should know.
    """
    return Section(
        name=request.section,
        patient=request.patient,
        spots=spots,
        image=image,
        mpp=scale[0],
        mpp_source=scale[1],
        gene_namespace=namespace,
        left_out={reason: n for reason, n in left_out.items() if n},
        spot_diameter_um=diameter_um,
        spot_pitch_um=pitch_um,
        notes=notes,
    )
