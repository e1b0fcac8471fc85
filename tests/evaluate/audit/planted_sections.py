"""Sections of blotchy tissue, raw, for leaks and shifts to be planted in before they are prepared."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image
from scipy.ndimage import gaussian_filter

from stexpr.config import PrepareConfig, StudyConfig
from stexpr.data.cards import load_card
from stexpr.data.prepare import prepare
from stexpr.data.store import PreparedCohort

SIDE, PITCH, MARGIN, N_GENES = 9, 24, 60, 60
SECTIONS = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}
CARD = """---
name: planted
species: none
tissue: blotches
technology: made in a test
gene_namespace: other
reader: h5ad
prepare: {{mpp: 1.0, window_px: 32}}
sections:
{sections}---
# Planted
"""


class Raw:
    """Raw sections in a folder, to change and to prepare."""

    def __init__(self, folder: Path, sections: dict[str, str], *, pitch: int = PITCH) -> None:
        self.folder, self.sections, self.pitch = folder, sections, pitch
        folder.mkdir(parents=True)
        for seed, section in enumerate(sections):
            self._write(section, seed)

    def _write(self, section: str, seed: int) -> None:
        """Write an image, and counts of which half the genes follow the color under the spot; rates differ by section."""
        rng = np.random.default_rng(seed)
        size = 2 * MARGIN + (SIDE - 1) * self.pitch
        blotches = [
            gaussian_filter(rng.normal(size=(size, size, 3)), (s, s, 0)) * s * gain for s, gain in ((1, 25), (3, 30), (10, 160))
        ]
        image = np.clip(sum(blotches) + np.array([150, 90, 160]), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(self.folder / f"{section}.png")
        row, column = np.divmod(np.arange(SIDE**2), SIDE)
        centers = np.stack([column, row], axis=1) * self.pitch + MARGIN
        color = np.stack([image[y - 6 : y + 6, x - 6 : x + 6].mean(axis=(0, 1)) for x, y in centers])
        rate = np.linspace(2.5, 0.5, N_GENES) + rng.normal(0, 0.4, N_GENES) + np.zeros((len(centers), 1))
        for gene in range(0, N_GENES, 2):
            rate[:, gene] += (color[:, gene % 3] - color[:, gene % 3].mean()) / 25
        counts = rng.poisson(np.exp(rate + rng.normal(0, 0.2, size=(len(centers), 1))))
        self.save(
            section,
            anndata.AnnData(
                X=sp.csr_matrix(counts.astype(np.float32)),
                obs=pd.DataFrame(index=[f"{r}x{c}" for r, c in zip(row, column, strict=True)]),
                var=pd.DataFrame(index=[f"G{i:02d}" for i in range(N_GENES)]),
                obsm={"spatial": centers.astype(float)},
            ),
        )

    def read(self, section: str) -> anndata.AnnData:
        return anndata.read_h5ad(self.folder / f"{section}.h5ad")

    def save(self, section: str, spots: anndata.AnnData) -> None:
        spots.write_h5ad(self.folder / f"{section}.h5ad")

    def counts(self, section: str) -> np.ndarray:
        counts: np.ndarray = self.read(section).X.toarray()
        return counts

    def change_counts(self, section: str, rows: dict[int, np.ndarray]) -> None:
        spots = self.read(section)
        counts = spots.X.toarray()
        for row, values in rows.items():
            counts[row] = values
        spots.X = sp.csr_matrix(counts)
        self.save(section, spots)

    def image(self, section: str) -> np.ndarray:
        return np.asarray(Image.open(self.folder / f"{section}.png"))

    def save_image(self, section: str, image: np.ndarray) -> None:
        Image.fromarray(image).save(self.folder / f"{section}.png")

    def prepared(self) -> PreparedCohort:
        entries = (
            f"  - {{section: {section}, patient: {patient!r}, counts: {section}.h5ad, image: {section}.png, mpp: 1.0, "
            "mpp_source: known by construction}\n"
            for section, patient in self.sections.items()
        )
        (self.folder / "planted.md").write_text(CARD.format(sections="".join(entries)))
        card = load_card(self.folder / "planted.md")
        assert isinstance(card.prepare, PrepareConfig)
        return prepare(card, self.folder, self.folder.with_name(f"{self.folder.name}-prepared"), card.prepare)


def trained(config: StudyConfig, runs: Path) -> Path:
    """Run fold 0 of a study, without the baselines beside it."""
    from stexpr.train.checkpoint import StopFlag
    from stexpr.train.run import run_fold
    from stexpr.train.spots import open_cohort, study_folds

    cohort = open_cohort(config)
    fold = study_folds(config, cohort)[0]
    return run_fold(config, cohort, fold, "split", runs, stop=StopFlag())
