"""A model over the spots of one AnnData, section by section, each with its own image."""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args

import numpy as np
from jaxtyping import Float64, Int64

from stexpr.data.tissue import find_tissue
from stexpr.data.tissue_image import ImageSource, TissueImage, find_image, library_of, pixel_size, spot_centers
from stexpr.data.windows import Windows
from stexpr.errors import DataError, DataWarning, StexprError
from stexpr.inference import pick_device
from stexpr.inference.domain import TISSUE_KEYS, warn_of_foreign
from stexpr.inference.patches import Outputs, PatchCutter, run_model
from stexpr.models.export import LoadedModel, load_model
from stexpr.tl.target import rows_by
from stexpr.types import Progress, silent

__all__ = ["Applied", "ApplyOptions", "Edge", "apply_model"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Edge: TypeAlias = Literal["nan", "pad", "raise"]
OFF_IMAGE: Final = "patch leaves the image"
TRAINED: Final = ("label", "cohort", "cohort_hash", *TISSUE_KEYS, "training_patients", "test_patients")
"""What is repeated of a model's provenance."""
_USER: Final = 4
"""Calls from a warning up to the user's."""


class ApplyOptions(TypedDict, total=False):
    """What `embed`, `predict_expression` and `predict` have in common.

    Attributes:
        image: The full-resolution image, whose pixels `obsm["spatial"]` counts: a file, an opened image (`open_image`), RGB
            pixels, or one of these for each library. By default the file that `uns["spatial"]` names as its source, or else
            the picture stored there.
        mpp: Microns per pixel of `obsm["spatial"]`, or that of each library. By default what the image file says, else the
            scale factors.
        spot_diameter_um: What `spot_diameter_fullres` of the scale factors spans, to get `mpp` from it: 65 where Space
            Ranger wrote it for Visium.
        library_id: Key in `uns["spatial"]`; needed where there are several and all spots lie on one.
        library_key: Column of `obs` that holds the library of each spot, where the spots lie on several images.
        edge: What becomes of a spot whose patch leaves the image: `nan`, its rows are NaN, with a warning; `pad`, what is
            missing is white; `raise`, an error.
        symmetries: Average over the eight flips and rotations; None does as the model was scored.
        species: Of the tissue; where said, it is compared with the model's training data.
        tissue: The organ, likewise.
        preservation: Such as `fresh frozen` or `FFPE`, likewise.
        technology: Such as `Visium`, likewise.
        batch_size: Patches at a time; halved where memory asks for it.
        device: `cpu`, `cuda`, …; `auto` takes a GPU if there is one.
        progress: Shows how far it is.
    """

    image: ImageSource | Mapping[str, ImageSource] | None
    mpp: float | Mapping[str, float] | None
    spot_diameter_um: float | None
    library_id: str | None
    library_key: str | None
    edge: Edge
    symmetries: bool | None
    species: str | None
    tissue: str | None
    preservation: str | None
    technology: str | None
    batch_size: int
    device: str
    progress: Progress


@dataclass(frozen=True)
class Applied:
    """What a model says of the spots of an AnnData.

    Attributes:
        model: The model.
        outputs: In the order of the spots; NaN where there is no patch.
        provenance: How it was made, plain JSON values.
    """

    model: LoadedModel
    outputs: Outputs
    provenance: dict[str, Any]


def apply_model(
    adata: Any,
    model: LoadedModel | str | Path,
    *,
    image: ImageSource | Mapping[str, ImageSource] | None = None,
    mpp: float | Mapping[str, float] | None = None,
    spot_diameter_um: float | None = None,
    library_id: str | None = None,
    library_key: str | None = None,
    edge: Edge = "nan",
    symmetries: bool | None = None,
    species: str | None = None,
    tissue: str | None = None,
    preservation: str | None = None,
    technology: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
    progress: Progress = silent,
) -> Applied:
    """Run a model over the spots; arguments as in `ApplyOptions`.

    Raises:
        DataError: No spot centers, no image, no patch inside it, an unknown library.
        ScaleError: The microns per pixel are unknown or absurd.
        ModelError: The model cannot be read, or there is no memory for one patch.
    """
    if edge not in get_args(Edge):
        raise DataError(f"edge = {edge!r}; it can be {', '.join(get_args(Edge))}")
    if batch_size < 1:
        raise DataError(f"batch_size = {batch_size}; it must be at least 1")
    about = {"species": species, "tissue": tissue, "preservation": preservation, "technology": technology}
    centers = spot_centers(adata)
    loaded = (model if isinstance(model, LoadedModel) else load_model(model)).to(pick_device(device))
    averaged = loaded.release.symmetries if symmetries is None else symmetries
    outputs = _nothing(len(centers), loaded)
    sections: list[dict[str, Any]] = []
    for library, rows in _libraries(adata, library_id, library_key):
        try:
            found = find_image(adata, _of(image, library, "image"), library)
            size = pixel_size(found, library_of(adata, library), _of(mpp, library, "mpp"), spot_diameter_um)
            section = _Section(found, size.mpp / found.scale, centers[rows] * found.scale, loaded)
            foreign = warn_of_foreign(loaded, section.mpp, about, stacklevel=_USER)
            kept = section.kept(edge)
            done = section.run(kept, batch_size, averaged, progress)
        except StexprError as err:
            if library_key is not None:
                err.add_note(f"in library {library}")
            raise
        for place, values in zip(outputs, done, strict=True):
            place[rows[kept]] = values
        left_out = {OFF_IMAGE: len(rows) - len(kept)} if len(kept) < len(rows) else {}
        said = {"library": library, "image": found.source, **asdict(size), "image_mpp": section.mpp}
        sections.append(said | {"n_spots": len(rows), "left_out": left_out, "foreign": list(foreign)})
    how = {"sections": sections, "edge": edge, "symmetries": averaged, **{k: v for k, v in about.items() if v}}
    return Applied(loaded, outputs, _described(loaded) | how)


@dataclass(frozen=True)
class _Section:
    """The spots on one image.

    Attributes:
        found: The image.
        mpp: Microns per pixel of it.
        centers: Of the spots, in pixels of it.
        model: The model.
    """

    found: TissueImage
    mpp: float
    centers: Float64[Array, "S 2"]
    model: LoadedModel

    def kept(self, edge: Edge) -> Int64[Array, "N"]:
        """Return the spots that have a patch.

        Raises:
            DataError: None has, or not all have and `edge` is `raise`.
        """
        image, input_ = self.found.image, self.model.preprocessing
        windows = Windows(image, self.mpp, input_.mpp, input_.window_px)
        inside = windows.inside(windows.corners(self.centers))
        (low_x, low_y), (high_x, high_y) = self.centers.min(axis=0), self.centers.max(axis=0)
        where = (
            f"the patch ({input_.window_px * input_.mpp:.0f} um wide, {windows.side:.0f} px) leaves {self.found.source}, "
            f"{image.width} x {image.height} px; the spots lie at x {low_x:.0f} to {high_x:.0f}, y {low_y:.0f} to {high_y:.0f}"
        )
        if not inside.any():
            raise DataError(f'all {len(inside)} spots: {where}; obsm["spatial"] counts pixels of the full-resolution image')
        if inside.all() or edge == "pad":
            return np.arange(len(inside))
        said = f"{int((~inside).sum())} of {len(inside)} spots: {where}"
        if edge == "raise":
            raise DataError(f"{said}; take edge='nan' or edge='pad', or leave them out")
        warnings.warn(f"{said}: their rows are NaN", DataWarning, stacklevel=_USER)
        return np.flatnonzero(inside)

    def run(self, kept: Int64[Array, "N"], batch_size: int, symmetries: bool, progress: Progress) -> Outputs:
        """Cut the patches of some spots and run the model over them."""
        image, centers = self.found.image, self.centers[kept]
        try:
            cutter = PatchCutter.of(self.model, image, self.mpp, find_tissue(image, self.mpp), centers)
            batches = progress(cutter.batches(centers, batch_size), "applying the model", math.ceil(len(kept) / batch_size))
            parts = list(run_model(self.model, batches, symmetries=symmetries))
        finally:
            image.close()  # it opens again if somebody else reads it
        return Outputs(*map(np.concatenate, zip(*parts, strict=True)))


def _libraries(adata: Any, library_id: str | None, library_key: str | None) -> Iterator[tuple[str | None, Int64[Array, "N"]]]:
    """Yield each library and its spots."""
    if library_key is None:
        yield library_id, np.arange(adata.n_obs)
        return
    if library_id is not None:
        raise DataError("library_id is for spots on one image, library_key for spots on several; pass one of them")
    yield from rows_by(adata, library_key, "library_key").items()


def _of(given: Any, library: str | None, name: str) -> Any:
    """Take a library's own from what may be given for each."""
    if not isinstance(given, Mapping):
        return given
    if library not in given:
        raise DataError(f"{name} is given for {', '.join(map(str, given))}, not for library {library!r}; add it")
    return given[library]


def _nothing(spots: int, model: LoadedModel) -> Outputs:
    genes = len(model.genes)
    shapes = ((spots, model.n_features), (spots, genes), (spots, genes), (spots,))
    features, expression, spread, novelty = (np.full(shape, np.nan, np.float32) for shape in shapes)
    return Outputs(features, expression, spread, novelty)


def _described(model: LoadedModel) -> dict[str, Any]:
    """Say which model it was and what its numbers mean."""
    trained = {key: model.provenance.get(key) for key in TRAINED if model.provenance.get(key) is not None}
    return {
        "stexpr": version("stexpr"),
        "model": {"hash": model.hash, "networks": len(model.networks), **trained},
        "expression": asdict(model.transform),
        "protocol": {"expression": model.provenance.get("protocol", {}).get("expression", {})},
        "model_mpp": model.preprocessing.mpp,
        "window_px": model.preprocessing.window_px,
        "fields_px": list(model.preprocessing.fields_px),
        "intervals": None if model.intervals is None else model.intervals.label,
    }
