"""What the scripts on training and embedding share: spots of a prepared cohort, our training of a network, and a bare one.

The cohort is MOB's, prepared as its card says, in `cohorts/mob` or the folder of cohorts that STEXPR_COHORTS names; at small
sizes a synthetic one that is made on the spot.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from stexpr.config import StudyConfig, load_study
from stexpr.data.cards import load_card
from stexpr.data.datasets import SpotDataset, even_parts
from stexpr.data.panels import fold_panel
from stexpr.data.prepare import prepare
from stexpr.data.synthetic import write_synthetic
from stexpr.inference import autocast
from stexpr.models.augment import augment
from stexpr.models.networks import BACKBONES
from stexpr.models.spot import SpotRegressor
from stexpr.panel import ExpressionTransform
from stexpr.train.checkpoint import StopFlag
from stexpr.train.compiling import Compiling
from stexpr.train.loop import Fit
from stexpr.train.network import build_network, without_auxiliary
from stexpr.train.spots import open_cohort, study_folds

TEN = tuple(name for name in BACKBONES if name not in ("densenet121", "tiny"))
PACKAGES = ("stexpr", "torch", "timm", "numpy", "h5py")


@contextmanager
def prepared(quick: bool) -> Iterator[Path]:
    """The cohort: MOB, or for small sizes a synthetic one in a folder that goes afterwards."""
    if not quick:
        yield Path(os.environ.get("STEXPR_COHORTS", "cohorts")) / "mob"
        return
    with tempfile.TemporaryDirectory() as folder:
        raw, target = Path(folder) / "raw", Path(folder) / "cohort"
        card = load_card(write_synthetic(raw, patients=3, spots_per_section=36, genes=60))
        assert card.prepare is not None
        prepare(card, raw, target, card.prepare)
        yield target


@dataclass(frozen=True)
class Spots:
    """The training spots of the first fold of a study.

    Attributes:
        study: The study.
        data: Their patches and counts.
        transform: Unit of expression.
    """

    study: StudyConfig
    data: SpotDataset
    transform: ExpressionTransform

    @classmethod
    def of(cls, cohort: Path, *overrides: str) -> "Spots":
        """Read the training spots of the study `mob`, changed."""
        study = load_study("mob", [f"cohort={cohort}", "model.auxiliary.weight=0", *overrides])
        opened = open_cohort(study)
        panel = study.protocol.panel.model_copy(update={"n_main": min(study.protocol.panel.n_main, len(opened.genes) // 2)})
        fold = study_folds(study, opened)[0]
        genes = fold_panel(panel, opened, fold)
        window = min(study.input.window_px or opened.window_px, opened.window_px)
        data = SpotDataset(
            opened,
            fold.train_sections,
            genes.without_auxiliary() if without_auxiliary(study) else genes,
            window_px=window,
            in_memory=study.runtime.patches_in_memory,
        )
        return cls(study, data, ExpressionTransform(n_genes=len(opened.genes)))

    def training(self, rows: Tensor, *, epochs: int, compiling: Compiling | None = None) -> "Ours":
        """Our training of the study's network on some rows, whose schedule is for so many epochs."""
        fit = Fit(
            build_network(self.study, self.data, rows, self.transform),
            self.data,
            rows,
            validation=None,
            augment=partial(augment, self.study.input),
            training=self.study.training.model_copy(update={"epochs": epochs}),
            n_epochs=0,
            seed=0,
            phase=0,
            workers=self.study.runtime.workers,
            compiling=compiling,
        )
        return Ours(fit)


@dataclass
class Ours:
    """The loop of `stexpr train`, an epoch at a time.

    Attributes:
        fit: The training.
        said: What it says of each epoch.
    """

    fit: Fit[SpotRegressor]
    said: list[dict[str, float | int]] = field(default_factory=list)

    def epoch(self) -> None:
        """Go once over the rows."""
        self.fit.n_epochs += 1
        self.fit.run(keep_best=False, stop=StopFlag(), on_epoch=self.said.append, save=lambda: None)


class Bare:
    """What a user writes by hand: a network of timm, batches of ready tensors, mean squared error, AdamW.

    Images are normalized and resized beforehand, targets standardized; the network, batches, precision, memory format and
    optimizer are those of our training, which also draws a symmetry of each patch.
    """

    def __init__(self, spots: Spots, rows: Tensor, model: SpotRegressor) -> None:
        device = next(model.parameters()).device
        (batch,) = spots.data.batches([rows], device=device)
        self.training = spots.study.training
        self.images = torch.cat([model.backbone.preprocess(part) for part in batch.patches.split(64)])
        self.targets = model.main_objective.target(batch.counts_main, batch.library)  # type: ignore[operator]
        self.net = plain_network(model.backbone.name, self.images.shape[-1], self.targets.shape[1]).to(device)
        fused = {"fused": True} if device.type == "cuda" else {}
        training = self.training
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=training.lr, weight_decay=training.weight_decay, **fused)
        self.device = device

    def epoch(self) -> None:
        """Go once over the rows."""
        self.net.train()
        order = torch.randperm(len(self.images)).to(self.device)
        for part in even_parts(order, self.training.batch_size):
            self.step(self.images[part], self.targets[part])

    def step(self, images: Tensor, targets: Tensor) -> None:
        """Train on a batch."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.training.precision):
            output = self.net(images)
        functional.mse_loss(output.float(), targets).backward()
        if self.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.training.clip_norm)
        self.optimizer.step()


def plain_network(name: str, px: int, outputs: int) -> nn.Module:
    """The network by timm alone, channels last."""
    spec = BACKBONES.get(name)
    sized = {"img_size": px} if spec is not None and spec.multiple_px > 1 else {}
    net: nn.Module = timm.create_model(spec.timm_name if spec is not None else name, num_classes=outputs, **sized)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def now(device: torch.device) -> float:
    """The clock a figure is told by."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
