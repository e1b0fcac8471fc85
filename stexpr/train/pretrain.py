"""The training before all others of a fold: its backbone learns from the patches of the training sections alone.

It reads no expression. It does see the patches of spots on which the inner trainings are validated: their images, not what
was measured there, and the number of epochs is all that is chosen by them. It never sees a test section.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from stexpr.config import NetworkConfig, PretrainConfig, StudyConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.splits import Fold
from stexpr.errors import TrainingError
from stexpr.inference import pick_device
from stexpr.models.backbones import create_backbone
from stexpr.models.selfsupervised import SimSiam, make_views
from stexpr.train.distributed import ALONE, Processes
from stexpr.train.loop import Fit

__all__ = ["PHASE", "Pretrained", "pretraining"]

PHASE: Final = -1
"""Number of this training among those of a fold."""
STREAM: Final = 1000
"""Takes the place of that number as a source of random numbers, where it must not be negative."""
COLLAPSED: Final = 0.1
"""Below this `SimSiam.spread`, nearly all patches have one projection."""


@dataclass(frozen=True)
class Pretrained:
    """What a backbone has learned.

    Attributes:
        weights: Of the backbone, running statistics among them, on the CPU.
        patches: How many it saw an epoch.
        spread: `SimSiam.spread` at the end.
    """

    weights: dict[str, Tensor]
    patches: int
    spread: float

    @classmethod
    def of(cls, fit: Fit[SimSiam]) -> "Pretrained":
        """Take it from a training that ended."""
        weights = {name: value.detach().cpu().clone() for name, value in fit.model.backbone.state_dict().items()}
        return cls(weights, len(fit.train_rows), float(fit.model.spread))

    def note(self, config: PretrainConfig) -> str:
        """Say what was done, for a record."""
        seen = "windows anywhere around" if config.source == "tissue" else "patches of"
        words = f"pre-trained without expression (SimSiam, {config.epochs} epochs) on {seen} {self.patches} training spots"
        spread = f"projections spread to {self.spread:.3g} of what they could"
        if self.spread >= COLLAPSED:
            return f"{words}; {spread}"
        return f"{words}; it collapsed: {spread}, less than {COLLAPSED:g}"


def pretraining(
    config: StudyConfig,
    fold: Fold,
    spots: SpotDataset,
    *,
    window_px: int,
    processes: Processes = ALONE,
) -> Fit[SimSiam]:
    """Make the self-supervised training of a fold.

    Args:
        config: The study; its training has `pretrain`.
        fold: The partition.
        spots: Where the training sections are read, with patches at least as large as the window.
        window_px: Side of the field of view.
        processes: Who trains; only one alone can.

    Raises:
        TrainingError: Several processes would share it, or there are too few spots to normalize over.
    """
    pretrain = config.training.pretrain
    assert pretrain is not None
    if processes.size > 1:
        raise TrainingError(
            f"{processes.size} processes cannot share self-supervised pre-training, which normalizes over whole batches; "
            "start one, or set training.pretrain=null"
        )
    rows = spots.rows(dict.fromkeys(fold.train_sections))  # whatever else the dataset holds
    if len(rows) < 4:
        raise TrainingError(f"fold {fold.index} has {len(rows)} training spots, too few for training.pretrain; set it to null")
    changes: dict[str, Any] = {"epochs": pretrain.epochs, "lr": pretrain.lr, "batch_size": pretrain.batch_size, "average": None}
    return Fit(
        _build(config, window_px),
        spots,
        rows,
        validation=None,
        augment=partial(make_views, pretrain, window_px),
        training=config.training.model_copy(update=changes),
        n_epochs=pretrain.epochs,
        seed=config.seed,
        phase=STREAM,
        workers=config.runtime.workers,
    )


def _build(config: StudyConfig, window_px: int) -> SimSiam:
    network = config.model
    assert isinstance(network, NetworkConfig)
    backbone = create_backbone(
        network.backbone,
        window_px=window_px,
        pretrained=network.pretrained,
        weights=network.weights,
        download=config.runtime.download,
        seed=config.seed,
    )
    device = pick_device(config.runtime.device)
    placed: SimSiam = SimSiam(backbone, seed=config.seed).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed
