"""What a run leaves behind: predictions, per-gene scores, maps and the values of its record."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32

from stexpr.config import BackboneConfig, NetworkConfig, StudyConfig, content_hash, described
from stexpr.config.files import write_whole
from stexpr.config.versions import versions
from stexpr.data.datasets import SpotDataset
from stexpr.data.splits import Fold
from stexpr.data.store import PreparedCohort
from stexpr.evaluate.gene_scores import SCORING
from stexpr.evaluate.records import Record
from stexpr.evaluate.score import Scores, score
from stexpr.evaluate.tissue_maps import gene_map_figure
from stexpr.inference import pick_device, predictions_anndata
from stexpr.models.encoders import ENCODERS, known_encoder
from stexpr.panel import ExpressionTransform, GenePanel
from stexpr.train import folder as names
from stexpr.train.network import Trained
from stexpr.types import MEASURED

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
MAPPED_GENES = 3
H5AD_BYTES = 200_000
"""What an h5ad file of names and coordinates takes beside its matrices."""


@dataclass(frozen=True)
class Job:
    """One run, before anything is trained.

    Attributes:
        config: The study.
        cohort: Its cohort.
        fold: The partition.
        split_hash: Identifies the fold among all folds of the split, which is what a leaderboard compares.
        panel: Genes of the fold.
        transform: Unit of expression.
        window_px: Side of the field of view.
        folder: Where the run lives.
    """

    config: StudyConfig
    cohort: PreparedCohort
    fold: Fold
    split_hash: str
    panel: GenePanel
    transform: ExpressionTransform
    window_px: int
    folder: Path

    def spots(self, sections: Sequence[str], panel: GenePanel | None = None, *, in_memory: bool = False) -> SpotDataset:
        """Return the spots of some sections, with the main genes of the fold unless a panel is given."""
        return SpotDataset(
            self.cohort,
            sections,
            panel or self.panel.without_auxiliary(),
            window_px=self.window_px,
            in_memory=in_memory,
            expression=self.config.protocol.expression,
        )

    def expression(self, spots: SpotDataset) -> Float32[Array, "S G"]:
        """Return the measured expression of the main genes."""
        measured: Float32[Array, "S G"] = self.transform(spots.counts_main.numpy(), spots.library.numpy())
        return measured

    def groups(self, spots: SpotDataset) -> Array:
        """Return what is left out in turn to choose a penalty: patients, or sections where there is one patient."""
        return np.asarray(spots.spots["patient" if spots.spots["patient"].nunique() > 1 else "section"].to_numpy())

    @property
    def encoders(self) -> tuple[str, ...]:
        """Short names of the published encoders whose weights the model starts from, at most one."""
        model = self.config.model
        known = known_encoder(model.backbone) if isinstance(model, BackboneConfig) and model.loads_weights else None
        return (known,) if known is not None else ()

    def provenance(self) -> dict[str, Any]:
        """Say what a model or a predictions file was made from, in plain JSON values."""
        card, config = self.cohort.manifest, self.config
        return {
            "cohort": self.cohort.name,
            "cohort_hash": self.cohort.hash,
            "species": card.species,
            "tissue": card.tissue,
            "preservation": card.preservation,
            "technology": card.technology,
            "license": card.license,
            "citation": card.citation,
            "protocol": config.protocol.decisive(),
            "n_genes": self.transform.n_genes,
            "model": described(config.model),
            "label": config.label,
            "encoder": {name: ENCODERS[name].terms for name in self.encoders},
            "seed": config.seed,
            "fold": self.fold.index,
            "training_patients": list(self.fold.train),
            "test_patients": list(self.fold.test),
            "versions": versions(),
        }


@dataclass(frozen=True)
class Predicted:
    """What a model of any kind gives for the test spots of a fold."""

    expression: Float32[Array, "S G"]
    test: SpotDataset
    training_mean: Float32[Array, "G"]
    notes: tuple[str, ...] = ()
    trained: Trained | None = None


def write_results(job: Job, predicted: Predicted) -> tuple[Scores, list[Path]]:
    """Write predictions, per-gene scores, their bootstrap and, for a network, maps of its best genes.

    Returns:
        The scores, and the pictures.
    """
    adata = predictions_anndata(
        predicted.expression, predicted.test, job.panel, job.transform, predicted.training_mean, job.provenance()
    )
    write_whole(job.folder / names.PREDICTIONS, adata.write_h5ad, needs=adata.X.nbytes * 2 + H5AD_BYTES)
    scores = score(adata, pooling=job.config.protocol.pooling)
    scores.write(job.folder)
    maps = _draw_maps(adata, scores.per_gene, job.folder / names.MAPS) if predicted.trained else []
    return scores, maps


def _draw_maps(adata: Any, per_gene: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw the best-predicted genes over the first test section."""
    folder.mkdir(exist_ok=True)
    section = adata.obs["section"].iloc[0]
    own = adata[adata.obs["section"] == section]
    ranked = per_gene[per_gene["section"].isin([section, "pooled"])].sort_values("pearson", ascending=False)
    paths = []
    for gene in ranked["gene"].head(MAPPED_GENES):
        column = own[:, gene]
        figure = gene_map_figure(
            own.obs["x_um"].to_numpy(),
            own.obs["y_um"].to_numpy(),
            np.asarray(column.layers[MEASURED]).ravel(),
            np.asarray(column.X).ravel(),
            f"{gene} in {section}",
        )
        path = folder / f"{content_hash(gene)[:8]}-{''.join(c for c in gene if c.isalnum() or c in '.-')}.png"
        write_whole(path, partial(figure.savefig, format="png"))
        paths.append(path)
    return paths


def make_record(job: Job, predicted: Predicted, scores: Scores, seconds: float) -> Record:
    """Gather what the run was and what it scored; nothing of the machine but the kind of device and versions."""
    config, cohort, fold, panel, trained = job.config, job.cohort, job.fold, job.panel, predicted.trained
    card = cohort.manifest
    details = {
        key: getattr(card, key)
        for key in ("species", "tissue", "preservation", "technology", "library", "mpp", "window_px", "stain", "license")
    }
    network = isinstance(config.model, NetworkConfig)
    shallow = {section: cohort.hidden(section) for section in (*fold.train_sections, *fold.test_sections)}
    left_out = sum(inner.left_out for inner in fold.inner)
    notes = [*predicted.notes, *scores.notes]
    notes += [f"{gene}, included by name, is detected in {panel.detection[gene]:.1%} of the spots" for gene in panel.included]
    if any(shallow.values()):
        named = ", ".join(f"{section} {count}" for section, count in shallow.items() if count)
        notes.append(f"spots of fewer than {cohort.min_counts} counts, neither trained on nor tested: {named}")
    if network and left_out:
        notes.append(f"{left_out} spots in the buffer of the inner split neither trained nor validated there")
    return Record.model_validate(
        {
            "study": config.name,
            "model_label": config.label,
            "kind": config.model.role,
            "model": described(config.model),
            "settings": {"input": config.input.described(), "training": config.training.described()},
            "protocol": config.protocol.decisive(),
            "protocol_hash": config.protocol.hash,
            "cohort": {"name": cohort.name, "hash": cohort.hash, "patients": cohort.patients, "details": details},
            "split_hash": job.split_hash,
            "fold": {
                "index": fold.index,
                "test_patients": tuple(fold.test),
                "validation": fold.inner_rule if network else "none",
            },
            "panel": {
                "hash": content_hash(list(panel.main)),
                "rule": panel.rule,
                "scope": panel.scope,
                "n_main": len(panel.main),
                "n_auxiliary": len(panel.auxiliary),
            },
            "config_hash": job.folder.name,
            "seed": config.seed,
            "n": scores.n.model_dump(),
            "epochs": {"planned": config.training.epochs, "chosen": trained.chosen_epochs} if trained and network else None,
            "parameters": sum(p.numel() for p in trained.model.parameters()) if trained else None,
            "values": {name: value.model_dump() for name, value in scores.summary.items()},
            "scoring": SCORING,
            "notes": tuple(notes),
            "execution": trained.execution if trained else {},
            "wall_time_s": round(seconds, 3),
            "device": device_name(config.runtime.device) if trained else "cpu",
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def device_name(asked: str) -> str:
    """Return the kind of device a study trains on, without the machine's name."""
    device = pick_device(asked)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
