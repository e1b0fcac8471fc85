"""Studies as data: pydantic models, YAML files and `key=value` overrides.

Every choice that changes a number is a field of `StudyConfig` outside `runtime`; those fields, the cohort's content hash
and the fold make the hash that names a run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import Field, field_validator, model_validator

from stexpr.config.models import BASELINES as BASELINES
from stexpr.config.models import AuxiliaryConfig as AuxiliaryConfig
from stexpr.config.models import BackboneConfig as BackboneConfig
from stexpr.config.models import BaselineConfig as BaselineConfig
from stexpr.config.models import ColorRidgeConfig as ColorRidgeConfig
from stexpr.config.models import DepthOnlyConfig as DepthOnlyConfig
from stexpr.config.models import FrozenConfig as FrozenConfig
from stexpr.config.models import FusionConfig as FusionConfig
from stexpr.config.models import ModelConfig as ModelConfig
from stexpr.config.models import NearestColorConfig as NearestColorConfig
from stexpr.config.models import NeighborOracleConfig as NeighborOracleConfig
from stexpr.config.models import NetworkConfig as NetworkConfig
from stexpr.config.models import PermutedGenesConfig as PermutedGenesConfig
from stexpr.config.models import SpotCoordinatesConfig as SpotCoordinatesConfig
from stexpr.config.models import TrainingMeanConfig as TrainingMeanConfig
from stexpr.config.models import described as described
from stexpr.config.preparing import AdoptConfig as AdoptConfig
from stexpr.config.preparing import PrepareConfig as PrepareConfig
from stexpr.config.pretraining import PretrainConfig as PretrainConfig
from stexpr.config.protocol import Colors as Colors
from stexpr.config.protocol import ExpressionConfig as ExpressionConfig
from stexpr.config.protocol import PanelConfig as PanelConfig
from stexpr.config.protocol import ProtocolConfig as ProtocolConfig
from stexpr.config.protocol import SplitConfig as SplitConfig
from stexpr.config.protocol import Stain as Stain
from stexpr.config.protocol import Unit as Unit
from stexpr.config.protocol import ValidationConfig as ValidationConfig
from stexpr.config.protocol import load_protocol as load_protocol
from stexpr.config.protocol import named_preset, with_preset
from stexpr.config.protocol import preset_names as preset_names
from stexpr.config.values import Strict as Strict
from stexpr.config.values import content_hash as content_hash
from stexpr.config.values import find_config, read_yaml, set_override
from stexpr.config.values import resource_folder as resource_folder
from stexpr.config.values import validated as validated

Settings = TypeVar("Settings", bound=Strict)


class InputConfig(Strict):
    """What a network sees of a spot."""

    LATER: ClassVar[tuple[str, ...]] = ("colors", "fields_px")

    window_px: int | None = Field(None, ge=16, description="center crop of the prepared patch; null takes it whole")
    fields_px: tuple[Annotated[int, Field(ge=16)], ...] | None = Field(
        None,
        description="sides of several centered fields of view, which one backbone sees one after the other, each resized to "
        "its input; the largest is the window. null: the window alone",
    )
    colors: Colors = Field(
        "as_prepared", description="`standardized` brings each channel of a section's tissue to one mean and spread"
    )
    symmetries: bool = Field(True, description="the eight flips and rotations as augmentation")
    test_symmetries: bool = Field(True, description="predictions averaged over the eight symmetries")
    brightness: Unit = 0.0
    contrast: Unit = 0.0
    saturation: Unit = 0.0
    stain_jitter: Unit = Field(0.0, description="SD of the log scale of hematoxylin and eosin densities")

    @field_validator("fields_px")
    @classmethod
    def _several_fields(cls, fields_px: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if fields_px is None:
            return None
        if len(fields_px) < 2:
            raise ValueError("these are the sides of several fields of view; a single one is input.window_px")
        if len(set(fields_px)) < len(fields_px):
            raise ValueError("a side is named twice, and the backbone would see the same field of view again; name each once")
        return tuple(sorted(fields_px))

    @model_validator(mode="after")
    def _window_is_the_largest(self) -> "InputConfig":
        if self.fields_px is not None and self.window_px not in (None, self.fields_px[-1]):
            raise ValueError(
                f"input.window_px = {self.window_px}, but the window is the largest of input.fields_px, {self.fields_px[-1]} "
                "px: leave window_px out"
            )
        return self

    @property
    def asked_px(self) -> int | None:
        """Side of the window asked for, None for the whole prepared patch."""
        return self.window_px if self.fields_px is None else self.fields_px[-1]


class TrainingConfig(Strict):
    """The optimizer and its schedule."""

    LATER: ClassVar[tuple[str, ...]] = ("average", "mixup", "pretrain", "compile")
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
    average: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay, at each step, of a moving average of the weights and of batch normalization's statistics, which "
        "is what validation measures and what is kept; null keeps the weights of the last step",
    )
    mixup: float = Field(
        0.0,
        ge=0,
        description="each spot of a batch is mixed with another, patch and standardized targets, in shares drawn from "
        "Beta(mixup, mixup); 0 mixes none; needs the loss mse or huber, and one process",
    )
    pretrain: PretrainConfig | None = Field(None, description="learn from patches alone first; {} takes the defaults")
    compile: bool = Field(
        False,
        description="torch.compile of the loss: minutes at the start, faster steps after, and results that differ by rounding",
    )


class RuntimeConfig(Strict):
    """Where and with what a study runs; nothing here may change a result on one device."""

    device: str = "auto"
    workers: int = Field(0, ge=0, description="loader processes, used only when patches stay on disk")
    patches_in_memory: bool = True
    bags_in_memory_gb: float = Field(4.0, ge=0, description="of a slide study: bags kept in memory, the others are read again")
    download: bool = Field(False, description="fetch weights of a named backbone that are not in huggingface_hub's cache")
    tracker: Literal["jsonl", "wandb"] = Field("jsonl", description="metrics.jsonl is always written; wandb mirrors it")
    wandb_project: str = "stexpr"
    checkpoint_epochs: int = Field(1, ge=1, description="epochs between checkpoints")

    @field_validator("tracker", mode="before")
    @classmethod
    def _older_word(cls, value: Any) -> Any:
        return "jsonl" if value == "none" else value  # what it always meant: the config.yaml of older runs may say it


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

    @model_validator(mode="after")
    def _fields_of_a_network(self) -> "StudyConfig":
        if self.input.fields_px is not None and self.model.kind != "network":
            raise ValueError(
                f"input.fields_px is for a trained network; a model of kind {self.model.kind} sees one field of view: set "
                "input.fields_px=null, and input.window_px if it is not the whole prepared patch"
            )
        return self

    @model_validator(mode="after")
    def _targets_to_mix(self) -> "StudyConfig":
        if self.training.mixup and isinstance(self.model, NetworkConfig) and self.model.loss not in ("mse", "huber"):
            raise ValueError(
                f"training.mixup = {self.training.mixup:g} mixes targets spot by spot, and the loss {self.model.loss} compares "
                "none; take model.loss=mse or huber, or training.mixup=0"
            )
        return self

    @model_validator(mode="after")
    def _network_pretrained(self) -> "StudyConfig":
        if self.training.pretrain is not None and self.model.kind != "network":
            raise ValueError(f"training.pretrain is for model.kind=network, not {self.model.kind}; set it to null")
        return self

    @property
    def label(self) -> str:
        """Name the study among the lines of a board."""
        fields = f", {len(self.input.fields_px)} fields" if self.input.fields_px is not None else ""
        return self.model.label + fields + (", SimSiam" if self.training.pretrain is not None else "")

    def baseline(self, model: BaselineConfig) -> "StudyConfig":
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
        decisive = {"input": self.input.described(), "training": self.training.described(), "seed": self.seed}
        decisive["model"] = described(self.model)
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
    return study_of(read_study(path, overrides), str(path))


def read_study(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the keys and values of a study, not checked yet, with `key=value` overrides on top.

    Raises:
        ConfigError: The file is missing or not YAML, or an override is malformed.
    """
    values = named_preset(read_yaml(path))
    for override in overrides:
        set_override(values, override)
        values = named_preset(values)
    return values


def study_of(values: Mapping[str, Any], source: str) -> StudyConfig:
    """Check the keys and values of a study, after laying them over the protocol preset they name.

    Raises:
        ConfigError: A key is unknown (the nearest known one is named), or a value is refused.
    """
    return cast(StudyConfig, validated(StudyConfig, with_preset(dict(values)), source))


def settings_of(model: type[Settings], overrides: Sequence[str], source: str) -> Settings:
    """Read `key=value` settings that stand alone.

    Raises:
        ConfigError: A key is unknown or a value refused.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        set_override(values, override)
    return cast(Settings, validated(model, values, source))


def prepare_config(defaults: PrepareConfig | None, overrides: Sequence[str], source: str) -> PrepareConfig:
    """Put `key=value` overrides over the settings a data card suggests.

    Raises:
        ConfigError: A key is unknown, a value refused, or mpp and window_px are in neither.
    """
    values = defaults.model_dump(mode="json") if defaults else {}
    for override in overrides:
        set_override(values, override)
    return cast(PrepareConfig, validated(PrepareConfig, values, source))
