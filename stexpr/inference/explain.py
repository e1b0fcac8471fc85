"""What of a slide carries the output of a head: attention, credit and perturbation of each patch.

Attention says where a head looks, not what it makes of it, so it never stands alone: beside it are the credit of a patch,
where the output is a sum over patches, and its perturbation, the fall of the output when the patch is left out.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from stexpr.data.bags import Bag
from stexpr.errors import ModelError
from stexpr.inference.explained_output import ExplainedOutput, explained_output
from stexpr.models.bag.halves import HeadHalves
from stexpr.models.bag.left_out import outputs_without_each
from stexpr.models.bag.saved import LoadedHead
from stexpr.models.bag.vote import PatchVote

__all__ = ["SlideExplanation", "SlideReading", "check_fits", "explain_slide", "read_slide"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

GROUPS: Final = 64
"""Neighborhoods of patches that are left out in turn, where a head has to be run again for each."""


@dataclass(frozen=True)
class SlideExplanation:
    """How one number of a slide comes about, patch by patch, in the order of the bag.

    Attributes:
        slide: Name of the slide.
        output: The number.
        value: Of the slide, as if it were the patient's only one; without clinical covariates.
        base: What the number is before any patch is seen; None without credit.
        attention: Shares that sum to 1; None for a head without attention.
        credit: Exact shares in the number: their sum and `base` are `value`. None for a head whose output is no sum.
        patch_output: What each patch says alone; of a vote only, else None.
        perturbation: How much the number falls when the patch is left out; NaN for the only patch of a slide.
        group_size: Patches left out together, at most, whose common fall is shared evenly; 1 is exact.
    """

    slide: str
    output: ExplainedOutput
    value: float
    base: float | None
    attention: Float64[Array, "N"] | None
    credit: Float64[Array, "N"] | None
    patch_output: Float64[Array, "N"] | None
    perturbation: Float64[Array, "N"]
    group_size: int = 1

    @property
    def measures(self) -> Mapping[str, Float64[Array, "N"]]:
        """What is known of each patch, by name, the one that ranks patches first."""
        found = {
            "credit": self.credit,
            "patch output": self.patch_output,
            "perturbation": self.perturbation,
            "attention": self.attention,
        }
        return {name: values for name, values in found.items() if values is not None}

    @property
    def ranked_by(self) -> str:
        """The measure that ranks patches."""
        return next(iter(self.measures))


@dataclass(frozen=True)
class SlideReading:
    """A bag as a head reads it: a few numbers of each patch, from which every output is explained.

    Attributes:
        head: The head.
        bag: The bag; it is read again where genes are asked for.
        alone: What the first half of the head gives, on its device.
    """

    head: LoadedHead
    bag: Bag
    alone: Float[Tensor, "N J"]

    @property
    def halves(self) -> HeadHalves:
        """The halves of the head."""
        return HeadHalves(self.head.model)

    def chunks(self) -> Iterator[Float[Tensor, "_ D"]]:
        """Read the instances again, standardized, some patches at a time."""
        return _chunks(self.head, self.bag)

    @torch.no_grad()
    def outputs(self) -> Float64[Tensor, "K"]:
        """Return the outputs of the slide."""
        return self.halves.together(self.alone.double()).double()

    @property
    def attention(self) -> Float64[Tensor, "N"] | None:
        """Shares of patches that sum to 1; of mean pooling all alike; None for a head that weights no patches."""
        return self.alone[:, -1].double().softmax(dim=0) if self.halves.is_sum else None

    @torch.no_grad()
    def explain(self, output: ExplainedOutput) -> SlideExplanation:
        """Explain one number of the slide."""
        halves, outputs = self.halves, self.outputs()
        value = float(output(outputs[None])[0])
        without, group_size = self._without_each
        credit = base = None
        if halves.is_sum:
            assert self.attention is not None
            nothing = halves.nothing_seen()
            base = float(output(nothing[None])[0])
            said = (self.alone[:, :-1].double() - nothing) @ output.slopes(nothing, outputs)
            credit = _array(self.attention * said)
        return SlideExplanation(
            slide=self.bag.slide,
            output=output,
            value=value,
            base=base,
            attention=_array(self.attention) if halves.has_attention and self.attention is not None else None,
            credit=credit,
            patch_output=_array(output(self.alone.double())) if isinstance(self.head.model.head, PatchVote) else None,
            perturbation=_array((value - output(without)) / group_size),
            group_size=int(group_size.max()),
        )

    @cached_property
    def _without_each(self) -> tuple[Float64[Tensor, "N K"], Int64[Tensor, "N"]]:
        """Outputs without each patch or its neighborhood, and how many patches that are."""
        outputs = outputs_without_each(self.halves, self.alone)
        if outputs is not None:
            return outputs, torch.ones(len(outputs), dtype=torch.int64, device=outputs.device)
        group = torch.from_numpy(_neighborhoods(self.bag.coords(), GROUPS)).to(self.alone.device)
        sizes = torch.bincount(group)
        found = torch.full((len(sizes), self.head.model.head.n_outputs), torch.nan, dtype=torch.float64, device=group.device)
        if len(sizes) > 1:
            for i in range(len(sizes)):
                found[i] = self.halves.together(self.alone[group != i])
        return found[group], sizes[group]


def explain_slide(head: LoadedHead, bag: Bag, target: str) -> SlideExplanation:
    """Explain the output of a head for a slide, patch by patch.

    The bag is read once, some patches at a time. Leaving out a patch is exact for every head but transmil, whose patches see
    each other: there, neighborhoods of patches are left out in turn.

    Args:
        head: The head; bring `head.model` to the device wanted.
        bag: The slide, embedded by the encoder of the head.
        target: A target, or `target=class` where it has several classes.

    Raises:
        ModelError: The head does not predict the target, or the bag is not of its encoder.
        DataError: The bag cannot be read.
    """
    output = explained_output(head, target)
    return read_slide(head, bag).explain(output)


@torch.no_grad()
def read_slide(head: LoadedHead, bag: Bag) -> SlideReading:
    """Read a bag once, for the explanation of any number of outputs.

    Raises:
        ModelError: The bag is not of the encoder of the head.
        DataError: The bag cannot be read.
    """
    check_fits(head, bag)
    halves = HeadHalves(head.model)
    return SlideReading(head, bag, torch.cat([halves.alone(chunk).float() for chunk in _chunks(head, bag)]))


def check_fits(head: LoadedHead, bag: Bag) -> None:
    """Refuse a bag that a head was not trained for.

    Raises:
        ModelError: It is of another encoder, width or set of genes.
        DataError: It lacks the instances.
    """
    if head.encoder is not None and bag.encoder is not None and head.encoder != bag.encoder:
        raise ModelError(
            f"the bag of slide {bag.slide} is of encoder {bag.encoder}, the head was trained on those of {head.encoder}; embed "
            "the slide with that one"
        )
    width, read = bag.width_of(head.instances), head.model.head.n_features
    if width != read or (head.genes and bag.genes != head.genes):
        other = f"{width:,} {head.instances} where it reads {read:,}" if width != read else "other genes"
        raise ModelError(f"the bag of slide {bag.slide} does not fit the head: it has {other}; embed the slide again")


def _chunks(head: LoadedHead, bag: Bag) -> Iterator[Float[Tensor, "_ D"]]:
    halves, device = HeadHalves(head.model), head.model.mean.device
    for chunk in bag.chunks(instances=head.instances):
        yield halves.standardized(torch.from_numpy(chunk).to(device))


def _array(values: Float64[Tensor, "N"]) -> Float64[Array, "N"]:
    found: Array = values.cpu().numpy()
    return found


def _neighborhoods(coords: Float64[Array, "N 2"], n: int) -> Int64[Array, "N"]:
    """Number at most `n` neighborhoods of patches, halving the wider side again and again."""
    parts = [np.arange(len(coords))]
    for _ in range(math.floor(math.log2(n))):
        halved: list[Array] = []
        for part in parts:
            along = int(np.ptp(coords[part], axis=0).argmax())
            ordered = part[coords[part, along].argsort(kind="stable")]
            halved += [half for half in np.array_split(ordered, 2) if len(half)]
        parts = halved
    group = np.empty(len(coords), dtype=np.int64)
    for i, part in enumerate(parts):
        group[part] = i
    return group
