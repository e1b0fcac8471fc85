"""The backbone alone, as a folder in timm's own format: whoever has timm can use it without stexpr."""

import copy
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from timm.models import save_for_hf

from stexpr.config.files import write_together
from stexpr.errors import ModelError
from stexpr.models.backbones import Backbone
from stexpr.models.export.files import CONFIG, WEIGHTS
from stexpr.models.export.loaded import LoadedNetwork
from stexpr.models.spot import SpotRegressor
from stexpr.panel import Preprocessing

__all__ = ["save_timm_backbone"]

_OF_OTHER_SIZES: Final = ("pool_size", "test_input_size", "test_pool_size", "test_crop_pct", "min_input_size", "crop_mode")


def save_timm_backbone(
    network: LoadedNetwork | SpotRegressor, folder: Path, *, preprocessing: Preprocessing | None = None
) -> None:
    """Write the backbone of a network for `timm.create_model("local-dir:FOLDER", num_classes=0, pretrained=True)`.

    What timm builds from it gives the same bits, given the same input: colors scaled to [0, 1], less the mean, over the SD
    that stand in its configuration, at the size that stands there. Weights are safetensors. Of a network that saw several
    fields of view it gives the features of one; the network's are those of all, one after the other, and `fields_px` beside
    timm's settings tells their sides (see `models.fields.cut_fields` for how they are resized).

    Args:
        network: Of a loaded model, or as trained.
        folder: Made if need be; timm's files of an earlier backbone in it are replaced.
        preprocessing: How an image became the input, kept beside timm's own settings, which know no microns.

    Raises:
        ModelError: The backbone is not timm's, or the folder holds a model of stexpr or of another library.
        DataError: The folder cannot be written.
    """
    backbone = network.backbone if isinstance(network, SpotRegressor) else network.model.backbone
    if not hasattr(backbone.network, "pretrained_cfg"):
        raise ModelError(
            f"the backbone {backbone.name!r} is not one of timm's, so timm cannot load it; export the whole model, "
            "or train a backbone that timm knows, such as mobilenetv3_small_050"
        )
    if backbone.pooling != "network":
        raise ModelError(
            f"the features of {backbone.name!r} are pooled outside of the network ({backbone.pooling}), which timm cannot "
            "say; export the whole model"
        )
    _refuse_another_model(folder / CONFIG)
    own: Any = copy.deepcopy(backbone.network).to(memory_format=torch.contiguous_format)  # what safetensors can write
    own.pretrained_cfg = _settings(backbone, own.pretrained_cfg)
    with tempfile.TemporaryDirectory() as scratch:
        save_for_hf(
            own,
            scratch,
            model_config={} if preprocessing is None else {"stexpr": {**asdict(preprocessing), "sees": preprocessing.in_words}},
            model_args=backbone.arguments,
            safe_serialization=True,
        )
        # the weights first: a kill between the two leaves the earlier configuration, which does not fit them
        contents = {name: (Path(scratch) / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    write_together(folder, contents)


def _settings(backbone: Backbone, given: dict[str, Any]) -> dict[str, Any]:
    size = (3, backbone.input_px, backbone.input_px)
    colors = {"mean": backbone.mean, "std": backbone.sd}
    kept = {key: value for key, value in given.items() if key not in _OF_OTHER_SIZES}
    return {**kept, **colors, "input_size": size, "interpolation": "bilinear", "crop_pct": 1.0, "num_classes": 0}


def _refuse_another_model(path: Path) -> None:
    """Keep a model that uses the same file names from being replaced."""
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or "architecture" not in found:
        raise ModelError(f"{path} belongs to another model; write the backbone into a folder of its own")
