"""Which software made a result."""

from collections.abc import Sequence
from importlib import metadata
from typing import Any, Final

__all__ = ["PACKAGES", "versions"]

PACKAGES: Final = ("stexpr", "torch", "timm", "numpy", "scipy", "pandas", "scikit-learn")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of the packages that make numbers; nothing of the environment is read.

    Returns:
        Version by package, "not installed" where absent.
    """
    found: dict[str, Any] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
