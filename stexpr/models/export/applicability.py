"""Where a model may be trusted: how far a patch lies from those it was trained on.

Two distances are taken, each to the nearest training patches in whitened principal components, and the larger counts. In
the space of the network's features a patch is far that drives the network where training never did. But a network
trained on one tissue ignores what did not vary there, such as a hue or blur, so the second space is of appearance:
colors and contrasts, which no training has touched.

Reference:
    Sun et al., Out-of-distribution detection with deep nearest neighbors, ICML 2022.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from stexpr.errors import ModelError

__all__ = ["Applicability", "Views", "appearance", "fit_applicability"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

COMPONENTS: Final = 32
NEIGHBORS: Final = 5
FLOOR: Final = 0.01
"""Least standard deviation of a component, in parts of the first one's."""
QUANTILE: Final = 0.99
"""Share of patches of the same kind of tissue that stay below the threshold."""
_SCALES: Final = 4
_AT_A_TIME: Final = 4
_KEYS: Final = ("mean", "whitening", "bank", "threshold")


def appearance(patches: UInt8[Tensor, "B 3 H W"]) -> Float32[Tensor, "B F"]:
    """Describe colors and contrasts of patches, alike for all flips and rotations.

    Returns:
        Of each channel the mean and the standard deviation, the correlations between channels, and of each channel the mean
        contrast between neighbors at 1, 2, 4 and 8 px; scales that do not fit the patch are left out.
    """
    # a few at a time, whose temporaries stay in a processor's cache; a GPU takes all at once
    parts = torch.split(patches, _AT_A_TIME) if patches.device.type == "cpu" and len(patches) else (patches,)
    return torch.cat([_appearance(part) for part in parts])


def _appearance(patches: UInt8[Tensor, "B 3 H W"]) -> Float32[Tensor, "B F"]:
    images = patches.contiguous().float().div_(255)
    flat = images.flatten(2)
    mean, centered = flat.mean(dim=2), flat - flat.mean(dim=2, keepdim=True)
    sd = centered.square().mean(dim=2).sqrt()
    pairs = [(centered[:, i] * centered[:, j]).mean(dim=1) / (sd[:, i] * sd[:, j] + 1e-3) for i, j in ((0, 1), (0, 2), (1, 2))]
    parts = [mean, sd, torch.stack(pairs, dim=1)]
    for _ in range(_SCALES):
        if min(images.shape[2:]) < 2:
            break
        steps = (images.diff(dim=2).abs_().mean(dim=(2, 3)), images.diff(dim=3).abs_().mean(dim=(2, 3)))
        parts.append((steps[0] + steps[1]) / 2)
        images = _halved(images)
    return torch.cat(parts, dim=1)


def _halved(images: Float32[Tensor, "B 3 H W"]) -> Float32[Tensor, "B 3 h w"]:
    """Average over squares of 2 x 2 px, without the last row or column of an odd side.

    By slices, which takes a fifth of the time of torch's pooling on a CPU.
    """
    height, width = (side // 2 * 2 for side in images.shape[2:])
    rows = images[:, :, 0:height:2] + images[:, :, 1:height:2]
    return (rows[..., 0:width:2] + rows[..., 1:width:2]).mul_(0.25)


class Views(NamedTuple):
    """The two descriptions of some patches.

    Attributes:
        features: Of the network.
        appearance: From `appearance`.
    """

    features: Float32[Tensor, "B D"]
    appearance: Float32[Tensor, "B F"]


class _Space(NamedTuple):
    """Training patches in whitened principal components.

    The thresholds are such that 99 % of the patches of held-out patients (or, where there are none, of other training sections)
    stay below them in both spaces.
    """

    mean: Float32[Tensor, "D"]
    whitening: Float32[Tensor, "D C"]
    bank: Float32[Tensor, "M C"]
    threshold: Float32[Tensor, ""]

    def distances(self, points: Float[Tensor, "B D"]) -> Float32[Tensor, "B"]:
        return _nearest((points.float() - self.mean) @ self.whitening, self.bank) / self.threshold


@dataclass(frozen=True)
class Applicability:
    """Training patches to measure new ones against."""

    features: _Space
    appearance: _Space

    def novelty(self, views: Views) -> Float32[Tensor, "B"]:
        """Return each patch's mean distance to its nearest training patches, in thresholds: above 1 a patch is foreign."""
        return torch.maximum(self.features.distances(views.features), self.appearance.distances(views.appearance))

    def to(self, device: torch.device) -> "Applicability":
        """Return it on a device."""
        return Applicability(*(_Space(*(value.to(device) for value in space)) for space in (self.features, self.appearance)))

    def to_bytes(self) -> bytes:
        """Write as safetensors."""
        return save_tensors(dict(self._tensors()))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name in ("features", "appearance"):
            for key, value in zip(_KEYS, getattr(self, name), strict=True):
                yield f"{name}.{key}", value.detach().cpu().contiguous()

    @classmethod
    def from_bytes(cls, content: bytes, n_features: int) -> "Applicability":
        """Read what `to_bytes` wrote.

        Raises:
            ModelError: It is not that, or of a model with other features.
        """
        try:
            tensors = load_tensors(content)
            spaces = [_Space(*(tensors.pop(f"{name}.{key}") for key in _KEYS)) for name in ("features", "appearance")]
            if tensors or len(spaces[0].mean) != n_features or not all(map(_sound, spaces)):
                raise ValueError("its arrays do not fit the model")
        except (SafetensorError, KeyError, TypeError, ValueError) as err:
            raise ModelError(f"the model's applicability reference cannot be read: {err}; export the model again") from err
        return cls(*spaces)


def _sound(space: _Space) -> bool:
    fits = space.whitening.ndim == space.bank.ndim == 2 and space.mean.shape == space.whitening.shape[:1]
    fits &= space.bank.shape[1:] == space.whitening.shape[1:] and space.threshold.shape == () and len(space.bank) > 0
    return fits and all(bool(value.isfinite().all()) for value in space) and float(space.threshold) > 0


def fit_applicability(trained: Views, sections: Array, held_out: Views | None = None) -> Applicability:
    """Fit the reference of a model.

    Args:
        trained: Training patches.
        sections: Of each, its section.
        held_out: Patches of the same kind of tissue that the model was not trained on; without them each training section is
            measured against the others.

    Returns:
        The reference, on the CPU.

    Raises:
        ModelError: Fewer training patches than neighbors to compare with, or features that are not finite.
    """
    if len(sections) <= NEIGHBORS or not all(bool(view.isfinite().all()) for view in trained):
        raise ModelError(f"an applicability reference needs more than {NEIGHBORS} patches with finite features")
    known = held_out if held_out is not None and len(held_out.features) else (None, None)
    fitted = [_fit_space(own.cpu(), sections, other) for own, other in zip(trained, known, strict=True)]
    # What both spaces together leave below the threshold is the share promised, not what each does alone.
    both = _quantile(torch.maximum(*(distances / space.threshold for space, distances in fitted)))
    return Applicability(*(space._replace(threshold=space.threshold * both) for space, _ in fitted))


def _fit_space(points: Float32[Tensor, "M D"], sections: Array, held_out: Tensor | None) -> tuple[_Space, Tensor]:
    """Return the space, and the distances its threshold is a quantile of."""
    bank = points.double()
    mean = bank.mean(dim=0)
    _, values, rows = torch.linalg.svd(bank - mean, full_matrices=False)
    sd = values / (len(bank) - 1) ** 0.5
    kept = min(COMPONENTS, int((sd > 1e-6 * sd[0]).sum()) or 1, len(bank) - 1)
    # Directions in which training patches hardly differ are not blown up: a gray level more there is no foreign tissue.
    whitening = rows[:kept].T / (sd[:kept].square() + (FLOOR * sd[0]).square()).sqrt().clamp_min(1e-12)
    space = _Space(mean.float(), whitening.float(), ((bank - mean) @ whitening).float(), torch.tensor(1.0))
    distances = _between_sections(space.bank, sections) if held_out is None else space.distances(held_out.cpu())
    return space._replace(threshold=_quantile(distances)), distances


def _quantile(distances: Float32[Tensor, "M"]) -> Float32[Tensor, ""]:
    return torch.quantile(distances.double(), QUANTILE).float().clamp_min(1e-6)


def _between_sections(bank: Float32[Tensor, "M C"], sections: Array) -> Float32[Tensor, "M"]:
    """Measure every patch against the patches of the other sections; with one section, against the others of it."""
    parts = []
    for section in np.unique(sections):
        own = torch.from_numpy(sections == section)
        if int((~own).sum()) < NEIGHBORS:
            return _nearest(bank, bank, skip=1)  # the nearest of all is the patch itself
        parts.append(_nearest(bank[own], bank[~own]))
    return torch.cat(parts)


def _nearest(points: Float32[Tensor, "B C"], bank: Float32[Tensor, "M C"], skip: int = 0) -> Float32[Tensor, "B"]:
    n = min(NEIGHBORS, len(bank) - skip)
    nearest = torch.cdist(points, bank).topk(n + skip, dim=1, largest=False).values
    return nearest[:, skip:].mean(dim=1)
