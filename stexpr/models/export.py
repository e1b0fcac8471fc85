"""A trained model as a folder: `config.json`, `model.safetensors`, `genes.csv` and a model card.

Nothing in it is executed on loading, and no name in it is a path: weights are safetensors, the rest is checked JSON and
CSV, and checksums tie them together.
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

import torch
from pydantic import Field, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from stexpr.config import Strict, validated
from stexpr.config.files import write_together
from stexpr.errors import ConfigError, ModelError
from stexpr.models.arguments import checked_arguments
from stexpr.models.backbones import create_backbone
from stexpr.models.model_card import model_card
from stexpr.models.objectives import LossKind, Objective, empty_objective
from stexpr.models.spot import SpotRegressor
from stexpr.panel import ExpressionTransform, GenePanel, PanelRule, PanelScope, Preprocessing

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
GENES = "genes.csv"
CARD = "README.md"
ROLES = ("main", "auxiliary")
MAX_WINDOW_PX = 2048

Sha256: TypeAlias = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ObjectiveSettings(Strict):
    """What a head was trained for."""

    kind: LossKind
    standardize: bool = True


class PanelSettings(Strict):
    """How the genes of `genes.csv` were chosen."""

    rule: PanelRule
    scope: PanelScope
    min_detection: float
    included: tuple[str, ...]


class ModelConfigFile(Strict):
    """`config.json`, as it must be.

    Attributes:
        backbone: A name without a path or address in it, so that loading a model never reaches for anything else.
        backbone_arguments: What the architecture is built with beside its defaults: numbers and names of layers.
        sha256: Checksums of the other files.
    """

    format: Literal[1]
    backbone: str = Field(pattern=r"^[A-Za-z0-9_.]+$")
    backbone_arguments: dict[str, Any] = {}
    auxiliary_weight: float = Field(ge=0)
    objectives: dict[Literal["main", "auxiliary"], ObjectiveSettings]
    transform: ExpressionTransform
    preprocessing: Preprocessing
    panel: PanelSettings
    provenance: dict[str, Any]
    sha256: dict[str, Sha256]

    @model_validator(mode="before")
    @classmethod
    def _nothing_by_default(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse a unit of expression or an input that is not spelled out."""
        for key, kind in (("transform", ExpressionTransform), ("preprocessing", Preprocessing)):
            names = [field.name for field in fields(kind)]
            own = values.get(key)
            if not isinstance(own, dict) or set(own) != set(names):
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


@dataclass(frozen=True)
class LoadedModel:
    """A model and all it needs to be used.

    Attributes:
        model: In evaluation mode, on the CPU.
        panel: Names and order of the genes it predicts.
        transform: Unit of its predictions.
        preprocessing: How an image becomes its input.
        provenance: What it was trained on.
    """

    model: SpotRegressor
    panel: GenePanel
    transform: ExpressionTransform
    preprocessing: Preprocessing
    provenance: dict[str, Any]


def save_model(
    folder: Path,
    model: SpotRegressor,
    *,
    panel: GenePanel,
    transform: ExpressionTransform,
    preprocessing: Preprocessing,
    provenance: Mapping[str, Any],
) -> None:
    """Write a model.

    Every file is written beside its place before any is moved there, `config.json` with the checksums of the others last:
    a full disk leaves an earlier model whole, and a kill between two moves a folder that `load_model` refuses.

    Args:
        folder: Made if need be; files of an earlier model in it are replaced.
        model: The model.
        panel: Its genes.
        transform: Unit of its predictions.
        preprocessing: How an image becomes its input.
        provenance: What it was trained on, plain JSON values.

    Raises:
        ModelError: The panel does not have the genes of the model, or the folder holds another library's model.
        DataError: The folder cannot be written.
    """
    objectives = {"main": model.main_objective, "auxiliary": model.auxiliary_objective}
    asked = (len(panel.main), len(panel.auxiliary))
    own = tuple(objective.n_outputs if objective is not None else 0 for objective in objectives.values())
    if asked != own:
        raise ModelError(f"the panel has {asked[0]} main and {asked[1]} auxiliary genes, the model {own[0]} and {own[1]}")
    backbone = model.backbone
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    contents = {WEIGHTS: save_tensors(tensors), GENES: _genes_csv(panel).encode()}
    config = {
        "format": FORMAT,
        # weights that came from a folder or a repository are now here: only the architecture is still needed
        "backbone": backbone.portable_name,
        "backbone_arguments": backbone.arguments,
        "auxiliary_weight": model.auxiliary_weight,
        "objectives": {role: o.settings() for role, o in objectives.items() if o is not None},
        "transform": asdict(transform),
        "preprocessing": asdict(preprocessing),
        "panel": {key: panel.to_dict()[key] for key in PanelSettings.model_fields},
        "provenance": dict(provenance),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    contents[CARD] = model_card(panel, preprocessing, provenance).encode()
    contents[CONFIG] = (json.dumps(config, indent=1) + "\n").encode()
    if (folder / CONFIG).exists():
        _refuse_foreign(folder / CONFIG)
    write_together(folder, contents)


def load_model(folder: str | Path) -> LoadedModel:
    """Read a model that `save_model` wrote.

    Args:
        folder: The folder.

    Returns:
        The model, in evaluation mode on the CPU, channels last in memory as in training.

    Raises:
        ModelError: A file is missing, was changed or truncated, or is not of this format.
    """
    folder = Path(folder)
    config = _read_config(folder)
    contents = {name: _checked(folder / name, config.sha256.get(name)) for name in (WEIGHTS, GENES)}
    panel = _read_panel(folder / GENES, contents[GENES], config.panel)
    try:
        model = SpotRegressor(
            create_backbone(
                config.backbone,
                window_px=config.preprocessing.window_px,
                input_px=config.preprocessing.input_px,
                arguments=config.backbone_arguments,
            ),
            _objective(config, "main", len(panel.main)),
            _objective(config, "auxiliary", len(panel.auxiliary)) if panel.auxiliary else None,
            auxiliary_weight=config.auxiliary_weight,
        )
        model.load_state_dict(load_tensors(contents[WEIGHTS]))
    except (ModelError, SafetensorError, RuntimeError) as err:  # load_state_dict raises RuntimeError
        reason = " ".join(str(err).split())[:300]
        raise ModelError(f"{folder / WEIGHTS} does not fit {CONFIG}, or this version of timm: {reason}") from err
    model = model.eval().to(memory_format=torch.channels_last)
    return LoadedModel(model, panel, config.transform, config.preprocessing, config.provenance)


def _objective(config: ModelConfigFile, role: Literal["main", "auxiliary"], n_outputs: int) -> Objective:
    settings = config.objectives.get(role)
    if settings is None:
        raise ModelError(f"there is no objective for the {n_outputs} {role} genes")
    return empty_objective(settings.model_dump(), n_outputs, config.transform)


def _read_config(folder: Path) -> ModelConfigFile:
    path = folder / CONFIG
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ModelError(f"{folder} is no exported model: {CONFIG} cannot be read ({err.strerror})") from err
    except ValueError as err:
        raise ModelError(f"{path} is not JSON; export the model again") from err
    if not isinstance(values, dict) or not {"format", "sha256"} <= values.keys():
        raise ModelError(f"{path} was not written by stexpr")
    if values["format"] != FORMAT:
        raise ModelError(f"{path} has format {values['format']!r}, this stexpr reads format {FORMAT}; install a newer one")
    try:
        return cast(ModelConfigFile, validated(ModelConfigFile, values, str(path)))
    except ConfigError as err:
        raise ModelError(str(err)) from err


def _checked(path: Path, expected: str | None) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ModelError(f"{path} cannot be read ({err.strerror}); export the model again") from err
    if hashlib.sha256(content).hexdigest() != expected:
        raise ModelError(f"{path} is not the file {CONFIG} was written with: it was changed or truncated; export again")
    return content


def _genes_csv(panel: GenePanel) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["gene", "role", "detection"])
    writer.writerows([gene, "main", panel.detection.get(gene, "")] for gene in panel.main)
    writer.writerows([gene, "auxiliary", ""] for gene in panel.auxiliary)
    return text.getvalue()


def _read_panel(path: Path, content: bytes, settings: PanelSettings) -> GenePanel:
    try:
        header, *rows = csv.reader(io.StringIO(content.decode()), strict=True)
        if header != ["gene", "role", "detection"] or any(row[1] not in ROLES for row in rows):
            raise ValueError("the columns are gene, role (main or auxiliary) and detection")
        genes = {role: tuple(gene for gene, own, _ in rows if own == role) for role in ROLES}
        detection = {gene: float(rate) for gene, _, rate in rows if rate}
    except (ValueError, IndexError, csv.Error) as err:
        raise ModelError(f"{path} is not a table of genes: {err}") from err
    return GenePanel.from_dict({**genes, **settings.model_dump(), "detection": detection})


def _refuse_foreign(path: Path) -> None:
    try:
        foreign = "sha256" not in json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        foreign = True
    if foreign:
        raise ModelError(f"{path} is of another library; export to another folder")
