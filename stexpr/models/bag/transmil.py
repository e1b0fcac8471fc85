"""Patches that attend to each other.

Reference:
    Shao et al. 2021 (TransMIL).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from stexpr.models.bag.pooling import BagHead, BagOutput
from stexpr.types import BagBatch

N_HEADS = 8


class TransMil(BagHead):
    """Two layers of self-attention with position encoding between them, and a token that gathers the slide.

    Departs from the paper in that attention is exact: the Nyström approximation pads a bag to a multiple of its landmarks
    and lets the padding attend. Its time therefore grows with the square of the bag (100,000 patches want a GPU), its memory
    with the bag. Positions are read from the order of the patches, laid out as a square, as in the paper: this head alone
    depends on that order, so keep it that of the slide.
    """

    def __init__(self, n_features: int, n_outputs: int, *, widths: tuple[int, ...] = (512,), dropout: float = 0.25) -> None:
        super().__init__(n_features, n_outputs, widths=widths, dropout=dropout)
        width = widths[-1]
        self.token = nn.Parameter(torch.randn(1, width) * 0.02)
        self.first, self.second = SelfAttention(width), SelfAttention(width)
        self.positions = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in (7, 5, 3))
        self.norm = nn.LayerNorm(width)
        self.predict_linear = nn.Linear(width, n_outputs)

    def forward(self, bags: BagBatch) -> BagOutput:
        """Return outputs alone."""
        embedded = torch.cat([self.trunk(part.float()) for part, _ in self.parts(bags)])
        slides = [self.of_embedded(patches) for patches in torch.split(embedded, bags.lengths.tolist())]
        return BagOutput(torch.stack(slides))

    def of_embedded(self, patches: Float[Tensor, "N V"]) -> Float[Tensor, "K"]:
        """Return the outputs of one bag whose patches passed the trunk."""
        output: Tensor = self.predict_linear(self.norm(self._slide(patches)))
        return output

    def _slide(self, patches: Float[Tensor, "N V"]) -> Float[Tensor, "V"]:
        tokens = self.first(torch.cat([self.token, patches]))
        tokens = torch.cat([tokens[:1], self._placed(tokens[1:])])
        gathered: Tensor = self.second(tokens)[0]
        return gathered

    def _placed(self, patches: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Add what the neighbors in the square are; the square is filled with its first patches again, as in the paper."""
        n = len(patches)
        side = math.ceil(math.sqrt(n))
        cells = torch.arange(side * side, device=patches.device) % n
        square = patches[cells].T.reshape(1, -1, side, side)
        placed = square + torch.stack([convolve(square) for convolve in self.positions]).sum(dim=0)
        return placed.reshape(-1, side * side).T[:n]


class SelfAttention(nn.Module):
    """Exact multi-head attention among the rows of one bag, with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_heads = math.gcd(N_HEADS, width)
        self.norm = nn.LayerNorm(width)
        self.inward = nn.Linear(width, 3 * width, bias=False)
        self.outward = nn.Linear(width, width)

    def forward(self, rows: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Return rows that have seen each other."""
        query, key, value = self.inward(self.norm(rows)).reshape(len(rows), 3, self.n_heads, -1).permute(1, 2, 0, 3)
        # a batch of one, or torch would build the whole matrix of attention
        seen = functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]  # (heads, N, V / heads)
        output: Tensor = rows + self.outward(seen.transpose(0, 1).reshape(len(rows), -1))
        return output
