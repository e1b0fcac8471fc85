"""A model as one ONNX file: for programs without PyTorch."""

import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn import functional

from stexpr.config.files import write_whole
from stexpr.errors import ModelError
from stexpr.models.augment import N_SYMMETRIES
from stexpr.models.export.files import sha256
from stexpr.models.export.loaded import LoadedModel
from stexpr.models.export.onnx_runtime import BATCH_SIZES, Latency, differences, latencies, noise_patches, open_session

__all__ = ["OnnxReport", "onnx_latency", "save_onnx"]

OUTPUTS: Final = ("features", "expression")
LIBRARIES: Final = ("torch", "onnx", "onnxscript", "onnxruntime")
_MAX_BYTES: Final = 2**31 - 1


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and how well it agrees.

    Attributes:
        path: The file; nothing lies beside it.
        sha256: Of the file.
        bytes: Of the file.
        opset: Version of the operators.
        symmetries: Whether the graph averages over the eight flips and rotations.
        difference: Largest absolute difference from PyTorch on tissue, in SDs between patches, by output.
        latency: By batch size; empty where it was not measured.
        versions: Of the libraries that wrote and ran it.
    """

    path: Path
    sha256: str
    bytes: int
    opset: int
    symmetries: bool
    difference: dict[str, float]
    latency: tuple[Latency, ...]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "path": str(self.path), "latency": [entry._asdict() for entry in self.latency]}


class _Graph(nn.Module):
    """What is exported: patches to features and expression, through all networks of a model."""

    def __init__(self, model: LoadedModel, symmetries: bool) -> None:
        super().__init__()
        self.networks = [network.model for network in model.networks]
        self.modules_of_networks = nn.ModuleList(self.networks)  # lets the exporter find their weights
        self.symmetries = symmetries
        # where a gene stands among those of a network; one it does not predict stands behind them, where a 0 is put
        places = [{gene: i for i, gene in enumerate(network.panel.main)} for network in model.networks]
        self.places = [torch.tensor([place.get(gene, len(place)) for gene in model.genes]) for place in places]
        self.n_networks = torch.tensor(model.n_networks, dtype=torch.float32)
        self.eval()

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        turned = torch.cat([_turned(patches, i) for i in range(N_SYMMETRIES)]) if self.symmetries else patches
        found, total = [], torch.zeros(())
        for network, place in zip(self.networks, self.places, strict=True):
            features = network.features(turned)
            expression = network.main_objective.expression(network.main_head(features))
            found.append(self._mean(features))
            total = total + functional.pad(self._mean(expression), (0, 1))[:, place]
        return torch.cat(found, dim=1), total / self.n_networks

    def _mean(self, values: Tensor) -> Tensor:
        return values.reshape(N_SYMMETRIES, -1, values.shape[1]).mean(dim=0) if self.symmetries else values


def _turned(patches: Tensor, which: int) -> Tensor:
    turned = patches.transpose(2, 3) if which & 4 else patches
    flipped = [axis for bit, axis in ((2, 2), (1, 3)) if which & bit]
    return turned.flip(flipped) if flipped else turned


def save_onnx(
    model: LoadedModel,
    path: str | Path,
    *,
    symmetries: bool | None = None,
    examples: UInt8[Tensor, "B 3 H W"] | None = None,
    seconds: float = 1.0,
) -> OnnxReport:
    """Write a model as one ONNX file, and compare it with PyTorch.

    Its input `patches` is uint8 (B, 3, window_px, window_px), RGB at the model's pixel size, any number at a time; fields of
    view, scaling and colors are inside, stain normalization is not. Its outputs are `features` (B, D) and `expression`
    (B, G), in the unit of the model, of an ensemble the mean of its networks. Genes, pixel size, unit and stain stand in its
    metadata. Spread, novelty and intervals are not in it.

    Args:
        model: On the CPU.
        path: The file; replaced whole, or not at all.
        symmetries: Average over the eight flips and rotations, at eight times the cost; None does as the model was scored.
        examples: Patches to compare on, beside noise and drawn tissue.
        seconds: Spent on measuring each batch size; 0 measures nothing.

    Raises:
        ModelError: The extra `onnx` is missing, the model is on a GPU, cannot be expressed in ONNX, is larger than the 2 GB
            a file may have, or the file gives other values than PyTorch.
        DataError: The file cannot be written.
    """
    if model.device.type != "cpu":
        raise ModelError(f"the model is on {model.device}; move it first: model.to('cpu')")
    path, averaged = Path(path), model.release.symmetries if symmetries is None else symmetries
    content, opset = _exported(model, averaged)

    def reference(patches: Tensor) -> tuple[Tensor, ...]:
        output = model(patches, symmetries=averaged)
        return output.features, output.expression

    difference = differences(open_session(content), reference, OUTPUTS, model.preprocessing.window_px, examples)
    write_whole(path, lambda partial: partial.write_bytes(content), needs=len(content))
    return OnnxReport(
        path=path,
        sha256=sha256(content),
        bytes=len(content),
        opset=opset,
        symmetries=averaged,
        difference=difference,
        latency=onnx_latency(model, path, symmetries=averaged, seconds=seconds) if seconds else (),
        versions={name: metadata.version(name) for name in LIBRARIES},
    )


def onnx_latency(
    model: LoadedModel,
    path: str | Path,
    *,
    symmetries: bool = False,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    seconds: float = 1.0,
) -> tuple[Latency, ...]:
    """Time a file and the model it was written from, on one thread of the CPU.

    Args:
        model: The model, on the CPU.
        path: What `save_onnx` wrote of it.
        symmetries: Whether the file averages over the symmetries.
        batch_sizes: Patches at a time.
        seconds: Spent on each batch size, more where three turns take longer.

    Returns:
        One entry for each batch size. PyTorch computes exactly what the file does, without spread and novelty.

    Raises:
        ModelError: The extra `onnx` is missing.
    """
    graph = _Graph(model, symmetries)
    return latencies(open_session(str(path)), graph, model.preprocessing.window_px, batch_sizes=batch_sizes, seconds=seconds)


def _exported(model: LoadedModel, symmetries: bool) -> tuple[bytes, int]:
    """Return what goes into the file, checked, and the version of its operators."""
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch.onnx writes through it)
    except ImportError as err:
        raise ModelError(f"ONNX needs the extra `onnx` ({err.name} is missing): pip install 'stexpr[onnx]'") from err
    try:
        program: Any = torch.onnx.export(
            _Graph(model, symmetries),
            (noise_patches(2, model.preprocessing.window_px),),
            dynamo=True,
            input_names=["patches"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        proto = program.model_proto
        _strip_traces(proto.graph)
        onnx.helper.set_model_props(proto, _metadata(model, symmetries))
        if proto.ByteSize() > _MAX_BYTES:
            raise ModelError(f"it has {proto.ByteSize() / 1e9:.1f} GB, and one file holds 2")
        if any(not part.type.tensor_type.shape.dim[0].dim_param for part in (*proto.graph.input, *proto.graph.output)):
            raise ModelError("some step of it fixes the number of patches")
        onnx.checker.check_model(proto, full_check=True)
        opset = next(entry.version for entry in proto.opset_import if not entry.domain)
        return proto.SerializeToString(deterministic=True), opset
    except Exception as err:  # the exporter raises whatever the first operator it cannot express raises
        reason = " ".join(str(err).split())[:300] or type(err).__name__
        raise ModelError(f"the model cannot be written as ONNX: {reason}") from err


def _strip_traces(graph: Any) -> None:
    """Take away what the exporter notes of the machine it ran on: source files, with their folders."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]


def _metadata(model: LoadedModel, symmetries: bool) -> dict[str, str]:
    about = {
        "hash": model.hash,
        "genes": model.genes,
        "transform": asdict(model.transform),
        "mpp": model.preprocessing.mpp,
        "window_px": model.preprocessing.window_px,
        "fields_px": model.preprocessing.fields_px,
        "stain": model.preprocessing.stain,
        "symmetries": symmetries,
    }
    return {f"stexpr.{key}": json.dumps(value) for key, value in about.items()}
