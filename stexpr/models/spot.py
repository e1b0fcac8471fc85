"""SpotRegressor: a backbone, a main head and an auxiliary head on the same features."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from stexpr.config import NetworkConfig
from stexpr.errors import ModelError
from stexpr.models.augment import N_SYMMETRIES, apply_symmetry
from stexpr.models.backbones import Backbone, create_backbone
from stexpr.models.objectives import Loss, Objective
from stexpr.types import SpotBatch


class SpotOutput(NamedTuple):
    """What the heads give, in the units of their objectives."""

    main: Float[Tensor, "B G"]
    auxiliary: Float[Tensor, "B A"] | None


class SpotRegressor(nn.Module):
    """Predicts the expression of a spot from its patch.

    The loss is main + weight x auxiliary. Each head is drawn from its own generator, and with weight 0 the auxiliary head
    takes no part in the loss, so the main weights are then those of a model without it, bit by bit.

    Args:
        backbone: From patch to features.
        main_objective: What the main head learns.
        auxiliary_objective: What the auxiliary head learns; None builds none.
        config: What the model was asked to be; kept for the export.
        seed: Of the heads' weights.
    """

    def __init__(
        self,
        backbone: Backbone,
        main_objective: Objective,
        auxiliary_objective: Objective | None,
        *,
        config: NetworkConfig,
        seed: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.main_objective = main_objective
        self.auxiliary_objective = auxiliary_objective
        self.auxiliary_weight = config.auxiliary.weight
        n, start = backbone.n_features, config.bias_init
        self.main_head = make_head(n, main_objective, bias_init=start, seed=(seed, 1))
        self.auxiliary_head: nn.Linear | None = None
        if auxiliary_objective is not None:
            self.auxiliary_head = make_head(n, auxiliary_objective, bias_init=start, seed=(seed, 2))

    @property
    def couples_examples(self) -> bool:
        """Whether the loss of a spot depends on the other spots of its batch."""
        objectives = [self.main_objective, *([self.auxiliary_objective] if self._uses_auxiliary else [])]
        return any(objective is not None and objective.couples_examples for objective in objectives)

    @property
    def _uses_auxiliary(self) -> bool:
        return self.auxiliary_head is not None and self.auxiliary_weight > 0

    def features(self, patches: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the backbone's features of raw patches."""
        features: Tensor = self.backbone(self.backbone.preprocess(patches))
        return features

    def forward(self, patches: UInt8[Tensor, "B 3 H W"]) -> SpotOutput:
        """Return the outputs of both heads, in the units of their objectives."""
        features = self.features(patches)
        auxiliary = self.auxiliary_head(features) if self.auxiliary_head is not None else None
        return SpotOutput(self.main_head(features), auxiliary)

    def loss(self, batch: SpotBatch) -> Loss:
        """Return the loss of a batch: `main` and, where it counts, `auxiliary` are its parts.

        Raises:
            ModelError: The objective couples examples and the batch has one.
        """
        features = self.features(batch.patches)
        total = self.main_objective.loss(self.main_head(features), batch.counts_main, batch.library)
        parts = {"main": total.detach()}
        if self.auxiliary_head is not None and self.auxiliary_objective is not None and self.auxiliary_weight > 0:
            output = self.auxiliary_head(features)
            auxiliary = self.auxiliary_objective.loss(output, batch.counts_auxiliary, batch.library)
            parts["auxiliary"] = auxiliary.detach()
            total = total + self.auxiliary_weight * auxiliary
        return Loss(total, parts, len(batch.patches))

    def predict(self, patches: UInt8[Tensor, "B 3 H W"], symmetries: bool = False) -> Float[Tensor, "B G"]:
        """Return the expression of the main genes, in the unit of the protocol.

        Args:
            patches: Raw patches.
            symmetries: Average the expression over the eight flips and rotations.
        """
        indices = range(N_SYMMETRIES if symmetries else 1)
        outputs = (self.main_head(self.features(apply_symmetry(patches, index))) for index in indices)
        predicted = [self.main_objective.expression(output) for output in outputs]
        return torch.stack(predicted).mean(dim=0)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Split the parameters for an optimizer: biases, normalization and dispersions are not decayed.

        Args:
            weight_decay: For matrices and kernels.
        """
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]


def make_head(n_features: int, objective: Objective, *, bias_init: str, seed: tuple[int, int]) -> nn.Linear:
    """Build a linear head that draws its weights from a generator of its own.

    Args:
        n_features: Length of the feature vector.
        objective: Gives the number of outputs and the training mean.
        bias_init: `zero`, or `training_mean` as ST-Net does. The two differ only for targets that are not standardized:
            elsewhere an output of zero is the training mean.
        seed: Of the generator.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
    head = nn.Linear(n_features, objective.n_outputs, device="meta").to_empty(device="cpu")  # draws nothing by itself
    with torch.no_grad():
        nn.init.kaiming_uniform_(head.weight, a=math.sqrt(5), generator=generator)  # the default of nn.Linear
        head.bias.copy_(objective.initial_bias() if bias_init == "training_mean" else torch.zeros(objective.n_outputs))
    return head


def build_spot_regressor(
    config: NetworkConfig,
    *,
    window_px: int,
    n_main: int,
    n_auxiliary: int,
    main_objective: Objective,
    auxiliary_objective: Objective | None,
    seed: int,
) -> SpotRegressor:
    """Build the model of a study.

    Args:
        config: Backbone, auxiliary weight, loss and start of the biases.
        window_px: Side of the patches.
        n_main: Number of main genes.
        n_auxiliary: Number of auxiliary genes; 0 builds no auxiliary head.
        main_objective: Fitted on the training spots.
        auxiliary_objective: Likewise; None builds no auxiliary head.
        seed: Of all initial weights; the caller's random state is not touched.

    Returns:
        The model, on the CPU, channels last in memory.

    Raises:
        ModelError: The backbone cannot be built, or an objective has another number of genes.
    """
    for role, n_genes, objective in (("main", n_main, main_objective), ("auxiliary", n_auxiliary, auxiliary_objective)):
        n_outputs = objective.n_outputs if objective is not None else 0
        if n_outputs != n_genes:
            raise ModelError(f"there are {n_genes} {role} genes, but their objective was fitted on {n_outputs}")
    backbone = create_backbone(config.backbone, window_px=window_px, pretrained=config.pretrained, seed=seed)
    model = SpotRegressor(backbone, main_objective, auxiliary_objective, config=config, seed=seed)
    return model.to(memory_format=torch.channels_last)
