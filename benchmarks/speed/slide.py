"""Memory and time of `predict_slide` against tissue area: `python benchmarks/speed/slide.py [--quick] [--profile]`.

Pyramids of 40,000 x 40,000 px at 0.5 um/px (20 x 20 mm) with tissue in 5 to 80 blocks of 4,096 px; a small network with 250
genes and a reference of 4,000 training patches, patches of 224 px side by side. Each slide is predicted in a process of its
own, whose peak memory is counted above what it held after the imports and the loading of the model. Times are processor
seconds: on a busy machine the clock on the wall also counts waiting.

Writes benchmarks/results/speed-slide.json; `--quick` runs a small size to see that all works, and writes nothing; `--profile`
prints where the time of the largest slide goes.
"""

import comparison  # isort: split

import argparse
import cProfile
import json
import platform
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stexpr.config import NetworkConfig
from stexpr.config.versions import PACKAGES, versions
from stexpr.data.synthetic_slide import write_large_slide
from stexpr.inference.slide import predict_slide
from stexpr.models.export import load_model, save_model
from stexpr.models.export.applicability import Views, appearance, fit_applicability
from stexpr.models.objectives import make_objective
from stexpr.models.spot import build_spot_regressor
from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed-slide.json"
PX, MPP, N_GENES, WINDOW_PX, BANK = 40_000, 0.5, 250, 224, 4_000
BLOCKS = (5, 20, 40, 80)
BAR_MB = 1000


def write_model(folder: Path, backbone: str = "tiny") -> None:
    """A network with random weights: what it says does not matter here, what it costs does."""
    rng = np.random.default_rng(0)
    transform = ExpressionTransform()
    library = rng.integers(500, 4000, 100).astype(np.float32)
    counts = rng.poisson(0.002 * library[:, None] * np.ones(N_GENES)).astype(np.float32)
    config = NetworkConfig(backbone=backbone)
    objective = make_objective(config.loss, counts=counts, library=library, transform=transform, standardize=True)
    model = build_spot_regressor(config, window_px=WINDOW_PX, main_objective=objective, auxiliary_objective=None, seed=0)
    genes = tuple(f"GENE{i}" for i in range(N_GENES))
    features = torch.from_numpy(rng.normal(size=(BANK, model.backbone.n_features)).astype(np.float32))
    seen = appearance(torch.from_numpy(rng.integers(0, 256, (BANK, 3, 16, 16), dtype=np.uint8)))
    save_model(
        folder,
        model,
        panel=GenePanel(genes, (), "list", "training", 0.0),
        transform=transform,
        preprocessing=Preprocessing(MPP, WINDOW_PX, WINDOW_PX, "none", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        provenance={"label": backbone},
        applicability=fit_applicability(Views(features, seen), np.repeat(["a", "b"], BANK // 2)),
    )


def peak_mb() -> float:
    """Largest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def measure(slide: Path, model: Path, profile: bool) -> dict[str, Any]:
    loaded = load_model(model)
    loaded(torch.zeros(1, 3, WINDOW_PX, WINDOW_PX, dtype=torch.uint8))  # what torch sets up once
    import anndata.io  # noqa: F401
    import skimage.filters
    import skimage.morphology  # noqa: F401

    before, start, clock = peak_mb(), time.process_time(), time.monotonic()
    watch = cProfile.Profile() if profile else None
    if watch is not None:
        watch.enable()
    done = predict_slide(slide, loaded, slide.with_suffix(".h5ad"))
    if watch is not None:
        watch.disable()
        pstats.Stats(watch, stream=sys.stderr).sort_stats("tottime").print_stats(18)
    return {
        "patches": len(done.grid),
        "cpu_s": round(time.process_time() - start, 2),
        "wall_s": round(time.monotonic() - clock, 2),
        "peak_mb_above_imports": round(peak_mb() - before, 1),
        "file_mb": round(done.path.stat().st_size / 1e6, 1),
    }


def in_own_process(slide: Path, model: Path, profile: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(slide), str(model), *(["--profile"] if profile else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def benchmark(folder: Path, blocks: tuple[int, ...], px: int, profile: bool) -> list[dict[str, Any]]:
    write_model(folder / "model")
    rows = []
    for n in blocks:
        slide = folder / f"{n}.tif"
        area = write_large_slide(slide, width=px, height=px, n_blocks=n, mpp=MPP)
        rows.append({"tissue_mm2": round(area, 1), **in_own_process(slide, folder / "model", profile and n == max(blocks))})
        print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Line through times against areas."""
    area, seconds = (np.array([row[key] for row in rows]) for key in ("tissue_mm2", "cpu_s"))
    slope, start = np.polyfit(area, seconds, 1)
    away = seconds - (start + slope * area)
    return {
        "s_per_mm2": round(float(slope), 4),
        "s_at_no_tissue": round(float(start), 2),
        "r2": round(float(1 - away.var() / seconds.var()), 5),
        "largest_deviation_s": round(float(np.abs(away).max()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("SLIDE", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*map(Path, options.measure), options.profile)))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = ((1, 2), 9_000) if options.quick else (BLOCKS, PX)
        rows = benchmark(Path(folder), *size, options.profile)
    line = fit(rows)
    print(line)
    assert max(row["peak_mb_above_imports"] for row in rows) < BAR_MB
    if options.quick:
        return
    found = {
        "command": "python benchmarks/speed/slide.py",
        "slide": f"synthetic TIFF pyramid, {PX:,} x {PX:,} px, {MPP} um/px, JPEG tiles of 256 px, levels 1, 1/4, 1/16",
        "model": f"tiny, {N_GENES} genes, patches of {WINDOW_PX} px, {BANK:,} training patches to compare with",
        "slides": rows,
        "line": line,
        "device": comparison.cpu(),
        "versions": {
            "python": platform.python_version(),
            **versions((*PACKAGES, "tifffile", "imagecodecs", "h5py")),
        },
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
