"""Long bags read part by part, in memory that does not grow with the width of the head.

For a gradient no activations are kept: every part is read again. `torch.utils.checkpoint` would do the same, but leaves small
blocks of every part between freed activations, and the C library then neither reuses nor gives back what is around them:
twice the memory. Here all parts are one node of the graph, and what is known of them is written to places set aside.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Known", "Read", "read_parts"]


class Known(NamedTuple):
    """What is known of one part, or of all of them.

    Attributes:
        bags: Of each bag, from the instances it has in the part (B, ...), or in each part (parts, B, ...).
        instances: Of each instance (N, ...).
    """

    bags: tuple[Tensor, ...] = ()
    instances: tuple[Tensor, ...] = ()


Read: TypeAlias = Callable[[Tensor, Tensor], Known]


def read_parts(read: Read, parts: Sequence[tuple[Tensor, Tensor]], weights: Sequence[Tensor]) -> Known:
    """Read every part; the gradient reads them again, with the same dropout.

    Args:
        read: Takes the instances and the bag of each. Gradients flow to instances and weights alone.
        parts: At least one.
        weights: All that `read` uses and that wants a gradient; more may be named.

    Returns:
        What is known of all parts.
    """
    if len(parts) == 1:
        bags, instances = read(*parts[0])
        return Known(tuple(value[None] for value in bags), instances)
    reading = _Reading(read, [index for _, index in parts])
    if not torch.is_grad_enabled():
        return reading.first([instances for instances, _ in parts])
    known = _Recomputed.apply(reading, *(instances for instances, _ in parts), *weights)
    return Known(known[: reading.n_bags], known[reading.n_bags :])


class _Reading:
    """How parts are read, and the state in which it began, so that another reading draws the same dropout."""

    def __init__(self, read: Read, index: list[Tensor]) -> None:
        self.read, self.index, self.device, self.n_bags = read, index, index[0].device, 0
        self.cuda = [self.device] if self.device.type == "cuda" else []
        self.random = [torch.random.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.cuda)]
        self.precision = torch.get_autocast_dtype(self.device.type) if torch.is_autocast_enabled(self.device.type) else None
        stops = torch.tensor([len(part) for part in index]).cumsum(0).tolist()
        self.rows = [slice(stop - len(part), stop) for part, stop in zip(index, stops, strict=True)]

    def first(self, parts: Sequence[Tensor]) -> Known:
        """Read all parts without their activations."""
        total = Known()
        for i, part in enumerate(zip(parts, self.index, strict=True)):
            known = self.read(*part)
            if not i:
                self.n_bags, n = len(known.bags), self.rows[-1].stop
                total = Known(
                    tuple(value.new_empty(len(parts), *value.shape) for value in known.bags),
                    tuple(value.new_empty(n, *value.shape[1:]) for value in known.instances),
                )
            for place, value in zip(self.of(i, (*total.bags, *total.instances)), (*known.bags, *known.instances), strict=True):
                place.copy_(value)
        return total

    def of(self, part: int, values: Sequence[Tensor]) -> list[Tensor]:
        """Return where in all that is known one part lies."""
        of_bags, of_instances = values[: self.n_bags], values[self.n_bags :]
        return [*(value[part] for value in of_bags), *(value[self.rows[part]] for value in of_instances)]

    def begin_again(self) -> None:
        """Put the generators back to where they were."""
        torch.random.set_rng_state(self.random[0])
        for device, state in zip(self.cuda, self.random[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    def again(self, part: int, instances: Tensor) -> list[Tensor]:
        """Read a part in the precision of the first time."""
        with torch.enable_grad(), torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            known = self.read(instances, self.index[part])
        return [*known.bags, *known.instances]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reading: _Reading, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.reading = reading
        ctx.save_for_backward(*tensors)
        known = reading.first(tensors[: len(reading.index)])
        return (*known.bags, *known.instances)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        reading, n = ctx.reading, len(ctx.reading.index)
        parts, weights = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        of_parts: list[Tensor | None] = []
        of_weights: list[Tensor | None] = [None] * len(weights)
        with torch.random.fork_rng(devices=reading.cuda):
            reading.begin_again()
            for i, part in enumerate(parts):
                wanted = ctx.needs_input_grad[1 + i]
                own = part.detach().requires_grad_(wanted)
                pairs = zip(reading.again(i, own), reading.of(i, gradients), strict=True)
                known, along = zip(*((value, gradient) for value, gradient in pairs if value.requires_grad), strict=True)
                found = torch.autograd.grad(known, [*([own] if wanted else []), *weights], along, allow_unused=True)
                of_parts.append(found[0] if wanted else None)
                of_weights = [_sum(*pair) for pair in zip(of_weights, found[wanted:], strict=True)]
        return None, *of_parts, *of_weights


def _sum(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    return gradient if total is None else total if gradient is None else total.add_(gradient)
