"""The gradient of a loss over many patients, with the bags of few of them in memory at a time.

A loss that couples patients, such as Cox's, is not the sum of the losses of parts. Its gradient still is exact in two passes:
all outputs without gradient, the derivative of the loss by each of them, then every part again with its own derivatives.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Part = TypeVar("Part")


def gradient_in_parts(
    forward: Callable[[Part], tuple[Float[Tensor, "B K"], Float[Tensor, ""]]],
    parts: Sequence[Part],
    loss: Callable[[Float[Tensor, "P K"]], Float[Tensor, ""]],
) -> Float[Tensor, ""]:
    """Add the gradient of a loss to the parameters, as `backward` of the whole would.

    Random numbers are drawn alike in both passes, so the gradient is exact with dropout as well; it is not with batch
    normalization in training, which couples the bags of a part.

    Args:
        forward: Gives the outputs of a part, and a loss of its own that is added to that of the outputs.
        parts: Read twice.
        loss: Of the outputs of all parts, in their order.

    Returns:
        The loss, own ones included, detached.
    """
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    states, outputs, own = [], [], []
    with torch.no_grad():
        for part in parts:
            states.append((torch.get_rng_state(), [torch.cuda.get_rng_state(each) for each in devices]))
            output, local = forward(part)
            outputs.append(output)
            own.append(local)
    leaf = torch.cat(outputs).requires_grad_()
    total = loss(leaf)
    total.backward()  # type: ignore[no-untyped-call]  # also into the parameters of the loss itself
    assert leaf.grad is not None
    with torch.random.fork_rng(devices=devices):
        for part, slope, (state, device_states) in zip(
            parts, torch.split(leaf.grad, [len(one) for one in outputs]), states, strict=True
        ):
            torch.set_rng_state(state)
            for each, device_state in zip(devices, device_states, strict=True):
                torch.cuda.set_rng_state(device_state, each)
            output, local = forward(part)
            if local.requires_grad:
                torch.autograd.backward([output, local], [slope, torch.ones_like(local)])
            else:
                torch.autograd.backward(output, slope)
    return total.detach() + torch.stack(own).sum()
