"""Words shared by every floor: the dimension key, the AnnData keys, batches and progress.

Dimension key of every shape annotation in this package:

    B  examples of a batch        S  spots              N  instances of a bag
    G  main genes                 A  auxiliary genes    D  features            K  outputs
    H, W  patch height and width in px                  R  bootstrap replicates
    C  components of expression
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float, Float32, Int64, UInt8

from stexpr.errors import DataError

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
class Partners:
    """The spots that those of a batch are mixed with, one for each, and their shares in the mixtures, in [0, 1]."""

    counts_main: Float32[Tensor, "B G"]
    counts_auxiliary: Float32[Tensor, "B A"]
    library: Float32[Tensor, "B"]
    share: Float32[Tensor, "B"]

    def split(self, n: int) -> "tuple[Partners, ...]":
        """Return them in `n` parts, as `SpotBatch.split` does."""
        values = (self.counts_main, self.counts_auxiliary, self.library, self.share)
        return tuple(Partners(*piece) for piece in zip(*(value.tensor_split(n) for value in values), strict=True))


@dataclass(frozen=True)
class SpotBatch:
    """One step's spots, on one device.

    Counts are raw: the objective of a model owns the transform to its target, so a likelihood of counts and a regression
    on log expression read the same batch. Where `partners` is not None, the patches are mixtures with theirs.
    """

    patches: UInt8[Tensor, "B 3 H W"]
    counts_main: Float32[Tensor, "B G"]
    counts_auxiliary: Float32[Tensor, "B A"]
    library: Float32[Tensor, "B"]
    partners: Partners | None = None

    def __len__(self) -> int:
        return len(self.library)

    def split(self, n: int) -> "tuple[SpotBatch, ...]":
        """Return the batch in `n` parts of nearly equal size, in the order of its spots."""
        pieces = (
            self.patches.tensor_split(n),
            self.counts_main.tensor_split(n),
            self.counts_auxiliary.tensor_split(n),
            self.library.tensor_split(n),
            (None,) * n if self.partners is None else self.partners.split(n),
        )
        return tuple(SpotBatch(*piece) for piece in zip(*pieces, strict=True))


CHECKED = 8192
"""Instances of a bag that are checked at a time, so that checking a large one needs no memory."""


@dataclass(frozen=True)
class BagBatch:
    """The bags of several slides, one behind another without padding, on one device.

    No bag is empty: a slide without patches has no prediction, and is to be left out and counted where bags are read.
    """

    instances: Float[Tensor, "N D"]
    offsets: Int64[Tensor, "_"]

    @classmethod
    def of(cls, bags: "Sequence[Float[Tensor, '_ _']]") -> "BagBatch":
        """Pack bags.

        Args:
            bags: Features of each slide's patches, alike in width, dtype and device.

        Raises:
            DataError: No bags, an empty one, another width, or values that are not finite.

        Example:
            >>> import torch
            >>> BagBatch.of([torch.ones(2, 3), torch.ones(1, 3)]).offsets
            tensor([0, 2, 3])
        """
        import torch

        if not bags:
            raise DataError("a batch needs at least one bag")
        for i, bag in enumerate(bags):
            if not len(bag):
                raise DataError(f"bag {i} of {len(bags)} has no instances; leave slides without patches out, and count them")
            if bag.shape[1] != bags[0].shape[1]:
                widths = f"{bag.shape[1]:,} features, bag 0 has {bags[0].shape[1]:,}"
                raise DataError(f"bag {i} of {len(bags)} has {widths}; embed all slides with one encoder")
            if not all(bool(part.isfinite().all()) for part in torch.split(bag, CHECKED)):
                raise DataError(f"bag {i} of {len(bags)} has features that are not finite; embed its slide again")
        lengths = torch.tensor([0, *map(len, bags)], device=bags[0].device)
        return cls(bags[0] if len(bags) == 1 else torch.cat(list(bags)), lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[Tensor, "B"]:
        """Return the number of instances of each bag."""
        return self.offsets.diff()

    @property
    def index(self) -> Int64[Tensor, "N"]:
        """Return the bag of each instance."""
        import torch

        return torch.arange(len(self), device=self.offsets.device).repeat_interleave(self.lengths)


@runtime_checkable
class Stored(Protocol):
    """Something of each patch of a bag, read when it is needed."""

    def __len__(self) -> int:
        """Return the number of patches."""
        ...

    def read(self) -> Tensor:
        """Read it, a row per patch."""
        ...


@dataclass(frozen=True)
class PatientBatch:
    """One step's patients: their bags, read only when they are needed, and what is known of them.

    Attributes:
        bags: Instances of each bag, features (N x D) or patches (N x 3 x H x W), on the device of the rest.
        patient: Row of the patient whose bag it is, ascending; every patient has one.
        targets: For each objective, one row per patient, as the objective wants it.
        covariates: Of each patient, standardized; without columns where none are used.
        patch_targets: Labels of the instances of each bag, NaN where unknown; empty where patches have none.
    """

    bags: tuple[Stored, ...]
    patient: Int64[Tensor, "_"]
    targets: "tuple[Tensor, ...]"
    covariates: Float32[Tensor, "P _"]
    patch_targets: tuple[Stored, ...] = ()

    def __len__(self) -> int:
        return len(self.covariates)

    def rows(self, start: int, stop: int) -> "PatientBatch":
        """Return some patients, neighbors in the batch."""
        first, last = (int((self.patient < row).sum()) for row in (start, stop))
        return PatientBatch(
            self.bags[first:last],
            self.patient[first:last] - start,
            tuple(target[start:stop] for target in self.targets),
            self.covariates[start:stop],
            self.patch_targets[first:last],
        )


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
