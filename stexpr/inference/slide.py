"""Virtual expression of a whole slide: tissue, grid, patches, model and file, in a stream."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float32

from stexpr.config.files import write_whole
from stexpr.data.grid import SlideGrid
from stexpr.data.hest import picture_entry
from stexpr.data.tissue import TissueMask
from stexpr.errors import ConfigError, ModelError
from stexpr.inference import pick_device
from stexpr.inference.layout import lay_out
from stexpr.inference.patches import Outputs, run_model
from stexpr.inference.slide_file import FOREIGN_ABOVE, PredictionFile, read_prediction
from stexpr.models.export import LoadedModel, load_model
from stexpr.types import PROVENANCE, SPATIAL, Progress, silent

__all__ = ["SlidePrediction", "predict_slide"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class SlidePrediction:
    """What `predict_slide` did.

    Attributes:
        path: The `.h5ad`.
        mask: Tissue of the slide.
        grid: Its patches.
        n_foreign: Patches unlike those the model was trained on; None where the model cannot tell.
        abstained: Whether the predictions of those were withheld.
        warnings: In what the slide differs from the model's training data.
    """

    path: Path
    mask: TissueMask
    grid: SlideGrid
    n_foreign: int | None
    abstained: bool
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Say in a line how many patches there are, what was left out and what is foreign."""
        left_out = ", ".join(f"{count:,} with {reason}" for reason, count in self.grid.left_out.items())
        if self.n_foreign is None:
            foreign = "foreign ones unknown: the model was exported without its training features"
        else:
            foreign = f"{self.n_foreign:,} foreign, {'withheld' if self.abstained else 'flagged'}"
        return f"{len(self.grid):,} patches; left out: {left_out}; {foreign}"

    def read(self, genes: Sequence[str] | None = None) -> Any:
        """Read the AnnData; of some genes, these alone, so that a slide of any size fits.

        Raises:
            GeneError: The model does not predict a gene.
        """
        return read_prediction(self.path, genes)


def predict_slide(
    slide: str | Path,
    model: str | Path | LoadedModel,
    output: str | Path,
    *,
    mpp: float | None = None,
    stride_um: float | None = None,
    min_tissue: float = 0.5,
    coverage: float | None = None,
    features: bool = False,
    abstain: bool = False,
    about: Mapping[str, str | None] | None = None,
    symmetries: bool | None = None,
    batch_size: int = 64,
    device: str | None = None,
    precision: str = "auto",
    progress: Progress = silent,
) -> SlidePrediction:
    """Predict the expression of every patch of tissue on a slide.

    Nothing is kept of a patch but what the file on the disk holds of it, so memory does not grow with the slide.

    The file is an AnnData with a patch in each row: `X` predicted expression in the model's unit, `obsm["spatial"]` centers in
    level-0 px, `obs` row and column in the grid and the share of tissue; of a model that knows its training patches also
    `novelty` (above 1 a patch is foreign) and `applicable`; of an ensemble `layers["spread"]`; `var` mean and SD over the
    applicable patches and half-widths of the prediction intervals, such as `half_width_0.9`: measurements of a spot like the
    patch lie within `X` plus and minus these.

    Args:
        slide: The image file; of a DICOM slide its folder will do.
        model: An exported model, or its folder.
        output: The `.h5ad`; an earlier one is replaced.
        mpp: Microns per level-0 pixel, where the file does not say or is wrong.
        stride_um: From the center of a patch to the next; None takes the side of a patch, or of the smallest of several
            fields of view, so that each place is predicted once.
        min_tissue: Least share of tissue in a patch.
        coverage: Keep the half-widths of this coverage only.
        features: Also keep the features, as `obsm["X_stexpr"]`.
        abstain: Write NaN where a patch is foreign; otherwise its prediction is kept and flagged.
        about: What is known of the slide, of `domain.TISSUE_KEYS`; what differs from the model's training data is warned of.
        symmetries: Average over the eight flips and rotations; None does as the model was scored.
        batch_size: Patches at a time.
        device: Where the model runs; None leaves a loaded model where it is.
        precision: As in `TrainingConfig`.
        progress: Shows how far it is.

    Raises:
        ScaleError: The microns per pixel are unknown or absurd.
        DataError: The slide cannot be read, has no tissue or is smaller than a patch; the output cannot be written.
        ModelError: The model cannot be loaded, cannot tell foreign patches and shall abstain, or lacks the intervals asked for.
        ConfigError: An option is impossible.
    """
    slide, output = Path(slide), Path(output)
    if output.suffix != ".h5ad":
        raise ConfigError(f"the output is an AnnData file: {output} should end in .h5ad")
    if batch_size < 1:
        raise ConfigError(f"a batch of {batch_size} patches is impossible; take at least 1")
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    if device is not None or not isinstance(model, LoadedModel):
        loaded.to(pick_device(device or "auto"))
    half_widths = _half_widths(loaded, coverage)
    if abstain and not loaded.has_reference:
        raise ModelError("the model does not know its training patches, so it cannot abstain; export it with stexpr export")
    with lay_out(slide, loaded, mpp=mpp, stride_um=stride_um, min_tissue=min_tissue, about=about) as laid:
        grid, picture = laid.grid, laid.picture
        batches = laid.batches(laid.cutter(), batch_size, progress)
        intervals = loaded.intervals.label if loaded.intervals is not None else None
        described = laid.described(symmetries)
        made = {
            **described,
            "model": {**described["model"], "networks": len(loaded.networks)},
            "about": dict(about or {}),
            "abstained": abstain,
            "unit": asdict(loaded.transform),
            "foreign_above": FOREIGN_ABOVE if loaded.has_reference else None,
            "intervals": intervals,
        }
        entry = picture_entry(picture, scale=picture.shape[1] / laid.image.width, spot_px=min(grid.side, grid.stride))
        uns = {PROVENANCE: json.dumps(made), SPATIAL: {slide.stem: entry}}
        stream = run_model(loaded, batches, precision=precision, symmetries=symmetries)
        n_foreign = _write(output, stream, loaded, grid, half_widths, uns, features=features, abstain=abstain)
    return SlidePrediction(output, laid.mask, grid, n_foreign if loaded.has_reference else None, abstain, laid.warnings)


def _write(
    output: Path,
    stream: Iterable[Outputs],
    model: LoadedModel,
    grid: SlideGrid,
    half_widths: dict[str, Float32[Array, "G"]],
    uns: dict[str, Any],
    *,
    features: bool,
    abstain: bool,
) -> int:
    """Write what comes out of the model, and count the foreign patches."""
    n_foreign = 0
    n_features, spread = model.n_features if features else 0, len(model.networks) > 1

    def write(part: Path) -> None:
        nonlocal n_foreign
        with PredictionFile(
            part, len(grid), model.genes, n_features=n_features, spread=spread, novelty=model.has_reference
        ) as file:
            for outputs in stream:
                file.append(outputs, abstain=abstain)
            file.finish(_patches(grid, next(iter(uns[SPATIAL]))), grid.centers, half_widths, uns)
            n_foreign = int((~file.applicable).sum())

    write_whole(output, write, needs=4 * len(grid) * (len(model.genes) * (1 + spread) + n_features))
    return n_foreign


def _half_widths(model: LoadedModel, coverage: float | None) -> dict[str, Float32[Array, "G"]]:
    """Return the half-widths of the model's intervals by column: of one coverage, or of all it has."""
    known = model.intervals.coverages if model.intervals is not None else ()
    if coverage is not None and coverage not in known:
        others = f"it has those of {', '.join(f'{value:g}' for value in known)}" if known else "export it with stexpr export"
        raise ModelError(f"the model has no {coverage:g} prediction intervals; {others}")
    if model.intervals is None:
        return {}
    wanted = [i for i, value in enumerate(known) if coverage in (None, value)]
    return {f"half_width_{known[i]:g}": model.intervals.half_width[:, i] for i in wanted}


def _patches(grid: SlideGrid, name: str) -> pd.DataFrame:
    cells = zip(grid.rows.tolist(), grid.columns.tolist(), strict=True)
    names = pd.Index([f"{name}:{row}x{column}" for row, column in cells], dtype=object)
    columns = {"row": grid.rows, "column": grid.columns, "tissue_fraction": grid.tissue_fraction}
    return pd.DataFrame(columns, index=names)
