"""Shared fixtures; every shape annotation of the package is checked while the tests run."""

from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook

install_import_hook("stexpr", "beartype.beartype")

CARD = """---
name: small
species: none
tissue: colored squares
technology: made in a test
gene_namespace: other
reader: h5ad
prepare: {mpp: 1.0, window_px: 32}
sections:
"""
N_GENES = 24


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}")
    return folder


def write_raw_section(folder: Path, section: str, seed: int, *, side: int = 8, step_px: int = 40) -> None:
    """Write an image of colored squares and counts whose first half of the genes follow the color under the spot."""
    import anndata
    import pandas as pd
    import scipy.sparse as sp
    from PIL import Image

    rng = np.random.default_rng(seed)
    n = side * side
    color = rng.uniform(60, 220, size=(n, 3))
    image = np.kron(color.reshape(side, side, 3), np.ones((step_px, step_px, 1)))
    image += rng.normal(0, 6, size=image.shape)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{section}.png")
    brightness = (color - 140) / 50
    log_rate = np.linspace(2.5, 0.5, N_GENES) + 0.0 * brightness[:, :1]
    for gene in range(N_GENES // 2):
        log_rate[:, gene] += 0.8 * brightness[:, gene % 3]
    counts = rng.poisson(np.exp(log_rate + rng.normal(0, 0.2, size=(n, 1)))).astype(np.float32)
    row, column = np.divmod(np.arange(n), side)
    anndata.AnnData(
        X=sp.csr_matrix(counts),
        obs=pd.DataFrame(index=[f"{r}x{c}" for r, c in zip(row, column, strict=True)]),
        var=pd.DataFrame(index=[f"G{i:02d}" for i in range(N_GENES)]),
        obsm={"spatial": np.stack([column + 0.5, row + 0.5], axis=1) * step_px},
    ).write_h5ad(folder / f"{section}.h5ad")


def write_raw_cohort(folder: Path, sections: dict[str, str]) -> Path:
    """Write raw sections (section -> patient) and their card, as a user's own cohort; return the card."""
    folder.mkdir(parents=True, exist_ok=True)
    card = CARD
    for seed, (section, patient) in enumerate(sections.items()):
        write_raw_section(folder, section, seed)
        entry = f"section: {section}, patient: {patient}, counts: {section}.h5ad, image: {section}.png, mpp: 1.0"
        card += f"  - {{{entry}, mpp_source: known by construction}}\n"
    path = folder / "small.md"
    path.write_text(card + "---\n# Small\n")
    return path


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
