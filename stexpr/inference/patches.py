"""Patches of an image at a model's own scale, and the model over as many of them as there are."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from stexpr.data.batches import sent
from stexpr.data.images import SlideImage
from stexpr.data.stain import StainTransform, profile_of, stain_transform
from stexpr.data.tissue import TissueMask
from stexpr.data.windows import Windows
from stexpr.errors import ModelError
from stexpr.inference import autocast, out_of_memory, release_memory
from stexpr.inference.encoder import ModelInput, PatchModel
from stexpr.models.export import PatchOutput

__all__ = ["Outputs", "PatchCutter", "run_model"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Outputs(NamedTuple):
    """`PatchOutput` on the CPU, as arrays."""

    features: Float32[Array, "S D"]
    expression: Float32[Array, "S G"]
    spread: Float32[Array, "S G"]
    novelty: Float32[Array, "S"]


@dataclass(frozen=True)
class PatchCutter:
    """Cuts a model's input out of one image.

    Attributes:
        windows: Windows of the model's field of view on the image, at the model's pixel size.
        stain: Brings patches to the stain the model was trained on; None where it was trained on plain colors.
    """

    windows: Windows
    stain: StainTransform | None = None

    @classmethod
    def of(
        cls, model: PatchModel | ModelInput, image: SlideImage, mpp: float, mask: TissueMask, centers: Float[Array, "S 2"]
    ) -> "PatchCutter":
        """Prepare for one image; where the model was trained on normalized stain, the image's own is fitted.

        Args:
            model: Says the field of view, the pixel size and the stain.
            image: The image.
            mpp: Microns per level-0 pixel of it.
            mask: Its tissue.
            centers: Of the patches to be cut, level-0 px, x then y.

        Raises:
            ModelError: The model was trained on normalized stain and does not say which.
            DataError: The tissue has no stain to fit.
        """
        preprocessing, described = model.preprocessing, model.release.stain_reference
        windows = Windows(image, mpp, preprocessing.mpp, preprocessing.window_px)
        if preprocessing.stain == "none":
            return cls(windows)
        if described is None:
            raise ModelError(
                f"the model was trained on {preprocessing.stain} normalized patches, but its folder does not hold the stain "
                "they were brought to; export its run with stexpr export, with the cohort at hand"
            )
        reference = profile_of(described)
        kind: Any = preprocessing.stain
        return cls(windows, stain_transform(windows.fit_stain(kind, mask, windows.corners(centers)), reference))

    def batches(self, centers: Float[Array, "S 2"], batch_size: int) -> Iterator[UInt8[Array, "B H W 3"]]:
        """Cut the patches around centers, in their order, a batch at a time."""
        corners = self.windows.corners(centers)
        for start in range(0, len(corners), batch_size):
            patches = map(self.windows.read, corners[start : start + batch_size])
            yield np.stack([patch if self.stain is None else self.stain(patch) for patch in patches])


def run_model(
    model: PatchModel,
    batches: Iterable[UInt8[Array, "B H W 3"]],
    *,
    precision: str = "auto",
    symmetries: bool | None = None,
    novelty: bool = True,
) -> Iterator[Outputs]:
    """Run a model over batches of patches, one result for each batch, in their order; nothing is kept.

    Args:
        model: The model, on its device.
        batches: RGB patches at the model's scale.
        precision: As in `TrainingConfig`.
        symmetries: Average over the eight flips and rotations; None does as the model was scored.
        novelty: Whether it is wanted; else it is NaN.

    Raises:
        ModelError: There is no memory for one patch.
    """
    size: float = math.inf
    waiting: list[_Sent] = []
    for batch in batches:
        parts: list[_Sent] = []
        done = 0
        while done < len(batch):
            part = batch[done : done + int(min(size, len(batch)))]
            try:
                parts.append(_Sent.through(model, part, precision, symmetries=symmetries, novelty=novelty))
                done += len(part)
                continue
            except (RuntimeError, MemoryError) as err:
                if not out_of_memory(err):
                    raise
                if len(part) == 1:
                    raise ModelError("out of memory while predicting one patch; take a smaller network or window") from err
            size = math.ceil(len(part) / 2)
            release_memory()
        if waiting:  # one batch later, so that a GPU computes this batch while the next is cut and the last is written
            yield _arrived(waiting)
        waiting = parts
    if waiting:
        yield _arrived(waiting)


class _Sent(NamedTuple):
    """Outputs on their way to the host, and what says that they are there; nothing where no GPU is involved."""

    outputs: PatchOutput
    there: torch.cuda.Event | None

    @classmethod
    def through(
        cls, model: PatchModel, patches: UInt8[Array, "B H W 3"], precision: str, *, symmetries: bool | None, novelty: bool
    ) -> "_Sent":
        device = model.device
        # (B, H, W, 3) -> (B, 3, H, W) without moving a byte: this is the channels_last layout
        images = sent(torch.from_numpy(np.ascontiguousarray(patches)), device).permute(0, 3, 1, 2)
        with autocast(device, precision):
            made = model(images, symmetries=symmetries, novelty=novelty)
        outputs = PatchOutput(*(values.float().to("cpu", non_blocking=True) for values in made))
        if device.type != "cuda":
            return cls(outputs, None)
        there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        there.record(torch.cuda.current_stream(device))
        return cls(outputs, there)


def _arrived(parts: list[_Sent]) -> Outputs:
    for part in parts:
        if part.there is not None:
            part.there.synchronize()
    first, *others = (part.outputs for part in parts)
    outputs = PatchOutput(*map(torch.cat, zip(first, *others, strict=True))) if others else first
    return Outputs(*(values.numpy() for values in outputs))
