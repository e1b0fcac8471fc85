"""A head in two halves: what it computes of each patch alone, and what of all patches of a bag together.

The first half can be read part by part from a bag of any size; what it leaves is a few numbers of each patch. From these the
second half gives the output, also with patches left out, and its derivative by every patch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from stexpr.errors import ModelError
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.pooling import MaxPooling, MeanPooling, SoftmaxPooling
from stexpr.models.bag.transmil import TransMil
from stexpr.models.bag.vote import PatchVote

__all__ = ["HeadHalves"]


@dataclass(frozen=True)
class HeadHalves:
    """The halves of the head of a model, in evaluation mode; clinical covariates are left out.

    Attributes:
        model: The model.
    """

    model: BagModel

    @property
    def has_attention(self) -> bool:
        """Whether the head weights patches by a softmax of what it sees."""
        return isinstance(self.model.head, SoftmaxPooling) and not isinstance(self.model.head, MeanPooling)

    @property
    def is_sum(self) -> bool:
        """Whether an output is a weighted mean of something each patch says: it splits exactly into patches."""
        return isinstance(self.model.head, SoftmaxPooling)

    def standardized(self, instances: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return instances as the head reads them."""
        return (instances.float() - self.model.mean) / self.model.sd

    def alone(self, standardized: Float[Tensor, "N D"]) -> Float[Tensor, "N J"]:
        """Return what is computed of each patch alone.

        Heads of a softmax: the outputs if it were the only patch, then its score. Votes: its outputs. Others: its embedding.

        Raises:
            ModelError: There is no such head.
        """
        head = self.model.head
        if isinstance(head, SoftmaxPooling):
            values, scores = head.read(standardized)
            return torch.cat([head.predict(values), scores[:, None]], dim=1)
        embedded: Tensor = head.trunk(standardized)
        if isinstance(head, PatchVote):
            outputs: Tensor = head.predict_linear(embedded)
            return outputs
        if isinstance(head, MaxPooling | TransMil):
            return embedded
        raise ModelError(f"{type(head).__name__} is not known to be explained")

    def together(self, alone: Float[Tensor, "N J"]) -> Float[Tensor, "K"]:
        """Return the outputs of the bag."""
        head = self.model.head
        if isinstance(head, SoftmaxPooling):
            return alone[:, -1].softmax(dim=0) @ alone[:, :-1]
        if isinstance(head, PatchVote):
            return self.model.vote(alone)
        if isinstance(head, TransMil):
            return head.of_embedded(alone.float())
        assert isinstance(head, MaxPooling)
        return self.linear(alone.amax(dim=0))

    def linear(self, pooled: Float[Tensor, "*N V"]) -> Float[Tensor, "*N K"]:
        """Apply the last layer of a head in the precision of its input."""
        layer = self.model.head.predict_linear
        assert isinstance(layer, torch.nn.Linear)
        return functional.linear(pooled, layer.weight.to(pooled.dtype), layer.bias.to(pooled.dtype))

    def nothing_seen(self) -> Float64[Tensor, "K"]:
        """Return the outputs before any patch is seen: the constant of the last layer, to which patches add."""
        layer = self.model.head.predict_linear
        assert isinstance(layer, torch.nn.Linear)
        return layer.bias.detach().double()
