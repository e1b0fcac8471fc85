"""A frozen encoder as the HEST-Benchmark uses one: patches in, features out, never trained."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional

from stexpr.errors import ModelError
from stexpr.evaluate.hest.folder import PATCH_PX, PATCH_UM
from stexpr.inference import pick_device
from stexpr.models.backbones import Backbone, create_backbone, own_input_px
from stexpr.models.encoders import ENCODERS, known_encoder
from stexpr.models.export import CONFIG, load_model
from stexpr.models.weights import weights_hash

__all__ = ["FrozenEncoder", "open_encoder"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class FrozenEncoder:
    """A network that turns patches into features and is not trained any more.

    Attributes:
        backbone: On its device, in evaluation mode.
        field_um: Side of the tissue it was trained to see; None shows it the whole patch.
        identity: What it is, plain JSON values without a path.
        notes: What a reader of its score should know.
    """

    backbone: Backbone
    field_um: float | None
    identity: dict[str, Any]
    notes: tuple[str, ...] = ()

    def embed(self, path: Path, *, batch_size: int) -> Float32[Array, "S D"]:
        """Return the features of every patch of a file, float32 arithmetic throughout, in the order of the file.

        Raises:
            ModelError: A feature is not finite.
        """
        device = next(self.backbone.parameters()).device
        # TF32 and the choice of the fastest algorithm would make the score depend on the graphics card
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        features = []
        with h5py.File(path, "r") as file, torch.inference_mode(), exact:
            images = file["img"]
            for start in range(0, len(images), batch_size):
                patches = torch.from_numpy(images[start : start + batch_size]).to(device).permute(0, 3, 1, 2)
                batch = self.backbone.preprocess(self._window(patches))
                features.append(self.backbone(batch).float().cpu().numpy())
        found = np.concatenate(features)
        if not np.isfinite(found).all():
            bad = int((~np.isfinite(found)).any(axis=1).sum())
            raise ModelError(f"encoder {self.identity['name']} gives features that are not finite for {bad} patches of {path}")
        return found

    def _window(self, patches: UInt8[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 P P"]:
        """Crop patches to the encoder's field of view, where that is smaller, and resize them to its window."""
        side = patches.shape[2]
        if self.field_um is not None:
            kept = min(side, max(1, round(self.field_um / PATCH_UM * side)))
            start = (side - kept) // 2
            patches = patches[:, :, start : start + kept, start : start + kept]
        window = self.backbone.window_px
        if patches.shape[2:] == (window, window):
            return patches
        resized = functional.interpolate(
            patches.float(), size=(window, window), mode="bilinear", antialias=True, align_corners=False
        )
        return resized.round().clamp(0, 255).to(torch.uint8)


def open_encoder(
    encoder: str | Path,
    *,
    pretrained: bool = True,
    weights: Path | None = None,
    download: bool = False,
    device: str = "auto",
) -> FrozenEncoder:
    """Load an encoder, ready to embed.

    A network by name gets whole patches at its own input size and colors. A model that stexpr exported gets the field of view
    and pixel size it was trained at, cropped from the patch's center; one that was trained on more tissue than a patch
    holds gets the whole patch, magnified, and a note says so.

    Args:
        encoder: A folder with `config.json` (stexpr's export or timm's own format), else a name for `create_backbone`.
        pretrained: Load the weights that belong to a name; a folder always brings its own.
        weights: A safetensors file with the weights of the architecture named, instead.
        download: Fetch weights that are not in the cache of huggingface_hub.
        device: As for `pick_device`.

    Raises:
        ModelError: The name is unknown, or the folder or the weights cannot be read.
    """
    folder = Path(encoder)
    if (folder / CONFIG).is_file() or isinstance(encoder, Path):
        timms = _is_timms(folder / CONFIG)
        if weights is not None:
            raise ModelError(f"{folder} has weights of its own; name its architecture to load {weights} instead")
        opened = _named(f"local-dir:{folder}", folder.name, True, None, False) if timms else _exported(folder)
    else:
        label = folder.name if encoder.startswith("local-dir:") else encoder  # no path of this machine in a result
        opened = _named(encoder, label, pretrained, weights, download)
    backbone = opened.backbone.eval().to(pick_device(device)).to(memory_format=torch.channels_last)
    facts = {key: getattr(backbone, key) for key in ("timm_name", "n_features", "window_px", "input_px")}
    facts |= {"fields_px": list(backbone.fields_px)} if len(backbone.fields_px) > 1 else {}
    colors = {"mean": list(backbone.mean), "sd": list(backbone.sd)}
    identity = {**opened.identity, **facts, **colors, "weights_sha256": weights_hash(backbone)}
    return FrozenEncoder(backbone, opened.field_um, identity, opened.notes)


def _is_timms(path: Path) -> bool:
    try:
        return "architecture" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # for load_model to explain
        return False


def _named(name: str, label: str, pretrained: bool, weights: Path | None, download: bool) -> FrozenEncoder:
    native_px = own_input_px(name, download=download) or PATCH_PX
    trained = pretrained or weights is not None
    backbone = create_backbone(name, window_px=native_px, pretrained=pretrained, weights=weights, download=download, seed=0)
    known = known_encoder(name)
    notes = [] if trained else ["the encoder's weights are random (pretrained=False)"]
    notes += [f"encoder {known}: {ENCODERS[known].terms}"] if known is not None else []
    if native_px != PATCH_PX:
        notes.append(f"patches resized from {PATCH_PX} to {native_px} px, the encoder's own input size")
    return FrozenEncoder(backbone, None, {"kind": "timm", "name": label, "pretrained": trained}, tuple(notes))


def _exported(folder: Path) -> FrozenEncoder:
    loaded = load_model(folder)
    settings, known = loaded.preprocessing, loaded.provenance
    field_um = settings.window_px * settings.mpp
    notes = []
    if field_um > PATCH_UM * 1.005:
        notes.append(
            f"the encoder was trained on {field_um:.0f} µm of tissue, a patch holds {PATCH_UM:.0f}: it sees whole patches "
            f"at {PATCH_UM / settings.window_px:.3f} instead of {settings.mpp:.3f} µm/px"
        )
    if settings.stain != "none":
        notes.append(f"the encoder was trained on {settings.stain}-normalized patches; the benchmark's are not normalized")
    if patients := known.get("training_patients"):
        notes.append(
            f"the encoder was trained on {len(patients)} patients of cohort {known.get('cohort', 'unknown')}; whether some of "
            "them are the benchmark's cannot be told from here"
        )
    identity = {"kind": "stexpr", "name": str(known.get("label") or folder.name), "pretrained": True}
    origin = {key: known[key] for key in ("cohort", "cohort_hash", "fold", "seed", "training_patients") if key in known}
    return FrozenEncoder(loaded.model.backbone, field_um, {**identity, "provenance": origin}, tuple(notes))
