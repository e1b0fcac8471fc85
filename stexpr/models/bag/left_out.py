"""What a head would say of a bag without each of its patches, exactly and for all patches at once.

Sums without a patch are the whole less the patch, but for the largest term, whose neighbors are added up anew: subtracting
what is nearly the whole would leave rounding errors.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stexpr.models.bag.halves import HeadHalves
from stexpr.models.bag.objectives import BagObjective, Fraction, MultiClass, MultiLabel
from stexpr.models.bag.pooling import MaxPooling, SoftmaxPooling
from stexpr.models.bag.vote import PatchVote

__all__ = ["outputs_without_each"]


def outputs_without_each(halves: HeadHalves, alone: Float[Tensor, "N J"]) -> Float64[Tensor, "N K"] | None:
    """Return the outputs of a bag without each patch in turn.

    Args:
        halves: Of the head.
        alone: What its first half gives of the patches.

    Returns:
        A row per patch left out; NaN where it is the only one. None for a head whose patches see each other, which has to be
        run again for each.
    """
    head = halves.model.head
    values = alone.double()
    if len(values) == 1 and isinstance(head, SoftmaxPooling | PatchVote | MaxPooling):
        return values.new_full((1, head.n_outputs), torch.nan)
    if isinstance(head, SoftmaxPooling):
        return _softmax(values[:, :-1], values[:, -1])
    if isinstance(head, MaxPooling):
        return _max(halves, values)
    if not isinstance(head, PatchVote):
        return None
    if head.vote == "majority":
        yes = (values > 0).double()
        left = yes.sum(dim=0) - yes
        return (left + 0.5).log() - (len(values) - 1 - left + 0.5).log()
    parts = zip(halves.model.objectives, halves.model.split_outputs(values), strict=True)
    return torch.cat([_vote(objective, part) for objective, part in parts], dim=1)


def _softmax(terms: Float64[Tensor, "N K"], scores: Float64[Tensor, "N"]) -> Float64[Tensor, "N K"]:
    top = int(scores.argmax())
    weights = (scores - scores[top]).exp()[:, None]
    left = ((weights * terms).sum(dim=0) - weights * terms) / (weights.sum() - weights).clamp_min(
        torch.finfo(torch.double).tiny
    )
    others = torch.arange(len(scores), device=scores.device) != top
    left[top] = scores[others].softmax(dim=0) @ terms[others]
    return left


def _vote(objective: torch.nn.Module, outputs: Float64[Tensor, "N K"]) -> Float64[Tensor, "N K"]:
    """As `BagObjective.averaged` of the other patches."""
    assert isinstance(objective, BagObjective)
    others = len(outputs) - 1
    if isinstance(objective, MultiLabel | Fraction):
        return _sums(outputs.sigmoid()).log() - _sums((-outputs).sigmoid()).log()
    if isinstance(objective, MultiClass):
        return (_sums(outputs.softmax(dim=1)) / others).log()
    return (outputs.sum(dim=0) - outputs) / others


def _sums(positive: Float64[Tensor, "N K"]) -> Float64[Tensor, "N K"]:
    """Return the sums of all rows but each."""
    left = positive.sum(dim=0) - positive
    largest = positive.argmax(dim=0)
    for column, row in enumerate(largest.tolist()):
        left[row, column] = positive[:row, column].sum() + positive[row + 1 :, column].sum()
    return left


def _max(halves: HeadHalves, embedded: Float64[Tensor, "N V"]) -> Float64[Tensor, "N K"]:
    """Only a patch that alone is the largest in a feature makes a difference."""
    (first, second), places = embedded.topk(2, dim=0)
    left = halves.linear(first).expand(len(embedded), -1).clone()
    for row in set(places[0].tolist()):
        left[row] = halves.linear(torch.where(places[0] == row, second, first))
    return left
