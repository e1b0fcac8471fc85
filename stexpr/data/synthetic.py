"""A cohort of which the truth is known: made-up H&E, and counts tied to what each spot's disc really shows.

Planted genes follow the morphology under their spot; the others follow nothing an image could show. What a model should
find, and how well it could at best, is written beside the raw files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import yaml
from pydantic import Field

from stexpr.config import PrepareConfig, Strict, Unit, validated
from stexpr.config.files import hash_file, writable, write_whole
from stexpr.data.cards import CardFile, DataCard, SectionEntry, load_card
from stexpr.data.fetch import verify
from stexpr.data.synthetic_genes import GenePrograms, draw_counts, plan_genes
from stexpr.data.synthetic_image import Stain, draw
from stexpr.data.synthetic_tissue import MORPHOLOGY, grow, measure_spots, spot_grid
from stexpr.errors import CardError, DataError
from stexpr.types import SPATIAL, Progress, silent

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

TRUTH = "truth.h5"
RECIPE = 2
"""Raised when the same choices come to mean other files."""

_PITCH_UM, _MARGIN_UM = 100, 120
_SPOT_UM = 80.0

_PROSE = """
# Synthetic cohort

## Motivation

Tests and the demo need data of which the truth is known: which genes can be predicted from the image, and how well at best.

## Collection

Nothing was collected: stexpr.data.synthetic drew it, with the choices {choices}. Every planted gene follows the tissue
fractions and the nuclei under its spot; the other genes follow nothing in the image. The noise-free expression is in {truth}.

## Known limits

A good score here says that the code works, nothing about tissue.

## Splits

By simulated patient; effects on genes and stain are drawn anew for each.
"""


class SyntheticConfig(Strict):
    """What a synthetic cohort is made of; every field changes the files."""

    name: str = Field("synthetic", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    patients: int = Field(4, ge=1, le=99)
    sections_per_patient: int = Field(1, ge=1, le=99)
    spots_per_section: int = Field(196, ge=1, le=10_000)
    genes: int = Field(400, ge=2)
    null_fraction: Unit = Field(0.3, description="share of genes that follow nothing in the image")
    counts_per_gene: float = Field(6.0, gt=0, description="library size of a typical spot over the number of genes")
    library_log_sd: float = Field(0.3, ge=0, description="SD of the log library size over spots")
    patient_sd: float = Field(0.3, ge=0, description="SD of a patient's shift of each gene's log expression")
    dispersion: float = Field(0.1, ge=0, description="counts vary with mean + dispersion * mean^2")
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Truth:
    """What a synthetic cohort was drawn from.

    Attributes:
        genes: In the order of the counts files.
        follows: Gene -> the column of `morphology` it follows most; null genes are absent.
        expression: Section -> spots x genes: log1p of the expected counts at a library of 10,000.
        morphology: Section -> spots x tissue fractions and nuclear features, as measured under the discs.
    """

    genes: tuple[str, ...]
    follows: dict[str, str]
    expression: dict[str, pd.DataFrame]
    morphology: dict[str, pd.DataFrame]

    @property
    def planted(self) -> tuple[str, ...]:
        """Genes that an image tells something about."""
        return tuple(self.follows)

    @property
    def null(self) -> tuple[str, ...]:
        """Genes that no image tells anything about."""
        return tuple(gene for gene in self.genes if gene not in self.follows)


def write_synthetic(target: Path, *, progress: Progress = silent, **choices: Any) -> Path:
    """Write the raw files of a synthetic cohort and its data card, ready for `prepare`.

    Each section becomes `<section>.h5ad` and `<section>.png` (1 micron per pixel). Equal choices give equal files, byte
    for byte on one machine; a folder that holds them already is left as it is. A section depends on the seed and on its own
    place only, so more patients or sections leave the first ones unchanged.

    Args:
        target: Folder for the files, made if need be.
        progress: Shows how far it is.
        choices: Fields of `SyntheticConfig`.

    Returns:
        The card, `<name>.md` in the folder.

    Raises:
        ConfigError: A choice is unknown or refused.
        DataError: The folder cannot be written, or holds a card of this name that is not of a synthetic cohort.
    """
    config = validated(SyntheticConfig, choices, "synthetic cohort")
    assert isinstance(config, SyntheticConfig)
    card_path = target / f"{config.name}.md"
    if card_path.exists() and not (target / TRUTH).exists():
        raise DataError(f"{card_path} is not the card of a synthetic cohort: no {TRUTH} is beside it; give another folder")
    if _is_there(card_path, config):
        return card_path
    with writable(target):
        card_path.unlink(missing_ok=True)  # until the new files are whole the folder holds no cohort
    genes = plan_genes(np.random.default_rng([config.seed, 0]), config.genes, config.null_fraction)
    names = [f"P{p + 1}S{s + 1}" for p in range(config.patients) for s in range(config.sections_per_patient)]
    tables: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}
    for i, name in enumerate(progress(names, "drawing synthetic sections", len(names))):
        tables[name] = _write_section(target, name, divmod(i, config.sections_per_patient), genes, config)
    write_whole(target / TRUTH, lambda path: _write_truth(path, genes, tables, config))
    card = _describe(target, names, config)
    front = yaml.safe_dump(card.model_dump(mode="json", exclude_defaults=True), sort_keys=False, width=120)
    prose = _PROSE.format(choices=config.model_dump_json(exclude={"name"}), truth=TRUTH)
    write_whole(card_path, lambda path: path.write_text(f"---\n{front}---\n{prose}", encoding="utf-8"))
    return card_path


def read_truth(card_path: Path) -> Truth:
    """Read what a synthetic cohort was drawn from.

    Args:
        card_path: What `write_synthetic` returned.

    Raises:
        DataError: There is no truth beside the card, or it cannot be read.
    """
    import h5py

    path = card_path.parent / TRUTH
    try:
        with h5py.File(path) as file:
            genes = tuple(file["genes"].asstr()[:])
            follows = {gene: what for gene, what in zip(genes, file["follows"].asstr()[:], strict=True) if what}
            expression, morphology = {}, {}
            for name, group in file["sections"].items():
                barcodes = group["barcodes"].asstr()[:]
                expression[name] = pd.DataFrame(group["expression"][:], index=barcodes, columns=genes)
                morphology[name] = pd.DataFrame(group["morphology"][:], index=barcodes, columns=MORPHOLOGY)
    except (OSError, KeyError) as err:
        raise DataError(f"{path} is not the truth of a synthetic cohort ({err}); write the cohort again") from err
    return Truth(genes, follows, expression, morphology)


def _recipe(config: SyntheticConfig) -> str:
    return json.dumps({"recipe": RECIPE, **config.model_dump(mode="json")}, sort_keys=True)


def _is_there(card_path: Path, config: SyntheticConfig) -> bool:
    import h5py

    try:
        with h5py.File(card_path.parent / TRUTH) as file:
            same = file.attrs["recipe"] == _recipe(config)
        return bool(same) and verify(load_card(card_path), card_path.parent).whole
    except (OSError, KeyError, CardError):
        return False


def _write_section(
    target: Path, name: str, place: tuple[int, int], genes: GenePrograms, config: SyntheticConfig
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw one section and its counts; return the noise-free expression and the morphology of its spots."""
    from PIL import Image

    patient, section = place
    of_patient = np.random.default_rng([config.seed, 1, patient])
    shift = of_patient.normal(0, config.patient_sd, size=config.genes)
    stain = Stain.draw(of_patient)
    rng = np.random.default_rng([config.seed, 2, patient, section])
    centers, side = spot_grid(config.spots_per_section, _PITCH_UM, _MARGIN_UM)
    tissue = grow(rng, centers, side)
    image = Image.fromarray(draw(rng, tissue, stain))
    write_whole(target / f"{name}.png", lambda path: image.save(path, format="PNG", compress_level=1))
    morphology = measure_spots(tissue, centers, _SPOT_UM)
    rates = genes.rates(morphology, shift)
    library = config.counts_per_gene * config.genes * np.exp(rng.normal(0, config.library_log_sd, size=len(centers)))
    counts = draw_counts(rng, rates * library[:, None], config.dispersion)
    column, row = ((centers - _MARGIN_UM) / _PITCH_UM).astype(int).T
    barcodes = [f"{c}x{r}" for c, r in zip(column, row, strict=True)]
    write_whole(target / f"{name}.h5ad", lambda path: _write_counts(path, counts, barcodes, genes.names, centers))
    expression = pd.DataFrame(np.log1p(rates * 1e4).astype(np.float32), index=barcodes, columns=genes.names)
    return expression, pd.DataFrame(morphology, index=barcodes, columns=MORPHOLOGY)


def _write_counts(path: Path, counts: Array, barcodes: list[str], genes: tuple[str, ...], centers: Array) -> None:
    import anndata
    import scipy.sparse as sp

    spots = anndata.AnnData(
        X=sp.csr_matrix(counts.astype(np.int32)),
        obs=pd.DataFrame(index=barcodes),
        var=pd.DataFrame(index=list(genes)),
        obsm={SPATIAL: centers},
    )
    spots.write_h5ad(path, compression="gzip")


def _write_truth(
    path: Path, genes: GenePrograms, tables: dict[str, tuple[pd.DataFrame, pd.DataFrame]], config: SyntheticConfig
) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["recipe"] = _recipe(config)
        file["genes"] = list(genes.names)
        file["follows"] = genes.follows
        for name, (expression, morphology) in tables.items():
            group = file.create_group(f"sections/{name}", track_order=True)
            group["barcodes"] = list(expression.index)
            group.create_dataset("expression", data=expression.to_numpy(), compression="gzip")
            group["morphology"] = morphology.to_numpy()


def _describe(target: Path, names: list[str], config: SyntheticConfig) -> DataCard:
    paths = [f"{name}{suffix}" for name in names for suffix in (".h5ad", ".png")] + [TRUTH]
    with writable(target):
        files = tuple(
            CardFile(path=path, sha256=hash_file(target / path), bytes=(target / path).stat().st_size) for path in paths
        )
    return DataCard(
        name=config.name,
        title="Procedural H&E-like sections with counts tied to the local morphology",
        license="Apache-2.0",
        citation="stexpr (this software); no publication",
        species="none (simulated)",
        tissue="simulated tumor, stroma, immune cells and fat",
        preservation="none (simulated)",
        technology="simulated spots",
        spot_diameter_um=_SPOT_UM,
        spot_pitch_um=_PITCH_UM,
        n_patients=config.patients,
        n_sections=len(names),
        n_spots=len(names) * config.spots_per_section,
        gene_namespace="other",
        access="generated",
        access_note="made by stexpr.data.synthetic.write_synthetic; make it again",
        reader="h5ad",
        sections=tuple(
            SectionEntry(
                section=name,
                patient=name.partition("S")[0],
                counts=f"{name}.h5ad",
                image=f"{name}.png",
                mpp=1.0,
                mpp_source="drawn at 1 um per pixel",
            )
            for name in names
        ),
        files=files,
        # 96 um see the whole disc and little of its neighbors
        prepare=PrepareConfig(mpp=1.5, window_px=64, min_counts=50),
    )
