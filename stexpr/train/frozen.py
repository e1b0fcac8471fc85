"""A frozen encoder and ridge regression on its features, fitted in one go and made into a network like the others."""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float32

from stexpr.config import FrozenConfig, StudyConfig, content_hash, described
from stexpr.data.datasets import SpotDataset
from stexpr.data.store import PreparedCohort
from stexpr.errors import ModelError
from stexpr.inference import extract_features, pick_device
from stexpr.models.backbones import Backbone, create_backbone, own_input_px
from stexpr.models.encoders import ENCODERS, known_encoder
from stexpr.models.objectives import make_objective
from stexpr.models.ridge import GroupedRidge
from stexpr.models.spot import SpotRegressor
from stexpr.train.checkpoint import StopFlag
from stexpr.train.results import Job

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_FEATURES: Final[WeakKeyDictionary[PreparedCohort, tuple[str, dict[str, Array]]]] = WeakKeyDictionary()
"""Of the encoder used last, features by section: most sections are trained on in every fold."""


@dataclass(frozen=True)
class View:
    """What of a window an encoder sees, and how.

    Attributes:
        window_px: Side of the center crop, in pixels of the cohort.
        input_px: Side it is resized to.
        note: The same in words.
    """

    window_px: int
    input_px: int
    note: str


def view_of(config: FrozenConfig, *, window_px: int, mpp: float, download: bool = False) -> View:
    """Decide what of a window an encoder sees.

    An encoder of known resolution sees the tissue that fills its input at that resolution, cut from the center of the window
    and resampled; where the window holds less, all of it, magnified. Any other encoder sees the whole window at its own input
    size.

    Args:
        config: The encoder, and the resolution asked for.
        window_px: Side of the window.
        mpp: Microns per pixel of the window.
        download: Fetch the configuration of a repository that is not in the cache.

    Raises:
        ModelError: The encoder is unknown, or a resolution is asked for of one without an input size of its own.
    """
    known = known_encoder(config.backbone)
    asked = config.mpp or (ENCODERS[known].mpp if known is not None else "window")
    input_px = own_input_px(config.backbone, download=download)
    if asked != "window" and input_px is None:
        raise ModelError(
            f"model.mpp = {asked:g}, but the backbone {config.backbone!r} has no input size that makes it a field of view; "
            "set model.mpp=window and the field of view with input.window_px"
        )
    side = input_px or window_px
    window_um = window_px * mpp
    if asked == "window":
        note = f"the encoder sees the whole window, {window_um:.0f} um at {window_um / side:.3g} um/px"
        return View(window_px, side, note)
    field_um = side * float(asked)
    if field_um > window_um * 1.005:
        note = f"of the {field_um:.0f} um the encoder is meant to see at {asked:g} um/px the window holds {window_um:.0f}"
        return View(window_px, side, f"{note}: it sees the whole window, magnified to {window_um / side:.3g} um/px")
    crop_px = max(1, min(window_px, round(field_um / mpp)))
    note = f"the encoder sees the {crop_px} px ({crop_px * mpp:.0f} um) about the spot, resampled from {mpp:.3g} to "
    return View(crop_px, side, f"{note}{crop_px * mpp / side:.3g} um/px")


def frozen_backbone(config: StudyConfig, view: View) -> Backbone:
    """Build the encoder of a study, frozen and on its device.

    Raises:
        ModelError: It is unknown or its weights cannot be had.
    """
    model = config.model
    assert isinstance(model, FrozenConfig)
    backbone = create_backbone(
        model.backbone,
        window_px=view.window_px,
        input_px=view.input_px,
        pretrained=model.pretrained,
        weights=model.weights,
        download=config.runtime.download,
        seed=config.seed,
    )
    backbone.freeze()
    placed: Backbone = backbone.to(device=pick_device(config.runtime.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def fit_frozen(job: Job, view: View, stop: StopFlag) -> tuple[SpotRegressor, tuple[str, ...]]:
    """Embed the training spots of a fold and fit ridge regression on them.

    Args:
        job: The run; its window is that of the view.
        view: What the encoder sees.
        stop: Asked after every section.

    Returns:
        The network whose main head holds the regression, on its device, and what a reader of its record should know.

    Raises:
        InterruptedTrainingError: A signal arrived.
        ModelError: The encoder is unknown or its weights cannot be had.
    """
    config = job.config
    assert isinstance(config.model, FrozenConfig)
    backbone = frozen_backbone(config, view)
    train = job.spots(job.fold.train_sections)
    features = np.concatenate([_features(job, backbone, section, stop) for section in dict.fromkeys(train.spots["section"])])
    ridge = GroupedRidge(config.model.alphas, components=config.model.components, seed=config.seed)
    ridge.fit(features, job.expression(train), job.groups(train))
    kept = (
        f"{ridge.n_components} components of {features.shape[1]} features"
        if ridge.n_components
        else f"{features.shape[1]} features"
    )
    views = "averaged over the eight symmetries of each patch" if config.input.test_symmetries else "of each patch as it is"
    notes = (view.note, f"frozen encoder, {views}, no augmentation; ridge regression on {kept}, alpha {ridge.alpha:g}")
    return _with_head(job, backbone, train, ridge), notes


def _with_head(job: Job, backbone: Backbone, train: SpotDataset, ridge: GroupedRidge) -> SpotRegressor:
    objective = make_objective(
        "mse",
        counts=train.counts_main.numpy(),
        library=train.library.numpy(),
        transform=job.transform,
        standardize=False,  # the regression predicts expression itself
    )
    model = SpotRegressor(backbone, objective, None, auxiliary_weight=0.0)
    weight, bias = ridge.linear()
    with torch.no_grad():
        model.main_head.weight.copy_(torch.from_numpy(weight))
        model.main_head.bias.copy_(torch.from_numpy(bias))
    return model.to(next(backbone.parameters()).device)


def _features(job: Job, backbone: Backbone, section: str, stop: StopFlag) -> Float32[Array, "S D"]:
    stop.raise_if_set()
    config = job.config
    asked = {key: value for key, value in described(config.model).items() if key not in ("components", "alphas")}
    seen = [job.window_px, backbone.input_px, config.seed, config.input.test_symmetries, config.training.precision]
    identity = content_hash([asked, seen, config.runtime.device])
    if _FEATURES.get(job.cohort, ("",))[0] != identity:
        _FEATURES[job.cohort] = identity, {}
    known = _FEATURES[job.cohort][1]
    if section not in known:
        spots = job.spots([section], in_memory=config.runtime.patches_in_memory)
        known[section] = extract_features(
            backbone,
            spots,
            torch.arange(len(spots)),
            batch_size=config.training.batch_size,
            symmetries=config.input.test_symmetries,
            precision=config.training.precision,
            workers=config.runtime.workers,
        )
    return known[section]
