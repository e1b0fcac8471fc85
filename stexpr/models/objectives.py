"""Objectives: from raw counts to a target, from an output and a target to a loss, and from an output back to expression."""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from stexpr.errors import ModelError, nearest
from stexpr.panel import ExpressionScaler, ExpressionTransform

ObjectiveKind: TypeAlias = Literal["mse", "mse_pearson", "negative_binomial"]
Array: TypeAlias = np.ndarray[Any, Any]

PEARSON_WEIGHT = 0.5
"""Weight of 1 - r beside the mean squared error."""


class Loss(NamedTuple):
    """A loss, its parts and what it is a mean over.

    Attributes:
        total: What is differentiated.
        parts: The terms before weighting, detached.
        denominator: Number of examples the mean is over.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]
    denominator: int


class Objective(nn.Module, ABC):
    """What a head learns: owns the target, the loss and the way back to expression.

    An output of zero means the training mean (for targets that are not standardized: zero). All that is fitted on
    training spots is kept in buffers, so it travels in the state dict.

    Attributes:
        n_outputs: Number K of genes.
        couples_examples: Whether the loss of a spot depends on the other spots of the batch.
    """

    couples_examples: bool = False

    def __init__(self, n_outputs: int, transform: ExpressionTransform) -> None:
        super().__init__()
        self.n_outputs = n_outputs
        self.transform = transform

    @abstractmethod
    def loss(
        self, output: Float[Tensor, "B K"], counts: Float[Tensor, "B K"], library: Float[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        """Return the mean loss over spots and genes."""

    @abstractmethod
    def expression(self, output: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Return expression in the unit of the protocol."""

    @abstractmethod
    def initial_bias(self) -> Float[Tensor, "K"]:
        """Return the output that stands for the training mean, with which a head may start."""


class StandardizedRegression(Objective):
    """Squared error on standardized expression, with or without the correlation over the batch.

    The loss is MSE + w (1 - r), r the mean over genes of the Pearson correlation over the batch's spots. A gene whose
    measured values do not vary in the batch has no r and takes no part in that mean.

    Attributes:
        pearson_weight: The weight w.
        standardize: Whether the target is (expression - mean) / sd of the training spots, or expression itself.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self, transform: ExpressionTransform, scaler: ExpressionScaler, *, pearson_weight: float = 0.0, standardize: bool = True
    ) -> None:
        super().__init__(len(scaler.mean), transform)
        self.register_buffer("mean", torch.from_numpy(scaler.mean.copy()))
        self.register_buffer("sd", torch.from_numpy(scaler.sd.copy()))
        self.pearson_weight = pearson_weight
        self.standardize = standardize
        self.couples_examples = pearson_weight > 0

    def loss(
        self, output: Float[Tensor, "B K"], counts: Float[Tensor, "B K"], library: Float[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        """Return the mean loss over spots and genes.

        Raises:
            ModelError: The loss needs a correlation and there is one spot.
        """
        output = output.float()
        target: Tensor = self.transform(counts, library)
        if self.standardize:
            target = (target - self.mean) / self.sd
        error = (output - target).square().mean()
        if not self.pearson_weight:
            return error
        if len(output) < 2:
            raise ModelError(
                "the loss mse_pearson correlates over the spots of a batch and needs at least 2, got 1; raise "
                "training.batch_size"
            )
        return error + self.pearson_weight * (1 - _mean_pearson(output, target))

    def expression(self, output: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Return expression in the unit of the protocol."""
        return output.float() * self.sd + self.mean if self.standardize else output.float()

    def initial_bias(self) -> Float[Tensor, "K"]:
        """Return the training mean in units of the output: zero where targets are standardized."""
        return torch.zeros_like(self.mean) if self.standardize else self.mean.clone()


def _mean_pearson(output: Float[Tensor, "B K"], target: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    x = output - output.mean(dim=0)
    y = target - target.mean(dim=0)
    varies = target.amax(dim=0) > target.amin(dim=0)
    scale = (x.square().sum(dim=0) * y.square().sum(dim=0) + 1e-8).sqrt()  # finite slope where the output is constant
    r = (x * y).sum(dim=0) / scale
    return torch.where(varies, r, 0).sum() / varies.sum().clamp(min=1)


class NegativeBinomial(Objective):
    """Likelihood of the raw counts: mean = library x rate, variance = mean + mean² / size, one size per gene.

    The output is the logarithm of a gene's rate relative to the training spots' rate, so a head that starts near zero
    starts at the training mean. The library size enters the likelihood as a log offset. A prediction is scored as the
    expression of a spot with the median library of the training spots; the library of the spot predicted is never read.
    """

    MAX_LOG_SIZE = float(np.log(1e3))  # beyond it the distribution is Poisson to three digits, and lgamma loses its own

    log_rate: Tensor
    library_median: Tensor

    def __init__(
        self,
        transform: ExpressionTransform,
        log_rate: Float32[Array, "K"],
        log_size: Float32[Array, "K"],
        library_median: float,
    ) -> None:
        super().__init__(len(log_rate), transform)
        self.register_buffer("log_rate", torch.from_numpy(log_rate.copy()))
        self.register_buffer("library_median", torch.tensor(library_median, dtype=torch.float32))
        self.log_size = nn.Parameter(torch.from_numpy(log_size.copy()))

    @classmethod
    def fit(cls, transform: ExpressionTransform, counts: Float[Array, "S K"], library: Float[Array, "S"]) -> "NegativeBinomial":
        """Start from the training spots: rates as the share of all counts, sizes by the method of moments."""
        wide = counts.astype(np.float64)
        total = float(library.sum(dtype=np.float64))
        rate = np.maximum(wide.sum(axis=0), 0.5) / total  # a gene without a count gets half of one
        mean = rate * library[:, None].astype(np.float64)
        excess = ((wide - mean) ** 2 - mean).sum(axis=0)
        log_size = np.log((mean**2).sum(axis=0)) - np.log(np.maximum(excess, 1e-12))
        log_size = np.clip(log_size, -cls.MAX_LOG_SIZE, cls.MAX_LOG_SIZE - 1)
        return cls(transform, np.log(rate).astype(np.float32), log_size.astype(np.float32), float(np.median(library)))

    def loss(
        self, output: Float[Tensor, "B K"], counts: Float[Tensor, "B K"], library: Float[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        """Return the mean negative log-likelihood over spots and genes."""
        log_mean = output.float() + self.log_rate + library.log()[:, None]
        return negative_log_likelihood(counts, log_mean, self._bounded_log_size()).mean()

    def expression(self, output: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Return the expression of the predicted rates at the training spots' median library."""
        rate = (output.float() + self.log_rate).clamp(max=0.0).exp()  # no gene is more than the whole library
        library = self.library_median.expand(len(rate))
        expression: Tensor = self.transform(rate * self.library_median, library)
        return expression

    def initial_bias(self) -> Float[Tensor, "K"]:
        """Return zero: the output is relative to the training spots' rate."""
        return torch.zeros_like(self.log_rate)

    def _bounded_log_size(self) -> Float[Tensor, "K"]:
        return self.log_size.clamp(-self.MAX_LOG_SIZE, self.MAX_LOG_SIZE)


def negative_log_likelihood(
    counts: Float[Tensor, "B K"], log_mean: Float[Tensor, "B K"], log_size: Float[Tensor, "K"]
) -> Float[Tensor, "B K"]:
    """Return -log p of counts under negative binomials, computed in logarithms so that no mean can overflow.

    Args:
        counts: Raw counts.
        log_mean: Logarithm of the expected counts.
        log_size: Logarithm of the size θ of each gene; variance = mean + mean² / θ.

    Returns:
        One value per count.

    Example:
        >>> one = torch.ones(1, 1)
        >>> negative_log_likelihood(one, one * 0, torch.zeros(1)).round(decimals=4)  # geometric: log 4
        tensor([[1.3863]])
    """
    size = log_size.exp()
    log_sum = torch.logaddexp(log_mean, log_size.expand_as(log_mean))
    log_p = torch.lgamma(counts + size) - torch.lgamma(size) - torch.lgamma(counts + 1)
    return -(log_p + size * (log_size - log_sum) + counts * (log_mean - log_sum))


def make_objective(
    kind: str,
    *,
    counts: Float[Array, "S K"],
    library: Float[Array, "S"],
    transform: ExpressionTransform,
    standardize: bool = True,
) -> Objective:
    """Build an objective and fit on training spots what it needs of them.

    Args:
        kind: `mse`, `mse_pearson` or `negative_binomial`.
        counts: Raw counts of the training spots.
        library: Their library sizes.
        transform: Unit of expression.
        standardize: Whether the target is standardized; a likelihood of counts has nothing to standardize.

    Raises:
        ModelError: The kind is unknown.
        GeneError: There is no training spot.
    """
    _check_kind(kind)
    scaler = ExpressionScaler.fit(transform(counts, library))
    if kind == "negative_binomial":
        return NegativeBinomial.fit(transform, counts, library)
    weight = PEARSON_WEIGHT if kind == "mse_pearson" else 0.0
    return StandardizedRegression(transform, scaler, pearson_weight=weight, standardize=standardize)


def empty_objective(kind: str, n_outputs: int, transform: ExpressionTransform, *, standardize: bool = True) -> Objective:
    """Build an objective of the right shape whose fitted values a state dict will fill.

    Args:
        kind: `mse`, `mse_pearson` or `negative_binomial`.
        n_outputs: Number of genes.
        transform: Unit of expression.
        standardize: As in `make_objective`.

    Raises:
        ModelError: The kind is unknown.
    """
    ones = np.ones((1, n_outputs), dtype=np.float32)
    return make_objective(kind, counts=ones, library=ones.sum(axis=1), transform=transform, standardize=standardize)


def _check_kind(kind: str) -> None:
    if kind not in get_args(ObjectiveKind):
        raise ModelError(f"no loss {kind!r}; {nearest(kind, get_args(ObjectiveKind))}")
