"""Survival of the patients behind slides: Cox's partial likelihood, exactly over a cohort, and discrete time.

`event` is True where the event was observed, False where the patient left the study before.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from stexpr.errors import DataError, ModelError
from stexpr.models.bag.objectives import BagObjective
from stexpr.models.trainable import Loss
from stexpr.types import BagBatch


def cox_loss(log_hazard: Float[Tensor, "P"], time: Float[Tensor, "P"], event: Bool[Tensor, "P"]) -> Float[Tensor, ""]:
    """Return the negative log partial likelihood for each event, ties after Efron.

    The loss couples patients: that of a cohort is not the sum of those of its batches (see `cox_gradient`). Computed in
    double precision relative to the largest log hazard, which cancels, so that no hazard overflows.

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


def cox_gradient(
    log_hazard: Callable[[BagBatch], Float[Tensor, "B"]],
    batches: Sequence[BagBatch],
    time: Float[Tensor, "P"],
    event: Bool[Tensor, "P"],
) -> Float[Tensor, ""]:
    """Add the gradient of a whole cohort's Cox loss to the parameters, one batch in memory at a time.

    First all log hazards without gradient, then the derivative of the loss by each of them, then every batch again with
    its own derivatives. Random numbers are drawn alike both times, so the gradient is exact with dropout as well; it is not
    with batch normalization in training, which couples the bags of a batch.

    Args:
        log_hazard: The head, or encoder and head; gives one number for each bag.
        batches: All bags of the cohort; read twice.
        time: Of the patients, in the order of the bags.
        event: True where observed.

    Returns:
        The loss of the cohort, detached; gradients are added to `.grad`, as by `backward`.

    Raises:
        DataError: No event, a time that is not positive, or not one patient for each bag.
    """
    sizes = [len(batch) for batch in batches]
    if sum(sizes) != len(time):
        raise DataError(f"{sum(sizes):,} bags but {len(time):,} patients; join or leave out bags so that each patient has one")
    states, first = [], []
    devices = sorted({batch.instances.device for batch in batches if batch.instances.is_cuda}, key=str)
    with torch.no_grad():
        for batch in batches:
            states.append((torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]))
            first.append(log_hazard(batch))
    leaf = torch.cat(first).requires_grad_()
    loss = cox_loss(leaf, time, event)
    (slopes,) = torch.autograd.grad(loss, leaf)
    with torch.random.fork_rng(devices=devices):
        for batch, slope, (state, device_states) in zip(batches, torch.split(slopes, sizes), states, strict=True):
            torch.set_rng_state(state)
            for device, device_state in zip(devices, device_states, strict=True):
                torch.cuda.set_rng_state(device_state, device)
            torch.autograd.backward(log_hazard(batch), slope)
    return loss.detach()


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
