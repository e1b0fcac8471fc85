"""Self-supervised learning of a backbone: two views of a patch shall have alike features, whatever is measured there.

Reference:
    Chen and He 2021, Exploring simple Siamese representation learning (SimSiam). As there: batch normalization in both
    perceptrons, the last one of the projector without scale and shift, and no gradient through the target. Unlike there:
    512 outputs instead of 2,048, one optimizer for all weights, and views without change of hue, blur or grayscale, because
    the colors of a stain are part of what is to be learned.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from stexpr.config import InputConfig, PretrainConfig
from stexpr.models.augment import N_SYMMETRIES, Share, apply_symmetries, jitter_colors
from stexpr.models.backbones import Backbone
from stexpr.models.trainable import Loss, TrainableModel
from stexpr.types import SpotBatch

__all__ = ["SimSiam", "ViewBatch", "crop_windows", "make_views", "resize_crops"]

WIDTH: Final = 512
BOTTLENECK: Final = 128
MEMORY: Final = 0.9
"""How much of `SimSiam.spread` is of the steps before."""


@dataclass(frozen=True)
class ViewBatch:
    """Two views of each of a step's patches, in the same order."""

    first: UInt8[Tensor, "B 3 H W"]
    second: UInt8[Tensor, "B 3 H W"]

    def __len__(self) -> int:
        return len(self.first)


class SimSiam(TrainableModel):
    """A backbone with a projector and a predictor, which guesses the one view's projection from the other's.

    Attributes:
        backbone: What is kept.
        spread: Running mean of what the loss reports by this name, infinite before the first step: about 1 where patches have
            projections of their own, 0 where all have the same. It does not see a loss of directions: the last normalization
            brings projections along a single line to 1, too.

    Args:
        backbone: Image to features.
        seed: Source of the perceptrons' weights.
    """

    spread: Tensor

    def __init__(self, backbone: Backbone, *, seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        mixed = int(np.random.SeedSequence((seed, 3)).generate_state(1, np.uint32)[0])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed)
            self.projector = nn.Sequential(
                *_layer(backbone.n_features, WIDTH),
                *_layer(WIDTH, WIDTH),
                nn.Linear(WIDTH, WIDTH, bias=False),
                nn.BatchNorm1d(WIDTH, affine=False),
            )
            self.predictor = nn.Sequential(*_layer(WIDTH, BOTTLENECK), nn.Linear(BOTTLENECK, WIDTH))
        self.register_buffer("spread", torch.full((), torch.inf))

    @property
    def couples_examples(self) -> bool:
        """True: the perceptrons normalize over the batch, and without that all projections would become one."""
        return True

    def loss(self, batch: ViewBatch) -> Loss:
        """Return the negative cosine of prediction and projection, averaged over both directions: -1 at best.

        Its part `spread` is the SD of each coordinate of the projections of unit length, averaged and multiplied by the root
        of their number: near 1, unless they collapse.
        """
        first, second = self._projected(batch.first), self._projected(batch.second)
        alike = self._similarity(first, second) + self._similarity(second, first)
        with torch.no_grad():
            spread = functional.normalize(first.float()).std(dim=0).mean() * WIDTH**0.5
            # Not from 1 on: a backbone that collapsed at once would look well for the first 20 steps.
            self.spread.copy_(torch.where(self.spread.isinf(), spread, self.spread.lerp(spread, 1 - MEMORY)))
        return Loss(-alike / 2, {"spread": spread}, len(batch))

    def _projected(self, patches: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        projected: Tensor = self.projector(self.backbone(self.backbone.preprocess(patches)))
        return projected

    def _similarity(self, own: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        return functional.cosine_similarity(self.predictor(own).float(), target.detach().float()).mean()


def _layer(before: int, after: int) -> tuple[nn.Module, ...]:
    return nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()


def make_views(
    config: PretrainConfig, window_px: int, batch: SpotBatch, generator: torch.Generator, share: Share | None = None
) -> ViewBatch:
    """Draw two views of a window of each patch: parts of it, enlarged, turned, mirrored and changed in color.

    Both views are of one window, which lies anywhere in the patch where that is larger. Nothing but patches is looked at.

    Args:
        config: How small parts are, and how strongly colors change.
        window_px: Side of the windows and of the views.
        batch: One step's patches, at least as large.
        generator: The only source of randomness, on the batch's device.
        share: All rows of the step; a part of them cannot be normalized alone.
    """
    n, room = len(batch), batch.patches.shape[2] - window_px
    corners = torch.randint(room + 1, (n, 2), generator=generator, device=generator.device)
    windows = crop_windows(batch.patches, corners, window_px)
    colors = InputConfig(
        brightness=config.brightness,
        contrast=config.contrast,
        saturation=config.saturation,
        stain_jitter=config.stain_jitter,
    )

    def view() -> UInt8[Tensor, "B 3 H W"]:
        drawn = torch.rand(n, 3, generator=generator, device=generator.device)
        areas = config.crop + (1 - config.crop) * drawn[:, 0]
        which = torch.randint(N_SYMMETRIES, (n,), generator=generator, device=generator.device)
        parts = apply_symmetries(resize_crops(windows, areas.sqrt(), drawn[:, 1:]), which)
        return jitter_colors(parts, colors, generator=generator)

    return ViewBatch(view(), view())


def crop_windows(patches: UInt8[Tensor, "B 3 H W"], corners: Int64[Tensor, "B 2"], window_px: int) -> UInt8[Tensor, "B 3 P P"]:
    """Cut one window out of each patch.

    Args:
        patches: Patches.
        corners: Top and left of each window in px.
        window_px: Side of the windows, which lie inside the patches.
    """
    steps = torch.arange(window_px, device=patches.device)
    rows, columns = (corners[:, axis, None] + steps for axis in (0, 1))  # (B, P)
    examples = torch.arange(len(patches), device=patches.device)[:, None, None]
    return patches.permute(0, 2, 3, 1)[examples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resize_crops(
    patches: UInt8[Tensor, "B 3 H W"], sides: Float[Tensor, "B"], places: Float[Tensor, "B 2"]
) -> UInt8[Tensor, "B 3 H W"]:
    """Enlarge a square part of each patch to the size of the patch, by bilinear interpolation.

    Args:
        patches: Square patches.
        sides: Of the parts, as shares of the patches' in (0, 1]; 1 leaves a patch as it is.
        places: Where the parts lie in the room there is, across and down, each from 0 to 1.
    """
    shifts = (1 - sides)[:, None] * (2 * places - 1)
    scales = torch.diag_embed(sides[:, None].expand(-1, 2))
    grid = functional.affine_grid(torch.cat([scales, shifts[:, :, None]], dim=2), list(patches.shape), align_corners=False)
    images = functional.grid_sample(patches.float(), grid, padding_mode="border", align_corners=False)
    return images.round().clamp(0, 255).to(torch.uint8)
