"""A trained model as a folder: `config.json`, `model.safetensors`, `genes.csv` and a model card.

Nothing in it is executed on loading, and no name in it is a path: weights are safetensors, the rest is checked JSON and
CSV, and checksums tie them together. An ensemble holds one such folder for each fold.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from stexpr.config.files import write_together
from stexpr.errors import ModelError
from stexpr.models.backbones import create_backbone
from stexpr.models.export.applicability import Applicability
from stexpr.models.export.card import model_card
from stexpr.models.export.files import (
    CARD,
    CONFIG,
    GENES,
    INTERVALS,
    MEMBERS,
    REFERENCE,
    WEIGHTS,
    EnsembleConfigFile,
    ModelConfigFile,
    checked,
    ensemble_genes_csv,
    format_of,
    genes_csv,
    read_config,
    read_panel,
    refuse_foreign,
    sha256,
)
from stexpr.models.export.hub import HubModel, located
from stexpr.models.export.intervals import PredictionIntervals
from stexpr.models.export.loaded import LoadedModel, LoadedNetwork, PatchOutput
from stexpr.models.export.release import Release
from stexpr.models.fusion import DescriptorRegression
from stexpr.models.low_rank import LowRankHead, empty_components
from stexpr.models.objectives import Objective, empty_objective
from stexpr.models.spot import SpotRegressor
from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing

__all__ = [
    "CARD",
    "CONFIG",
    "GENES",
    "WEIGHTS",
    "LoadedModel",
    "LoadedNetwork",
    "PatchOutput",
    "Release",
    "load_model",
    "save_ensemble",
    "save_model",
]


def save_model(
    folder: Path,
    model: SpotRegressor,
    *,
    panel: GenePanel,
    transform: ExpressionTransform,
    preprocessing: Preprocessing,
    provenance: Mapping[str, Any],
    release: Release | None = None,
    applicability: Applicability | None = None,
    intervals: PredictionIntervals | None = None,
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
        release: What is known beyond the run; nothing by default.
        applicability: Its training features.
        intervals: Around its predictions.

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
    contents = {WEIGHTS: save_tensors(tensors), GENES: genes_csv(panel).encode()}
    if applicability is not None:
        contents[REFERENCE] = applicability.to_bytes()
    seen = asdict(preprocessing)
    if len(preprocessing.fields_px) == 1:
        del seen["fields_px"]  # it is the window, and earlier versions know no other
    config = {
        # weights that came from a folder or a repository are now here: only the architecture is still needed
        "backbone": backbone.portable_name,
        "backbone_arguments": backbone.arguments,
        "auxiliary_weight": model.auxiliary_weight,
        "objectives": {role: o.settings() for role, o in objectives.items() if o is not None},
        "transform": asdict(transform),
        "preprocessing": seen,
        "panel": {key: panel.to_dict()[key] for key in ("rule", "scope", "min_detection", "included")},
        "provenance": dict(provenance),
    }
    if isinstance(model.main_head, LowRankHead):
        config["rank"] = model.main_head.out_features
    if model.fusion is not None:
        config["fusion"] = model.fusion.settings()
    network = LoadedNetwork(model, panel, dict(provenance), applicability)
    _write(folder, contents, config, LoadedModel((network,), transform, preprocessing, release or Release(), intervals))


def save_ensemble(
    folder: Path,
    members: tuple[LoadedModel, ...],
    *,
    release: Release | None = None,
    intervals: PredictionIntervals | None = None,
) -> None:
    """Write the models of several folds as one.

    Args:
        folder: Made if need be.
        members: Each of one network, all with the same field of view, pixel size, stain and unit of expression.
        release: What is known of them together.
        intervals: Around their mean prediction.

    Raises:
        ModelError: Fewer than two, or unlike each other; the folder holds another library's model.
        DataError: The folder cannot be written.
    """
    if len(members) < 2:
        raise ModelError(f"an ensemble has at least two members, got {len(members)}")
    _check_alike(members)
    vouched: dict[str, str] = {}
    for i, member in enumerate(members):
        own = folder / MEMBERS / str(i)
        member.save(own)
        vouched[f"{MEMBERS}/{i}/{CONFIG}"] = sha256((own / CONFIG).read_bytes())
    whole = replace(_together(members), release=release or Release(), intervals=intervals)
    genes = {GENES: ensemble_genes_csv(whole.genes, whole.n_networks).encode()}
    _write(folder, genes, {"kind": "ensemble", "members": len(members), "sha256": vouched}, whole)


def _write(folder: Path, contents: dict[str, bytes], config: dict[str, Any], model: LoadedModel) -> None:
    """Write the files of a model, then its card and, last, the configuration that vouches for them."""
    described, intervals = None, model.intervals
    if intervals is not None:
        contents[INTERVALS] = intervals.to_csv()
        described = {"level": intervals.level, "n_patients": intervals.n_patients, "n_spots": intervals.n_spots}
    config = {
        "format": format_of(config),
        **config,
        "release": model.release.model_dump(mode="json"),
        "intervals": described,
        "sha256": {**config.get("sha256", {}), **{name: sha256(content) for name, content in contents.items()}},
    }
    contents[CARD] = model_card(model).encode()
    contents[CONFIG] = (json.dumps(config, indent=1) + "\n").encode()
    if (folder / CONFIG).exists():
        refuse_foreign(folder / CONFIG)
    write_together(folder, contents)


def _save_loaded(model: LoadedModel, folder: Path) -> None:
    """Write a loaded model with all that came with it; the files keep their hash."""
    if model.members:
        save_ensemble(folder, model.members, release=model.release, intervals=model.intervals)
        return
    save_model(
        folder,
        model.model,
        panel=model.panel,
        transform=model.transform,
        preprocessing=model.preprocessing,
        provenance=model.provenance,
        release=model.release,
        applicability=model.networks[0].applicability,
        intervals=model.intervals,
    )


def load_model(source: str | Path, *, revision: str | None = None, download: bool = False) -> LoadedModel:
    """Read an exported model from a folder or from the Hugging Face hub.

    Args:
        source: The folder; or OWNER/NAME of a repository, where there is no such folder.
        revision: Branch, tag or commit of the repository.
        download: Allow the hub to be asked. Without it only a repository in huggingface_hub's cache is found, because a
            misspelled folder must not become a request to a server.

    Returns:
        The model, in evaluation mode on the CPU, channels last in memory as in training.

    Raises:
        ModelError: A file is missing, was changed or truncated, or is not of this format; a repository is not in the
            cache, or the hub refuses it.
    """
    folder = located(source, revision=revision, download=download)
    return _load(folder, read_config(folder))


def _load(folder: Path, config: ModelConfigFile | EnsembleConfigFile) -> LoadedModel:
    loaded = _load_network(folder, config) if isinstance(config, ModelConfigFile) else _load_members(folder, config)
    intervals = None
    if config.intervals is not None:
        table = checked(folder / INTERVALS, config.sha256.get(INTERVALS))
        intervals = PredictionIntervals.from_csv(table, loaded.genes, **config.intervals.model_dump())
    identity = sha256(json.dumps(config.sha256, sort_keys=True).encode())[:16]
    return replace(loaded, release=config.release, intervals=intervals, hash=identity)


def _load_members(folder: Path, config: EnsembleConfigFile) -> LoadedModel:
    members = []
    for i in range(config.members):
        own = folder / MEMBERS / str(i)
        described = read_config(own, config.sha256.get(f"{MEMBERS}/{i}/{CONFIG}", ""))
        if isinstance(described, EnsembleConfigFile):
            raise ModelError(f"{own} is an ensemble inside an ensemble; export the runs again")
        members.append(_load(own, described))
    _check_alike(tuple(members))
    return _together(tuple(members))


def _together(members: tuple[LoadedModel, ...]) -> LoadedModel:
    networks = tuple(member.networks[0] for member in members)
    return LoadedModel(networks, members[0].transform, members[0].preprocessing, members=members)


def _load_network(folder: Path, config: ModelConfigFile) -> LoadedModel:
    contents = {name: checked(folder / name, config.sha256.get(name)) for name in (WEIGHTS, GENES)}
    panel = read_panel(folder / GENES, contents[GENES], config.panel)
    try:
        model = SpotRegressor(
            create_backbone(
                config.backbone,
                window_px=config.preprocessing.window_px,
                fields_px=config.preprocessing.fields_px,
                input_px=config.preprocessing.input_px,
                arguments=config.backbone_arguments,
            ),
            _objective(config, "main", len(panel.main)),
            _objective(config, "auxiliary", len(panel.auxiliary)) if panel.auxiliary else None,
            auxiliary_weight=config.auxiliary_weight,
            components=empty_components(config.rank, len(panel.main)),
        )
        if config.fusion is not None:
            window_px, settings = config.preprocessing.window_px, config.fusion.model_dump()
            model.fuse(DescriptorRegression.empty(window_px, len(panel.main), settings))
        model.load_state_dict(load_tensors(contents[WEIGHTS]))
    except (ModelError, SafetensorError, RuntimeError) as err:  # load_state_dict raises RuntimeError
        reason = " ".join(str(err).split())[:300]
        raise ModelError(f"{folder / WEIGHTS} does not fit {CONFIG}, or this version of timm: {reason}") from err
    applicability = None
    if REFERENCE in config.sha256:
        reference = checked(folder / REFERENCE, config.sha256[REFERENCE])
        applicability = Applicability.from_bytes(reference, model.n_features)
    model = model.eval().to(memory_format=torch.channels_last)
    network = LoadedNetwork(model, panel, config.provenance, applicability)
    return LoadedModel((network,), config.transform, config.preprocessing)


def _objective(config: ModelConfigFile, role: Literal["main", "auxiliary"], n_outputs: int) -> Objective:
    settings = config.objectives.get(role)
    if settings is None:
        raise ModelError(f"there is no objective for the {n_outputs} {role} genes")
    return empty_objective(settings.model_dump(), n_outputs, config.transform)


def _check_alike(members: tuple[LoadedModel, ...]) -> None:
    """Refuse an ensemble whose members do not see the same patch or do not predict in the same unit."""
    seen = {(m.preprocessing.mpp, m.preprocessing.fields_px, m.preprocessing.stain) for m in members}
    units = {member.transform for member in members}
    if len(seen) > 1 or len(units) > 1:
        differing = "fields of view, pixel sizes or stains" if len(seen) > 1 else "units of expression"
        raise ModelError(f"the members of an ensemble differ in their {differing}; export runs of one study together")
    if any(len(member.networks) > 1 for member in members):
        raise ModelError("a member of an ensemble is an ensemble itself; export the runs themselves")


HubModel._read, HubModel._write = load_model, _save_loaded
