"""Patches that attend to each other.

Reference:
    Shao et al. 2021 (TransMIL); Xiong et al. 2021 (attention by landmarks, and the iteration for the inverse).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from stexpr.models.bag.parts import Known
from stexpr.models.bag.pooling import BagHead, BagOutput
from stexpr.types import BagBatch

N_HEADS = 8
EXACT_UP_TO = 8192
"""Patches up to which attention is exact; beyond, it passes through landmarks."""
N_LANDMARKS = 256
INVERSE_STEPS = 10
"""Of the iteration: the paper's 6 leave a layer 20 times as far from exact attention, 12 and more grow what is rounding."""


class TransMil(BagHead):
    """Two layers of self-attention with position encoding between them, and a token that gathers the slide.

    Departs from the paper in that attention is exact for bags of up to `EXACT_UP_TO` patches: its time grows with the square
    of the bag. Larger bags attend through `N_LANDMARKS` means of neighboring rows, in linear time; here nothing is padded,
    as the paper's padding attends too. Which of both is used depends on the bag alone. Memory grows with the bag: unlike that
    of the other heads it holds activations of all patches at once, some 100 bytes for each unit of `widths[-1]` and patch.

    Positions are read from the order of the patches, laid out as a square, as in the paper: this head alone depends on that
    order, so keep it that of the slide.
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
        (embedded,) = self.in_parts(self._embed, bags).instances
        slides = [self.of_embedded(patches) for patches in torch.split(embedded, bags.lengths.tolist())]
        return BagOutput(torch.stack(slides))

    def of_embedded(self, patches: Float[Tensor, "N V"]) -> Float[Tensor, "K"]:
        """Return the outputs of one bag whose patches passed the trunk."""
        output: Tensor = self.predict_linear(self.norm(self._slide(patches)))
        return output

    def _embed(self, instances: Tensor, index: Tensor, n_bags: int) -> Known:
        return Known(instances=(self.trunk(instances.float()),))

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
    """Multi-head attention among the rows of one bag, with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_heads = math.gcd(N_HEADS, width)
        self.norm = nn.LayerNorm(width)
        self.inward = nn.Linear(width, 3 * width, bias=False)
        self.outward = nn.Linear(width, width)

    def forward(self, rows: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Return rows that have seen each other."""
        query, key, value = self.inward(self.norm(rows)).reshape(len(rows), 3, self.n_heads, -1).permute(1, 2, 0, 3)
        attend = _attend if len(rows) <= 1 + EXACT_UP_TO else _attend_by_landmarks
        seen = attend(query, key, value)  # (heads, N, V / heads)
        output: Tensor = rows + self.outward(seen.transpose(0, 1).reshape(len(rows), -1))
        return output


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    # a batch of one, or torch would build the whole matrix of attention
    return functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]


def _attend_by_landmarks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend to landmarks, which attend to all rows, the attention among landmarks divided out (heads, N, width)."""
    queries, keys = _landmarks(query), _landmarks(key)
    among = (queries @ keys.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
    return _attend(query, keys, _inverse(among) @ _attend(queries, key, value))


def _landmarks(rows: Float[Tensor, "H N W"]) -> Float[Tensor, "H L W"]:
    """Return means of neighboring rows, in groups whose sizes differ by one at most."""
    n_landmarks = min(N_LANDMARKS, rows.shape[1])
    group = torch.arange(rows.shape[1], device=rows.device) * n_landmarks // rows.shape[1]
    summed = rows.new_zeros(len(rows), n_landmarks, rows.shape[2]).index_add(1, group, rows)
    return summed / torch.bincount(group)[:, None]


def _inverse(matrix: Float[Tensor, "H L L"]) -> Float[Tensor, "H L L"]:
    """Return pseudoinverses by iteration, which has a stable gradient where an exact one has none."""
    rows, columns = (matrix.sum(dim=dim).amax(dim=-1)[:, None, None] for dim in (-1, -2))  # of values that are not negative
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    inverse = matrix.mT / (rows * columns)
    for _ in range(INVERSE_STEPS):
        product = matrix @ inverse
        inverse = 0.25 * inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product)))
    return inverse
