"""Placeholder."""

from pathlib import Path

from stexpr.data.readers.folder import FolderRequest
from stexpr.data.section import Section
from stexpr.errors import DataError


def read_visium_hd(request: FolderRequest) -> Section:
    """Read a section."""
    raise DataError("not yet")


def visium_hd_files(request: FolderRequest) -> list[Path]:
    """List its files."""
    raise DataError("not yet")
