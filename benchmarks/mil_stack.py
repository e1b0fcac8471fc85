"""Bag heads of many folds trained in step: their linear layers hold one weight for each fold, all else is the heads' own code.

A head of a benchmark with some hundred small bags costs more in calls than in sums. Here the bags that all folds read in one
step stand in one packed batch, and each linear layer multiplies the rows of each fold with that fold's weights. Pooling and
attention work bag by bag already, so that heads are used as they are.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stexpr.models.bag import BagHead, BagOutput
from stexpr.types import BagBatch


@dataclass(frozen=True)
class Setting:
    """How heads are built and trained; the last epoch counts.

    Attributes:
        widths: Of the layers before pooling.
        dropout: After each of them.
        clip: Largest z-score of an instance's feature.
        rate: Learning rate of SGD on the mean loss of a step.
        momentum: Of it.
        decay: L2 penalty.
        epochs: Times every training bag is read.
        bags: In one step.
    """

    widths: tuple[int, ...]
    dropout: float
    clip: float
    rate: float
    momentum: float
    decay: float
    epochs: int
    bags: int


class Rows:
    """Where the rows of a packed matrix lie in a padded one with a slab for each fold."""

    def __init__(self, fold: Tensor, n_folds: int) -> None:
        counts = torch.bincount(fold, minlength=n_folds)
        self.shape = n_folds, int(counts.max())
        start = counts.cumsum(0) - counts
        self.place = fold * self.shape[1] + torch.arange(len(fold)) - start[fold]

    def pad(self, rows: Tensor) -> Tensor:
        """Return (F, L, D)."""
        return (
            rows.new_zeros(self.shape[0] * self.shape[1], rows.shape[1])
            .index_copy(0, self.place, rows)
            .unflatten(0, self.shape)
        )

    def pack(self, slabs: Tensor) -> Tensor:
        """Return (N, D)."""
        return slabs.flatten(0, 1)[self.place]


class FoldLinear(nn.Module):
    """One linear layer for each fold."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.T for layer in layers]))  # (F, inner, outer)
        self.bias = nn.Parameter(torch.stack([layer.bias[None] for layer in layers]))
        self.rows: Rows

    def forward(self, packed: Tensor) -> Tensor:
        return self.rows.pack(torch.baddbmm(self.bias, self.rows.pad(packed), self.weight))


class Stack(nn.Module):
    """Heads of one kind and size, one for each fold."""

    def __init__(self, heads: list[BagHead]) -> None:
        super().__init__()
        self.n_folds, self.head = len(heads), copy.deepcopy(heads[0])
        self.head.parts = lambda bags: iter([(bags.instances, bags.index)])  # layers know the rows of whole batches only
        for name, layer in heads[0].named_modules():
            if isinstance(layer, nn.Linear):
                self.head.set_submodule(name, FoldLinear([head.get_submodule(name) for head in heads]))  # type: ignore[misc]

    def forward(self, bags: BagBatch, fold: Tensor) -> BagOutput:
        """Read bags sorted by fold, each with the head of its fold."""
        of_bags, of_instances = Rows(fold, self.n_folds), Rows(fold[bags.index], self.n_folds)
        for name, layer in self.head.named_modules():
            if isinstance(layer, FoldLinear):
                layer.rows = of_bags if name == "predict_linear" else of_instances
        output: BagOutput = self.head(bags)
        return output


class Bags:
    """The bags of one set, standardized for each fold over the instances it trains on (masks F x bags)."""

    def __init__(self, instances: Tensor, bag: np.ndarray, label: np.ndarray, masks: np.ndarray, clip: float) -> None:
        self.label, self.length = torch.from_numpy(label.astype(np.float32)), np.bincount(bag)
        self.start = np.cumsum(self.length) - self.length
        self.scaled = torch.cat([standardized(instances, torch.from_numpy(mask[bag]), clip) for mask in masks])  # (F * N, D)

    def read(self, chosen: np.ndarray) -> tuple[BagBatch, Tensor]:
        """Return the bags chosen in each fold (F, b) and the fold of each."""
        n_folds, per_fold = chosen.shape
        fold, bags = np.repeat(np.arange(n_folds), per_fold), chosen.ravel()
        length = self.length[bags]
        stop = np.cumsum(length)
        first = fold * (len(self.scaled) // n_folds) + self.start[bags] - (stop - length)
        rows = np.repeat(first, length) + np.arange(stop[-1])
        offsets = torch.from_numpy(np.concatenate([[0], stop]))
        return BagBatch(self.scaled[torch.from_numpy(rows)], offsets), torch.from_numpy(fold)


def standardized(instances: Tensor, trains: Tensor, clip: float) -> Tensor:
    """Return clipped z-scores by the training instances; a feature that is constant there says nothing, and is 0."""
    mean, sd = instances[trains].mean(dim=0), instances[trains].std(dim=0)
    return torch.where(sd > 1e-4, (instances - mean) / sd.clamp_min(1e-4), 0.0).clamp_(-clip, clip)


def train(stack: Stack, bags: Bags, masks: np.ndarray, how: Setting, seed: int) -> Iterator[int]:
    """Train all folds, on as many bags each, and pause after every epoch to say how many there were."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    own = np.stack([np.flatnonzero(mask) for mask in masks])  # (F, n)
    optimizer = torch.optim.SGD(stack.parameters(), lr=how.rate, momentum=how.momentum, weight_decay=how.decay, fused=True)
    for epoch in range(1, how.epochs + 1):
        stack.train()
        order = rng.permuted(own, axis=1)
        for step in np.array_split(order, max(1, order.shape[1] // how.bags), axis=1):
            output = stack(*bags.read(step)).output[:, 0]
            losses = functional.binary_cross_entropy_with_logits(output, bags.label[step.ravel()], reduction="sum")
            optimizer.zero_grad()
            (losses / step.shape[1]).backward()
            optimizer.step()
        yield epoch


def accuracies(stack: Stack, bags: Bags, masks: np.ndarray) -> np.ndarray:
    """Return the accuracy of each fold on the bags in its mask, as many in each fold (F,)."""
    chosen = np.stack([np.flatnonzero(mask) for mask in masks])
    stack.eval()
    with torch.inference_mode():
        predicted = stack(*bags.read(chosen)).output[:, 0].numpy().reshape(chosen.shape) > 0
    right: np.ndarray = (predicted == bags.label.numpy()[chosen]).mean(axis=1)
    return right
