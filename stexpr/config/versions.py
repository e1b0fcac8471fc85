"""Which software made a result."""

from collections.abc import Sequence
from functools import cache
from importlib import metadata
from typing import Final

__all__ = ["PACKAGES", "versions"]

PACKAGES: Final = ("stexpr", "torch", "timm", "numpy", "scipy", "pandas", "scikit-learn")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of the packages that make numbers; nothing of the environment is read.

    Returns:
        Version by package, "not installed" where absent.
    """
    return {package: _version(package) for package in packages}


@cache  # to ask takes milliseconds, and a run asks for every slide
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
