"""Where a model may be trusted: how far a patch lies from those it was trained on, in the space of its features.

Reference:
    Sun et al., Out-of-distribution detection with deep nearest neighbors, ICML 2022, for distances to nearest training
    features; whitened here, because the directions a supervised network spreads its training patches along are few.
"""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from stexpr.errors import ModelError

__all__ = ["Applicability", "fit_applicability"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

COMPONENTS: Final = 32
NEIGHBORS: Final = 5
QUANTILE: Final = 0.99
"""Share of patches of the same kind of tissue that stay below the threshold."""
_KEYS = ("mean", "whitening", "bank", "threshold")


@dataclass(frozen=True)
class Applicability:
    """Training features to measure new ones against.

    Attributes:
        mean: Of the training features.
        whitening: To the leading principal components, each of variance 1.
        bank: Training patches in that space.
        threshold: Distance that 99 % of the patches of held-out patients (or, where there are none, of other training
            sections) stay below.
    """

    mean: Float32[Tensor, "D"]
    whitening: Float32[Tensor, "D C"]
    bank: Float32[Tensor, "M C"]
    threshold: Float32[Tensor, ""]

    def novelty(self, features: Float[Tensor, "B D"]) -> Float32[Tensor, "B"]:
        """Return each patch's mean distance to its nearest training patches, in thresholds: above 1 a patch is foreign."""
        distances = _distances(self._project(features.float()), self.bank)
        return distances / self.threshold

    def to(self, device: torch.device) -> "Applicability":
        """Return it on a device."""
        return Applicability(*(getattr(self, key).to(device) for key in _KEYS))

    def to_bytes(self) -> bytes:
        """Write as safetensors."""
        return save_tensors({key: getattr(self, key).detach().cpu().contiguous() for key in _KEYS})

    @classmethod
    def from_bytes(cls, content: bytes, n_features: int) -> "Applicability":
        """Read what `to_bytes` wrote.

        Raises:
            ModelError: It is not that, or of a model with other features.
        """
        try:
            tensors = load_tensors(content)
            own = cls(**tensors)
            n, c = own.whitening.shape
            fits = own.mean.shape == (n,) == (n_features,) and own.bank.shape[1:] == (c,) and own.threshold.shape == ()
            if not fits or not all(bool(value.isfinite().all()) for value in tensors.values()) or own.threshold <= 0:
                raise ValueError("its arrays do not fit the model")
        except (SafetensorError, TypeError, ValueError, AttributeError) as err:
            raise ModelError(f"the model's applicability reference cannot be read: {err}; export the model again") from err
        return own

    def _project(self, features: Float32[Tensor, "B D"]) -> Float32[Tensor, "B C"]:
        return (features - self.mean) @ self.whitening


def fit_applicability(
    features: Float32[Array, "M D"], sections: Array, held_out: Float32[Array, "N D"] | None = None
) -> Applicability:
    """Fit the reference of a model.

    Args:
        features: Of training patches.
        sections: Of each, its section.
        held_out: Features of patches of the same kind of tissue that the model was not trained on; without them each training
            section is measured against the others.

    Returns:
        The reference, on the CPU.

    Raises:
        ModelError: Fewer training patches than neighbors to compare with, or features that are not finite.
    """
    if len(features) <= NEIGHBORS or not np.isfinite(features).all():
        raise ModelError(f"an applicability reference needs more than {NEIGHBORS} patches with finite features")
    bank = torch.from_numpy(np.asarray(features, dtype=np.float64))
    mean = bank.mean(dim=0)
    _, values, rows = torch.linalg.svd(bank - mean, full_matrices=False)
    sd = values / (len(bank) - 1) ** 0.5
    kept = min(COMPONENTS, int((sd > 1e-6 * sd[0]).sum()) or 1, len(bank) - 1)
    whitening = rows[:kept].T / sd[:kept].clamp_min(1e-12)
    own = Applicability(mean.float(), whitening.float(), ((bank - mean) @ whitening).float(), torch.tensor(1.0))
    if held_out is not None and len(held_out):
        distances = _distances(own._project(torch.from_numpy(held_out).float()), own.bank)
    else:
        distances = _between_sections(own.bank, np.asarray(sections))
    threshold = torch.quantile(distances.double(), QUANTILE).float().clamp_min(1e-6)
    return Applicability(own.mean, own.whitening, own.bank, threshold)


def _between_sections(bank: Float32[Tensor, "M C"], sections: Array) -> Float32[Tensor, "M"]:
    """Measure every patch against the patches of the other sections; with one section, against the others of it."""
    parts = []
    for section in np.unique(sections):
        own = torch.from_numpy(sections == section)
        others = bank[~own] if int((~own).sum()) >= NEIGHBORS else None
        if others is None:  # the nearest of all is the patch itself
            parts.append(_distances(bank[own], bank, skip=1))
        else:
            parts.append(_distances(bank[own], others))
    return torch.cat(parts)


def _distances(points: Float32[Tensor, "B C"], bank: Float32[Tensor, "M C"], skip: int = 0) -> Float32[Tensor, "B"]:
    n = min(NEIGHBORS, len(bank) - skip)
    nearest = torch.cdist(points, bank).topk(n + skip, dim=1, largest=False).values
    return nearest[:, skip:].mean(dim=1)
