"""Trains the head of one fold: the inner trainings that choose the number of epochs, then the final one."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from stexpr.config.slides import SlideStudyConfig
from stexpr.data.slide_examples import SlideExamples, sampled
from stexpr.data.splits import Fold
from stexpr.errors import ModelError
from stexpr.inference import pick_device
from stexpr.models.augment import Share
from stexpr.models.bag import PatchVote, make_head
from stexpr.models.bag.last_blocks import trainable_encoder
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.objectives import BagObjective
from stexpr.models.bag.targets import TargetGroup, fit_objective
from stexpr.train.loop import Fit, Validation
from stexpr.train.phases import PhasedTraining
from stexpr.train.slides.validation import VALIDATION, validation_ranking
from stexpr.types import PatientBatch, Progress, silent

__all__ = ["HeadTraining", "predict_patients"]

AT_A_TIME: Final = 64
"""Patients whose outputs are computed between two looks for a signal."""


class HeadTraining(PhasedTraining[BagModel]):
    """All trainings of one fold of a slide study, resumable at any step.

    Attributes:
        held_out: After training, what each inner training says of the patients it held out: their rows, and outputs.
        unlearned: Targets that the training patients say nothing of.

    Args:
        config: The study.
        fold: The partition.
        examples: All patients of the study.
        groups: What is predicted, in the order of the examples' targets.
        folder: The run's folder, for the checkpoint.
        progress: Shows the epochs of each training.
    """

    def __init__(
        self,
        config: SlideStudyConfig,
        fold: Fold,
        examples: SlideExamples,
        groups: Sequence[TargetGroup],
        folder: Path,
        *,
        progress: Progress = silent,
    ) -> None:
        super().__init__(
            folder,
            fold=fold.index,
            n_inner=len(fold.inner),
            epochs=config.training.epochs,
            refit=True,
            checkpoint_epochs=config.runtime.checkpoint_epochs,
            progress=progress,
        )
        self.config = config
        self.fold = fold
        self.examples = examples
        self.groups = tuple(groups)
        self.training_rows = examples.rows(dict.fromkeys(fold.train_sections))
        self.held_out: list[tuple[Tensor, Tensor]] = []
        objectives = self._objectives(self.training_rows)
        self.unlearned = tuple(name for _, unlearned in objectives for name in unlearned)

    def fit(self, index: int) -> Fit[BagModel]:
        """Make the training of a phase; standardization and objectives are fitted on its own training patients."""
        rows, validation = self.training_rows, None
        if index < self.n_inner:
            split = self.fold.inner[index]
            rows, validation = self.examples.rows(split.train), self.examples.rows(split.validation)
        model = self.build(rows)
        training = self.config.training

        def measure() -> float:
            assert validation is not None
            outputs = predict_patients(model, self.examples, validation)
            return validation_ranking(
                model.cpu(), self.groups, outputs, [target[validation] for target in self.examples.targets]
            )

        return Fit(
            model,
            self.examples,
            rows,
            validation=None if validation is None else Validation(VALIDATION, measure),
            augment=partial(_draw, training.patches),
            training=training.model_copy(update={"batch_size": training.batch_size or len(rows)}),
            n_epochs=self.n_epochs_of(index),
            seed=self.config.seed,
            phase=index,
        )

    def build(self, rows: Int64[Tensor, "P"]) -> BagModel:
        """Build the model, what is fitted beforehand fitted on some patients, on its device."""
        config, model = self.config, self.config.model
        objectives: list[BagObjective] = [objective for objective, _ in self._objectives(rows)]
        encoder = None
        if model.finetune is not None:
            encoder = trainable_encoder(model.finetune.encoder, blocks=model.finetune.blocks)
        mean, sd = self.examples.moments(rows)
        head = make_head(
            model.head,
            len(mean),
            sum(objective.n_outputs for objective in objectives),
            widths=model.widths,
            dropout=model.dropout,
            seed=config.seed,
        )
        if isinstance(head, PatchVote):
            head.vote = model.vote
        built = BagModel(
            head,
            objectives,
            mean=mean,
            sd=sd,
            weights=[group.weight for group in self.groups],
            n_covariates=self.examples.covariates.shape[1],
            instance_weight=model.instance_weight,
            encoder=encoder,
            lr_scale=model.finetune.lr_scale if model.finetune is not None else 1.0,
        )
        return built.to(pick_device(config.runtime.device))

    def keeps_best_of(self, index: int) -> bool:
        """Inner trainings end with their best weights, which predict the patients they held out."""
        return index < self.n_inner

    def ended(self, index: int, fit: Fit[BagModel]) -> None:
        """Predict the patients an inner training held out."""
        if index < self.n_inner:
            rows = self.examples.rows(self.fold.inner[index].validation)
            self.held_out.append((rows, predict_patients(fit.model, self.examples, rows)))

    def extra_state(self) -> dict[str, Any]:
        """Return the predictions of held-out patients."""
        return {"held_out": [list(pair) for pair in self.held_out]}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self.held_out = [(rows, outputs) for rows, outputs in state["held_out"]]

    def _objectives(self, rows: Int64[Tensor, "P"]) -> list[tuple[BagObjective, tuple[str, ...]]]:
        pairs = zip(self.groups, self.examples.targets, strict=True)
        try:
            return [fit_objective(group, target[rows]) for group, target in pairs]
        except ModelError as err:
            err.add_note(f"in fold {self.fold.index}, {len(rows)} training patients")
            raise


def predict_patients(model: BagModel, examples: SlideExamples, rows: Int64[Tensor, "P"]) -> Float32[Tensor, "P K"]:
    """Return the outputs of patients, from all their patches, on the CPU."""
    model.eval()
    device = model.mean.device
    return torch.cat([model.predict(examples.batch(part, device)).cpu() for part in torch.split(rows, AT_A_TIME)])


def _draw(n: int | None, batch: PatientBatch, generator: torch.Generator, share: Share) -> PatientBatch:
    return batch if n is None else sampled(batch, n, generator)
