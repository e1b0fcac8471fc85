"""What a bag head is trained to tell of a slide: mutations, a fraction, a class, a grade.

Targets are tensors with one row for each bag; a missing label is NaN, or -1 for a class. Every loss is a mean over observed
labels, and `Loss.denominator` is their number, so that losses of parts of a batch can be put together again.
"""

import abc
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from stexpr.errors import ModelError
from stexpr.models.trainable import Loss

MISSING_CLASS = -1
MOST_WEIGHT = 10.0


class BagObjective(nn.Module, abc.ABC):
    """What some outputs of a head are trained to do.

    Attributes:
        n_outputs: Outputs of the head it reads.
    """

    n_outputs: int

    @abc.abstractmethod
    def loss(self, output: Float[Tensor, "B K"], target: Tensor) -> Loss:
        """Return the mean loss over observed labels; 0, without gradient, where none is observed."""

    @abc.abstractmethod
    def predict(self, output: Float[Tensor, "B K"]) -> Tensor:
        """Return what a person reads: probabilities, a fraction, or probabilities of classes."""

    def averaged(self, output: Float[Tensor, "N K"]) -> Float[Tensor, "K"]:
        """Return the output of a slide from those of its patches: what its `predict` gives is the mean of theirs."""
        return output.mean(dim=0)

    @property
    def couples_examples(self) -> bool:
        """Whether the loss of a batch is more than a mean over its examples."""
        return False


class MultiLabel(BagObjective):
    """Yes or no for several things at once, such as mutations; a slide counts for the labels it has.

    Args:
        weights: Of the positives of each label.
    """

    weights: Tensor

    def __init__(self, weights: Float[Tensor, "K"]) -> None:
        super().__init__()
        self.n_outputs = len(weights)
        self.register_buffer("weights", weights)

    @classmethod
    def fit(cls, target: Float[Tensor, "P K"], names: Sequence[str], most: float = MOST_WEIGHT) -> "MultiLabel":
        """Weight positives by negatives / positives of the training patients, between 1 / `most` and `most`.

        Raises:
            ModelError: Labels with no positive or no negative, by name: there is nothing to learn of them.
        """
        positive, negative = (target == 1).sum(dim=0), (target == 0).sum(dim=0)
        one_sided = [name for name, a, b in zip(names, positive.tolist(), negative.tolist(), strict=True) if not (a and b)]
        if one_sided:
            raise ModelError(
                f"all training labels are equal or missing for {', '.join(one_sided)}; leave them out of the study"
            )
        return cls((negative / positive).clamp(1 / most, most))

    def loss(self, output: Float[Tensor, "B K"], target: Float[Tensor, "B K"]) -> Loss:
        """Return the weighted cross-entropy over observed labels."""
        observed = target.isfinite()
        each = functional.binary_cross_entropy_with_logits(
            output.float(), target.nan_to_num(0.0), pos_weight=self.weights, reduction="none"
        )
        return _mean(each, observed, "cross_entropy")

    def predict(self, output: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Return probabilities; those of weighted labels are too high where positives are rare, until calibrated."""
        return output.float().sigmoid()

    def averaged(self, output: Float[Tensor, "N K"]) -> Float[Tensor, "K"]:
        """Return the logit of the mean probability."""
        return _logit_of_mean(output)


class Fraction(BagObjective):
    """A share in [0, 1], such as Ki67: the cross-entropy of the share behind a logit link.

    Its gradient does not vanish where a logit is far off, as that of a squared error would.
    """

    n_outputs = 1

    def loss(self, output: Float[Tensor, "B 1"], target: Float[Tensor, "B"]) -> Loss:
        """Return the mean cross-entropy, which is least at the share itself, though not 0.

        Raises:
            ModelError: A target outside of [0, 1], such as a percentage.
        """
        observed = target.isfinite()
        known = target[observed]
        if bool(((known < 0) | (known > 1)).any()):
            extremes = f"{float(known.min()):g} to {float(known.max()):g}"
            raise ModelError(f"a fraction must be in [0, 1], got {extremes}; divide percentages by 100")
        each = functional.binary_cross_entropy_with_logits(output[:, 0].float(), target.nan_to_num(0.0), reduction="none")
        return _mean(each, observed, "cross_entropy")

    def predict(self, output: Float[Tensor, "B 1"]) -> Float[Tensor, "B"]:
        """Return fractions."""
        return output[:, 0].float().sigmoid()

    def averaged(self, output: Float[Tensor, "N 1"]) -> Float[Tensor, "1"]:
        """Return the logit of the mean fraction."""
        return _logit_of_mean(output)


class Continuous(BagObjective):
    """Any numbers, such as expression signatures: squared error after standardization.

    Args:
        mean: Of each number over the training patients.
        sd: Likewise.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, mean: Float[Tensor, "K"], sd: Float[Tensor, "K"]) -> None:
        super().__init__()
        self.n_outputs = len(mean)
        self.register_buffer("mean", mean)
        self.register_buffer("sd", sd)

    @classmethod
    def fit(cls, target: Float[Tensor, "P K"], names: Sequence[str]) -> "Continuous":
        """Standardize on training patients.

        Raises:
            ModelError: Numbers that do not vary, by name.
        """
        mean = target.nanmean(dim=0)
        sd = (target - mean).square().nanmean(dim=0).sqrt()
        constant = [name for name, value in zip(names, sd.tolist(), strict=True) if not value > 0]
        if constant:
            raise ModelError(f"all training values are equal or missing for {', '.join(constant)}; leave them out of the study")
        return cls(mean, sd)

    def loss(self, output: Float[Tensor, "B K"], target: Float[Tensor, "B K"]) -> Loss:
        """Return the mean squared error in SDs."""
        observed = target.isfinite()
        standardized = ((target - self.mean) / self.sd).nan_to_num(0.0)
        return _mean((output.float() - standardized).square(), observed, "squared_error")

    def predict(self, output: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Return numbers in their own unit."""
        return output.float() * self.sd + self.mean


class MultiClass(BagObjective):
    """One of several classes, such as a subtype; -1 is missing.

    Args:
        weights: Of each class.
    """

    weights: Tensor

    def __init__(self, weights: Float[Tensor, "K"]) -> None:
        super().__init__()
        self.n_outputs = len(weights)
        self.register_buffer("weights", weights)

    @classmethod
    def fit(cls, target: Int64[Tensor, "P"], names: Sequence[str], most: float = MOST_WEIGHT) -> "MultiClass":
        """Weight classes so that each counts alike, none more than `most` times what it would.

        Raises:
            ModelError: Classes no training patient has, by name.
        """
        counts = torch.bincount(target[target != MISSING_CLASS], minlength=len(names)).float()
        absent = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
        if absent:
            raise ModelError(f"no training patient is of class {', '.join(absent)}; leave it out or join it with another")
        return cls((counts.sum() / (len(names) * counts)).clamp_max(most))

    def loss(self, output: Float[Tensor, "B K"], target: Int64[Tensor, "B"]) -> Loss:
        """Return the weighted cross-entropy over the slides with a class.

        The mean is over slides, not over weights, so that a slide's part does not depend on the others in its batch.
        """
        observed = target != MISSING_CLASS
        each = functional.cross_entropy(output.float(), target.clamp_min(0), weight=self.weights, reduction="none")
        return _mean(each, observed, "cross_entropy")

    def predict(self, output: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Return probabilities."""
        return output.float().softmax(dim=1)

    def averaged(self, output: Float[Tensor, "N K"]) -> Float[Tensor, "K"]:
        """Return the logarithm of the mean probabilities."""
        return _single(output).log_softmax(dim=1).logsumexp(dim=0) - math.log(len(output))


class Ordinal(BagObjective):
    """Classes in an order, such as a grade: one score and a threshold between each class and the next; -1 is missing.

    Args:
        n_classes: At least two.

    Reference:
        Proportional odds (McCullagh 1980): P(class > c) = sigmoid(score - threshold_c).
    """

    n_outputs = 1

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        if n_classes < 2:
            raise ModelError(f"an order needs at least two classes, got {n_classes}")
        self.first = nn.Parameter(torch.tensor(-(n_classes - 2) / 2))
        self.log_gaps = nn.Parameter(torch.zeros(n_classes - 2))

    def thresholds(self) -> Float[Tensor, "_"]:
        """Return thresholds, which rise by construction."""
        return self.first + torch.cat([self.first.new_zeros(1), self.log_gaps.exp().cumsum(0)])

    def loss(self, output: Float[Tensor, "B 1"], target: Int64[Tensor, "B"]) -> Loss:
        """Return the mean negative log-likelihood of the class."""
        observed = target != MISSING_CLASS
        probability = self.predict(output).gather(1, target.clamp_min(0)[:, None])[:, 0]
        return _mean(-probability.clamp_min(1e-12).log(), observed, "likelihood")

    def predict(self, output: Float[Tensor, "B 1"]) -> Float[Tensor, "B _"]:
        """Return probabilities of the classes."""
        above = (output.float() - self.thresholds()).sigmoid()  # (B, C - 1)
        ends = above.new_ones(len(above), 1), above.new_zeros(len(above), 1)
        return torch.cat([ends[0], above], dim=1) - torch.cat([above, ends[1]], dim=1)


def _logit_of_mean(output: Float[Tensor, "N K"]) -> Float[Tensor, "K"]:
    """In logarithms, so that a mean near 0 or 1 keeps its digits."""
    values = _single(output)
    return functional.logsigmoid(values).logsumexp(dim=0) - functional.logsigmoid(-values).logsumexp(dim=0)


def _single(output: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """At least: explanations compare outputs in double precision."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _mean(each: Tensor, observed: Tensor, name: str) -> Loss:
    """Average over observed labels alone; the others give neither a value nor a gradient."""
    n = int(observed.sum())
    total = torch.where(observed, each, torch.zeros_like(each)).sum() / max(n, 1)
    return Loss(total, {name: total.detach()}, n)
