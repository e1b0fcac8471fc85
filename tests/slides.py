"""Whole slides and models for them, small."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

MPP, WINDOW_PX = 1.0, 32
GENES = tuple(f"GENE{i}" for i in range(6))
PURPLE, GREEN, GLASS = (150, 90, 170), (90, 150, 90), (245, 242, 246)


def slide_pixels(height: int = 600, width: int = 900, foreign: bool = False, seed: int = 0) -> np.ndarray:
    """A disc of tissue on glass; with `foreign`, the right half of it is of another kind."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (0.42 * height) ** 2
    color = np.where(((x > width / 2) & foreign)[..., None], GREEN, PURPLE)
    # density of nuclei rises from left to right, so patches differ
    nuclei = (rng.random((height, width)) < 0.4 * x / width)[..., None]
    tissue = color - 60 * nuclei + rng.normal(0, 6, (height, width, 1))
    return np.clip(np.where(disc[..., None], tissue, GLASS), 0, 255).astype(np.uint8)


def write_slide(path: Path, pixels: np.ndarray, *, mpp: float | None = MPP, tile: tuple[int, int] | None = (64, 64)) -> Path:
    """A TIFF without levels, or an OME-TIFF pyramid where the name says so."""
    import tifffile

    options: dict[str, Any] = {"photometric": "rgb", "tile": tile, "compression": "zlib"}
    if path.name.endswith(".ome.tif"):
        metadata = {"axes": "YXS"} | ({} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp})
        with tifffile.TiffWriter(path, ome=True) as file:
            file.write(pixels, subifds=1, metadata=metadata, **options)
            file.write(pixels[::2, ::2], subfiletype=1, **options)
        return path
    scale = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, **options, **scale)
    return path


def write_slide_model(
    folder: Path, *, networks: int = 1, reference: bool = True, intervals: bool = True, window_px: int = WINDOW_PX
) -> Path:
    """A model with random weights whose training patches are purple tissue."""
    from stexpr.models.export import load_model, save_ensemble, save_model

    calibrated = some_intervals() if intervals else None
    folders = [folder / "parts" / str(i) for i in range(networks)] if networks > 1 else [folder]
    for seed, own in enumerate(folders):
        model = network(window_px, seed)
        save_model(own, model, **described(window_px), intervals=calibrated)
        if reference:
            known = fitted_reference(own, window_px)
            save_model(own, model, **described(window_px), intervals=calibrated, applicability=known)
    if networks > 1:
        save_ensemble(folder / "whole", tuple(map(load_model, folders)), intervals=calibrated)
        return folder / "whole"
    return folder


def network(window_px: int, seed: int) -> Any:
    from stexpr.config import NetworkConfig
    from stexpr.models.objectives import make_objective
    from stexpr.models.spot import build_spot_regressor
    from stexpr.panel import ExpressionTransform

    rng = np.random.default_rng(0)
    library = rng.integers(500, 4000, 60).astype(np.float32)
    counts = rng.poisson(0.002 * library[:, None] * np.arange(1, len(GENES) + 1)).astype(np.float32)
    config = NetworkConfig(backbone="tiny")
    objective = make_objective(config.loss, counts=counts, library=library, transform=ExpressionTransform(), standardize=True)
    return build_spot_regressor(config, window_px=window_px, main_objective=objective, auxiliary_objective=None, seed=seed)


def described(window_px: int) -> dict[str, Any]:
    from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing

    return {
        "panel": GenePanel(GENES, (), "list", "training", 0.0),
        "transform": ExpressionTransform(),
        "preprocessing": Preprocessing(MPP, window_px, window_px, "none", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        "provenance": {"label": "tiny", "species": "Homo sapiens", "preservation": "fresh frozen"},
    }


def some_intervals() -> Any:
    from stexpr.models.export.intervals import PredictionIntervals

    widths = np.outer(np.arange(1, len(GENES) + 1), [1.0, 2.0]).astype(np.float32)
    return PredictionIntervals(GENES, (0.5, 0.9), widths, "spot", 2, 100)


def fitted_reference(folder: Path, window_px: int) -> Any:
    """What the model sees in purple tissue of two other slides."""
    from stexpr.models.export import load_model
    from stexpr.models.export.applicability import Views, appearance, fit_applicability

    features, seen, sections = [], [], []
    for seed in (7, 8):
        height = max(600, 3 * window_px)
        pixels = slide_pixels(height, 3 * height // 2, seed=seed)
        around = np.random.default_rng(seed).integers(-height // 4, height // 4 + 1, (150, 2))
        corners = np.array([3 * height // 4, height // 2]) + around - window_px // 2
        inside = [pixels[y : y + window_px, x : x + window_px] for x, y in corners]
        patches = torch.from_numpy(np.stack(inside)).permute(0, 3, 1, 2)
        features.append(load_model(folder)(patches).features)
        seen.append(appearance(patches))
        sections += [str(seed)] * len(inside)
    return fit_applicability(Views(torch.cat(features), torch.cat(seen)), np.array(sections))
