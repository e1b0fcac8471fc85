"""A loaded model: one network, or one of each fold, and all that is needed to use it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from stexpr.errors import ModelError
from stexpr.models.augment import N_SYMMETRIES, apply_symmetries
from stexpr.models.export.applicability import Applicability, Views, appearance
from stexpr.models.export.hub import HubModel
from stexpr.models.export.intervals import PredictionIntervals
from stexpr.models.export.release import Release
from stexpr.models.spot import SpotRegressor
from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing


class PatchOutput(NamedTuple):
    """What a model says of some patches.

    Attributes:
        features: Of each network, one after the other.
        expression: Predicted, in the unit of the model: the mean of the networks that predict the gene.
        spread: Standard deviation between those networks; NaN where fewer than two predict the gene.
        novelty: Distance from the training patches, in thresholds: above 1 a patch is foreign. NaN without a reference.
    """

    features: Float32[Tensor, "B D"]
    expression: Float32[Tensor, "B G"]
    spread: Float32[Tensor, "B G"]
    novelty: Float32[Tensor, "B"]


@dataclass(frozen=True)
class LoadedNetwork:
    """One network of a model.

    Attributes:
        model: In evaluation mode.
        panel: Its genes.
        provenance: What it was trained on.
        applicability: Its training features.
    """

    model: SpotRegressor
    panel: GenePanel
    provenance: dict[str, Any]
    applicability: Applicability | None = None


@dataclass(frozen=True)
class LoadedModel(HubModel):
    """A model and all it needs to be used; call it with patches.

    Attributes:
        networks: One, or one of each fold.
        transform: Unit of its predictions.
        preprocessing: How an image becomes its input; networks of an ensemble share field of view, pixel size and stain.
        release: What was known at export.
        intervals: Around its predictions, None where nothing was held out to calibrate on.
        hash: Identifies the files it was loaded from.
        members: Of an ensemble, its networks as models of their own.
    """

    networks: tuple[LoadedNetwork, ...]
    transform: ExpressionTransform
    preprocessing: Preprocessing
    release: Release = field(default_factory=Release)
    intervals: PredictionIntervals | None = None
    hash: str = ""
    members: tuple["LoadedModel", ...] = ()

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """Genes predicted, those of all networks in order of first appearance."""
        return tuple(dict.fromkeys(gene for network in self.networks for gene in network.panel.main))

    @cached_property
    def n_networks(self) -> tuple[int, ...]:
        """How many networks predict each gene."""
        panels = [set(network.panel.main) for network in self.networks]
        return tuple(sum(gene in panel for panel in panels) for gene in self.genes)

    @property
    def n_features(self) -> int:
        """Length of the feature vector."""
        return sum(network.model.n_features for network in self.networks)

    @property
    def has_reference(self) -> bool:
        """Whether every network knows the distance of a patch from its training patches."""
        return all(network.applicability is not None for network in self.networks)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the model was trained on; of an ensemble, patients are those of any fold."""
        first = dict(self.networks[0].provenance)
        if len(self.networks) > 1:
            patients = (patient for network in self.networks for patient in network.provenance.get("training_patients", ()))
            seeds = list(dict.fromkeys(network.provenance.get("seed") for network in self.networks))
            first |= {"training_patients": list(dict.fromkeys(patients)), "test_patients": [], "fold": None, "seed": seeds}
        return first

    @property
    def model(self) -> SpotRegressor:
        """The network, of a model that is not an ensemble.

        Raises:
            ModelError: It is one.
        """
        return self._only.model

    @property
    def panel(self) -> GenePanel:
        """The genes of the network, of a model that is not an ensemble.

        Raises:
            ModelError: It is one.
        """
        return self._only.panel

    @property
    def _only(self) -> LoadedNetwork:
        if len(self.networks) > 1:
            raise ModelError(f"this model is an ensemble of {len(self.networks)} networks: go through its `networks`")
        return self.networks[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.networks[0].model.parameters()).device

    def to(self, device: torch.device | str) -> "LoadedModel":
        """Move the weights to a device, in place, and return the model."""
        for network in self.networks:
            network.model.to(device)
        return self

    @torch.inference_mode()
    def __call__(
        self, patches: UInt8[Tensor, "B 3 H W"], *, symmetries: bool | None = None, novelty: bool = True
    ) -> PatchOutput:
        """Compute features, expression, spread and novelty of patches.

        Args:
            patches: RGB of side `preprocessing.window_px` at `preprocessing.mpp`, on the model's device.
            symmetries: Average over the eight flips and rotations; None does as the model was scored.
            novelty: Whether it is wanted; else it is NaN, as of a model without reference.
        """
        averaged = self.release.symmetries if symmetries is None else symmetries
        outputs = [_of_network(network.model, patches, averaged) for network in self.networks]
        expression = self._on_genes([values for _, values in outputs])
        spread = _sd_of_known(expression)
        unlike = torch.full((len(patches),), torch.nan, device=patches.device)
        if novelty and self.has_reference:
            seen = appearance(patches)
            distances = [
                network.applicability.to(patches.device).novelty(Views(features.float(), seen))
                for network, (features, _) in zip(self.networks, outputs, strict=True)
                if network.applicability is not None
            ]
            unlike = torch.stack(distances).mean(dim=0)
        features = torch.cat([features.float() for features, _ in outputs], dim=1)
        return PatchOutput(features, expression.nanmean(dim=0), spread, unlike)

    @torch.inference_mode()
    def expression_of(self, features: Float32[Tensor, "B D"]) -> Float32[Tensor, "B G"]:
        """Return the expression that features speak of, as in `PatchOutput`.

        Of features averaged over the symmetries it is the averaged expression for a linear head and unit; a negative binomial
        is not linear, and differs.

        Args:
            features: As in `PatchOutput`, on the model's device.
        """
        parts = torch.split(features, [network.model.n_features for network in self.networks], dim=1)
        models = [network.model for network in self.networks]
        heads = [model.main_objective.expression(model.main_head(part)) for model, part in zip(models, parts, strict=True)]
        return self._on_genes(heads).nanmean(dim=0)

    def _on_genes(self, expression: Sequence[Tensor]) -> Float32[Tensor, "E B G"]:
        """Bring each network's genes to those of the model; NaN where a network does not predict the gene."""
        column = {gene: i for i, gene in enumerate(self.genes)}
        first = expression[0]
        whole = torch.full((len(expression), len(first), len(column)), torch.nan, device=first.device)
        for own, network, values in zip(whole, self.networks, expression, strict=True):
            own[:, [column[gene] for gene in network.panel.main]] = values.float()
        return whole


def _of_network(model: SpotRegressor, patches: Tensor, symmetries: bool) -> tuple[Tensor, Tensor]:
    if not symmetries or model.fusion is not None:
        features = model.features(patches, symmetries=symmetries)
        return features, model.main_objective.expression(model.main_head(features))
    sums: tuple[Any, Any] = (0, 0)
    for which in range(N_SYMMETRIES):
        turned = apply_symmetries(patches, torch.full((len(patches),), which, device=patches.device))
        features, expression = _of_network(model, turned, False)
        sums = (sums[0] + features, sums[1] + expression)
    return sums[0] / N_SYMMETRIES, sums[1] / N_SYMMETRIES


def _sd_of_known(values: Float32[Tensor, "E B G"]) -> Float32[Tensor, "B G"]:
    known = values.isfinite().sum(dim=0)
    squares = (values - values.nanmean(dim=0)) ** 2
    variance = squares.nansum(dim=0) / (known - 1)  # 0 / 0 where one network predicts the gene
    return variance.sqrt()
