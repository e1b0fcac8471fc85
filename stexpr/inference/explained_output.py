"""The numbers of a slide head that are explained: one for each target, or for each class of one, in a unit that adds up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from stexpr.errors import ModelError, nearest
from stexpr.models.bag.objectives import BagObjective, Continuous
from stexpr.models.bag.saved import LoadedHead
from stexpr.models.bag.survival import DiscreteTime
from stexpr.models.bag.targets import TargetGroup

__all__ = ["ExplainedOutput", "explained_output", "explained_outputs"]

LOG_ODDS: Final = "log odds"
NODES: Final = 16


@dataclass(frozen=True)
class ExplainedOutput:
    """One number of a bag: log odds, a log hazard or a quantity in its own unit, before any calibration.

    Attributes:
        target: What it is of.
        label: The class, of a target with several; empty else.
        unit: Its unit, as figures and tables say it.
        objective: Of the target's outputs.
        start: Where these begin among the outputs of the head.
        column: The one among them, of several targets or classes.
    """

    target: str
    label: str
    unit: str
    objective: BagObjective
    start: int
    column: int

    @property
    def name(self) -> str:
        """As a user asks for it: the target, or `target=class`."""
        return f"{self.target}={self.label}" if self.label else self.target

    def __call__(self, output: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
        """Compute it from the outputs of a head, with their gradient."""
        own = output[:, self.start : self.start + self.objective.n_outputs]
        if isinstance(self.objective, DiscreteTime):
            return self.objective.log_hazard(own)
        if isinstance(self.objective, Continuous):
            return own[:, self.column] * self.objective.sd[self.column] + self.objective.mean[self.column]
        if self.label and self.objective.n_outputs > 1:
            others = (own.sum(dim=1) - own[:, self.column]) / (self.objective.n_outputs - 1)
            return own[:, self.column] - others
        return own[:, self.column]

    def slopes(self, start: Float64[Tensor, "K"], end: Float64[Tensor, "K"]) -> Float64[Tensor, "K"]:
        """Return the mean derivative by each output of the head on the straight way from one point to another.

        The differences of the outputs times these sum to the difference of the number: exactly where it is linear in them, as
        all are but the log hazard of discrete time, whose integral is done numerically.
        """
        import numpy as np

        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        at = torch.from_numpy((nodes + 1) / 2).to(start)[:, None]
        points = (start + at * (end - start)).requires_grad_()
        with torch.enable_grad():
            total = (self(points) * torch.from_numpy(weights / 2).to(start)).sum()
        (slopes,) = torch.autograd.grad(total, points)
        found: Tensor = slopes.sum(dim=0)
        return found


def explained_outputs(head: LoadedHead, asked: Sequence[str] = ()) -> tuple[ExplainedOutput, ...]:
    """List the numbers of a head that can be explained.

    Args:
        head: The head.
        asked: Targets, or `target=class`; all where none is named.

    Raises:
        ModelError: The head does not predict one, or has learned nothing of it.
    """
    known = [output for i in range(len(head.groups)) for output in _of_group(head, i)]
    found: dict[str, ExplainedOutput] = {}
    for name in asked:
        if name in head.unlearned:
            raise ModelError(f"the head has learned nothing of {name!r}: its training patients were all alike")
        own = [output for output in known if name in (output.target, output.name)]
        if not own:
            names = [name for output in known for name in (output.target, output.name)]
            raise ModelError(f"the head does not predict {name!r}; {nearest(name, names)}")
        found |= {output.name: output for output in own}
    return tuple(found.values()) if asked else tuple(known)


def explained_output(head: LoadedHead, name: str) -> ExplainedOutput:
    """Return a single number of a head.

    Raises:
        ModelError: As `explained_outputs`, or a target has several classes and none is named.
    """
    found = explained_outputs(head, [name])
    if len(found) > 1:
        raise ModelError(f"{name} has several classes; name one of {', '.join(output.name for output in found)}")
    return found[0]


def _of_group(head: LoadedHead, place: int) -> list[ExplainedOutput]:
    group, objective = head.groups[place], head.model.objectives[place]
    assert isinstance(objective, BagObjective)
    start = sum(head.model.widths[:place])
    learned = [name for name in group.names if name not in head.unlearned]
    if group.kind == "multiclass":
        labels = [(label, column) for column, label in enumerate(group.classes)]
        shown = labels[1:] if group.classes == ("no", "yes") else labels
        unit = LOG_ODDS if len(labels) == 2 else f"{LOG_ODDS} against the mean of the other classes"
        return [ExplainedOutput(name, label, unit, objective, start, column) for name in learned for label, column in shown]
    if objective.n_outputs != len(group.names):
        return [ExplainedOutput(name, "", _unit(group), objective, start, 0) for name in learned]
    places = {name: column for column, name in enumerate(group.names)}
    return [ExplainedOutput(name, "", _unit(group), objective, start, places[name]) for name in learned]


def _unit(group: TargetGroup) -> str:
    if group.kind in ("cox", "discrete"):
        return "log hazard"
    if group.kind == "continuous":
        return "unit of the target"
    return "score of the order, log odds" if group.kind == "ordinal" else LOG_ODDS
