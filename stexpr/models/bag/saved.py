"""A trained slide head as a folder: `config.json` and `model.safetensors`, nothing of it executed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from pydantic import Field
from safetensors.torch import load, save

from stexpr.config import Strict, validated
from stexpr.config.files import write_together
from stexpr.config.slides import HeadKind, InstanceKind
from stexpr.errors import ConfigError, DataError, ModelError
from stexpr.models.bag import make_head
from stexpr.models.bag.covariates import CovariateCoding
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.targets import TargetGroup, TargetKind, make_objective
from stexpr.models.bag.vote import PatchVote

__all__ = ["LoadedHead", "load_head", "save_head"]

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
MOST_FEATURES: Final = 1_000_000


@dataclass(frozen=True)
class LoadedHead:
    """A slide head and all it needs to be used on other slides.

    Attributes:
        model: In evaluation mode.
        kind: Of the head, a key of `HEADS`.
        instances: What it sees of each patch.
        genes: Of predicted expression among the instances, in their order; empty without.
        groups: What its outputs tell, in their order.
        covariates: How clinical columns become numbers; None without.
        unlearned: Targets whose outputs mean nothing, since all training patients were alike.
        several_slides: Whether a patient's bags are put together, or their outputs averaged.
        encoder: Hash of the encoder of the bags; None where they did not say.
        fitted: Of each target, what was fitted without the test patients, in plain JSON values.
        baseline: Of a Cox target, its cumulative baseline hazard at each of the horizons.
        provenance: What it was trained on, in plain JSON values.
        hash: Identifies the files it was loaded from.
    """

    model: BagModel
    kind: str
    instances: InstanceKind
    genes: tuple[str, ...]
    groups: tuple[TargetGroup, ...]
    covariates: CovariateCoding | None = None
    unlearned: tuple[str, ...] = ()
    several_slides: Literal["bags", "outputs"] = "bags"
    encoder: str | None = None
    fitted: tuple[Mapping[str, Any], ...] = ()
    baseline: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""

    def output_of(self, target: str) -> tuple[int, TargetGroup]:
        """Return where the outputs of a target begin, and its group.

        Raises:
            ModelError: The head has no such target.
        """
        at = 0
        for group, width in zip(self.groups, self.model.widths, strict=True):
            if target in group.names:
                return at + (group.names.index(target) if width == len(group.names) else 0), group
            at += width
        known = ", ".join(name for group in self.groups for name in group.names)
        raise ModelError(f"the head does not predict {target!r}; it predicts {known}")


class _Group(Strict):
    kind: TargetKind
    names: tuple[str, ...] = Field(min_length=1)
    classes: tuple[str, ...] = ()
    weight: float = Field(gt=0)
    bins: int = Field(ge=2)


class _HeadFile(Strict):
    """`config.json`, as it must be."""

    format: Literal[1]
    task: Literal["slides"]
    head: HeadKind
    n_features: int = Field(ge=1, le=MOST_FEATURES)
    widths: tuple[int, ...] = Field(min_length=1)
    dropout: float = Field(ge=0, lt=1)
    vote: Literal["mean", "majority"]
    instance_weight: float
    instances: InstanceKind
    genes: tuple[str, ...]
    groups: tuple[_Group, ...] = Field(min_length=1)
    weights: tuple[float, ...]
    covariates: dict[str, Any] | None
    unlearned: tuple[str, ...]
    several_slides: Literal["bags", "outputs"]
    encoder: str | None
    fitted: tuple[dict[str, Any], ...]
    baseline: dict[str, tuple[float, ...]]
    provenance: dict[str, Any]
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


def save_head(folder: Path, head: LoadedHead, *, widths: tuple[int, ...], dropout: float) -> None:
    """Write a head; an encoder that learned along is not part of it, and is saved as a model of its own.

    Args:
        folder: Made if need be.
        head: The head.
        widths: As it was built with.
        dropout: Likewise.

    Raises:
        DataError: The folder cannot be written.
    """
    model = head.model
    state = {
        key: value.detach().cpu().contiguous() for key, value in model.state_dict().items() if not key.startswith("encoder.")
    }
    weights = save(state)
    content = {
        "format": 1,
        "task": "slides",
        "head": head.kind,
        "n_features": model.head.n_features,
        "widths": list(widths),
        "dropout": dropout,
        "vote": model.head.vote if isinstance(model.head, PatchVote) else "mean",
        "instance_weight": model.instance_weight,
        "instances": head.instances,
        "genes": list(head.genes),
        "groups": [asdict(group) for group in head.groups],
        "weights": list(model.weights),
        "covariates": head.covariates.to_dict() if head.covariates is not None else None,
        "unlearned": list(head.unlearned),
        "several_slides": head.several_slides,
        "encoder": head.encoder,
        "fitted": [dict(values) for values in head.fitted],
        "baseline": {key: list(values) for key, values in head.baseline.items()},
        "provenance": dict(head.provenance),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_together(folder, {WEIGHTS: weights, CONFIG: text.encode()})


def load_head(folder: str | Path) -> LoadedHead:
    """Load a head that `save_head` wrote, on the CPU.

    Raises:
        ModelError: A file is missing, damaged, foreign or of a newer stexpr.
    """
    folder = Path(folder)
    try:
        text = (folder / CONFIG).read_bytes()
        weights = (folder / WEIGHTS).read_bytes()
        values = json.loads(text)
    except (OSError, ValueError) as err:
        raise ModelError(f"{folder} holds no slide head ({err}); give the model/ folder of a run of a slide study") from err
    try:
        if not isinstance(values, dict) or values.get("task") != "slides":
            raise ModelError(f"{folder} holds no slide head; a model of spots is loaded with stexpr.load_model")
        found = cast(_HeadFile, validated(_HeadFile, values, str(folder / CONFIG)))
        if hashlib.sha256(weights).hexdigest() != found.sha256:
            raise ModelError(f"{folder / WEIGHTS} is not the file that {CONFIG} vouches for; export the head again")
        state = load(weights)
        groups = tuple(TargetGroup(**group.model_dump()) for group in found.groups)
        model = _model(found, groups, state)
        coding = CovariateCoding.from_dict(found.covariates) if found.covariates is not None else None
    except (ConfigError, DataError) as err:
        raise ModelError(f"{folder} holds no usable slide head: {err}") from err
    except (RuntimeError, KeyError) as err:  # safetensors and load_state_dict
        if isinstance(err, ModelError):
            raise
        raise ModelError(f"the weights in {folder} do not fit their {CONFIG}: {err}; export the head again") from err
    return LoadedHead(
        model=model.eval(),
        kind=found.head,
        instances=found.instances,
        genes=found.genes,
        groups=groups,
        covariates=coding,
        unlearned=found.unlearned,
        several_slides=found.several_slides,
        encoder=found.encoder,
        fitted=found.fitted,
        baseline=found.baseline,
        provenance=found.provenance,
        hash=hashlib.sha256(text).hexdigest()[:16],
    )


def _model(found: _HeadFile, groups: tuple[TargetGroup, ...], state: Mapping[str, torch.Tensor]) -> BagModel:
    objectives = []
    for i, group in enumerate(groups):
        prefix = f"objectives.{i}."
        objectives.append(make_objective(group, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}))
    n_outputs = sum(objective.n_outputs for objective in objectives)
    head = make_head(found.head, found.n_features, n_outputs, widths=found.widths, dropout=found.dropout)
    if isinstance(head, PatchVote):
        head.vote = found.vote
    fusion = state.get("fusion.weight")
    model = BagModel(
        head,
        objectives,
        mean=torch.zeros(found.n_features),
        sd=torch.ones(found.n_features),
        weights=found.weights,
        n_covariates=0 if fusion is None else fusion.shape[1],
        instance_weight=found.instance_weight,
    )
    model.load_state_dict(dict(state))
    return model
