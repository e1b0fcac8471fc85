"""A trained model as a folder: `config.json`, `model.safetensors`, `genes.csv` and a model card.

Nothing in it is executed on loading: weights are safetensors, the rest is JSON and CSV, and checksums tie them together.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from stexpr.errors import ModelError, StexprError
from stexpr.models.backbones import create_backbone
from stexpr.models.objectives import Objective, empty_objective
from stexpr.models.spot import SpotRegressor
from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
GENES = "genes.csv"
CARD = "README.md"


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
    """Write a model; `config.json`, which the others hang on, comes last.

    Args:
        folder: Made if need be; files of an earlier model in it are replaced.
        model: The model.
        panel: Its genes.
        transform: Unit of its predictions.
        preprocessing: How an image becomes its input.
        provenance: What it was trained on, plain JSON values.

    Raises:
        ModelError: The panel does not have the genes of the model.
    """
    objectives = {"main": model.main_objective, "auxiliary": model.auxiliary_objective}
    if (len(panel.main), len(panel.auxiliary)) != tuple(o.n_outputs if o else 0 for o in objectives.values()):
        raise ModelError(f"the panel has {len(panel.main)} + {len(panel.auxiliary)} genes, the model has others")
    genes = {"main": panel.main, "auxiliary": panel.auxiliary}
    rule = {key: value for key, value in panel.to_dict().items() if key not in (*genes, "detection")}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    contents = {WEIGHTS: save_tensors(tensors), GENES: _genes_csv(panel).encode()}
    config = {
        "format": FORMAT,
        "backbone": model.backbone.name,
        "auxiliary_weight": model.auxiliary_weight,
        "objectives": {role: o.settings() for role, o in objectives.items() if o is not None},
        "transform": asdict(transform),
        "preprocessing": asdict(preprocessing),
        "panel": rule,
        "provenance": dict(provenance),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    contents[CARD] = model_card(panel, preprocessing, provenance).encode()
    contents[CONFIG] = (json.dumps(config, indent=1) + "\n").encode()
    for name, content in contents.items():
        beside = folder / f".{name}.part"
        beside.write_bytes(content)
        os.replace(beside, folder / name)


def load_model(folder: str | Path) -> LoadedModel:
    """Read a model that `save_model` wrote.

    Args:
        folder: The folder.

    Returns:
        The model, in evaluation mode on the CPU.

    Raises:
        ModelError: A file is missing, was changed or truncated, or is not of this format.
    """
    folder = Path(folder)
    config = _read_config(folder)
    contents = {name: _checked(folder / name, config["sha256"].get(name)) for name in (WEIGHTS, GENES)}
    try:
        panel = _read_panel(contents[GENES].decode(), config["panel"])
        transform = ExpressionTransform(**config["transform"])
        values = config["preprocessing"]
        preprocessing = Preprocessing(**{**values, "mean": tuple(values["mean"]), "sd": tuple(values["sd"])})
        model = SpotRegressor(
            create_backbone(config["backbone"], window_px=preprocessing.window_px),
            _objective(config, "main", len(panel.main), transform),
            _objective(config, "auxiliary", len(panel.auxiliary), transform) if panel.auxiliary else None,
            auxiliary_weight=float(config["auxiliary_weight"]),
        )
        model.load_state_dict(load_tensors(contents[WEIGHTS]))
    except (StexprError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as err:
        raise ModelError(f"{folder} does not hold a model of this version of stexpr: {' '.join(str(err).split())}") from err
    return LoadedModel(model.eval(), panel, transform, preprocessing, config["provenance"])


def _objective(config: Mapping[str, Any], role: str, n_outputs: int, transform: ExpressionTransform) -> Objective:
    return empty_objective(config["objectives"][role], n_outputs, transform)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ModelError(f"{folder} is no exported model: {CONFIG} cannot be read ({err.strerror})") from err
    except ValueError as err:
        raise ModelError(f"{path} is not JSON; export the model again") from err
    if not isinstance(config, dict) or not isinstance(config.get("sha256"), dict):
        raise ModelError(f"{path} was not written by stexpr")
    if config.get("format") != FORMAT:
        raise ModelError(f"{path} has format {config.get('format')!r}, this stexpr reads format {FORMAT}")
    return config


def _checked(path: Path, expected: str | None) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ModelError(f"{path} cannot be read ({err.strerror}); export the model again") from err
    if hashlib.sha256(content).hexdigest() != expected:
        raise ModelError(f"{path} is not the file {CONFIG} was written with; it was changed or truncated: export again")
    return content


def _genes_csv(panel: GenePanel) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["gene", "role", "detection"])
    writer.writerows([gene, "main", panel.detection.get(gene, "")] for gene in panel.main)
    writer.writerows([gene, "auxiliary", ""] for gene in panel.auxiliary)
    return text.getvalue()


def _read_panel(text: str, rule: Mapping[str, Any]) -> GenePanel:
    rows = list(csv.DictReader(io.StringIO(text)))
    genes = {role: tuple(row["gene"] for row in rows if row["role"] == role) for role in ("main", "auxiliary")}
    detection = {row["gene"]: float(row["detection"]) for row in rows if row["detection"]}
    return GenePanel.from_dict({**rule, **genes, "detection": detection})


def model_card(panel: GenePanel, preprocessing: Preprocessing, provenance: Mapping[str, Any]) -> str:
    """Say in Markdown what a model is, what it was trained on and where it must not be trusted.

    Args:
        panel: Its genes.
        preprocessing: Its input.
        provenance: What it was trained on; missing entries are said to be unknown.
    """
    about = {key: provenance.get(key) or "unknown" for key in ("label", "cohort", "species", "tissue", "preservation")}
    about |= {key: provenance.get(key) or "unknown" for key in ("technology", "license", "citation", "cohort_hash")}
    patients = ", ".join(map(str, provenance.get("training_patients", ()))) or "unknown"
    held_out = ", ".join(map(str, provenance.get("test_patients", ()))) or "unknown"
    return f"""# {about["label"]}

Predicts the expression of {len(panel.main)} genes (`genes.csv`) from an H&E patch of {preprocessing.window_px} px at
{preprocessing.mpp:g} um/px. Load it with `stexpr.load_model(folder)`.

| | |
|---|---|
| trained on | {about["cohort"]} ({about["cohort_hash"]}), patients {patients} |
| held out | {held_out} |
| species, tissue | {about["species"]}, {about["tissue"]} |
| preservation, technology | {about["preservation"]}, {about["technology"]} |
| genes chosen by | {panel.rule}, on the {panel.scope} spots |
| stain normalization | {preprocessing.stain} |
| license of the data | {about["license"]} |
| citation of the data | {about["citation"]} |

Limits: predictions for another species, tissue, preservation, scanner or resolution than the above were not tested. Most
genes are predicted weakly; see the per-gene scores of the run before relying on one. Not for diagnosis.
"""
