"""Words shared by every floor: the dimension key, the AnnData keys, batches and progress.

Dimension key of every shape annotation in this package:

    B  examples of a batch        S  spots              N  instances of a bag
    G  main genes                 A  auxiliary genes    D  features            K  outputs
    H, W  patch height and width in px                  R  bootstrap replicates
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float32, UInt8

if TYPE_CHECKING:
    from torch import Tensor
else:  # torch stays out of light commands; shapes and dtypes are still checked in the tests
    Tensor = Any

T = TypeVar("T")

SPATIAL = "spatial"
"""Key in `AnnData.obsm`: spot centers in level-0 pixels, x then y."""

MEASURED = "measured"
"""Key in `AnnData.layers` of a predictions file: the measured expression beside the predicted one in `X`."""

COUNTS = "counts"
"""Key in `AnnData.layers` of a predictions file: the raw counts of its genes, sparse."""

FEATURES = "X_stexpr"
"""Key in `AnnData.obsm`: features of an encoder."""

SPREAD = "spread"
"""Key in `AnnData.layers`: standard deviation of a prediction between the networks of an ensemble."""

NOVELTY = "novelty"
"""Column of `AnnData.obs`: distance of a patch from a model's training patches, in thresholds."""

APPLICABLE = "applicable"
"""Column of `AnnData.obs`: whether a patch is of the kind a model was trained on."""

PROVENANCE = "stexpr"
"""Key in `AnnData.uns` for what made a file."""


@dataclass(frozen=True)
class SpotBatch:
    """One step's spots, on one device.

    Counts are raw: the objective of a model owns the transform to its target, so a likelihood of counts and a regression
    on log expression read the same batch.
    """

    patches: UInt8[Tensor, "B 3 H W"]
    counts_main: Float32[Tensor, "B G"]
    counts_auxiliary: Float32[Tensor, "B A"]
    library: Float32[Tensor, "B"]

    def __len__(self) -> int:
        return len(self.library)

    def split(self, n: int) -> "tuple[SpotBatch, ...]":
        """Return the batch in `n` parts of nearly equal size, in the order of its spots."""
        pieces = (
            self.patches.tensor_split(n),
            self.counts_main.tensor_split(n),
            self.counts_auxiliary.tensor_split(n),
            self.library.tensor_split(n),
        )
        return tuple(SpotBatch(*piece) for piece in zip(*pieces, strict=True))


@runtime_checkable
class Progress(Protocol):
    """Wraps an iterable so that a person can see how far a long task is.

    The package itself draws nothing: `silent` is the default everywhere, and the command line passes a rich bar.
    """

    def __call__(self, items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
        """Yield the items unchanged, showing `label` and how many of `total` are done."""
        ...


def silent(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """Show no progress."""
    return items
