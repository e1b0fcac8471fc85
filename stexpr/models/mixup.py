"""Mixup: each spot of a batch is mixed with another one, its patch with that patch and its targets with those targets.

Counts cannot be mixed in the place of targets, which are logarithms of them: a batch carries both spots, and the loss mixes
what its objective makes of each.

Reference:
    Zhang et al. 2018.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from stexpr.errors import ModelError
from stexpr.models.objectives import Objective, StandardizedRegression
from stexpr.types import Partners, SpotBatch

__all__ = ["mix", "mixed_loss"]


def mix(batch: SpotBatch, alpha: float, generator: torch.Generator) -> SpotBatch:
    """Mix each spot of a whole batch with one of the batch, which may be itself.

    The share of the partner is drawn from Beta(alpha, alpha): mostly next to 0 or 1 for a small alpha, uniform for 1.

    Args:
        batch: All spots of a step.
        alpha: Above 0.
        generator: Its seed alone decides, and it is not advanced: torch draws no Beta from a generator, so NumPy does. The
            mixture is the same on every device.

    Returns:
        The batch with mixed patches, rounded to whole colors, and with the partners its loss needs.
    """
    rng = np.random.default_rng([generator.initial_seed(), len(batch)])
    device = batch.library.device
    share = torch.from_numpy(rng.beta(alpha, alpha, len(batch)).astype(np.float32)).to(device)
    rows = torch.from_numpy(rng.permutation(len(batch))).to(device)
    patches = batch.patches.float().lerp(batch.patches[rows].float(), share.view(-1, 1, 1, 1))
    partners = Partners(batch.counts_main[rows], batch.counts_auxiliary[rows], batch.library[rows], share)
    return replace(batch, patches=patches.round().to(torch.uint8), partners=partners)


def mixed_loss(
    objective: Objective,
    output: Float[Tensor, "B K"],
    own: tuple[Float32[Tensor, "B K"], Float32[Tensor, "B"]],
    partner: tuple[Float32[Tensor, "B K"], Float32[Tensor, "B"]],
    share: Float32[Tensor, "B"],
) -> Float32[Tensor, ""]:
    """Return the mean loss against mixed targets.

    Args:
        objective: Of the head.
        output: What the head gives for the mixed patches.
        own: Counts and library of the spots.
        partner: Those of the spots they are mixed with.
        share: Of the partner in each mixture, in [0, 1].

    Raises:
        ModelError: The objective compares no targets, or compares them over the batch.
    """
    if not isinstance(objective, StandardizedRegression) or objective.couples_examples:
        raise ModelError(f"the loss {objective.kind} has no targets to mix spot by spot; take mse or huber")
    return objective.error(output, objective.target(*own).lerp(objective.target(*partner), share[:, None]))
