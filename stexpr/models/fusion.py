"""Late fusion: what colors and textures say of expression, in closed form, beside what a network says."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from stexpr.models.components import GAMMA, VIEWS, ComponentMap
from stexpr.models.descriptors import Descriptors, Group

__all__ = ["DescriptorRegression"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class DescriptorRegression(nn.Module):
    """Predicts expression components of a patch from its descriptors: the mean of the views of `components.VIEWS`.

    Args:
        window_px: Side of the patches.
        radii_px: Of the descriptors.
        n_landmarks: Of each Gaussian view.
        axes: Principal axes of standardized expression.
        share: Of the prediction, the rest is the network's.
    """

    axes: Tensor

    def __init__(
        self,
        window_px: int,
        radii_px: Sequence[int],
        *,
        n_landmarks: int,
        axes: Float32[Tensor, "C G"],
        share: float,
    ) -> None:
        super().__init__()
        self.descriptors = Descriptors(window_px, radii_px)
        self.share = share
        self.n_landmarks = n_landmarks
        self.register_buffer("axes", axes)
        n = len(axes)
        self.views = nn.ModuleList(
            _View(sum(map(self.descriptors.width, view.groups)), 0 if view.kernel == "linear" else n_landmarks, n)
            for view in VIEWS
        )

    @property
    def n_components(self) -> int:
        """Components predicted."""
        return len(self.axes)

    def settings(self) -> dict[str, Any]:
        """Return what `empty` needs to build this again, as plain JSON values."""
        return {
            "radii_px": list(self.descriptors.radii_px),
            "n_landmarks": self.n_landmarks,
            "n_components": self.n_components,
            "share": self.share,
        }

    @classmethod
    def empty(cls, window_px: int, n_genes: int, settings: dict[str, Any]) -> "DescriptorRegression":
        """Build one to load weights into.

        Raises:
            ModelError: No disc fits the window.
        """
        axes = torch.zeros(settings["n_components"], n_genes)
        n_landmarks, share = settings["n_landmarks"], settings["share"]
        return cls(window_px, settings["radii_px"], n_landmarks=n_landmarks, axes=axes, share=share)

    def fill(self, maps: Sequence[ComponentMap]) -> None:
        """Take over what was fitted, one map for each view."""
        for view, fitted in zip(self.views, maps, strict=True):
            for name in ("center", "scale", "landmarks", "weight", "bias"):
                values = torch.from_numpy(np.asarray(getattr(fitted, name), dtype=np.float32))
                view.get_buffer(name).copy_(values)

    def forward(self, patches: UInt8[Tensor, "B 3 H W"]) -> Float32[Tensor, "B C"]:
        """Predict the components of patches."""
        return self.of_descriptors(self.descriptors(patches))

    def of_descriptors(self, described: dict[Group, Float32[Tensor, "B _"]]) -> Float32[Tensor, "B C"]:
        """Predict the components of patches described before."""
        parts = [
            own(torch.cat([described[group] for group in view.groups], dim=1))
            for view, own in zip(VIEWS, self.views, strict=True)
        ]
        return torch.stack(parts).mean(dim=0)


class _View(nn.Module):
    """A `ComponentMap` as buffers, which are not trained and travel with the weights."""

    center: Tensor
    scale: Tensor
    landmarks: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, n_landmarks: int, n_components: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("landmarks", torch.zeros(n_landmarks, width))
        self.register_buffer("weight", torch.zeros(n_landmarks or width, n_components))
        self.register_buffer("bias", torch.zeros(n_components))

    def forward(self, described: Float32[Tensor, "B D"]) -> Float32[Tensor, "B C"]:
        standardized = (described - self.center) / self.scale
        if len(self.landmarks):
            square = standardized.square().sum(dim=1, keepdim=True) + self.landmarks.square().sum(dim=1)
            distance = (square - 2 * standardized @ self.landmarks.T).clamp_min(0)
            standardized = (-GAMMA / standardized.shape[1] * distance).exp()
        predicted: Tensor = standardized @ self.weight + self.bias
        return predicted
