"""From a model and images to features and expression."""

import gc
import json
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from stexpr.config.allocation import give_freed_memory_back
from stexpr.data.datasets import SpotDataset, even_parts
from stexpr.errors import ModelError
from stexpr.models.augment import symmetry_mean
from stexpr.models.backbones import Backbone
from stexpr.models.spot import SpotRegressor
from stexpr.panel import ExpressionTransform, GenePanel
from stexpr.types import COUNTS, MEASURED, PROVENANCE, SPATIAL

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def pick_device(name: str) -> torch.device:
    """Return the device named, or for `auto` the first CUDA device if there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a forward pass: bf16 where asked for, or on CUDA for `auto`; on a CPU it gains nothing."""
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


NO_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch and the libraries under it say when there is no memory left, in errors that have no type of their own."""


def out_of_memory(err: BaseException) -> bool:
    """Whether an error says that the device or the machine has no memory left."""
    if isinstance(err, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(err, RuntimeError) and any(words in str(err) for words in NO_MEMORY)


def release_memory() -> None:
    """Give back what a failed attempt held; call it after the `except` block, which keeps the attempt's tensors alive."""
    gc.collect()
    give_freed_memory_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def predict_expression(
    model: SpotRegressor,
    dataset: SpotDataset,
    rows: Int64[Tensor, "S"],
    *,
    batch_size: int,
    symmetries: bool = False,
    precision: str = "auto",
    workers: int = 0,
) -> Float32[Array, "S G"]:
    """Predict the expression of the main genes.

    The measured counts travel in the batch but the model never reads them here, so a prediction is a function of the
    patch alone.

    Args:
        model: The model, on its device; it is put into evaluation mode and back.
        dataset: Where the patches are read.
        rows: Rows to predict, in this order.
        batch_size: Patches at a time; halved as often as memory asks for, which changes no prediction.
        symmetries: Average over the eight flips and rotations.
        precision: As in `TrainingConfig`.
        workers: Loader processes.

    Returns:
        Expression in the unit of the protocol.

    Raises:
        ModelError: There is no memory for one patch.
    """
    n_genes = model.main_objective.n_outputs

    def predict(patches: Tensor) -> Tensor:
        return model.predict(patches, symmetries=symmetries)

    return _computed(model, predict, dataset, rows, width=n_genes, batch_size=batch_size, precision=precision, workers=workers)


def extract_features(
    backbone: Backbone,
    dataset: SpotDataset,
    rows: Int64[Tensor, "S"],
    *,
    batch_size: int,
    symmetries: bool = False,
    precision: str = "auto",
    workers: int = 0,
) -> Float32[Array, "S D"]:
    """Extract the features of a backbone.

    Args:
        backbone: On its device; it is put into evaluation mode and back.
        dataset: Where the patches are read, of the backbone's window.
        rows: Rows to read, in this order.
        batch_size: Patches at a time; halved as often as memory asks for.
        symmetries: Average over the eight flips and rotations.
        precision: As in `TrainingConfig`.
        workers: Loader processes.

    Raises:
        ModelError: There is no memory for one patch, or a feature is not finite.
    """

    def once(patches: Tensor) -> Tensor:
        features: Tensor = backbone(backbone.preprocess(patches))
        return features

    def extract(patches: Tensor) -> Tensor:
        return symmetry_mean(once, patches) if symmetries else once(patches)

    found = _computed(
        backbone, extract, dataset, rows, width=backbone.n_features, batch_size=batch_size, precision=precision, workers=workers
    )
    bad = int((~np.isfinite(found)).any(axis=1).sum())
    if bad:
        raise ModelError(f"the backbone {backbone.name} gives features that are not finite for {bad} of {len(found)} patches")
    return found


def _computed(
    model: nn.Module,
    compute: Callable[[Tensor], Tensor],
    dataset: SpotDataset,
    rows: Int64[Tensor, "S"],
    *,
    width: int,
    batch_size: int,
    precision: str,
    workers: int,
) -> Float32[Array, "S K"]:
    """Compute rows of numbers from patches, in batches as large as memory allows."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    computed = [torch.empty((0, width), device=device)]  # brought to the host at the end: each look at a GPU stalls it
    done = 0
    while done < len(rows):
        try:
            with torch.inference_mode():
                for batch in dataset.batches(even_parts(rows[done:], batch_size), device=device, workers=workers):
                    with autocast(device, precision):
                        computed.append(compute(batch.patches).float())
                    done += len(batch)
        except (RuntimeError, MemoryError) as err:
            if not out_of_memory(err):
                raise
            if batch_size == 1:
                raise ModelError("out of memory while predicting one patch; take a smaller network or window") from err
        else:
            break
        batch_size = math.ceil(min(batch_size, len(rows) - done) / 2)
        release_memory()
    model.train(was_training)
    return torch.cat(computed).cpu().numpy()


def predictions_anndata(
    predicted: Float32[Array, "S G"],
    dataset: SpotDataset,
    panel: GenePanel,
    transform: ExpressionTransform,
    training_mean: Float32[Array, "G"],
    provenance: dict[str, Any],
) -> Any:
    """Put predicted beside measured expression.

    Args:
        predicted: Expression of every spot of the dataset.
        dataset: The spots.
        panel: Names the genes.
        transform: Unit of the measured expression.
        training_mean: Mean expression of the training spots, the zero of R².
        provenance: What made the predictions; plain JSON values.

    Returns:
        An AnnData: `X` predicted, `layers["measured"]`, `layers["counts"]` as measured, spots named `section:barcode`.
    """
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    spots = dataset.spots
    names = pd.Index((spots["section"] + ":" + spots["barcode"].astype(str)).to_numpy(dtype=object))
    columns = ["section", "patient", "x_um", "y_um", "library", "tissue_fraction"]
    genes = pd.DataFrame(
        {"training_mean": training_mean, "detection": [panel.detection.get(gene, np.nan) for gene in panel.main]},
        index=pd.Index(panel.main, dtype=object),
    )
    measured = transform(dataset.counts_main.numpy(), dataset.library.numpy()).astype(np.float32)
    return anndata.AnnData(
        X=predicted,
        layers={MEASURED: measured, COUNTS: sp.csr_matrix(dataset.raw_main.numpy())},
        obs=spots[columns].set_index(names),
        var=genes,
        obsm={SPATIAL: spots[["x_px", "y_px"]].to_numpy(dtype=float)},
        uns={PROVENANCE: json.dumps(provenance)},
    )
