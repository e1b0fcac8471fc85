"""Objectives: the target a head is trained on, its loss, and the way back to expression.

An objective owns the transform of counts to target, fitted on training spots, so a batch carries raw counts whatever the
loss. Its statistics are buffers and travel with the model's weights.
"""

import abc
import math
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from stexpr.errors import GeneError, ModelError
from stexpr.panel import ExpressionScaler, ExpressionTransform

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
RegressionKind: TypeAlias = Literal["mse", "mse_pearson", "huber"]
LossKind: TypeAlias = RegressionKind | Literal["negative_binomial"]
PEARSON_WEIGHT = 0.5
HUBER_DELTA = 1.0


class Objective(nn.Module, abc.ABC):
    """What one head is trained to do.

    Attributes:
        kind: Name of the loss.
        n_outputs: Genes.
        couples_examples: Whether the loss of a batch is more than a mean over its examples.
    """

    kind: LossKind
    couples_examples = False

    def __init__(self, n_outputs: int, transform: ExpressionTransform) -> None:
        super().__init__()
        self.n_outputs = n_outputs
        self.transform = transform

    @abc.abstractmethod
    def loss(
        self, output: Float[Tensor, "B K"], counts: Float32[Tensor, "B K"], library: Float32[Tensor, "B"]
    ) -> Float32[Tensor, ""]:
        """Return the mean loss over examples and genes.

        Args:
            output: What the head gives.
            counts: Raw counts of its genes.
            library: Total counts of each spot.
        """

    @abc.abstractmethod
    def expression(self, output: Float[Tensor, "B K"]) -> Float32[Tensor, "B K"]:
        """Return predicted expression in the unit of the protocol."""

    @abc.abstractmethod
    def initial_bias(self) -> Float32[Tensor, "K"]:
        """Return the output at which every prediction is the training mean."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what `empty_objective` needs to build this again, as plain JSON values."""


class StandardizedRegression(Objective):
    """Squared or Huber error on standardized expression, or squared error and a term for the correlation over the batch.

    With `standardize` false the target is the expression itself, as BrST-Net does for its auxiliary genes.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self, scaler: ExpressionScaler, transform: ExpressionTransform, *, kind: RegressionKind, standardize: bool
    ) -> None:
        super().__init__(len(scaler.mean), transform)
        self.kind = kind
        self.couples_examples = kind == "mse_pearson"
        self.standardize = standardize
        self.register_buffer("mean", torch.from_numpy(np.array(scaler.mean, dtype=np.float32)))
        self.register_buffer("sd", torch.from_numpy(np.array(scaler.sd, dtype=np.float32)))

    def target(self, counts: Float32[Tensor, "B K"], library: Float32[Tensor, "B"]) -> Float32[Tensor, "B K"]:
        """Return what the output should be."""
        expression: Tensor = self.transform(counts, library)
        return (expression - self.mean) / self.sd if self.standardize else expression

    def loss(
        self, output: Float[Tensor, "B K"], counts: Float32[Tensor, "B K"], library: Float32[Tensor, "B"]
    ) -> Float32[Tensor, ""]:
        """Return the mean error of the kind, as `error` describes it.

        Raises:
            ModelError: The loss correlates over the batch and the batch has one example.
        """
        return self.error(output, self.target(counts, library))

    def error(self, output: Float[Tensor, "B K"], target: Float32[Tensor, "B K"]) -> Float32[Tensor, ""]:
        """Return how far outputs are from what they should be.

        `mse` is the square of the difference to the target. `huber` is half of it up to a difference of 1, one SD of the
        training spots where targets are standardized, and the difference less 0.5 beyond. `mse_pearson` adds to the squared
        error 0.5 times (1 - mean r over the genes that vary in the batch).

        Raises:
            ModelError: The loss correlates over the batch and the batch has one example.
        """
        if self.kind == "huber":
            return functional.huber_loss(output.float(), target, delta=HUBER_DELTA)
        loss = (output.float() - target).square().mean()
        if self.kind == "mse_pearson":
            if len(output) < 2:
                raise ModelError("the loss mse_pearson correlates over a batch and needs at least two examples in each")
            loss = loss + PEARSON_WEIGHT * (1 - batch_pearson(output.float(), target))
        return loss

    def expression(self, output: Float[Tensor, "B K"]) -> Float32[Tensor, "B K"]:
        """Undo the standardization."""
        return output.float() * self.sd + self.mean if self.standardize else output.float()

    def initial_bias(self) -> Float32[Tensor, "K"]:
        """Return the training mean as a target: 0 where targets are standardized."""
        return torch.zeros_like(self.mean) if self.standardize else self.mean.clone()

    def settings(self) -> dict[str, Any]:
        """Return kind and standardization."""
        return {"kind": self.kind, "standardize": self.standardize}


def batch_pearson(output: Float[Tensor, "B K"], target: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Return the mean over genes of the correlation over a batch; genes whose target is constant there are skipped."""
    a, b = output - output.mean(dim=0), target - target.mean(dim=0)
    varies = b.square().sum(dim=0) > 1e-8
    r = (a * b).sum(dim=0) / (a.square().sum(dim=0) + 1e-8).sqrt() / (b.square().sum(dim=0) + 1e-8).sqrt()
    return torch.where(varies, r, torch.zeros_like(r)).sum() / varies.sum().clamp_min(1)


class NegativeBinomial(Objective):
    """Negative binomial likelihood of raw counts, one dispersion per gene.

    The mean is a rate times the spot's library. The output is the log of the rate relative to the gene's training rate, so
    a head that starts near zero starts at the training mean. A prediction uses the median library of the training spots,
    never the test spot's, which would tell the model how deep the spot was sequenced.

    Reference:
        Dispersion as in DESeq2 and scVI: variance = mean + mean² / exp(log_inverse_dispersion).
    """

    kind: LossKind = "negative_binomial"
    log_rate: Tensor
    median_library: Tensor

    def __init__(
        self, log_rate: Float32[Array, "K"], median_library: float, transform: ExpressionTransform, log_inverse: float = 1.0
    ) -> None:
        super().__init__(len(log_rate), transform)
        self.register_buffer("log_rate", torch.from_numpy(np.array(log_rate, dtype=np.float32)))
        self.register_buffer("median_library", torch.tensor(median_library, dtype=torch.float32))
        self.log_inverse_dispersion = nn.Parameter(torch.full((len(log_rate),), log_inverse))

    def loss(
        self, output: Float[Tensor, "B K"], counts: Float32[Tensor, "B K"], library: Float32[Tensor, "B"]
    ) -> Float32[Tensor, ""]:
        """Return the mean negative log-likelihood."""
        log_mean = self._log_rate(output) + library[:, None].log()
        log_r = self.log_inverse_dispersion.clamp(-8, 12)
        log_likelihood = (
            _log_rising(counts, log_r)
            - torch.lgamma(counts + 1)
            + counts * log_mean
            - (counts + log_r.exp()) * functional.softplus(log_mean - log_r)
        )
        return -log_likelihood.mean()

    def expression(self, output: Float[Tensor, "B K"]) -> Float32[Tensor, "B K"]:
        """Return the expression of the mean counts at the training spots' median library."""
        library = self.median_library.expand(output.shape[0])  # len() would fix the batch size of an exported graph
        expression: Tensor = self.transform(self._log_rate(output).exp() * library[:, None], library)
        return expression

    def _log_rate(self, output: Tensor) -> Tensor:
        # the clamp keeps exp() finite when a step went astray; e^10-fold changes of a rate do not occur in tissue
        return self.log_rate + output.float().clamp(-10, 10)

    def initial_bias(self) -> Float32[Tensor, "K"]:
        """Return 0: the training rate is the origin of the output."""
        return torch.zeros_like(self.log_rate)

    def settings(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": self.kind}


def _log_rising(counts: Float32[Tensor, "B K"], log_r: Float32[Tensor, "K"]) -> Float32[Tensor, "B K"]:
    """Return log(Gamma(counts + r) / Gamma(r) / r^counts).

    Above r = 33 the two log gammas are so large that single precision loses their difference, and with it the slope of the
    dispersion; Stirling's series, subtracted by hand, keeps both.
    """
    r = log_r.exp()
    exact = torch.lgamma(counts + r) - torch.lgamma(r) - counts * log_r
    series = (counts + r - 0.5) * torch.log1p(counts / r) - counts + (1 / (counts + r) - 1 / r) / 12
    return torch.where(log_r > 3.5, series, exact)


def make_objective(
    kind: LossKind,
    *,
    counts: Float32[Array, "S K"],
    library: Float32[Array, "S"],
    transform: ExpressionTransform,
    standardize: bool = True,
) -> Objective:
    """Build an objective and fit it on training spots.

    Args:
        kind: Name of the loss.
        counts: Raw counts of the head's genes in the training spots.
        library: Total counts of the training spots.
        transform: Unit of expression.
        standardize: Whether regression targets are standardized; a likelihood of counts has no use for it.

    Raises:
        GeneError: No spots, or values that are not finite.
    """
    if not len(counts):
        raise GeneError("an objective cannot be fitted without training spots")
    if kind == "negative_binomial":
        rate = (counts.sum(axis=0, dtype=np.float64) + 0.5) / library.sum(dtype=np.float64)
        return NegativeBinomial(np.log(rate).astype(np.float32), float(np.median(library)), transform)
    scaler = ExpressionScaler.fit(transform(counts, library))
    return StandardizedRegression(scaler, transform, kind=kind, standardize=standardize)


def empty_objective(settings: dict[str, Any], n_outputs: int, transform: ExpressionTransform) -> Objective:
    """Build an objective whose fitted statistics are about to be loaded from a saved model.

    Raises:
        ModelError: The settings are not those of an objective.
    """
    zeros = np.zeros(n_outputs, dtype=np.float32)
    kind = settings.get("kind")
    if kind == "negative_binomial":
        return NegativeBinomial(zeros, math.e, transform)
    if kind not in get_args(RegressionKind) or not isinstance(settings.get("standardize"), bool):
        raise ModelError(f"not the settings of an objective: {settings}")
    scaler = ExpressionScaler(zeros, np.ones_like(zeros))
    return StandardizedRegression(scaler, transform, kind=cast(RegressionKind, kind), standardize=settings["standardize"])
