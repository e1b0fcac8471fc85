"""Attention that learns from its own extremes.

Reference:
    Lu et al. 2021 (CLAM), single branch.
"""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from stexpr.errors import ModelError
from stexpr.models.bag.attention import GatedAttentionPooling
from stexpr.models.bag.pooling import BagOutput
from stexpr.types import BagBatch

N_EXTREMES = 8


class Clam(GatedAttentionPooling):
    """Gated attention with one instance classifier for each class.

    The patches of highest attention are taught to be evidence for the slide's class, those of lowest attention not to be,
    and the highest not to be evidence for another class. Departs from the paper in that cross-entropy takes the place of
    the smooth SVM loss. Add `instance_loss` to the loss of the slides; the paper weights them 0.3 and 0.7.
    """

    def __init__(self, n_features: int, n_outputs: int, *, widths: tuple[int, ...] = (512,), dropout: float = 0.25) -> None:
        super().__init__(n_features, n_outputs, widths=widths, dropout=dropout)
        if n_outputs < 2:
            raise ModelError("CLAM needs one output for each of at least two classes, got 1; use gated_attention instead")
        self.evidence = nn.Linear(widths[-1], n_outputs)

    def instance_loss(self, bags: BagBatch, output: BagOutput, label: Int64[Tensor, "B"]) -> Float32[Tensor, ""]:
        """Return the mean cross-entropy of the extreme patches.

        Args:
            bags: The bags.
            output: What the head gave for them.
            label: Class of each slide.

        Returns:
            The loss; 0 where every bag has a single patch, which is both its highest and its lowest.
        """
        assert output.scores is not None
        highest, lowest, own = [], [], []
        for i, (start, stop) in enumerate(zip(bags.offsets[:-1].tolist(), bags.offsets[1:].tolist(), strict=True)):
            k = min(N_EXTREMES, (stop - start) // 2)
            order = output.scores[start:stop].detach().argsort(stable=True) + start
            lowest.append(order[:k])
            highest.append(order[len(order) - k :])
            own.append(label[i].expand(k))
        classes = torch.cat(own)
        if not len(classes):
            return output.output.new_zeros(())
        high = self.evidence(self.trunk(bags.instances[torch.cat(highest)].float()))  # (n, K)
        low = self.evidence(self.trunk(bags.instances[torch.cat(lowest)].float())).gather(1, classes[:, None])
        losses = [
            functional.binary_cross_entropy_with_logits(high, functional.one_hot(classes, self.n_outputs).float()),
            functional.binary_cross_entropy_with_logits(low, torch.zeros_like(low)),
        ]
        return torch.stack(losses).mean()
