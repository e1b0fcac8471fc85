"""A network of our own that trains in seconds on a CPU, for tests and demonstrations."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class TinyNetwork(nn.Module):
    """Four strided convolutions, then the mean and SD of each channel over the image.

    It has no batch normalization, so what it says of a patch never depends on the batch, and no normalization of the
    single patch, which would remove the stain intensity it can learn from. The SDs carry texture.
    """

    WIDTHS = (16, 32, 64, 96)

    def __init__(self) -> None:
        super().__init__()
        channels = (3, *self.WIDTHS)
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1) for before, after in itertools.pairwise(channels)
        )
        for stage in self.stages:
            assert isinstance(stage, nn.Conv2d)
            assert stage.bias is not None
            nn.init.kaiming_normal_(stage.weight, nonlinearity="relu")
            nn.init.zeros_(stage.bias)

    def forward(self, images: Float[Tensor, "B 3 P P"]) -> Float[Tensor, "B D"]:
        """Return means and SDs of the last stage's channels."""
        values = images
        for stage in self.stages:
            values = functional.gelu(stage(values))
        mean = values.mean(dim=(2, 3))
        variance = (values - mean[:, :, None, None]).square().mean(dim=(2, 3))
        return torch.cat([mean, (variance + 1e-6).sqrt()], dim=1)  # the root has no slope at 0
