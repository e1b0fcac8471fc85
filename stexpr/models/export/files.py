"""The files of an exported model, and what each must hold; nothing in them is executed and no name in them is a path."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, cast

from pydantic import Field, field_validator, model_validator

from stexpr.config import Strict, validated
from stexpr.errors import ConfigError, ModelError
from stexpr.models.arguments import checked_arguments
from stexpr.models.export.intervals import IntervalLevel
from stexpr.models.export.release import Release
from stexpr.models.objectives import LossKind
from stexpr.panel import ExpressionTransform, GenePanel, PanelRule, PanelScope, Preprocessing

FORMAT: Final = 3
"""Format 1 knew neither `release` nor ensembles, format 2 one field of view and neither `rank` nor `fusion`; their folders are
read as before."""
PLAIN: Final = 2
"""What a model of one field of view, with neither `rank` nor `fusion`, is written as: earlier versions can read it."""
CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
GENES: Final = "genes.csv"
CARD: Final = "README.md"
INTERVALS: Final = "intervals.csv"
REFERENCE: Final = "reference.safetensors"
MEMBERS: Final = "members"
MAX_MEMBERS: Final = 100
ROLES: Final = ("main", "auxiliary")
MAX_WINDOW_PX: Final = 2048
MAX_LANDMARKS: Final = 100_000

Sha256: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ObjectiveSettings(Strict):
    """What a head was trained for."""

    kind: LossKind
    standardize: bool = True


class FusionSettings(Strict):
    """What a regression on descriptors is built with before its weights are loaded."""

    radii_px: tuple[Annotated[int, Field(ge=1, le=MAX_WINDOW_PX)], ...] = Field(min_length=1, max_length=64)
    n_landmarks: int = Field(ge=1, le=MAX_LANDMARKS)
    n_components: int = Field(ge=1, le=MAX_LANDMARKS)
    share: float = Field(gt=0, le=1)


class PanelSettings(Strict):
    """How the genes of `genes.csv` were chosen."""

    rule: PanelRule
    scope: PanelScope
    min_detection: float
    included: tuple[str, ...]


class IntervalSettings(Strict):
    """What the intervals of `intervals.csv` were calibrated on."""

    level: IntervalLevel
    n_patients: int = Field(ge=1)
    n_spots: int = Field(ge=1)


class ModelConfigFile(Strict):
    """`config.json`, as it must be.

    Attributes:
        backbone: A name without a path or address in it, so that loading a model never reaches for anything else.
        backbone_arguments: What the architecture is built with beside its defaults: numbers and names of layers.
        rank: Factors that the main genes share; None where each has weights of its own.
        sha256: Checksums of the other files.
    """

    format: Literal[1, 2, 3]
    backbone: str = Field(pattern=r"^[A-Za-z0-9_.]+$")
    backbone_arguments: dict[str, Any] = {}
    auxiliary_weight: float = Field(ge=0)
    fusion: FusionSettings | None = None
    rank: int | None = Field(None, ge=1)
    objectives: dict[Literal["main", "auxiliary"], ObjectiveSettings]
    transform: ExpressionTransform
    preprocessing: Preprocessing
    panel: PanelSettings
    provenance: dict[str, Any]
    release: Release = Release()
    intervals: IntervalSettings | None = None
    sha256: dict[str, Sha256]

    @model_validator(mode="before")
    @classmethod
    def _nothing_by_default(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse a unit of expression or an input that is not spelled out."""
        for key, kind in (("transform", ExpressionTransform), ("preprocessing", Preprocessing)):
            names = [field.name for field in fields(kind) if field.name != "fields_px"]
            own = values.get(key)
            optional = {"fields_px"} if key == "preprocessing" and values.get("format") == FORMAT else set()
            if not isinstance(own, dict) or set(own) - optional != set(names):
                raise ValueError(f"{key} has the keys {', '.join(names)} and no others")
        return values

    @field_validator("preprocessing")
    @classmethod
    def _sane_window(cls, preprocessing: Preprocessing) -> Preprocessing:
        for side in (preprocessing.window_px, preprocessing.input_px):
            if not 1 <= side <= MAX_WINDOW_PX:  # before a backbone is tried at that size
                raise ValueError(f"window_px and input_px are between 1 and {MAX_WINDOW_PX}")
        return preprocessing

    @field_validator("backbone_arguments")
    @classmethod
    def _plain_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        return checked_arguments(arguments, "backbone_arguments")  # a ModelError is a ValueError


class EnsembleConfigFile(Strict):
    """`config.json` of an ensemble: its members are exported models, in numbered folders.

    Attributes:
        members: How many; their folders are `members/0`, `members/1` …
        sha256: Checksums of each member's `config.json`, which vouches for that member's files, and of the files beside this.
    """

    format: Literal[2, 3]
    kind: Literal["ensemble"]
    members: int = Field(ge=2, le=MAX_MEMBERS)
    release: Release = Release()
    intervals: IntervalSettings | None = None
    sha256: dict[str, Sha256]


def read_config(folder: Path, expected: str | None = None) -> ModelConfigFile | EnsembleConfigFile:
    """Read and check `config.json`.

    Args:
        folder: Of the model.
        expected: Its checksum, where something else vouches for it.

    Raises:
        ModelError: It is missing, changed, of a newer format or not of stexpr.
    """
    path = folder / CONFIG
    try:
        content = path.read_bytes()
        values: Any = json.loads(content)
    except OSError as err:
        raise ModelError(f"{folder} is no exported model: {CONFIG} cannot be read ({err.strerror})") from err
    except ValueError as err:
        raise ModelError(f"{path} is not JSON; export the model again") from err
    if expected is not None and sha256(content) != expected:
        raise ModelError(f"{path} is not the file the ensemble was written with: it was changed; export again")
    if not isinstance(values, dict) or not {"format", "sha256"} <= values.keys():
        raise ModelError(f"{path} was not written by stexpr")
    if values["format"] not in range(1, FORMAT + 1):
        raise ModelError(f"{path} has format {values['format']!r}, this stexpr reads up to {FORMAT}; install a newer one")
    kind = EnsembleConfigFile if values.get("kind") == "ensemble" else ModelConfigFile
    try:
        return cast(ModelConfigFile | EnsembleConfigFile, validated(kind, values, str(path)))
    except ConfigError as err:
        raise ModelError(str(err)) from err


def format_of(config: Mapping[str, Any]) -> int:
    """Return the format of a `config.json` to be written: the oldest that can say all that is in it."""
    newer = {"rank", "fusion"} & config.keys() or "fields_px" in config.get("preprocessing", {})
    return FORMAT if newer else PLAIN


def checked(path: Path, expected: str | None) -> bytes:
    """Read a file whose checksum is known.

    Raises:
        ModelError: It is missing or another.
    """
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ModelError(f"{path} cannot be read ({err.strerror}); export the model again") from err
    if sha256(content) != expected:
        raise ModelError(f"{path} is not the file {CONFIG} was written with: it was changed or truncated; export again")
    return content


def sha256(content: bytes) -> str:
    """Return the checksum of some bytes."""
    return hashlib.sha256(content).hexdigest()


def genes_csv(panel: GenePanel) -> str:
    """Write the genes of a model, one to a row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["gene", "role", "detection"])
    writer.writerows([gene, "main", panel.detection.get(gene, "")] for gene in panel.main)
    writer.writerows([gene, "auxiliary", ""] for gene in panel.auxiliary)
    return text.getvalue()


def ensemble_genes_csv(genes: tuple[str, ...], n_networks: tuple[int, ...]) -> str:
    """Write the genes of an ensemble for people to read, with how many of its networks predict each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["gene", "networks"])
    writer.writerows(zip(genes, n_networks, strict=True))
    return text.getvalue()


def read_panel(path: Path, content: bytes, settings: PanelSettings) -> GenePanel:
    """Read what `genes_csv` wrote.

    Raises:
        ModelError: It is not such a table.
    """
    try:
        header, *rows = csv.reader(io.StringIO(content.decode()), strict=True)
        if header != ["gene", "role", "detection"] or any(row[1] not in ROLES for row in rows):
            raise ValueError("the columns are gene, role (main or auxiliary) and detection")
        genes = {role: tuple(gene for gene, own, _ in rows if own == role) for role in ROLES}
        detection = {gene: float(rate) for gene, _, rate in rows if rate}
    except (ValueError, IndexError, csv.Error) as err:
        raise ModelError(f"{path} is not a table of genes: {err}") from err
    return GenePanel.from_dict({**genes, **settings.model_dump(), "detection": detection})


def refuse_foreign(path: Path) -> None:
    """Keep another library's model from being replaced.

    Raises:
        ModelError: The `config.json` was not written by stexpr.
    """
    try:
        foreign = "sha256" not in json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        foreign = True
    if foreign:
        raise ModelError(f"{path} is of another library; export to another folder")
