"""Spots of a prepared cohort as training batches."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from stexpr.config import ExpressionConfig
from stexpr.data.batches import Columns, PatchFiles
from stexpr.data.geometry import neighborhood_mean
from stexpr.data.splits import Selection
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError
from stexpr.panel import GenePanel
from stexpr.types import SpotBatch

AS_MEASURED = ExpressionConfig()


class SpotDataset:
    """The spots of some sections, with their patches and the counts of one gene panel.

    Rows follow the order of `sections` and, inside a section, of the prepared cohort. Patches stay in memory (on a GPU in its
    own where they fit), or on disk to be read by loader processes that open each file lazily.

    Attributes:
        spots: One row per spot.
        raw_main: Counts of the main genes as measured.
        counts_main: Counts of the main genes as the protocol transforms them to expression: raw, or smoothed.
        counts_auxiliary: The same of the auxiliary genes.
        library: What those counts are divided by.
    """

    def __init__(
        self,
        cohort: PreparedCohort,
        sections: Sequence[str],
        panel: GenePanel,
        *,
        window_px: int,
        in_memory: bool = True,
        expression: ExpressionConfig = AS_MEASURED,
    ) -> None:
        """Read the counts, and the patches if they are to stay in memory.

        Args:
            cohort: The prepared cohort.
            sections: Sections to read.
            panel: Genes to keep.
            window_px: Center crop of the prepared patches.
            in_memory: Whether patches are read now.
            expression: What counts and library are before they are transformed: smoothed, and of which genes.

        Raises:
            DataError: The window is larger than the prepared one.
        """
        if window_px > cohort.window_px:
            raise DataError(
                f"input.window_px = {window_px} is larger than the patches of {cohort.path} ({cohort.window_px} px); "
                "prepare the cohort with a larger window_px or lower it"
            )
        column = {gene: i for i, gene in enumerate(cohort.genes)}
        main = [column[gene] for gene in panel.main]
        auxiliary = [column[gene] for gene in panel.auxiliary]
        counts = [cohort.counts(section).tocsc() for section in sections]
        self.raw_main = _dense([part[:, main] for part in counts], len(main))
        self.spots = _spot_table(cohort, sections)
        library = self.spots["library"].to_numpy(dtype=np.float32)
        self.counts_main = self.raw_main
        if expression.smoothing == "neighbors":
            mean = neighborhood_mean(self.spots)
            counts = [mean @ sp.vstack(counts, format="csc")]
            self.counts_main = _dense([counts[0][:, main]], len(main))
            library = np.asarray(mean @ library, dtype=np.float32)
        self.counts_auxiliary = _dense([part[:, auxiliary] for part in counts], len(auxiliary))
        if expression.library == "panel":  # a spot without any count of the panel has no expression in it, whatever divides
            library = np.maximum(self.counts_main.numpy().sum(axis=1), 1)
        self.library = torch.from_numpy(library.copy())
        self.window_px = window_px
        columns = [self.counts_main, self.counts_auxiliary, self.library]
        self._files: PatchFiles | None = None
        if in_memory:
            columns.append(torch.from_numpy(np.concatenate([cohort.patches(section, window_px) for section in sections])))
        else:
            self._files = PatchFiles([cohort.patch_reader(section, window_px) for section in sections], window_px)
        self._columns = Columns(*columns)

    def __len__(self) -> int:
        return len(self.spots)

    def rows(self, selection: Selection) -> Int64[Tensor, "S"]:
        """Return the rows of the selected spots, in the order of the dataset.

        Raises:
            DataError: A selected spot is not here.
        """
        wanted = np.zeros(len(self), dtype=bool)
        for section, barcodes in selection.items():
            own = (self.spots["section"] == section).to_numpy()
            if barcodes is not None:
                own &= self.spots["barcode"].isin(barcodes).to_numpy()
            if not own.any() or (barcodes is not None and own.sum() != len(barcodes)):
                raise DataError(f"section {section} does not have all spots of the split; it was written for another cohort")
            wanted |= own
        return torch.from_numpy(np.flatnonzero(wanted))

    def names(self, rows: Int64[Tensor, "S"]) -> list[str]:
        """Name spots as `section:barcode`."""
        spots = self.spots.iloc[rows.tolist()]
        return [f"{section}:{barcode}" for section, barcode in zip(spots["section"], spots["barcode"], strict=True)]

    def batches(self, parts: Sequence[Tensor], *, device: torch.device, workers: int = 0) -> Iterator[SpotBatch]:
        """Yield one batch for each part.

        Args:
            parts: Rows of the dataset, batch by batch.
            device: Where the batches go.
            workers: Loader processes; only used when patches are on disk.
        """
        rows = self._columns.batches(parts, device)
        if self._files is not None:
            read = self._files.batches(parts, device, workers)
            rows = ((*counts, patches) for counts, patches in zip(rows, read, strict=True))
        for counts_main, counts_auxiliary, library, patches in rows:
            # (B, H, W, 3) -> (B, 3, H, W) without moving a byte: this is the channels_last layout
            yield SpotBatch(patches.permute(0, 3, 1, 2), counts_main, counts_auxiliary, library)


def even_parts(rows: Int64[Tensor, "S"], batch_size: int) -> tuple[Tensor, ...]:
    """Split rows into as few batches as `batch_size` allows, of nearly equal size.

    Equal sizes leave no small last batch, which batch normalization and losses over a batch would suffer from.
    """
    return rows.tensor_split(math.ceil(len(rows) / batch_size))


def _dense(parts: Sequence[Any], n_genes: int) -> Float32[Tensor, "S G"]:
    rows = [np.asarray(part.toarray(), dtype=np.float32) for part in parts]
    return torch.from_numpy(np.concatenate(rows) if rows else np.zeros((0, n_genes), dtype=np.float32))


def _spot_table(cohort: PreparedCohort, sections: Sequence[str]) -> pd.DataFrame:
    tables = []
    for section in sections:
        spots = cohort.spots(section)
        own: Mapping[str, Any] = {"section": section, "patient": cohort.patient_of[section], "barcode": spots.index}
        tables.append(spots.assign(**own).reset_index(drop=True))
    return pd.concat(tables, ignore_index=True)
