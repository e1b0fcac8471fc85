"""The spot regressor: one backbone, a main head for the scored genes, an auxiliary head for the others.

Reference:
    Rahaman et al. 2023 (BrST-Net) for the auxiliary head; He et al. 2020 (ST-Net) for the bias at the training mean.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from stexpr.config import NetworkConfig
from stexpr.errors import ModelError
from stexpr.models.augment import symmetry_mean
from stexpr.models.backbones import Backbone, create_backbone
from stexpr.models.fusion import DescriptorRegression
from stexpr.models.low_rank import LowRankHead
from stexpr.models.mixup import mixed_loss
from stexpr.models.objectives import Objective, StandardizedRegression
from stexpr.models.trainable import Loss, TrainableModel
from stexpr.types import SpotBatch


class SpotOutput(NamedTuple):
    """What the heads give, in the units of their objectives."""

    main: Tensor
    auxiliary: Tensor | None


class SpotRegressor(TrainableModel):
    """Predicts the expression of a spot from its patch.

    Args:
        backbone: Image to features.
        main_objective: Of the main genes.
        auxiliary_objective: Of the auxiliary genes, None for no auxiliary head.
        auxiliary_weight: Lambda of the loss.
        bias_init: `training_mean` starts the heads at the training mean; `zero` at zero.
        seed: Source of the heads' weights. Each head has a stream of its own, so the main head starts the same with and
            without the auxiliary one.
        components: Of the main head where its genes share factors; None learns each gene apart.

    Attributes:
        fusion: What `fuse` added after training, None before and without.
    """

    fusion: DescriptorRegression | None

    def __init__(
        self,
        backbone: Backbone,
        main_objective: Objective,
        auxiliary_objective: Objective | None,
        *,
        auxiliary_weight: float = 1.0,
        bias_init: str = "zero",
        seed: int = 0,
        components: Float32[Tensor, "rank G"] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.main_objective = main_objective
        self.auxiliary_objective = auxiliary_objective
        self.auxiliary_weight = auxiliary_weight
        self.fusion = None
        self.main_head = _head(backbone.n_features, main_objective, bias_init, seed=(seed, 1), components=components)
        self.auxiliary_head = None
        if auxiliary_objective is not None:
            self.auxiliary_head = _head(backbone.n_features, auxiliary_objective, bias_init, seed=(seed, 2))

    @property
    def couples_examples(self) -> bool:
        """Whether the loss of a batch is more than a mean over its examples."""
        objectives = (self.main_objective, self.auxiliary_objective)
        return any(objective is not None and objective.couples_examples for objective in objectives)

    @property
    def n_features(self) -> int:
        """Length of the feature vector: the backbone's and, once fused, the components of expression."""
        return self.backbone.n_features + (self.fusion.n_components if self.fusion is not None else 0)

    def features(self, patches: UInt8[Tensor, "B 3 H W"], *, symmetries: bool = False) -> Float[Tensor, "B D"]:
        """Extract the features that the main head reads; the auxiliary one reads those of the backbone.

        Args:
            patches: Patches of the window the backbone was built for.
            symmetries: Average over the eight flips and rotations of each patch, which change no descriptor.
        """
        own = symmetry_mean(self._of_backbone, patches) if symmetries else self._of_backbone(patches)
        return own if self.fusion is None else torch.cat([own.float(), self.fusion(patches)], dim=1)

    def _of_backbone(self, patches: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        features: Tensor = self.backbone(self.backbone.preprocess(patches))
        return features

    def forward(self, patches: UInt8[Tensor, "B 3 H W"]) -> SpotOutput:
        """Return the outputs of both heads."""
        features = self.features(patches)
        own = features[:, : self.backbone.n_features]
        return SpotOutput(self.main_head(features), None if self.auxiliary_head is None else self.auxiliary_head(own))

    def fuse(self, fusion: DescriptorRegression) -> None:
        """Average the trained network with a regression on descriptors, whose components become features of the model.

        The main head stays linear: the network's weights times its share, and the axes of the components times theirs. What is
        fused is not trained further.

        Args:
            fusion: Fitted; its components are of the standardized expression that the main head predicts.

        Raises:
            ModelError: The main head does not predict standardized expression, or the model is fused already.
        """
        if not isinstance(self.main_objective, StandardizedRegression) or not self.main_objective.standardize:
            raise ModelError("only a network that predicts standardized expression can be fused with components of it")
        if self.fusion is not None:
            raise ModelError("the model is fused already")
        head, share = self.main_head, fusion.share
        weight, bias = head.whole() if isinstance(head, LowRankHead) else (head.weight, head.bias)
        self.main_head = nn.Linear(self.backbone.n_features + fusion.n_components, len(bias))
        with torch.no_grad():
            self.main_head.weight.copy_(torch.cat([(1 - share) * weight, share * fusion.axes.T.to(weight)], dim=1))
            self.main_head.bias.copy_((1 - share) * bias)
        self.main_head.to(weight.device)
        self.fusion = fusion.to(weight.device)

    def loss(self, batch: SpotBatch) -> Loss:
        """Return main + lambda x auxiliary loss, each a mean over its own genes.

        With lambda 0 the auxiliary head is left out of the sum, so the other weights are bit-equal to those of a model
        without it.
        """
        features = self.features(batch.patches)
        assert self.fusion is None, "a fused model is not trained further"
        main = _loss(self.main_objective, self.main_head(features), batch, "main")
        parts = {"main": main.detach()}
        total = main
        if self.auxiliary_objective is not None and self.auxiliary_head is not None and self.auxiliary_weight:
            auxiliary = _loss(self.auxiliary_objective, self.auxiliary_head(features), batch, "auxiliary")
            total = main + self.auxiliary_weight * auxiliary
            parts["auxiliary"] = auxiliary.detach()
        return Loss(total, parts, len(batch.library))

    def predict(self, patches: UInt8[Tensor, "B 3 H W"], *, symmetries: bool = False) -> Float32[Tensor, "B G"]:
        """Predict expression of the main genes, in the unit of the protocol.

        Args:
            patches: Patches of the window the backbone was built for.
            symmetries: Average over the eight flips and rotations of each patch.
        """
        if symmetries and self.fusion is None:
            return symmetry_mean(self.predict, patches)
        # a fused head is linear, so the head of the mean is the mean of the heads
        return self.main_objective.expression(self.main_head(self.features(patches, symmetries=symmetries)))


def _loss(objective: Objective, output: Tensor, batch: SpotBatch, role: Literal["main", "auxiliary"]) -> Tensor:
    counts = batch.counts_main if role == "main" else batch.counts_auxiliary
    other = batch.partners
    if other is None:
        return objective.loss(output, counts, batch.library)
    partner = (other.counts_main if role == "main" else other.counts_auxiliary, other.library)
    return mixed_loss(objective, output, (counts, batch.library), partner, other.share)


def _head(
    n_features: int, objective: Objective, bias_init: str, *, seed: tuple[int, int], components: Tensor | None = None
) -> nn.Linear:
    # mixed, because plain neighboring numbers would share streams with the backbone of another seed
    mixed = int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0])
    generator = torch.Generator().manual_seed(mixed)
    bound = n_features**-0.5
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(n_features, objective.n_outputs) if components is None else LowRankHead(n_features, components)
    with torch.no_grad():
        head.weight.uniform_(-bound, bound, generator=generator)
        starts = bias_init == "training_mean" and components is None  # factors are 0 at the training mean
        head.bias.copy_(objective.initial_bias() if starts else torch.zeros(head.out_features))
    return head


def build_spot_regressor(
    config: NetworkConfig,
    *,
    window_px: int,
    fields_px: Sequence[int] = (),
    main_objective: Objective,
    auxiliary_objective: Objective | None,
    seed: int,
    download: bool = False,
    components: Float32[Tensor, "rank G"] | None = None,
) -> SpotRegressor:
    """Build the network of a study.

    Args:
        config: Backbone, its weights and whether they are trained, auxiliary weight and initialization.
        window_px: Side of the patches.
        fields_px: Sides of the fields of view the backbone sees of them; none for the whole patch alone.
        main_objective: Fitted on the training spots.
        auxiliary_objective: Likewise; None builds no auxiliary head.
        seed: Source of all weights that are not loaded.
        download: Fetch weights that are not in the cache.
        components: Of the main genes, as many as `config.rank` says; None without a rank.

    Raises:
        ModelError: The backbone is unknown or cannot be built, or its weights cannot be had.
    """
    if main_objective.n_outputs < 1:
        raise ModelError("a model needs at least one main gene")
    backbone = create_backbone(
        config.backbone,
        window_px=window_px,
        fields_px=fields_px,
        pretrained=config.pretrained,
        weights=config.weights,
        download=download,
        seed=seed,
    )
    if (0 if components is None else len(components)) != (config.rank or 0):
        raise ModelError(f"model.rank = {config.rank} needs as many principal components of the main genes")
    if config.freeze == "all":
        backbone.freeze()
    return SpotRegressor(
        backbone,
        main_objective,
        auxiliary_objective,
        auxiliary_weight=config.auxiliary.weight,
        bias_init=config.bias_init,
        seed=seed,
        components=components,
    )
