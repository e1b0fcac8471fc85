from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.datasets import SpotDataset, even_parts
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError
from stexpr.panel import GenePanel

PANEL = GenePanel(main=("G05", "G00", "G23"), auxiliary=("G01", "G02"), rule="list", scope="training", min_detection=0.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cohort(small_cohort: Path) -> PreparedCohort:
    return PreparedCohort.open(small_cohort)


def test_genes_and_spots_stand_in_the_order_asked_for(cohort: PreparedCohort):
    data = SpotDataset(cohort, ["c2", "a1"], PANEL, window_px=32)
    assert data.spots["section"].tolist() == ["c2"] * 64 + ["a1"] * 64
    column = cohort.genes.index("G05")
    expected = np.concatenate([cohort.counts(section).toarray()[:, column] for section in ("c2", "a1")])
    assert data.counts_main.shape == (128, 3)
    assert data.counts_auxiliary.shape == (128, 2)
    np.testing.assert_array_equal(data.counts_main[:, 0].numpy(), expected)
    np.testing.assert_array_equal(data.library[:64].numpy(), cohort.counts("c2").sum(axis=1).A1)


@pytest.mark.parametrize("workers", [0, 2])
def test_patches_on_disk_equal_patches_in_memory(cohort: PreparedCohort, workers: int):
    parts = even_parts(torch.randperm(128, generator=torch.Generator().manual_seed(0)), 30)
    memory = SpotDataset(cohort, ["a1", "c1"], PANEL, window_px=20)
    disk = SpotDataset(cohort, ["a1", "c1"], PANEL, window_px=20, in_memory=False)
    for one, other in zip(memory.batches(parts, device=CPU), disk.batches(parts, device=CPU, workers=workers), strict=True):
        assert torch.equal(one.patches, other.patches)
        assert torch.equal(one.counts_main, other.counts_main)


def test_a_batch_is_the_center_of_the_right_patches(cohort: PreparedCohort):
    data = SpotDataset(cohort, ["b1"], PANEL, window_px=16)
    (batch,) = data.batches([torch.tensor([7, 3])], device=CPU)
    whole = cohort.patches("b1")
    np.testing.assert_array_equal(batch.patches[0].permute(1, 2, 0).numpy(), whole[7, 8:24, 8:24])
    np.testing.assert_array_equal(batch.patches[1].permute(1, 2, 0).numpy(), whole[3, 8:24, 8:24])
    assert batch.patches.is_contiguous(memory_format=torch.channels_last)


def test_rows_of_a_selection(cohort: PreparedCohort):
    data = SpotDataset(cohort, ["a1", "b1"], PANEL, window_px=16)
    assert data.rows({"b1": None}).tolist() == list(range(64, 128))
    assert data.rows({"b1": ("0x1", "0x0")}).tolist() == [64, 65]
    for wrong in ({"b1": ("0x1", "nowhere")}, {"c1": None}):
        with pytest.raises(DataError, match="written for another cohort"):
            data.rows(wrong)


def test_a_window_larger_than_prepared(cohort: PreparedCohort):
    with pytest.raises(DataError, match=r"input.window_px = 64 is larger .*\(32 px\)"):
        SpotDataset(cohort, ["a1"], PANEL, window_px=64)


@settings(deadline=None)
@given(n=st.integers(1, 500), batch_size=st.integers(1, 64))
def test_batches_are_even_and_lose_nobody(n: int, batch_size: int):
    parts = even_parts(torch.arange(n), batch_size)
    sizes = [len(part) for part in parts]
    assert torch.equal(torch.cat(parts), torch.arange(n))
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-n // batch_size)
