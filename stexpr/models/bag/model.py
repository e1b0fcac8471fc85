"""A head, what it is trained on and what it is told of a patient beside the slides: one model for all slide targets."""

import itertools
from collections.abc import Sequence
from typing import Any, Final

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from stexpr.errors import ModelError
from stexpr.models.bag.clam import Clam
from stexpr.models.bag.exact import gradient_in_parts
from stexpr.models.bag.objectives import BagObjective
from stexpr.models.bag.pooling import BagHead
from stexpr.models.bag.vote import PatchVote
from stexpr.models.trainable import Loss, TrainableModel
from stexpr.types import BagBatch, PatientBatch

__all__ = ["BagModel"]

PACKED: Final = 65_536
"""Patches read and pooled together, unless a single patient has more."""
PACKED_PIXELS: Final = 256
"""The same where an encoder sees the patches, whose activations are in memory."""


class BagModel(TrainableModel):
    """Predicts every target of a patient from the bags of the slides, and clinical covariates.

    A patient with several bags has the mean of their outputs. Covariates are added to the output, linearly.

    Args:
        head: Has the outputs of all objectives, side by side.
        objectives: What the outputs are trained to tell, in their order.
        mean: Of each feature over the training patches.
        sd: Likewise; instances are standardized before the head sees them.
        weights: Of each objective's loss.
        n_covariates: Columns of covariates.
        instance_weight: Of CLAM's loss of extreme patches; the slides' loss has the rest.
        encoder: From patches to features, trained along; None where bags hold features.
        lr_scale: Learning rate of the encoder by that of the head.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self,
        head: BagHead,
        objectives: Sequence[BagObjective],
        *,
        mean: Float32[Tensor, "D"],
        sd: Float32[Tensor, "D"],
        weights: Sequence[float] = (),
        n_covariates: int = 0,
        instance_weight: float = 0.3,
        encoder: nn.Module | None = None,
        lr_scale: float = 0.1,
    ) -> None:
        super().__init__()
        widths = [objective.n_outputs for objective in objectives]
        if sum(widths) != head.n_outputs:
            raise ModelError(f"the head has {head.n_outputs} outputs, its objectives need {sum(widths)}")
        self.head = head
        self.objectives = nn.ModuleList(objectives)
        self.widths = widths
        self.weights = tuple(weights) or (1.0,) * len(widths)
        self.instance_weight = instance_weight
        self.encoder = encoder
        self.lr_scale = lr_scale
        self.fusion = nn.Linear(n_covariates, head.n_outputs, bias=False) if n_covariates else None
        if self.fusion is not None:
            nn.init.zeros_(self.fusion.weight)
        self.register_buffer("mean", mean)
        self.register_buffer("sd", sd)
        self.packed = PACKED if encoder is None else PACKED_PIXELS

    @property
    def couples_examples(self) -> bool:
        """Whether an objective compares patients with each other."""
        return any(objective.couples_examples for objective in self._objectives)

    @property
    def goes_in_parts(self) -> bool:
        """Bags are read as they are needed, so no batch is in memory as a whole."""
        return True

    def pack(self, bags: Sequence[Float[Tensor, "_ _"]]) -> BagBatch:
        """Put standardized bags behind each other.

        Raises:
            DataError: A bag is empty, of another width or not finite.
        """
        packed = BagBatch.of(bags)
        return BagBatch((packed.instances.float() - self.mean) / self.sd, packed.offsets)

    def forward(self, batch: PatientBatch) -> Float[Tensor, "P K"]:
        """Return the outputs of patients, all their bags in memory at once."""
        return self._part(batch, learning=False)[0]

    @torch.inference_mode()
    def predict(self, batch: PatientBatch) -> Float32[Tensor, "P K"]:
        """Return the outputs of patients, few bags in memory at a time."""
        return torch.cat([self(part).float() for part in self._parts(batch)])

    def split_outputs(self, output: Float[Tensor, "P K"]) -> tuple[Tensor, ...]:
        """Return the outputs of each objective."""
        return torch.split(output, self.widths, dim=1)

    def vote(self, patches: Float[Tensor, "N K"]) -> Float[Tensor, "K"]:
        """Return the outputs of a slide from those of its patches, by a head that lets them vote."""
        assert isinstance(self.head, PatchVote)
        if self.head.vote == "majority":
            yes = (patches > 0).to(patches.dtype).sum(dim=0)
            return (yes + 0.5).log() - (len(patches) - yes + 0.5).log()
        parts = zip(self._objectives, self.split_outputs(patches), strict=True)
        return torch.cat([objective.averaged(part) for objective, part in parts])

    def loss(self, batch: PatientBatch) -> Loss:
        """Return the loss of patients, all their bags in memory at once."""
        output, own = self._part(batch, learning=True, share=1 / len(batch))
        total, parts = self._criterion(output, batch.targets)
        return Loss(total + own, {**parts, **self._own_part(own)}, len(batch))

    def loss_of_outputs(self, output: Float[Tensor, "P K"], targets: Sequence[Tensor]) -> Loss:
        """Return the loss of outputs that are there already."""
        total, parts = self._total(self.split_outputs(output), targets, self._objectives)
        return Loss(total, parts, len(output))

    def gradient(self, batch: PatientBatch) -> Loss:
        """Add the gradient of `loss` to the parameters, few bags in memory at a time."""
        parts = self._parts(batch)
        share = 1 / len(batch)
        if len(parts) == 1:
            loss = self.loss(batch)
            loss.total.backward()  # type: ignore[no-untyped-call]
            return Loss(loss.total.detach(), loss.parts, loss.denominator)
        said: dict[str, Tensor] = {}

        def criterion(output: Tensor) -> Tensor:
            total, found = self._criterion(output, batch.targets)
            said.update(found)
            return total

        total = gradient_in_parts(lambda part: self._part(part, learning=True, share=share), parts, criterion)
        return Loss(total, said, len(batch))

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return parameters for an optimizer; those of the encoder apart, so that they can have a rate of their own."""
        groups = super().parameter_groups(weight_decay)
        if self.encoder is None:
            return groups
        own = {id(parameter) for parameter in self.encoder.parameters()}
        apart = [
            {**group, "params": [p for p in group["params"] if (id(p) in own) == encoder], "lr_scale": scale}
            for group in groups
            for encoder, scale in ((False, 1.0), (True, self.lr_scale))
        ]
        return [group for group in apart if group["params"]]

    def train(self, mode: bool = True) -> "BagModel":
        """Set the mode; the encoder's normalization keeps its statistics, which would couple the bags of a part."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    @property
    def _objectives(self) -> list[BagObjective]:
        return [objective for objective in self.objectives if isinstance(objective, BagObjective)]

    def _parts(self, batch: PatientBatch) -> list[PatientBatch]:
        """Cut the batch between patients so that no part has more than `packed` patches, but for a patient with more."""
        edges, held = [0], 0
        sizes = [0] * len(batch)
        for patient, bag in zip(batch.patient.tolist(), batch.bags, strict=True):
            sizes[patient] += len(bag)
        for patient, size in enumerate(sizes):
            if held and held + size > self.packed:
                edges.append(patient)
                held = 0
            held += size
        edges.append(len(batch))
        return [batch.rows(start, stop) for start, stop in itertools.pairwise(edges)]

    def _part(self, batch: PatientBatch, *, learning: bool, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the outputs of patients and, in training, the loss of their patches, each patient counting `share`."""
        read = [bag.read() for bag in batch.bags]
        if self.encoder is not None:
            lengths = [len(bag) for bag in read]
            read = list(torch.split(self.encoder(torch.cat(read)), lengths))
        bags = self.pack(read)
        own = bags.instances.new_zeros(())
        if isinstance(self.head, PatchVote):
            patches = torch.split(self.head.patches(bags), bags.lengths.tolist())
            slides = torch.stack([self.vote(outputs) for outputs in patches])
            if learning and not self.couples_examples:
                own = share * self._patch_loss(patches, batch)
        else:
            pooled = self.head(bags)
            slides = pooled.output
            if learning and isinstance(self.head, Clam):
                label = batch.targets[0][batch.patient]
                own = self.instance_weight * share * len(batch) * self.head.instance_loss(bags, pooled, label)
        return self._of_patients(slides, batch), own

    def _of_patients(self, slides: Float[Tensor, "B K"], batch: PatientBatch) -> Float[Tensor, "P K"]:
        counts = torch.bincount(batch.patient, minlength=len(batch)).to(slides.dtype)
        output = slides.new_zeros(len(batch), slides.shape[1]).index_add(0, batch.patient, slides) / counts[:, None]
        return output if self.fusion is None else output + self.fusion(batch.covariates)

    def _patch_loss(self, patches: Sequence[Float[Tensor, "_ K"]], batch: PatientBatch) -> Float[Tensor, ""]:
        """Teach every patch the label of its slide, or its own where it has one; each bag counts alike."""
        losses = []
        for i, (outputs, patient) in enumerate(zip(patches, batch.patient.tolist(), strict=True)):
            if batch.patch_targets:
                own = batch.patch_targets[i].read()
                targets: list[Tensor] = [own]
            else:
                targets = [target[patient].expand(len(outputs), *target.shape[1:]) for target in batch.targets]
            losses.append(self._total(self.split_outputs(outputs), targets, self._objectives)[0])
        bags_of = torch.bincount(batch.patient, minlength=len(batch))[batch.patient]
        return (torch.stack(losses) / bags_of).sum()

    def _criterion(self, output: Float[Tensor, "P K"], targets: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(self.head, PatchVote) and not self.couples_examples:
            return output.sum() * 0.0, {}  # the patches learn, not their vote
        total, parts = self._total(self.split_outputs(output), targets, self._objectives)
        return (1 - self.instance_weight) * total if isinstance(self.head, Clam) else total, parts

    def _total(
        self, outputs: Sequence[Tensor], targets: Sequence[Tensor], objectives: Sequence[BagObjective]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = [objective.loss(*pair) for objective, pair in zip(objectives, zip(outputs, targets, strict=True), strict=True)]
        total = torch.stack([weight * loss.total for weight, loss in zip(self.weights, losses, strict=True)]).sum()
        named: dict[str, Tensor] = {}
        for i, loss in enumerate(losses):
            named |= {name if name not in named else f"{name}_{i}": value for name, value in loss.parts.items()}
        return total, named

    @staticmethod
    def _own_part(own: Tensor) -> dict[str, Tensor]:
        return {"patches": own.detach()} if own.requires_grad else {}
