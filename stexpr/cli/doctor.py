"""Checks of the installation and the machine."""

import os
import platform
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "anndata", "scanpy", "squidpy", "wandb", "h5py")


class Finding(NamedTuple):
    """One thing looked at."""

    what: str
    found: str
    fine: bool


def examine() -> list[Finding]:
    """Look at versions, the torch pair, the device, openslide, resources and the cache folder.

    Returns:
        One finding per check; a check that fails says what to do.
    """
    return [
        Finding("python", platform.python_version(), platform.python_version_tuple() >= ("3", "11")),
        *(_version(package) for package in ("stexpr", *PACKAGES)),
        _checked("torch and torchvision", _torch_pair),
        _checked("device", _device),
        _checked("openslide", _openslide),
        _checked("configs and data cards", _resources),
        _checked("cache folder", _cache),
    ]


def _version(package: str) -> Finding:
    try:
        return Finding(package, metadata.version(package), True)
    except metadata.PackageNotFoundError:
        return Finding(package, "not installed; pip install stexpr again", False)


def _checked(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, check(), True)
    except Exception as err:  # the point of a check is to report whatever is wrong
        return Finding(what, f"{type(err).__name__}: {err}", False)


def _torch_pair() -> str:
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # fails where the two builds do not belong together
    return "work together"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}"
    return f"CPU only, {torch.get_num_threads()} threads of {os.cpu_count()} cores"


def _openslide() -> str:
    import openslide

    return f"library {openslide.__library_version__}"


def _resources() -> str:
    from stexpr.config import resource_folder
    from stexpr.data.cards import list_cards

    return f"{len(list_cards())} data cards, {len(list(resource_folder('configs').rglob('*.yaml')))} configs"


def _cache() -> str:
    import pooch

    folder = Path(pooch.os_cache("stexpr"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return f"{folder} is writable"
