"""Time small backbones in PyTorch and as ONNX files, on one core: `python benchmarks/speed/onnx_latency.py [--quick]`.

Each is a whole model with 250 genes and untrained weights, which do not change how long it takes: uint8 patches in, features
and expression out, as `save_onnx` writes it. PyTorch and onnxruntime take turns and each keeps its least processor time.

Writes benchmarks/results/onnx-latency.json; `--quick` times the smallest, and writes nothing.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import stexpr
from comparison import cpu
from stexpr.config import NetworkConfig
from stexpr.models.export import LoadedModel, LoadedNetwork
from stexpr.models.export.onnx import onnx_latency, save_onnx
from stexpr.models.objectives import make_objective
from stexpr.models.spot import build_spot_regressor
from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing

RESULTS = Path(__file__).resolve().parents[1] / "results" / "onnx-latency.json"
BACKBONES = ("tiny", "mobilenetv3_small_050", "mobilenetv4_conv_small", "efficientnet_b0", "resnet18")
WINDOWS_PX = (64, 224)
GENES, SECONDS = 250, 20.0


def model(backbone: str, window_px: int) -> LoadedModel:
    rng = np.random.default_rng(0)
    counts = rng.poisson(2, (50, GENES)).astype(np.float32)
    transform = ExpressionTransform()
    objective = make_objective("mse", counts=counts, library=counts.sum(axis=1), transform=transform)
    network = build_spot_regressor(
        NetworkConfig(backbone=backbone), window_px=window_px, main_objective=objective, auxiliary_objective=None, seed=0
    ).eval()
    own = network.backbone
    panel = GenePanel(tuple(f"gene {i}" for i in range(GENES)), (), "list", "training", 0)
    preprocessing = Preprocessing(1.0, window_px, own.input_px, "none", own.mean, own.sd)
    return LoadedModel((LoadedNetwork(network, panel, {}),), transform, preprocessing)


def timed(backbone: str, window_px: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of one network, one for each batch size."""
    own = model(backbone, window_px)
    with tempfile.TemporaryDirectory() as folder:
        report = save_onnx(own, Path(folder) / "model.onnx", seconds=0.0)
        found = onnx_latency(own, report.path, seconds=seconds)
    parameters = sum(parameter.numel() for parameter in own.networks[0].model.parameters())
    about = {"backbone": backbone, "window_px": window_px, "parameters": parameters, "file_mb": round(report.bytes / 1e6, 1)}
    rows = [{**about, **entry._asdict(), "ratio": round(entry.torch_ms / entry.onnx_ms, 2)} for entry in found]
    for row in rows:
        print("{backbone:24} {window_px:4} px, {batch_size:3} at a time: {torch_ms:8.2f} {onnx_ms:8.2f} ms".format(**row))
    versions.update(report.versions)
    return rows


versions = {"python": platform.python_version(), "stexpr": stexpr.__version__}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest backbone, nothing written")
    if parser.parse_args().quick:
        timed("tiny", 64, 0.1)
    else:
        rows = [row for px in WINDOWS_PX for backbone in BACKBONES for row in timed(backbone, px, SECONDS)]
        about = {
            "command": "python benchmarks/speed/onnx_latency.py",
            "how": f"ms per patch, processor time of one thread, taking turns for {SECONDS:g} s, the least of all repeats; "
            f"{GENES} genes, untrained weights, no symmetries",
            "device": cpu(),
            "versions": versions,
        }
        RESULTS.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
