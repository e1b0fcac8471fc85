"""From a slide to a bag: tissue, grid, patches, encoder and file, in a stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from stexpr.config.files import hash_file
from stexpr.config.models import RADII_PX
from stexpr.data.bags import Bag, BagRows, write_bag
from stexpr.data.images import open_image
from stexpr.data.rois import read_rois
from stexpr.data.slide_files import slide_bytes, slide_hash
from stexpr.errors import ConfigError, ModelError
from stexpr.inference.encoder import ModelInput, PatchModel
from stexpr.inference.layout import SlideLayout, lay_out
from stexpr.inference.patches import Outputs, PatchCutter, run_model
from stexpr.models.baselines import color_features, fitting_radii
from stexpr.types import Progress, silent

__all__ = [
    "EmbedSettings",
    "OpenedSlide",
    "PatchBatch",
    "asked_of",
    "bag_rows",
    "check_settings",
    "embed_slide",
    "open_for_bag",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class EmbedSettings:
    """What decides, beside slide and encoder, what a bag holds; the bags of a store agree in it.

    Attributes:
        mpp: Microns per level-0 pixel of slides whose file does not say; what a file says is believed.
        stride_um: From the center of a patch to the next; None takes the side of a patch, or of the smallest of several
            fields of view.
        min_tissue: Least share of tissue in a patch.
        expression: Also keep the expression the model predicts.
        patches: Also keep the pixels of the patches, as the encoder saw them.
        symmetries: Average over the eight flips and rotations; None does as the model was scored.
        roi_classes: Classes of the regions of interest that count; all where none is named.
    """

    mpp: float | None = None
    stride_um: float | None = None
    min_tissue: float = 0.5
    expression: bool = False
    patches: bool = False
    symmetries: bool | None = None
    roi_classes: tuple[str, ...] = ()

    @property
    def described(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {**asdict(self), "roi_classes": list(self.roi_classes)}


def check_settings(settings: EmbedSettings, model: PatchModel) -> None:
    """Refuse what no slide could be embedded with.

    Raises:
        ConfigError: The stride or the share of tissue is impossible.
        ModelError: The model predicts no expression and shall.
    """
    if settings.stride_um is not None and not settings.stride_um > 0:
        raise ConfigError(f"a stride of {settings.stride_um:g} um is impossible; it is more than 0")
    if not 0 <= settings.min_tissue <= 1:
        raise ConfigError(f"the least share of tissue is {settings.min_tissue:g}; it lies between 0 and 1")
    if settings.expression and not model.genes:
        raise ModelError("this encoder predicts no expression; leave --expression out, or take an exported model")


def embed_slide(
    slide: str | Path,
    model: PatchModel,
    output: str | Path,
    *,
    settings: EmbedSettings | None = None,
    rois: str | Path | None = None,
    batch_size: int = 64,
    precision: str = "auto",
    progress: Progress = silent,
) -> Bag:
    """Write the bag of a slide: features, place and color of every patch of tissue.

    Nothing is kept of a patch but what the file on the disk holds of it, so memory does not grow with the slide. Color is that
    of the encoder's input, after stain normalization where the model asks for it: what a head on color alone can know of what
    the encoder sees.

    Args:
        slide: The image file; of a DICOM slide its folder will do.
        model: What turns patches into features, on its device.
        output: The `.h5`; an earlier one is replaced.
        settings: What the bag is to hold.
        rois: GeoJSON of regions of interest: only patches whose center lies in one.
        batch_size: Patches at a time.
        precision: As in `TrainingConfig`.
        progress: Shows how far it is.

    Raises:
        ScaleError: The microns per pixel are unknown or absurd.
        NoTissueError: The slide has no tissue, or none in the regions.
        DataError: The slide or the regions cannot be read, the features are not finite, or the output cannot be written.
        ModelError: The model predicts no expression and shall, or there is no memory for one patch.
        ConfigError: An option is impossible.
    """
    settings = settings or EmbedSettings()
    if batch_size < 1:
        raise ConfigError(f"a batch of {batch_size} patches is impossible; take at least 1")
    check_settings(settings, model)
    with open_for_bag(Path(slide), model, settings, rois) as opened:
        given, kept = tee(opened.batches(batch_size, progress))
        pixels = (batch.patches for batch in given)
        outputs = run_model(model, pixels, precision=precision, symmetries=settings.symmetries, novelty=False)
        rows = (bag_rows(batch, made, settings) for made, batch in zip(outputs, kept, strict=True))
        return write_bag(Path(output), rows, **opened.header)


class PatchBatch(NamedTuple):
    """Some patches of a slide, before the encoder saw them.

    Attributes:
        patches: The input of the encoder.
        coords: Top-left corners, x then y, level-0 px.
        color: Their color features.
    """

    patches: UInt8[Array, "B H W 3"]
    coords: Int64[Array, "B 2"]
    color: Float32[Array, "B C"]


@dataclass(frozen=True)
class OpenedSlide:
    """A slide about to become a bag.

    Attributes:
        header: What `write_bag` wants to know beside the rows.
        laid: The slide and its patches.
        cutter: Cuts them.
    """

    header: dict[str, Any]
    laid: SlideLayout
    cutter: PatchCutter

    def batches(self, batch_size: int, progress: Progress = silent) -> Iterator[PatchBatch]:
        """Cut the patches in the order of the grid."""
        corners = self.cutter.windows.corners(self.laid.grid.centers).astype(np.int64)
        radii = fitting_radii(RADII_PX, self.cutter.windows.window_px)
        done = 0
        for patches in self.laid.batches(self.cutter, batch_size, progress):
            yield PatchBatch(patches, corners[done : done + len(patches)], color_features(patches, radii))
            done += len(patches)


@contextmanager
def open_for_bag(
    slide: Path, model: PatchModel | ModelInput, settings: EmbedSettings, rois: str | Path | None = None
) -> Iterator[OpenedSlide]:
    """Open a slide and find its patches; raises as `embed_slide`."""
    regions = None if rois is None else read_rois(rois, settings.roi_classes)
    with open_image(slide) as image:
        says = image.mpp is not None
    with lay_out(
        slide,
        model,
        mpp=None if says else settings.mpp,
        stride_um=settings.stride_um,
        min_tissue=settings.min_tissue,
        rois=regions,
    ) as laid:
        cutter = laid.cutter()
        described = laid.described(settings.symmetries)
        provenance = {
            **described,
            "slide": {**described["slide"], "sha256": slide_hash(slide)},
            "rois": None if regions is None else {"classes": dict(regions.classes), "left_out": dict(regions.left_out)},
            "asked": asked_of(slide, settings, rois),
        }
        header = {
            "mpp": model.preprocessing.mpp,
            "patch_px": model.preprocessing.window_px,
            "side": cutter.windows.side,
            "encoder": model.hash,
            "genes": model.genes if settings.expression else (),
            "level0_mpp": laid.mpp,
            "size_px": (laid.image.width, laid.image.height),
            "provenance": provenance,
        }
        yield OpenedSlide(header, laid, cutter)


def bag_rows(batch: PatchBatch, outputs: Outputs, settings: EmbedSettings) -> BagRows:
    """Put together what a bag keeps of some patches."""
    return BagRows(
        outputs.features,
        batch.coords,
        outputs.expression if settings.expression else None,
        batch.color,
        batch.patches if settings.patches else None,
    )


def asked_of(slide: Path, settings: EmbedSettings, rois: str | Path | None) -> dict[str, Any]:
    """Return what decides the content of a bag, beside the encoder; a bag that says the same need not be made again."""
    return {
        "bytes": slide_bytes(slide),
        "settings": settings.described,
        "rois": None if rois is None else hash_file(Path(rois))[:16],
    }
