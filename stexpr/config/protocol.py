"""Protocols: what is predicted, on whom it is tested and how it is scored, as data.

The published ones come as presets, `configs/protocols/*.yaml`. A protocol that looks at test data has to say so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, cast

from pydantic import Field, model_validator

from stexpr.config.values import Strict, content_hash, find_config, merged, read_yaml, resource_folder, validated
from stexpr.errors import ConfigError

Unit: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Stain: TypeAlias = Literal["none", "reinhard", "macenko"]
Colors: TypeAlias = Literal["as_prepared", "standardized"]
FOLDER: Final = "protocols"
OF_THE_COHORT: Final = {"name", "split.k", "split.seed", "split.test_patients", "split.file", "panel.include"}
"""Keys a study may set over a preset that is still the same protocol, only on another cohort."""


class PanelConfig(Strict):
    """Which genes are predicted."""

    rule: Literal["top_mean", "highly_variable", "spatially_variable", "list"] = "top_mean"
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
    """The unit in which predictions are trained and scored."""

    kind: Literal["library_log1p", "log1p", "stnet"] = "library_log1p"
    target_sum: float = Field(1e4, gt=0, description="counts per spot after library-size normalization")
    library: Literal["whole", "panel"] = Field("whole", description="`panel` divides by the counts of the main genes alone")
    smoothing: Literal["none", "neighbors"] = Field(
        "none", description="`neighbors` averages counts over a spot and those around it, also for the spots tested"
    )

    @model_validator(mode="after")
    def _whole_for_stnet(self) -> "ExpressionConfig":
        if self.kind == "stnet" and self.library == "panel":
            raise ValueError("the kind `stnet` counts all genes of the cohort, so its library is the whole one")
        return self


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
    """How the number of epochs is chosen: inside the training patients, but for the rule `test`."""

    rule: Literal["auto", "patient", "section", "block", "epochs", "test"] = Field(
        "auto",
        description="`auto`: by patient; by section where one training patient is left; by block where one section is. "
        "`test` keeps the best epoch on the test patients, as some papers did",
    )
    splits: int = Field(1, ge=1, description="inner partitions trained to choose the epoch")
    fraction: Unit = Field(0.25, description="share of patients, sections or spots held out by each inner partition")
    refit: bool = Field(True, description="train again on all training spots for the chosen number of epochs")

    @model_validator(mode="after")
    def _refit_possible(self) -> "ValidationConfig":
        if self.splits > 1 and not self.refit:
            raise ValueError("with several inner partitions no single model can be kept: set protocol.validation.refit=true")
        if self.rule == "test" and (self.refit or self.splits > 1):
            raise ValueError("the rule `test` keeps the best epoch: set protocol.validation.refit=false and splits=1")
        return self


class ProtocolConfig(Strict):
    """What is predicted, on whom it is tested and how it is scored; models compared on a board share it exactly."""

    name: str = "stexpr"
    leaky: bool = Field(False, description="the protocol looks at test data; its tables carry a warning")
    why: str = Field("", description="what a reader has to know of a leaky protocol")
    deviations: tuple[str, ...] = Field((), description="where a preset departs from the paper it is named after")
    min_counts: int = Field(0, ge=0, description="spots with fewer counts are neither trained on nor tested")
    window_um: float | None = Field(None, gt=0, description="side of the field of view; null leaves it to the study")
    stain: Stain | None = Field(None, description="stain normalization the cohort must have; null takes any")
    panel: PanelConfig = PanelConfig()
    expression: ExpressionConfig = ExpressionConfig()
    split: SplitConfig = SplitConfig()
    validation: ValidationConfig = ValidationConfig()
    pooling: Literal["within_section", "pooled"] = Field(
        "within_section", description="`pooled` correlates over all test spots at once, which rewards patient differences"
    )
    counted: Literal["above_chance", "median_r", "none"] = Field(
        "above_chance", description="the count of predicted genes that is this protocol's own; every table shows all"
    )

    @model_validator(mode="after")
    def _leaks_admitted(self) -> "ProtocolConfig":
        if self.leaks and not self.leaky:
            raise ValueError(f"this protocol looks at test data ({'; '.join(self.leaks)}): say so with protocol.leaky=true")
        return self

    @property
    def leaks(self) -> tuple[str, ...]:
        """Where the protocol looks at test data, in words."""
        found = {
            "the genes are chosen on test spots too": self.panel.scope == "cohort",
            "the number of epochs is chosen on the test patients": self.validation.rule == "test",
            "the measured expression of test spots is smoothed over their neighbors": self.expression.smoothing != "none",
        }
        return tuple(words for words, so in found.items() if so)

    def decisive(self) -> dict[str, Any]:
        """Return the choices as plain JSON values, without the place of a folds file: its content counts, not its path."""
        return self.model_dump(mode="json", exclude={"split": {"file"}})

    @property
    def hash(self) -> str:
        """Identify the protocol; records with unlike hashes never share a table."""
        return content_hash(self.decisive())


def preset_names() -> tuple[str, ...]:
    """Return the names of the protocols that come with stexpr, `stexpr` first."""
    names = sorted(path.stem for path in (resource_folder("configs") / FOLDER).glob("*.yaml"))
    return tuple(sorted(names, key=lambda name: name != "stexpr"))


def load_protocol(source: str | Path, changes: Mapping[str, Any] | None = None) -> ProtocolConfig:
    """Read a protocol: a preset by name, or a YAML file.

    Args:
        source: Such as `hest`, or a path.
        changes: Keys and values over those of the file.

    Raises:
        ConfigError: There is no such protocol, or a value is refused.
    """
    return cast(ProtocolConfig, validated(ProtocolConfig, preset(source, changes or {}), str(source)))


def named_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Write a study's `protocol: hest` as `protocol: {preset: hest}`, which further keys can stand beside."""
    stated = values.get("protocol")
    return {**values, "protocol": {"preset": stated}} if isinstance(stated, str) else dict(values)


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the preset that a study's protocol names under the study's own keys.

    Raises:
        ConfigError: There is no such protocol.
    """
    stated = values.get("protocol")
    if not isinstance(stated, Mapping) or "preset" not in stated:
        return dict(values)
    own = {key: value for key, value in stated.items() if key != "preset"}
    return {**values, "protocol": preset(stated["preset"], own)}


def preset(source: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge changes over a preset; one that is changed in more than the cohort's own keys loses the bare name."""
    if not isinstance(source, str | Path):
        raise ConfigError(f"protocol.preset = {source!r} is not a name; take one of {', '.join(preset_names())}")
    published = read_yaml(find_config(source, FOLDER))
    values = merged(published, changes)
    if "name" not in changes and (altered := _altered(published, values) - OF_THE_COHORT):
        values["name"] = f"{published.get('name', source)}, changed in {', '.join(sorted(altered))}"
    return values


def _altered(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key in one.keys() | other.keys():
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) or isinstance(b, Mapping):
            found |= _altered(a if isinstance(a, Mapping) else {}, b if isinstance(b, Mapping) else {}, f"{prefix}{key}.")
        elif a != b:
            found.add(f"{prefix}{key}")
    return found
