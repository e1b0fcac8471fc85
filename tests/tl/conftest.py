"""A small model, and a section to use it on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

from small_models import small_model, small_section


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_model(folder=tmp_path_factory.mktemp("model"))


@pytest.fixture
def section(tmp_path: Path) -> tuple[Any, Path]:
    """AnnData with raw counts, and the file of its image at 1 um/px."""
    return small_section(tmp_path / "section")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Users run without shape checks: what they see for a wrong argument is our own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
