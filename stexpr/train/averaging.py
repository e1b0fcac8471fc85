"""The moving average of a network's weights over the steps of a training (`training.average`)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["Average"]


class Average:
    """Averages all weights of a network, and the running statistics of its batch normalization like them.

    The first steps count alike, as long as that makes the average younger than the decay does: a network's initial weights
    have no part in it. What never changes stays as it is, bit by bit; counters are copied.

    Attributes:
        weights: The average, on the device of the network.

    Args:
        model: The network.
        decay: What remains of the average at each step, in (0, 1).

    Reference:
        Polyak and Juditsky 1992; Tarvainen and Valpola 2017 for the moving one.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = _copied(model)

    def update(self, model: nn.Module, number: int) -> None:
        """Take in the weights after a step.

        Args:
            model: The network.
            number: Steps taken before this one.
        """
        own: list[Tensor] = []
        theirs: list[Tensor] = []
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                own.append(self.weights[key])
                theirs.append(value)
            else:
                self.weights[key].copy_(value)
        update = get_ema_multi_avg_fn(min(self.decay, number / (number + 1)))  # type: ignore[no-untyped-call]
        update(own, theirs, None)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from an average that was saved."""
        for key, value in self.weights.items():
            value.copy_(weights[key])

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """Lend the average to the network, which has its own weights again afterwards."""
        before = _copied(model)
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(before)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}
