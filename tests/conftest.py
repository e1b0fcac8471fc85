"""Shared fixtures; every shape annotation of the package is checked while the tests run."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from raw_sections import write_raw_cohort

install_import_hook("stexpr", "beartype.beartype")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def raw_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of three patients with four sections, beside their raw files."""
    return write_raw_cohort(tmp_path_factory.mktemp("raw"), {"a1": "a", "b1": "b", "c1": "c", "c2": "c"})


@pytest.fixture(scope="session")
def small_cohort(raw_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, prepared; read it, do not change it."""
    from stexpr.data.cards import load_card
    from stexpr.data.prepare import prepare

    card = load_card(raw_cohort)
    assert card.prepare is not None
    target = tmp_path_factory.mktemp("prepared") / "small"
    prepare(card, raw_cohort.parent, target, card.prepare)
    return target


@pytest.fixture(scope="session")
def mob_cohort(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mouse olfactory bulb, fetched from the mirror and prepared as its card says."""
    from stexpr.data.cards import load_card
    from stexpr.data.fetch import fetch
    from stexpr.data.prepare import prepare

    card = load_card("mob")
    assert card.prepare is not None
    raw = tmp_path_factory.mktemp("mob-raw")
    fetch(card, raw, source=shared_data / "mob")
    target = tmp_path_factory.mktemp("mob") / "mob"
    prepare(card, raw, target, card.prepare)
    return target
