"""Raw sections small enough to prepare in a second, whose genes follow color."""

from pathlib import Path

import numpy as np

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
