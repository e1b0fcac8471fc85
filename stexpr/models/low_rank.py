"""A head whose genes share factors: what it learns are a few directions, and how genes follow them is fixed beforehand.

Hundreds of genes follow a few programs, such as cell types. A head that learns the programs alone has fewer weights to fit to
noise, and a gene of few counts borrows from those it varies with.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from stexpr.errors import ModelError
from stexpr.models.components import component_axes

__all__ = ["LowRankHead", "empty_components", "principal_components"]


class LowRankHead(nn.Linear):
    """A linear map of features to factors, and a fixed one of factors to genes.

    Args:
        n_features: Length of the features.
        components: What one unit of each factor adds to the target of each gene; a buffer, never trained.
    """

    components: Tensor

    def __init__(self, n_features: int, components: Float32[Tensor, "rank K"]) -> None:
        super().__init__(n_features, len(components))
        self.register_buffer("components", components)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Return the targets of the genes."""
        return super().forward(features) @ self.components

    def whole(self) -> tuple[Float[Tensor, "K D"], Float[Tensor, "K"]]:
        """Return weight and bias of the two maps in one."""
        return self.components.T @ self.weight, self.components.T @ self.bias


def principal_components(targets: Float32[Tensor, "S K"], rank: int) -> Float32[Tensor, "rank K"]:
    """Find the factors that explain most of the variance of some spots' standardized expression.

    A component is scaled so that its factor has SD 1 over these spots, as the target of a single gene has; its largest entry
    is positive. Beyond the rank of the targets components are 0.

    Args:
        targets: Of training spots alone, mean 0 per gene.
        rank: Number of factors.

    Raises:
        ModelError: There are more factors than genes.
    """
    n_genes = targets.shape[1]
    if not 1 <= rank <= n_genes:
        raise ModelError(f"model.rank = {rank} is not between 1 and {n_genes}, the number of main genes; lower it, or set null")
    values = targets.double().numpy()
    axes = component_axes(values, rank)
    scaled = np.zeros((rank, n_genes))
    scaled[: len(axes)] = axes * (values @ axes.T).std(axis=0)[:, None]
    return torch.from_numpy(scaled.astype(np.float32))


def empty_components(rank: int | None, n_genes: int) -> Float32[Tensor, "rank K"] | None:
    """Return room for the components of a saved model, which are about to be loaded; None where it has none.

    Raises:
        ModelError: There are more factors than genes.
    """
    if rank is not None and rank > n_genes:
        raise ModelError(f"rank = {rank} is more than the {n_genes} main genes")
    return None if rank is None else torch.zeros(rank, n_genes)
