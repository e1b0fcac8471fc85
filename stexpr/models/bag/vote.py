"""Patches that each predict their slide, and vote.

Reference:
    Kather et al. 2020: patches are trained on the label of their slide.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from stexpr.errors import ModelError
from stexpr.models.bag.parts import Known
from stexpr.models.bag.pooling import BagHead, BagOutput, segment_sum
from stexpr.types import BagBatch


class PatchVote(BagHead):
    """Every patch predicts alone; the slide is the average of its patches or their majority.

    Train it on `patches(bags)` against the label of each patch's slide (`target[bags.index]`).

    Attributes:
        vote: `mean` averages the patches' outputs; `majority`, for yes-or-no targets, gives the log odds of the share
            of patches whose output is above 0, half a patch added to both sides so that it is finite.
    """

    def __init__(self, n_features: int, n_outputs: int, *, widths: tuple[int, ...] = (512,), dropout: float = 0.25) -> None:
        super().__init__(n_features, n_outputs, widths=widths, dropout=dropout)
        self.predict_linear = nn.Linear(widths[-1], n_outputs)
        self.vote: Literal["mean", "majority"] = "mean"

    def patches(self, bags: BagBatch) -> Float[Tensor, "N K"]:
        """Return the outputs of patches, in the order of the bags."""
        (outputs,) = self.in_parts(self._patches, bags).instances
        return outputs

    def forward(self, bags: BagBatch) -> BagOutput:
        """Return the vote of each bag.

        Raises:
            ModelError: No such way to vote.
        """
        outputs, lengths = self.patches(bags), bags.lengths[:, None]
        if self.vote == "mean":
            return BagOutput(self._total(outputs, bags) / lengths)
        if self.vote != "majority":
            raise ModelError(f"vote must be mean or majority, got {self.vote!r}")
        yes = self._total((outputs > 0).to(outputs.dtype), bags)
        return BagOutput((yes + 0.5).log() - (lengths - yes + 0.5).log())

    def _patches(self, instances: Tensor, index: Tensor, n_bags: int) -> Known:
        return Known(instances=(self.predict_linear(self.trunk(instances.float())),))

    @staticmethod
    def _total(values: Tensor, bags: BagBatch) -> Tensor:
        return segment_sum(values, bags.index, len(bags))
