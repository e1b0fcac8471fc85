"""What all bag heads share, and the pooling of long bags in parts."""

import abc
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stexpr.errors import ModelError
from stexpr.models.bag.parts import Known, read_parts
from stexpr.types import BagBatch

PART = 2048
"""Instances whose activations are in memory at a time."""


class BagOutput(NamedTuple):
    """What a head says of each bag.

    Attributes:
        output: One row for each bag, in the units of the objective (B, K).
        scores: Of each instance before the softmax, None for a head without attention (N,).
        attention: Of each instance after it; sums to 1 within a bag (N,).
    """

    output: Tensor
    scores: Tensor | None = None
    attention: Tensor | None = None


class BagHead(nn.Module, abc.ABC):
    """Predicts a bag from its instances.

    Args:
        n_features: Width of an instance.
        n_outputs: Width of the output.
        widths: Of the layers every instance passes first.
        dropout: Share of activations left out after each of them in training.
    """

    def __init__(self, n_features: int, n_outputs: int, *, widths: tuple[int, ...] = (512,), dropout: float = 0.25) -> None:
        super().__init__()
        if min(n_features, n_outputs, *widths, 1) < 1 or not widths:
            raise ModelError(f"features, outputs and widths must be positive, got {n_features}, {n_outputs}, {list(widths)}")
        if not 0 <= dropout < 1:
            raise ModelError(f"dropout must be in [0, 1), got {dropout:g}")
        self.n_features, self.n_outputs = n_features, n_outputs
        self.trunk = nn.Sequential()
        for inner, outer in zip((n_features, *widths), widths, strict=False):
            self.trunk.extend([nn.Linear(inner, outer), nn.ReLU(), nn.Dropout(dropout)])

    @abc.abstractmethod
    def forward(self, bags: BagBatch) -> BagOutput:
        """Return one output for each bag."""

    def parts(self, bags: BagBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield instances in single precision, `PART` at a time, with the bag of each.

        Raises:
            ModelError: Instances of another width.
        """
        if bags.instances.shape[1] != self.n_features:
            width = bags.instances.shape[1]
            raise ModelError(f"the head reads {self.n_features:,} features, the bags have {width:,}; use one encoder for both")
        yield from zip(torch.split(bags.instances, PART), torch.split(bags.index, PART), strict=True)

    def in_parts(self, read: Callable[[Tensor, Tensor, int], Known], bags: BagBatch) -> Known:
        """Apply `read` part by part; where there are several, their activations are not kept but computed again."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        return read_parts(lambda instances, index: read(instances, index, len(bags)), list(self.parts(bags)), weights)


class SoftmaxPooling(BagHead):
    """Averages something over the instances of a bag, weighted by the softmax of a score.

    The softmax runs over the parts of a bag: each gives its sums relative to its own largest score, and they are put on
    the scale of the largest of all, so the result is exact.
    """

    @abc.abstractmethod
    def read(self, instances: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor]:
        """Return what is averaged (N, V) and the score of each instance (N,)."""

    @abc.abstractmethod
    def predict(self, pooled: Float[Tensor, "B V"]) -> Float[Tensor, "B K"]:
        """Return the outputs of bags from their averages."""

    def forward(self, bags: BagBatch) -> BagOutput:
        """Return outputs, scores and attention."""
        (largest, total, summed), (scores,) = self.in_parts(self._sums, bags)
        overall = largest.amax(dim=0)  # (B,)
        scale = (largest - overall).exp()  # (parts, B); 0 where a part has nothing of a bag
        total = (scale * total).sum(dim=0)
        pooled = (scale[..., None] * summed).sum(dim=0) / total[:, None]
        attention = (scores - (overall + total.log())[bags.index]).exp()
        return BagOutput(self.predict(pooled), scores, attention)

    def _sums(self, instances: Tensor, index: Tensor, n_bags: int) -> Known:
        values, scores = self.read(instances.float())
        # the shift cancels in the softmax and needs no gradient
        largest = scores.new_full((n_bags,), -torch.inf).scatter_reduce(0, index, scores.detach(), "amax")
        weights = (scores - largest[index]).exp()
        total = segment_sum(weights[:, None], index, n_bags)[:, 0]
        return Known((largest, total, segment_sum(weights[:, None] * values, index, n_bags)), (scores,))


class MeanPooling(SoftmaxPooling):
    """The mean of the embedded patches, then a linear layer."""

    def __init__(self, n_features: int, n_outputs: int, *, widths: tuple[int, ...] = (512,), dropout: float = 0.25) -> None:
        super().__init__(n_features, n_outputs, widths=widths, dropout=dropout)
        self.predict_linear = nn.Linear(widths[-1], n_outputs)

    def read(self, instances: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor]:
        """Give every instance the same score."""
        return self.trunk(instances), instances.new_zeros(len(instances))

    def predict(self, pooled: Float[Tensor, "B V"]) -> Float[Tensor, "B K"]:
        """Apply the linear layer."""
        output: Tensor = self.predict_linear(pooled)
        return output

    def forward(self, bags: BagBatch) -> BagOutput:
        """Return outputs alone: equal weights say nothing of the patches."""
        return BagOutput(super().forward(bags).output)


class MaxPooling(BagHead):
    """The largest value of each embedded feature over the patches of a bag, then a linear layer."""

    def __init__(self, n_features: int, n_outputs: int, *, widths: tuple[int, ...] = (512,), dropout: float = 0.25) -> None:
        super().__init__(n_features, n_outputs, widths=widths, dropout=dropout)
        self.predict_linear = nn.Linear(widths[-1], n_outputs)

    def forward(self, bags: BagBatch) -> BagOutput:
        """Return outputs alone."""
        (largest,) = self.in_parts(self._largest, bags).bags
        return BagOutput(self.predict_linear(largest.amax(dim=0)))

    def _largest(self, instances: Tensor, index: Tensor, n_bags: int) -> Known:
        embedded = self.trunk(instances.float())
        least = embedded.new_full((n_bags, embedded.shape[1]), -torch.inf)
        return Known((least.scatter_reduce(0, index[:, None].expand_as(embedded), embedded, "amax"),))


def segment_sum(values: Float[Tensor, "N V"], index: Int64[Tensor, "N"], n_bags: int) -> Float[Tensor, "B V"]:
    """Return the sum of the rows of each bag."""
    return values.new_zeros(n_bags, values.shape[1]).index_add(0, index, values)
