"""Slide studies as data: which targets of which patients, in which folds, by which head on which instances."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, model_validator

from stexpr.config import RuntimeConfig, TrainingConfig
from stexpr.config.models import Role
from stexpr.config.values import Strict, content_hash

__all__ = [
    "BagHeadConfig",
    "BinaryTarget",
    "ContinuousTarget",
    "FinetuneConfig",
    "FractionTarget",
    "HeadTrainingConfig",
    "MultiClassTarget",
    "OrdinalTarget",
    "SlideProtocol",
    "SlideSplit",
    "SlideStudyConfig",
    "SlideTables",
    "SurvivalTarget",
    "TargetConfig",
]

HeadKind: TypeAlias = Literal["mean", "max", "patch_vote", "attention", "gated_attention", "additive", "clam", "transmil"]
InstanceKind: TypeAlias = Literal["features", "expression", "both", "color"]
MISSING: Final[tuple[str, ...]] = ()


class BinaryTarget(Strict):
    """Yes or no: mutations, a diagnosis, response to a treatment. Several columns are learned by one head."""

    kind: Literal["binary"] = "binary"
    columns: tuple[str, ...] = Field(min_length=1, description="columns of the clinical table; * and ? stand for many")
    positive: str | None = Field(None, description="the cell that is yes, where it is none of MUT, positive, yes, 1 …")
    missing: tuple[str, ...] = Field(MISSING, description="cells that are no label, such as Equivocal")
    weight: float = Field(1.0, gt=0, description="of this loss beside those of other targets")


class MultiClassTarget(Strict):
    """One of several classes, such as a subtype."""

    kind: Literal["multiclass"] = "multiclass"
    column: str
    missing: tuple[str, ...] = MISSING
    weight: float = Field(1.0, gt=0)


class OrdinalTarget(Strict):
    """Classes in an order, such as a grade."""

    kind: Literal["ordinal"] = "ordinal"
    column: str
    order: tuple[str, ...] = Field(min_length=2, description="cells, lowest first")
    missing: tuple[str, ...] = MISSING
    weight: float = Field(1.0, gt=0)


class FractionTarget(Strict):
    """A share such as the Ki67 index, learned behind a logit link."""

    kind: Literal["fraction"] = "fraction"
    column: str
    percent: bool = Field(False, description="whether cells are percentages, 0 to 100")
    missing: tuple[str, ...] = MISSING
    weight: float = Field(1.0, gt=0)


class ContinuousTarget(Strict):
    """Any number, such as an expression signature; standardized on training patients."""

    kind: Literal["continuous"] = "continuous"
    columns: tuple[str, ...] = Field(min_length=1, description="columns of the clinical table; * and ? stand for many")
    missing: tuple[str, ...] = MISSING
    weight: float = Field(1.0, gt=0)


class SurvivalTarget(Strict):
    """Time to an event."""

    kind: Literal["survival"] = "survival"
    event: str = Field(description="column of events, 1 = observed; also names the target")
    time: str | None = Field(None, description="column of times; null takes <event>.time")
    loss: Literal["cox", "discrete"] = "cox"
    bins: int = Field(4, ge=2, description="intervals of discrete time, with equally many events of training patients")
    weight: float = Field(1.0, gt=0)


TargetConfig: TypeAlias = Annotated[
    BinaryTarget | MultiClassTarget | OrdinalTarget | FractionTarget | ContinuousTarget | SurvivalTarget,
    Field(discriminator="kind"),
]


class SlideSplit(Strict):
    """Folds over patients, their classes dealt evenly."""

    k: int = Field(5, ge=2)
    repeats: int = Field(1, ge=1, description="partitions, all different")
    inner_k: int = Field(3, ge=0, description="partitions of training patients that choose epochs and calibrate; 0 for neither")
    preserve_sites: bool = Field(False, description="no site on both sides of a partition; needs tables.sites")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _inner_is_a_partition(self) -> "SlideSplit":
        if self.inner_k == 1:
            raise ValueError("inner_k = 1 holds out nobody; take 0, or 2 and more")
        return self


class SlideProtocol(Strict):
    """Every choice that decides what a score means; runs under unlike protocols never share a table."""

    name: str = "slides"
    targets: tuple[TargetConfig, ...] = Field(min_length=1)
    split: SlideSplit = SlideSplit()
    several_slides: Literal["bags", "outputs"] = Field(
        "bags", description="a patient's slides: their bags put together, or their outputs averaged"
    )
    min_positives: int = Field(5, ge=1, description="classes with fewer patients are not tested, and named")
    published: Literal["none", "kather", "weitz"] = Field(
        "none", description="also the pooled scores and tests of that paper, in columns of their own"
    )
    confounders: tuple[str, ...] = Field((), description="columns (or `site`) within which AUROC is computed again")
    subgroups: tuple[str, ...] = Field((), description="columns (or `site`) whose groups are scored apart")
    horizons: tuple[float, ...] = Field((), description="times of AUC and Brier score; none takes quartiles of events")

    def decisive(self) -> dict[str, Any]:
        """Return the choices as plain JSON values."""
        return self.model_dump(mode="json")

    @property
    def hash(self) -> str:
        """Identify the protocol."""
        return content_hash(self.decisive())


class SlideTables(Strict):
    """Where patients, slides and labels are read."""

    clinical: tuple[Path, ...] = Field(min_length=1, description="clinical tables: a row per patient; csv, tsv, xlsx")
    slides: Path = Field(description="slide table: PATIENT, FILENAME")
    patient: str | None = Field(None, description="column that names the patient, where it is not PATIENT")
    sites: str | None = Field(
        None, description="column of sites; `tcga` reads them off the barcodes, a path to TCGA's table joins its codes"
    )


class FinetuneConfig(Strict):
    """The encoder's last block learns with the head; needs bags with patches and the encoder itself."""

    encoder: Path = Field(description="the exported model that made the bags")
    blocks: int = Field(1, ge=1, description="how many of the last blocks learn")
    lr_scale: float = Field(0.1, gt=0, description="of their learning rate by that of the head")


class BagHeadConfig(Strict):
    """A head and what it sees of each patch."""

    kind: Literal["bag_head"] = "bag_head"
    head: HeadKind = "gated_attention"
    instances: InstanceKind = "features"
    widths: tuple[int, ...] = Field((128,), min_length=1, description="of the layers every patch passes before it is pooled")
    dropout: float = Field(0.25, ge=0, lt=1)
    vote: Literal["mean", "majority"] = Field("mean", description="of patch_vote")
    patch_labels: Path | None = Field(None, description="patch_vote alone: a folder of patch labels, from registered stains")
    instance_weight: float = Field(0.3, ge=0, le=1, description="of clam's loss of extreme patches")
    covariates: tuple[str, ...] = Field((), description="clinical columns that are added to the head's output")
    finetune: FinetuneConfig | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "BagHeadConfig":
        if self.patch_labels is not None and self.head != "patch_vote":
            raise ValueError(f"patch_labels train patches one by one, which {self.head} does not; take head=patch_vote")
        if self.covariates and self.head == "patch_vote":
            raise ValueError("covariates are of patients, patch_vote learns from patches one by one; take another head")
        if self.finetune is not None and self.instances != "features":
            raise ValueError(f"finetune trains the encoder behind features, not {self.instances}; take instances=features")
        return self

    @property
    def role(self) -> Role:
        """Color alone is what every head has to beat."""
        return "baseline" if self.instances == "color" else "network"

    def described(self) -> dict[str, Any]:
        """Return what decides a result, in plain JSON values and without paths."""
        values = self.model_dump(mode="json", exclude={"finetune": {"encoder"}})
        if self.patch_labels is not None:
            values["patch_labels"] = self.patch_labels.name
        return values


_NOT_OF_BAGS: Final = {
    "mixup": "bags of unlike sizes are not mixed",
    "pretrain": "a slide head has no backbone to pre-train: pre-train the encoder of its bags in a study of spots",
    "compile": "bags have as many sizes as slides, and a head would be compiled for each",
}


class HeadTrainingConfig(TrainingConfig):
    """The optimizer of a head and its schedule."""

    lr: float = Field(2e-4, gt=0)
    weight_decay: float = Field(1e-3, ge=0)
    batch_size: int | None = Field(8, ge=1, description="patients a step; null takes all, which Cox's likelihood needs")  # type: ignore[assignment]
    epochs: int = Field(40, ge=1, description="upper limit; inner folds choose")
    schedule: Literal["cosine", "constant"] = "constant"
    patience: int = Field(40, ge=1, description="epochs without a better inner validation before an inner training stops")
    patches: int | None = Field(None, ge=1, description="patches of a patient drawn each epoch; null trains on all")

    @model_validator(mode="after")
    def _of_patches_alone(self) -> "HeadTrainingConfig":
        for key, reason in _NOT_OF_BAGS.items():
            value = getattr(self, key)
            if value:
                raise ValueError(f"training.{key} = {value}: {reason}; leave it out")
        return self


class SlideStudyConfig(Strict):
    """One head over all folds of one cohort of slides."""

    task: Literal["slides"] = "slides"
    name: str = "slide_study"
    bags: Path = Field(description="folder of bags, of one encoder")
    encoder: str | None = Field(None, description="name of the encoder on the board; null takes the folder of its bags")
    tables: SlideTables
    protocol: SlideProtocol
    model: BagHeadConfig = BagHeadConfig()
    training: HeadTrainingConfig = HeadTrainingConfig()
    seed: int = Field(0, ge=0)
    folds: tuple[int, ...] | None = Field(None, description="which folds to run; null runs all")
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _cox_sees_everybody(self) -> "SlideStudyConfig":
        cox = any(isinstance(target, SurvivalTarget) and target.loss == "cox" for target in self.protocol.targets)
        if cox and self.training.batch_size is not None:
            raise ValueError(
                f"Cox's likelihood compares all patients, but training.batch_size = {self.training.batch_size}; set it to "
                "null, or take loss: discrete"
            )
        if self.protocol.split.preserve_sites and self.tables.sites is None:
            raise ValueError("protocol.split.preserve_sites needs tables.sites, which says whose patients are together")
        return self

    @property
    def encoder_name(self) -> str:
        """What made the bags, as a board names it."""
        return self.encoder or self.bags.name

    @property
    def label(self) -> str:
        """Name the study among the lines of a board."""
        model = self.model
        parts = [f"{model.head} on {self.encoder_name} {model.instances}"]
        parts += ["majority of patches"] if model.head == "patch_vote" and model.vote == "majority" else []
        parts += ["patch labels"] if model.patch_labels is not None else []
        parts += [f"last {model.finetune.blocks} blocks trained"] if model.finetune is not None else []
        parts += [f"with {', '.join(model.covariates)}"] if model.covariates else []
        return ", ".join(parts)

    def color_baseline(self) -> "SlideStudyConfig":
        """Return the study of the same head on the colors of the patches."""
        model = self.model.model_copy(update={"instances": "color", "finetune": None})
        return self.model_copy(update={"model": model, "name": f"{self.name}, color"})

    def run_hash(self, cohort_hash: str, bags_hash: str, fold: Mapping[str, Any]) -> str:
        """Name one fold of this study: equal hashes mean equal results.

        Args:
            cohort_hash: Content hash of patients, slides and labels.
            bags_hash: Content hash of the bags.
            fold: The fold as plain JSON values.
        """
        decisive: dict[str, Any] = {"training": self.training.described(), "seed": self.seed}
        decisive |= {"model": self.model.described(), "encoder": self.encoder_name, "protocol": self.protocol.decisive()}
        return content_hash({**decisive, "cohort": cohort_hash, "bags": bags_hash, "fold": fold})
