"""Attention heads: plain, gated, and additive with exact credit.

Reference:
    Ilse et al. 2018 (attention and gated attention); Javed et al. 2022 (additive multiple instance learning).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stexpr.errors import ModelError
from stexpr.models.bag.pooling import SoftmaxPooling
from stexpr.types import BagBatch

ATTENTION_WIDTH = 128


class AttentionScore(nn.Module):
    """One score for each embedded patch: w · tanh(V h), gated w · (tanh(V h) * sigmoid(U h))."""

    def __init__(self, width: int, *, gated: bool) -> None:
        super().__init__()
        hidden = min(ATTENTION_WIDTH, width)
        self.value = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden) if gated else None
        self.weight = nn.Linear(hidden, 1)

    def forward(self, embedded: Float[Tensor, "N V"]) -> Float[Tensor, "N"]:
        """Return scores, before the softmax."""
        hidden = self.value(embedded).tanh()
        if self.gate is not None:
            hidden = hidden * self.gate(embedded).sigmoid()
        score: Tensor = self.weight(hidden)[:, 0]
        return score


class AttentionPooling(SoftmaxPooling):
    """The mean of the embedded patches weighted by a learned attention, then a linear layer."""

    gated = False

    def __init__(self, n_features: int, n_outputs: int, *, widths: tuple[int, ...] = (512,), dropout: float = 0.25) -> None:
        super().__init__(n_features, n_outputs, widths=widths, dropout=dropout)
        self.score = AttentionScore(widths[-1], gated=self.gated)
        self.predict_linear = nn.Linear(widths[-1], n_outputs)

    def read(self, instances: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor]:
        """Embed and score instances."""
        embedded = self.trunk(instances)
        return embedded, self.score(embedded)

    def predict(self, pooled: Float[Tensor, "B V"]) -> Float[Tensor, "B K"]:
        """Apply the linear layer."""
        output: Tensor = self.predict_linear(pooled)
        return output


class GatedAttentionPooling(AttentionPooling):
    """Attention whose hidden units are gated by sigmoids."""

    gated = True


class Credit(NamedTuple):
    """How an output of each bag comes about: `patches` summed over a bag, plus `bias`, is the output.

    Attributes:
        patches: Of each instance, the sum over its features (N,).
        features: Of each feature in each instance (N, D).
        bias: What the output is before any patch is seen.
    """

    patches: Tensor
    features: Tensor
    bias: Tensor


class AdditiveAttention(SoftmaxPooling):
    """An output that is a sum over patches and features: attention x weight x feature.

    Only the attention passes hidden layers; what it weights are the instances themselves, so that a prediction splits
    without approximation into patches, and within a patch into features (genes, where the instances are predicted
    expression). Features should be standardized, or credit goes to the ones with a large mean.
    """

    def __init__(self, n_features: int, n_outputs: int, *, widths: tuple[int, ...] = (512,), dropout: float = 0.25) -> None:
        super().__init__(n_features, n_outputs, widths=widths, dropout=dropout)
        self.score = AttentionScore(widths[-1], gated=True)
        self.predict_linear = nn.Linear(n_features, n_outputs)

    def read(self, instances: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor]:
        """Score instances; what is averaged are the instances as they are."""
        return instances, self.score(self.trunk(instances))

    def predict(self, pooled: Float[Tensor, "B V"]) -> Float[Tensor, "B K"]:
        """Apply the linear layer."""
        output: Tensor = self.predict_linear(pooled)
        return output

    @torch.no_grad()
    def credit(self, bags: BagBatch, output: int = 0) -> Credit:
        """Split one output of each bag into its patches and features; in evaluation mode, as dropout draws anew.

        Args:
            bags: The bags; the credit of features is as large as they are.
            output: Which of the K outputs.

        Returns:
            Credit in the unit of the output (a logit for a classification).

        Raises:
            ModelError: No such output.
        """
        if not 0 <= output < self.n_outputs:
            raise ModelError(f"there is no output {output}: the head has {self.n_outputs}, counted from 0")
        attention = self(bags).attention
        features = attention[:, None] * self.predict_linear.weight[output] * bags.instances.float()
        return Credit(features.sum(dim=1), features, self.predict_linear.bias[output])
