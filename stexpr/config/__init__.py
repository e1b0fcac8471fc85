"""Studies as data: pydantic models, YAML files and `key=value` overrides.

Every choice that changes a number is a field of `StudyConfig` outside `runtime`; those fields, the cohort's content hash
and the fold make the hash that names a run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Discriminator, Field, Tag, model_validator

from stexpr.config.values import Strict as Strict
from stexpr.config.values import content_hash as content_hash
from stexpr.config.values import find_config, read_yaml, set_override
from stexpr.config.values import resource_folder as resource_folder
from stexpr.config.values import validated as validated

Unit: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Stain: TypeAlias = Literal["none", "reinhard", "macenko"]


class PrepareConfig(Strict):
    """How raw sections become a prepared cohort."""

    mpp: float = Field(gt=0, description="microns per pixel of the patches")
    window_px: int = Field(ge=16, le=2048, description="side of the cut patches; studies take center crops of it")
    min_counts: int = Field(1, ge=1, description="spots with fewer counts are dropped, and counted")
    min_tissue: Unit = Field(0.0, description="spots whose patch has less tissue are dropped, and counted")
    stain: Stain = "none"
    stain_reference: str | None = Field(None, description="section whose stain the others are brought to")

    @model_validator(mode="after")
    def _reference_named(self) -> "PrepareConfig":
        if (self.stain != "none") != (self.stain_reference is not None):
            raise ValueError("stain normalization needs stain_reference, the section to bring the others to, and only then")
        return self


class PanelConfig(Strict):
    """Which genes are predicted."""

    rule: Literal["top_mean", "highly_variable", "list"] = "top_mean"
    n_main: int = Field(250, ge=1)
    include: tuple[str, ...] = Field((), description="genes that must be main, whatever their rank")
    genes: tuple[str, ...] = Field((), description="the main genes of the rule `list`, in order")
    min_detection: Unit = Field(0.10, description="a gene needs a count in this fraction of the fitting spots")
    scope: Literal["training", "cohort"] = Field("training", description="`cohort` lets test spots choose genes, as papers did")

    @model_validator(mode="after")
    def _list_given(self) -> "PanelConfig":
        if (self.rule == "list") != bool(self.genes):
            raise ValueError("the rule `list` needs protocol.panel.genes, and no other rule takes it")
        if self.rule != "list" and len(self.include) > self.n_main:
            raise ValueError(f"panel.include names {len(self.include)} genes, more than n_main = {self.n_main}")
        return self


class ExpressionConfig(Strict):
    """The unit in which predictions are scored."""

    kind: Literal["library_log1p", "log1p", "stnet"] = "library_log1p"
    target_sum: float = Field(1e4, gt=0, description="counts per spot after library-size normalization")


class SplitConfig(Strict):
    """Which patients are tested together."""

    rule: Literal["leave_one_patient_out", "grouped_kfold", "fixed", "file"] = "leave_one_patient_out"
    k: int = Field(5, ge=2, description="folds of `grouped_kfold`")
    test_patients: tuple[str, ...] = Field((), description="the patients `fixed` tests")
    seed: int = Field(0, ge=0, description="shuffles patients into the folds of `grouped_kfold`")
    file: Path | None = Field(None, description="the folds.json that `file` reads, such as one of an earlier study")

    @model_validator(mode="after")
    def _source_named(self) -> "SplitConfig":
        if (self.rule == "fixed") != bool(self.test_patients):
            raise ValueError("the split `fixed` needs protocol.split.test_patients, and no other split takes it")
        if (self.rule == "file") != (self.file is not None):
            raise ValueError("the split `file` needs protocol.split.file, and no other split takes it")
        return self


class ValidationConfig(Strict):
    """How the number of epochs is chosen inside the training patients."""

    rule: Literal["auto", "patient", "section", "block", "epochs"] = Field(
        "auto", description="`auto`: by patient; by section where one training patient is left; by block where one section is"
    )
    splits: int = Field(1, ge=1, description="inner partitions trained to choose the epoch")
    fraction: Unit = Field(0.25, description="share of patients, sections or spots held out by each inner partition")
    refit: bool = Field(True, description="train again on all training spots for the chosen number of epochs")

    @model_validator(mode="after")
    def _refit_possible(self) -> "ValidationConfig":
        if self.splits > 1 and not self.refit:
            raise ValueError("with several inner partitions no single model can be kept: set protocol.validation.refit=true")
        return self


class ProtocolConfig(Strict):
    """What is predicted, on whom it is tested and how it is scored; models compared on a board share it exactly."""

    name: str = "stexpr"
    panel: PanelConfig = PanelConfig()
    expression: ExpressionConfig = ExpressionConfig()
    split: SplitConfig = SplitConfig()
    validation: ValidationConfig = ValidationConfig()
    pooling: Literal["within_section", "pooled"] = Field(
        "within_section", description="`pooled` correlates over all test spots at once, which rewards patient differences"
    )

    def decisive(self) -> dict[str, Any]:
        """Return the choices as plain JSON values, without the place of a folds file: its content counts, not its path."""
        return self.model_dump(mode="json", exclude={"split": {"file"}})

    @property
    def hash(self) -> str:
        """Identify the protocol; records with unlike hashes never share a table."""
        return content_hash(self.decisive())


class InputConfig(Strict):
    """What a network sees of a spot."""

    window_px: int | None = Field(None, ge=16, description="center crop of the prepared patch; null takes it whole")
    symmetries: bool = Field(True, description="the eight flips and rotations as augmentation")
    test_symmetries: bool = Field(True, description="predictions averaged over the eight symmetries")
    brightness: Unit = 0.0
    contrast: Unit = 0.0
    saturation: Unit = 0.0
    stain_jitter: Unit = Field(0.0, description="SD of the log scale of hematoxylin and eosin densities")


class AuxiliaryConfig(Strict):
    """The auxiliary head, which predicts every filtered gene outside the main panel."""

    weight: float = Field(1.0, ge=0, description="lambda: loss = main + lambda * auxiliary")
    standardize: bool = Field(True, description="false reproduces BrST-Net, whose auxiliary targets are not standardized")


class NetworkConfig(Strict):
    """A backbone with a main and an auxiliary head."""

    kind: Literal["network"] = "network"
    backbone: str = "resnet18"
    pretrained: bool = Field(False, description="load timm's weights (needs the network or a filled cache)")
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    loss: Literal["mse", "mse_pearson", "negative_binomial"] = "mse"
    bias_init: Literal["zero", "training_mean"] = Field("zero", description="`training_mean` starts as ST-Net does")

    @property
    def label(self) -> str:
        """Name on a leaderboard."""
        parts = [self.backbone]
        if self.auxiliary.weight:
            parts.append("+ aux" if self.auxiliary.weight == 1 else f"+ {self.auxiliary.weight:g} aux")
        parts += [self.loss.replace("_", " ")] if self.loss != "mse" else []
        parts += ["pretrained"] if self.pretrained else []
        return " ".join(parts)


class TrainingMeanConfig(Strict):
    """Baseline: every spot gets the training spots' mean expression."""

    kind: Literal["training_mean"] = "training_mean"

    @property
    def label(self) -> str:
        """Name on a leaderboard."""
        return "training mean"


class ColorRidgeConfig(Strict):
    """Baseline: ridge regression on means and SDs of RGB in discs around the spot."""

    kind: Literal["color_ridge"] = "color_ridge"
    radii_px: tuple[int, ...] = Field((4, 8, 16, 32, 64, 128), description="those that fit the prepared window are used")
    alphas: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)

    @property
    def label(self) -> str:
        """Name on a leaderboard."""
        return "color ridge"


def _kind(value: Any) -> Any:
    """A model without a kind is a network; anything but keys and values is no model."""
    return value.get("kind", "network") if isinstance(value, Mapping) else getattr(value, "kind", None)


ModelConfig: TypeAlias = Annotated[
    Annotated[NetworkConfig, Tag("network")]
    | Annotated[TrainingMeanConfig, Tag("training_mean")]
    | Annotated[ColorRidgeConfig, Tag("color_ridge")],
    Discriminator(_kind),
]
BASELINES: tuple[TrainingMeanConfig | ColorRidgeConfig, ...] = (TrainingMeanConfig(), ColorRidgeConfig())


class TrainingConfig(Strict):
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(3e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    momentum: Unit = 0.9
    batch_size: int = Field(32, ge=1)
    epochs: int = Field(30, ge=1, description="upper limit; inner validation chooses, except with the validation rule `epochs`")
    warmup_epochs: float = Field(1.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float | None = Field(1.0, gt=0)
    patience: int = Field(8, ge=1, description="epochs without a better validation r before an inner training stops")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="`auto`: bf16 autocast on CUDA, fp32 elsewhere")


class RuntimeConfig(Strict):
    """Where and with what a study runs; nothing here may change a result on one device."""

    device: str = "auto"
    workers: int = Field(0, ge=0, description="loader processes, used only when patches stay on disk")
    patches_in_memory: bool = True
    tracker: Literal["none", "jsonl", "wandb"] = Field("jsonl", description="metrics.jsonl is always written; wandb mirrors it")
    wandb_project: str = "stexpr"
    checkpoint_epochs: int = Field(1, ge=1, description="epochs between checkpoints")


class StudyConfig(Strict):
    """One model configuration over all folds of one cohort."""

    name: str = "study"
    cohort: Path
    protocol: ProtocolConfig = ProtocolConfig()
    input: InputConfig = InputConfig()
    model: ModelConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()
    seed: int = Field(0, ge=0)
    folds: tuple[int, ...] | None = Field(None, description="which folds to run; null runs all")
    runtime: RuntimeConfig = RuntimeConfig()

    def baseline(self, model: TrainingMeanConfig | ColorRidgeConfig) -> "StudyConfig":
        """Return the study of a baseline under the same protocol; studies that differ only in their network share it."""
        return self.model_copy(
            update={"model": model, "input": InputConfig(), "training": TrainingConfig(), "seed": 0, "name": model.kind}
        )

    def run_hash(self, cohort_hash: str, fold: Mapping[str, Any]) -> str:
        """Name one fold of this study: equal hashes mean equal results.

        Args:
            cohort_hash: Content hash of the prepared cohort.
            fold: The fold as plain JSON values.

        Returns:
            Sixteen hexadecimal digits.
        """
        decisive = self.model_dump(mode="json", include={"input", "model", "training", "seed"})
        return content_hash({**decisive, "protocol": self.protocol.decisive(), "cohort": cohort_hash, "fold": fold})


def load_study(source: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study: a YAML file, or the name of one that comes with stexpr, with `key=value` overrides on top.

    Args:
        source: A path, or a name such as `mob` for `configs/studies/mob.yaml`.
        overrides: Strings such as `training.lr=1e-3`; the value is read as YAML, so `false` is a boolean and `null` none.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown (the nearest known one is named), or a value is
            refused.
    """
    path = find_config(source, "studies")
    values = read_yaml(path)
    for override in overrides:
        set_override(values, override)
    return cast(StudyConfig, validated(StudyConfig, values, str(path)))


def prepare_config(defaults: PrepareConfig | None, overrides: Sequence[str], source: str) -> PrepareConfig:
    """Put `key=value` overrides over the settings a data card suggests.

    Raises:
        ConfigError: A key is unknown, a value refused, or mpp and window_px are in neither.
    """
    values = defaults.model_dump(mode="json") if defaults else {}
    for override in overrides:
        set_override(values, override)
    return cast(PrepareConfig, validated(PrepareConfig, values, source))
