"""Heads that predict a slide from its bag of patch features.

Every head reads packed bags of any length, gives one row of outputs for each, and treats a bag alike whatever other bags
stand beside it. Heads with softmax or max pooling read a long bag in parts whose activations are computed again for the
gradient, so memory grows with the bag itself and not with the width of the head.
"""

import torch

from stexpr.config.slides import HeadKind
from stexpr.errors import ModelError, nearest
from stexpr.models.bag.attention import AdditiveAttention, AttentionPooling, GatedAttentionPooling
from stexpr.models.bag.clam import Clam
from stexpr.models.bag.pooling import BagHead, BagOutput, MaxPooling, MeanPooling
from stexpr.models.bag.transmil import TransMil
from stexpr.models.bag.vote import PatchVote

__all__ = [
    "HEADS",
    "AdditiveAttention",
    "AttentionPooling",
    "BagHead",
    "BagOutput",
    "Clam",
    "GatedAttentionPooling",
    "HeadKind",
    "MaxPooling",
    "MeanPooling",
    "PatchVote",
    "TransMil",
    "make_head",
]

HEADS: dict[str, type[BagHead]] = {
    "mean": MeanPooling,
    "max": MaxPooling,
    "patch_vote": PatchVote,
    "attention": AttentionPooling,
    "gated_attention": GatedAttentionPooling,
    "additive": AdditiveAttention,
    "clam": Clam,
    "transmil": TransMil,
}


def make_head(
    kind: str,
    n_features: int,
    n_outputs: int,
    *,
    widths: tuple[int, ...] = (512,),
    dropout: float = 0.25,
    seed: int = 0,
) -> BagHead:
    """Build a head whose weights depend on the seed alone.

    Several targets share one head: its trunk and attention are common, and each target owns some of its outputs.

    Args:
        kind: A key of `HEADS`.
        n_features: Width of an instance.
        n_outputs: Outputs of all targets together.
        widths: Of the layers every patch passes before it is pooled.
        dropout: Share of activations left out after each of them in training.
        seed: Source of the weights; the state of torch's own generator is left as it was.

    Raises:
        ModelError: No such head, or sizes that are not positive.

    Example:
        >>> from stexpr.types import BagBatch
        >>> make_head("gated_attention", 8, 2, widths=(4,))(BagBatch.of([torch.zeros(5, 8)])).output.shape
        torch.Size([1, 2])
    """
    if kind not in HEADS:
        raise ModelError(f"no bag head is called {kind!r}; {nearest(kind, HEADS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HEADS[kind](n_features, n_outputs, widths=widths, dropout=dropout)
