"""Survival of the patients behind slides: Cox's partial likelihood, exactly over a cohort, and discrete time.

`event` is True where the event was observed, False where the patient left the study before.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from stexpr.errors import DataError, ModelError
from stexpr.models.bag.objectives import BagObjective
from stexpr.models.trainable import Loss


def cox_loss(log_hazard: Float[Tensor, "P"], time: Float[Tensor, "P"], event: Bool[Tensor, "P"]) -> Float[Tensor, ""]:
    """Return the negative log partial likelihood for each event, ties after Efron.

    The loss couples patients: that of a cohort is not the sum of those of its batches (see `stexpr.models.bag.exact`).
    Computed in double precision relative to the largest log hazard, which cancels, so that no hazard overflows.

    Args:
        log_hazard: What the head gives.
        time: Until event or end of follow-up.
        event: True where observed.

    Raises:
        DataError: No event, or a time that is not positive.

    Reference:
        Efron 1977.
    """
    check_survival(time, event)
    # the earlier of equal times first, so that everyone at risk stands behind
    order = time.argsort(stable=True)
    relative, event = log_hazard.double()[order], event[order]
    relative = relative - relative.detach().max()
    _, group = torch.unique_consecutive(time[order], return_inverse=True)
    hazard = relative.exp()
    n_groups = int(group[-1]) + 1
    at_risk = hazard.new_zeros(n_groups).index_add(0, group, hazard).flip(0).cumsum(0).flip(0)
    tied_group, tied = group[event], hazard[event]
    ties = hazard.new_zeros(n_groups).index_add(0, tied_group, tied)
    n_tied = torch.bincount(tied_group, minlength=n_groups)
    first = n_tied.cumsum(0) - n_tied
    rank = torch.arange(len(tied), device=tied.device) - first[tied_group]  # 0, 1, ... among the events of one time
    removed = rank * ties[tied_group] / n_tied[tied_group]  # integers divided by each other would be single precision
    log_likelihood = relative[event] - (at_risk[tied_group] - removed).log()
    return -log_likelihood.mean().to(log_hazard.dtype)


def check_survival(time: Float[Tensor, "P"], event: Bool[Tensor, "P"]) -> None:
    """Refuse what has no likelihood.

    Raises:
        DataError: No event, or a time that is not positive and finite.
    """
    bad = int((~((time > 0) & time.isfinite())).sum())
    if bad:
        raise DataError(
            f"{bad:,} of {len(time):,} survival times are not positive and finite; leave these patients out by name"
        )
    if not bool(event.any()):
        raise DataError(f"none of {len(event):,} patients has an event; a Cox loss needs at least one in each batch")


class Cox(BagObjective):
    """One log hazard, by Cox's partial likelihood over all patients of a batch."""

    n_outputs = 1

    def loss(self, output: Float[Tensor, "B 1"], target: Float[Tensor, "B 2"]) -> Loss:
        """Return the loss of `cox_loss`.

        Args:
            output: Log hazards.
            target: Time and event (1 observed, 0 censored) of each patient; NaN where unknown.

        Raises:
            DataError: No patient of the batch has an event.
        """
        known = target[:, 0].isfinite()
        n_events = int((target[known, 1] == 1).sum())
        total = cox_loss(output[known, 0].float(), target[known, 0], target[known, 1] == 1)
        return Loss(total, {"likelihood": total.detach()}, n_events)

    def predict(self, output: Float[Tensor, "B 1"]) -> Float[Tensor, "B"]:
        """Return log hazards."""
        return output[:, 0].float()

    @property
    def couples_examples(self) -> bool:
        """Every event is compared with all patients at risk."""
        return True


def baseline_hazard(
    log_hazard: Float[Tensor, "P"], time: Float[Tensor, "P"], event: Bool[Tensor, "P"], horizons: Float[Tensor, "T"]
) -> Float[Tensor, "T"]:
    """Estimate the cumulative hazard of a patient of log hazard 0 from training patients.

    Survival of another patient beyond a horizon is exp(-baseline * exp(log hazard)).

    Args:
        log_hazard: Of the training patients.
        time: Until event or end of follow-up.
        event: True where observed.
        horizons: Times asked for.

    Raises:
        DataError: No event, or a time that is not positive.

    Reference:
        Breslow 1972.
    """
    check_survival(time, event)
    order = time.argsort(descending=True)
    at_risk = log_hazard.double()[order].exp().cumsum(0)
    ordered = time[order]
    # everyone who leaves at a time is at risk at it
    last = torch.searchsorted(-ordered, -ordered, right=True) - 1
    steps = torch.where(event[order], 1 / at_risk[last], torch.zeros_like(at_risk))
    return torch.stack([steps[ordered <= horizon].sum() for horizon in horizons]).to(log_hazard.dtype)


class DiscreteTime(BagObjective):
    """One hazard for each interval of time: the likelihood of surviving the intervals before, and of what came then.

    A patient censored in an interval counts as having survived those before it. Times past the last bound are in the last
    interval.

    Args:
        bounds: Upper bounds of all intervals but the last.
    """

    bounds: Tensor

    def __init__(self, bounds: Float[Tensor, "_"]) -> None:
        super().__init__()
        if len(bounds) and not bool((bounds.diff() > 0).all() & (bounds[0] > 0)):
            raise ModelError(f"bounds of time must rise from above 0, got {bounds.tolist()}")
        self.n_outputs = len(bounds) + 1
        self.register_buffer("bounds", bounds)

    @classmethod
    def fit(cls, time: Float[Tensor, "P"], event: Bool[Tensor, "P"], n_bins: int = 4) -> "DiscreteTime":
        """Choose intervals with equally many observed events of the training patients.

        Bounds that coincide, because many events share a time, are taken once: there are fewer intervals then.

        Raises:
            DataError: No event, or a time that is not positive.
            ModelError: Fewer than two intervals asked for.
        """
        check_survival(time, event)
        if n_bins < 2:
            raise ModelError(f"discrete time needs at least two intervals, got {n_bins}")
        shares = torch.linspace(0, 1, n_bins + 1, dtype=time.dtype, device=time.device)[1:-1]
        return cls(torch.unique(time[event].quantile(shares)))

    def bins(self, time: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
        """Return the interval of each time; a bound belongs to the interval it ends."""
        return torch.bucketize(time.contiguous(), self.bounds)

    def loss(self, output: Float[Tensor, "B K"], target: Float[Tensor, "B 2"]) -> Loss:
        """Return the mean negative log-likelihood.

        Args:
            output: Logits of the hazards.
            target: Time and event (1 observed, 0 censored) of each patient.

        Reference:
            Gensheimer & Narasimhan 2019 (logistic hazard).
        """
        own, interval = self.bins(target[:, 0])[:, None], torch.arange(self.n_outputs, device=output.device)
        event = target[:, 1:] == 1
        survived = interval < own
        dies = (interval == own) & event
        each = functional.binary_cross_entropy_with_logits(output.float(), dies.float(), reduction="none")
        total = torch.where(survived | dies, each, torch.zeros_like(each)).sum() / max(len(output), 1)
        return Loss(total, {"likelihood": total.detach()}, len(output))

    def predict(self, output: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Return the probability to survive each interval and those before."""
        return functional.logsigmoid(-output.float()).cumsum(dim=1).exp()

    def log_hazard(self, output: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
        """Return one risk for each patient: the logarithm of the cumulative hazard up to the last bound."""
        precise = output.to(torch.promote_types(output.dtype, torch.float32))
        total = functional.logsigmoid(-precise)[:, : max(self.n_outputs - 1, 1)].sum(dim=1)
        return (-total).clamp_min(torch.finfo(total.dtype).tiny).log()

    def survival(self, output: Float[Tensor, "B K"], horizons: Float[Tensor, "T"]) -> Float[Tensor, "B T"]:
        """Return survival beyond each horizon: that of the intervals which ended by then."""
        after = self.predict(output)
        ended = torch.bucketize(horizons, self.bounds, right=True)  # bounds at or before the horizon
        return torch.cat([after.new_ones(len(after), 1), after], dim=1)[:, ended]
