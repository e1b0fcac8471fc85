"""Runs an ONNX file beside the model it was written from: do they agree, and which is quicker?"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from stexpr.errors import ModelError

__all__ = ["BATCH_SIZES", "Latency", "differences", "latencies", "noise_patches", "open_session"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Run: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]

TOLERANCE: Final = 1e-4
ROUNDINGS: Final = 16 * float(np.finfo(np.float32).eps)
"""Difference always allowed, in parts of the largest value: an output that hardly varies has no spread to measure against."""
BATCH_SIZES: Final = (1, 32)


class Latency(NamedTuple):
    """How long one patch takes on one thread of the CPU, in milliseconds: the least of all repeats.

    It is processor time: what the clock shows on an idle machine, and no more on a busy one.

    Attributes:
        batch_size: Patches at a time.
        torch_ms: Of the same computation in PyTorch.
        onnx_ms: Of onnxruntime.
        repeats: Of each, in turns.
    """

    batch_size: int
    torch_ms: float
    onnx_ms: float
    repeats: int


def open_session(source: str | bytes) -> Any:
    """Open an ONNX file, or what would be in it, on one thread of the CPU.

    Raises:
        ModelError: The extra `onnx` is not installed.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as err:
        raise ModelError("ONNX needs the extra `onnx`: pip install 'stexpr[onnx]'") from err
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def differences(
    session: Any, reference: Run, names: tuple[str, ...], window_px: int, examples: UInt8[Tensor, "B 3 H W"] | None
) -> dict[str, float]:
    """Compare on noise, on drawn tissue and on the examples, many patches at once and one alone.

    Allowed are 1e-4 SDs between patches, on noise 1e-4 of the largest value: noise is like nothing a network was trained
    on, and trained ones amplify rounding there until PyTorch itself is 1e-3 SDs away from its own result in float64.

    Args:
        session: The ONNX file.
        reference: PyTorch, on the CPU.
        names: Of the outputs of both.
        window_px: Side of the patches.
        examples: Further patches.

    Returns:
        The largest absolute difference of each output on tissue and examples, in SDs between patches.

    Raises:
        ModelError: It is above what is allowed.
    """
    worst = dict.fromkeys(names, 0.0)
    noise = noise_patches(6, window_px)
    for patches in (noise, _tissue(6, window_px), *([] if examples is None else [examples])):
        outputs, array = reference(patches), patches.contiguous().numpy()
        runs = [session.run(None, {"patches": part}) for part in (array, array[:1])]
        for i, (name, output) in enumerate(zip(names, outputs, strict=True)):
            theirs = output.numpy()
            difference = max(float(np.abs(ours[i] - theirs[: len(ours[i])]).max()) for ours in runs)
            spread, largest = float(np.sqrt(theirs.var(axis=0).mean())), float(np.abs(theirs).max())
            allowed = TOLERANCE * largest if patches is noise else max(TOLERANCE * spread, ROUNDINGS * largest)
            if not difference <= allowed:  # negated, so that NaN is refused
                raise ModelError(
                    f"the ONNX file gives other {name} than PyTorch: up to {difference:.2g} apart, where {allowed:.2g} is "
                    f"allowed and patches differ by {spread:.2g}; nothing was written"
                )
            if patches is not noise:
                worst[name] = max(worst[name], difference / spread if spread else 0.0)
    return worst


def latencies(
    session: Any, reference: Run, window_px: int, *, batch_sizes: tuple[int, ...], seconds: float
) -> tuple[Latency, ...]:
    """Time both on one thread; they take turns, and each keeps its least time.

    Args:
        session: The ONNX file.
        reference: PyTorch, on the CPU.
        window_px: Side of the patches.
        batch_sizes: Patches at a time.
        seconds: Spent on each batch size, more where three turns take longer.
    """
    found = []
    with _one_thread(), torch.inference_mode():
        for size in batch_sizes:
            patches = noise_patches(size, window_px)
            given = {"patches": patches.numpy()}
            torch_s, onnx_s, turns, end = np.inf, np.inf, 0, time.perf_counter() + seconds
            while turns < 3 or time.perf_counter() < end:
                start = time.process_time()
                reference(patches)
                between = time.process_time()
                session.run(None, given)
                torch_s, onnx_s = min(torch_s, between - start), min(onnx_s, time.process_time() - between)
                turns += 1
            found.append(Latency(size, round(1000 * torch_s / size, 4), round(1000 * onnx_s / size, 4), turns))
    return tuple(found)


def noise_patches(n: int, px: int) -> UInt8[Tensor, "B 3 H W"]:
    """Draw patches of noise, the same ones every time."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, px, px), dtype=np.uint8))


def _tissue(n: int, px: int) -> UInt8[Tensor, "B 3 H W"]:
    """Draw smooth pink with purple spots, each patch of another density: nearer than noise to what a model was trained on."""
    generator, side = torch.Generator().manual_seed(0), (px, px)
    eosin = functional.interpolate(torch.rand(n, 1, 4, 4, generator=generator), size=side, mode="bicubic")
    nuclei = functional.interpolate(torch.rand(n, 1, 24, 24, generator=generator), size=side, mode="bilinear")
    dark = ((nuclei - torch.linspace(0.4, 0.8, n).view(n, 1, 1, 1)) * 10).sigmoid()
    pink, white, purple = torch.tensor([[0.9, 0.6, 0.75], [0.95, 0.92, 0.95], [0.35, 0.25, 0.55]]).view(3, 1, 3, 1, 1)
    colors = (white + (pink - white) * eosin) * (1 - dark) + purple * dark
    patches: Tensor = (colors.clamp(0, 1) * 255).to(torch.uint8)
    return patches


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
