"""What one run was and what it scored, as data: one record for each fold of a study of spots, another for one of slides."""

import abc
from typing import Final, Literal, TypeAlias

from pydantic import Field, JsonValue, field_validator, model_validator

from stexpr.config import Strict, content_hash

__all__ = [
    "BagsRef",
    "CohortRef",
    "Counts",
    "Epochs",
    "FoldRef",
    "PanelRef",
    "Record",
    "RunRecord",
    "SlideCounts",
    "SlideRecord",
    "Value",
]

FORMAT: Final = 1
SLIDES: Final = "slides"
"""The task of a study of slides."""

Plain: TypeAlias = dict[str, JsonValue]


class Value(Strict):
    """One metric of one run; null where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    interval: str | None = Field(None, description="what the interval covers, in words")


class CohortRef(Strict):
    """The prepared cohort a run read."""

    name: str
    hash: str
    patients: tuple[str, ...]
    details: Plain = Field({}, description="species, tissue, technology, mpp, window_px … as the board prints them")


class FoldRef(Strict):
    """Which patients were tested, and how the number of epochs was chosen without them."""

    index: int = Field(ge=0)
    test_patients: tuple[str, ...] = Field(min_length=1)
    validation: str = Field(description="the rule used: patient, section, block, epochs, test or none")


class PanelRef(Strict):
    """The genes of one fold."""

    hash: str
    rule: str
    scope: str
    n_main: int = Field(ge=1)
    n_auxiliary: int = Field(ge=0)


class Counts(Strict):
    """How much was tested."""

    patients: int = Field(ge=1)
    sections: int = Field(ge=1)
    spots: int = Field(ge=2)
    genes: int = Field(ge=1)


class SlideCounts(Strict):
    """How much was trained on and tested."""

    patients: int = Field(ge=1, description="tested")
    training_patients: int = Field(ge=1)
    slides: int = Field(ge=1, description="tested")
    patches: int = Field(ge=1, description="tested")
    targets: int = Field(ge=1)


class BagsRef(Strict):
    """The instances of a slide study."""

    hash: str
    encoder: str = Field(description="its name on the board")
    encoder_hash: str | None = Field(None, description="as its bags say")
    width: int = Field(ge=1)


class Epochs(Strict):
    """How long a network trained."""

    planned: int
    chosen: int


class RunRecord(Strict):
    """One fold of one study of any task: identity, provenance and results, with no path and no environment in it.

    `model_label` names a line of the leaderboard: runs that share it must share `model` and `settings` and may differ in
    `seed` and fold only. `settings` holds every other choice outside the protocol that changes a number (input, training).
    """

    format: Literal[1] = FORMAT
    study: str
    model_label: str = Field(min_length=1)
    kind: Literal["network", "baseline", "reference"]
    model: Plain
    settings: Plain = {}
    protocol: Plain
    protocol_hash: str
    cohort: CohortRef
    split_hash: str
    fold: FoldRef
    config_hash: str
    seed: int = Field(ge=0)
    epochs: Epochs | None = None
    parameters: int | None = None
    values: dict[str, Value]
    scoring: Plain = Field({}, description="replicates, repeats and seed of the random parts of the score")
    notes: tuple[str, ...] = ()
    execution: Plain = Field(
        {}, description="processes, threads of each, accumulation: parts each batch was processed in, and what compiling took"
    )
    wall_time_s: float = Field(ge=0)
    device: str
    versions: dict[str, str]
    created: str = Field(description="UTC, ISO 8601")

    @field_validator("model")
    @classmethod
    def _model_kind(cls, value: Plain) -> Plain:
        if not isinstance(value.get("kind"), str):
            raise ValueError("the model needs a `kind`, such as network or training_mean")
        return value

    @model_validator(mode="after")
    def _hash_belongs(self) -> "RunRecord":
        if content_hash(self.protocol) != self.protocol_hash:
            raise ValueError("protocol_hash is not the content hash of protocol: the record was edited")
        return self

    @property
    def settings_hash(self) -> str:
        """Identify model and settings, whatever the seed and fold."""
        return content_hash({"model": self.model, "settings": self.settings})

    @property
    @abc.abstractmethod
    def main_value(self) -> tuple[str, float | None]:
        """Name and value of the score that a status line shows."""

    @property
    def in_words(self) -> str:
        """The main value for a status line."""
        name, value = self.main_value
        return f"{name} undefined" if value is None else f"{name} {value:.3f}"


class Record(RunRecord):
    """One fold of a study of spots."""

    task: str = "spot_expression"
    panel: PanelRef
    n: Counts

    @property
    def main_value(self) -> tuple[str, float | None]:
        """Mean per-gene r."""
        return "mean r", self.values["pearson"].value


class SlideRecord(RunRecord):
    """One fold of a study of slides.

    `primary` names the entry of `values` that a status line shows; the scores of a board are computed from the run's tables
    of outputs and labels, over all folds.
    """

    task: Literal["slides"] = "slides"
    n: SlideCounts
    bags: BagsRef
    primary: str

    @property
    def main_value(self) -> tuple[str, float | None]:
        """The primary score of the fold."""
        return self.primary, self.values[self.primary].value
