"""Which genes, in which patches, carry the output of a head on predicted expression.

An additive head splits exactly into genes. For the others the gradient is integrated on the way from the training patches'
mean expression to the patch's own, features beside it left as they are: what all genes have together is the difference of
the two outputs, but for a numerical gap that is told.

Reference:
    Javed et al. 2022 (additive multiple instance learning); Sundararajan et al. 2017 (integrated gradients).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from stexpr.errors import ModelError, nearest
from stexpr.inference.explain import SlideReading
from stexpr.inference.explained_output import ExplainedOutput
from stexpr.models.bag.attention import AdditiveAttention
from stexpr.models.bag.vote import PatchVote

__all__ = ["GeneCredit", "credit_genes", "feature_credit", "has_genes", "map_genes"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Method: TypeAlias = Literal["exact", "integrated gradients"]

STEPS: Final = 32
"""Points on the way from mean to own expression."""


@dataclass(frozen=True)
class GeneCredit:
    """What the genes have in one number of a slide, in its unit.

    Attributes:
        genes: In the order of the rest.
        total: Over the patches of the slide.
        absolute: The same of sizes: what a gene moves up in some patches and down in others does not cancel.
        raising: Share of patches in which the gene raises the number.
        leading: Share of patches in which no gene moves it more.
        leader: Of each patch, the place of that gene.
        leader_credit: Its credit there.
        method: How it was found.
        start: The number before any patch is seen; with integrated gradients, at the mean expression.
        features: What the encoder's features have, where they stand beside the genes; 0 with integrated gradients, which
            leaves them as they are.
        gap: What is missing for `start`, `features` and all genes to sum to the number.
    """

    genes: tuple[str, ...]
    total: Float64[Array, "G"]
    absolute: Float64[Array, "G"]
    raising: Float64[Array, "G"]
    leading: Float64[Array, "G"]
    leader: Int64[Array, "N"]
    leader_credit: Float64[Array, "N"]
    method: Method
    start: float
    features: float
    gap: float


def has_genes(reading: SlideReading) -> bool:
    """Whether genes can be credited: the head reads expression, and its output has a slope.

    A majority of patches has none: it stands still until a patch changes sides.
    """
    head = reading.head.model.head
    return bool(reading.head.genes) and not (isinstance(head, PatchVote) and head.vote == "majority")


def credit_genes(reading: SlideReading, output: ExplainedOutput) -> GeneCredit:
    """Split a number of a slide among genes.

    The bag is read a few times with an additive head, else about 70 times; memory grows by a few numbers of each patch.

    Raises:
        ModelError: The head reads no expression, or votes by majority.
    """
    if not has_genes(reading):
        raise ModelError("genes are credited for heads on predicted expression whose output is no majority of patches")
    n_genes, n = len(reading.head.genes), len(reading.alone)
    total, absolute, raising, leading = (np.zeros(n_genes) for _ in range(4))
    leader, leader_credit = [], []
    features = 0.0
    exact = isinstance(reading.head.model.head, AdditiveAttention)
    for chunk in feature_credit(reading, output):
        genes = chunk[:, -n_genes:].astype(np.float64)
        features += float(chunk[:, :-n_genes].sum(dtype=np.float64))
        total += genes.sum(axis=0)
        absolute += np.abs(genes).sum(axis=0)
        raising += (genes > 0).sum(axis=0)
        leader.append(np.abs(genes).argmax(axis=1))
        leader_credit.append(genes[np.arange(len(genes)), leader[-1]])
        leading += np.bincount(leader[-1], minlength=n_genes)
    value = float(output(reading.outputs()[None])[0])
    start = _start(reading, output)
    return GeneCredit(
        genes=reading.head.genes,
        total=total,
        absolute=absolute,
        raising=raising / n,
        leading=leading / n,
        leader=np.concatenate(leader),
        leader_credit=np.concatenate(leader_credit),
        method="exact" if exact else "integrated gradients",
        start=start,
        features=features,
        gap=value - start - features - float(total.sum()),
    )


def map_genes(reading: SlideReading, output: ExplainedOutput, genes: Sequence[str]) -> Float64[Array, "N M"]:
    """Return the credit of some genes in every patch.

    Raises:
        ModelError: As `credit_genes`, or the head does not read a gene.
    """
    known = reading.head.genes
    for gene in genes:
        if gene not in known:
            raise ModelError(f"the head does not read {gene!r}; {nearest(gene, known)}")
    if not has_genes(reading):
        raise ModelError("a majority of patches has no slope by which genes could be credited")
    columns = [known.index(gene) - len(known) for gene in genes]
    return np.concatenate([chunk[:, columns].astype(np.float64) for chunk in feature_credit(reading, output)])


def feature_credit(reading: SlideReading, output: ExplainedOutput) -> Iterator[Float32[Array, "n D"]]:
    """Yield the credit of every instance's entries, some patches at a time, in the order of the bag.

    Additive heads: exact, of features and genes alike. Others: of genes, 0 for features beside them.
    """
    if isinstance(reading.head.model.head, AdditiveAttention):
        yield from _additive(reading, output)
    else:
        yield from _integrated(reading, output)


def _additive(reading: SlideReading, output: ExplainedOutput) -> Iterator[Float32[Array, "n D"]]:
    head, attention = reading.head.model.head, reading.attention
    assert isinstance(head, AdditiveAttention)
    assert attention is not None
    slopes = output.slopes(reading.halves.nothing_seen(), reading.outputs())
    weight = slopes @ head.predict_linear.weight.detach().double()
    done = 0
    for chunk in reading.chunks():
        share = attention[done : done + len(chunk), None]
        done += len(chunk)
        yield (share * weight * chunk).float().cpu().numpy()


def _integrated(reading: SlideReading, output: ExplainedOutput) -> Iterator[Float32[Array, "n D"]]:
    """The second half of the head tells the slope by each patch; the first half, the slope of that by each gene."""
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    shares = ((nodes + 1) / 2).tolist()
    slopes = [_local_slopes(reading, output, share) for share in shares]
    done = 0
    for chunk in reading.chunks():
        rows = slice(done, done + len(chunk))
        done += len(chunk)
        credit = torch.zeros_like(chunk)
        for share, weight, (touched, slope) in zip(shares, (weights / 2).tolist(), slopes, strict=True):
            inside = (touched >= rows.start) & (touched < rows.stop)
            own = touched[inside] - rows.start
            if len(own):
                moved = _moved(reading, chunk[own], share).requires_grad_()
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(reading.halves.alone(moved), moved, slope[inside])
                credit[own] += weight * gradient * _expression_of(reading, chunk[own])
        yield credit.cpu().numpy()


def _local_slopes(reading: SlideReading, output: ExplainedOutput, share: float) -> tuple[Tensor, Tensor]:
    """Return the patches by which the number has a slope, and the slopes by what the head computes of each."""
    local = _alone_at(reading, share).double().requires_grad_()
    with torch.enable_grad():
        number = output(reading.halves.together(local)[None])[0]
    (slope,) = torch.autograd.grad(number, local)
    touched = slope.abs().amax(dim=1).nonzero()[:, 0]  # of a largest feature, a single patch
    return touched, slope[touched].float()


@torch.no_grad()
def _alone_at(reading: SlideReading, share: float) -> Tensor:
    halves = reading.halves
    return torch.cat([halves.alone(_moved(reading, chunk, share)).float() for chunk in reading.chunks()])


def _moved(reading: SlideReading, chunk: Tensor, share: float) -> Tensor:
    """Return instances with their expression a share of the way from the mean, which is 0 once standardized."""
    return chunk - (1 - share) * _expression_of(reading, chunk)


def _expression_of(reading: SlideReading, chunk: Tensor) -> Tensor:
    """Return the entries of genes, and 0 for others."""
    kept = chunk.clone()
    kept[:, : -len(reading.head.genes)] = 0
    return kept


@torch.no_grad()
def _start(reading: SlideReading, output: ExplainedOutput) -> float:
    if isinstance(reading.head.model.head, AdditiveAttention):
        outputs = reading.halves.nothing_seen()
    else:
        outputs = reading.halves.together(_alone_at(reading, 0.0).double()).double()
    return float(output(outputs[None])[0])
