"""What the training loop asks of a model, whatever it predicts."""

import abc
from typing import Any, NamedTuple

from torch import Tensor, nn


class Loss(NamedTuple):
    """A loss and what it is made of.

    Attributes:
        total: To be minimized.
        parts: Its terms, detached, by name.
        denominator: Examples the mean is over.
    """

    total: Tensor
    parts: dict[str, Tensor]
    denominator: int


class TrainableModel(nn.Module, abc.ABC):
    """A model that knows its own loss."""

    @abc.abstractmethod
    def loss(self, batch: Any) -> Loss:
        """Return the loss of a batch of the kind the model reads."""

    @property
    def couples_examples(self) -> bool:
        """Whether the loss of a batch is more than a mean over its examples, so that parts of a batch have another."""
        return False

    @property
    def goes_in_parts(self) -> bool:
        """Whether the model takes a batch apart by itself, and has a `gradient` for it."""
        return False

    def gradient(self, batch: Any) -> Loss:
        """Add the gradient of the loss of a batch to the parameters, and return the loss, detached."""
        loss = self.loss(batch)
        loss.total.backward()  # type: ignore[no-untyped-call]
        return loss

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return parameters for an optimizer: matrices and kernels decay; biases, scales and dispersions do not."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
