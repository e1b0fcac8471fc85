"""Rows on their way to a device: what is resident, what is sent, and who reads files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stexpr.data.batches import RESIDENT_SHARE, Columns, PatchFiles, free_memory, sent
from stexpr.data.datasets import SpotDataset
from stexpr.data.store import PreparedCohort
from stexpr.panel import GenePanel

CPU, META = torch.device("cpu"), torch.device("meta")
"""No machine of the tests has a GPU: `meta` stands for a device that is not the host, as far as who copies what and when."""


@given(st.lists(st.lists(st.integers(0, 19), max_size=5), max_size=6))
def test_batches_are_the_rows_asked_for(asked: list[list[int]]) -> None:
    a, b = torch.arange(20), torch.arange(60).view(20, 3)
    parts = [torch.tensor(rows, dtype=torch.long) for rows in asked]
    made = list(Columns(a, b).batches(parts, CPU))
    assert len(made) == len(parts)
    for part, (one, other) in zip(parts, made, strict=True):
        assert torch.equal(one, a[part])
        assert torch.equal(other, b[part])


def test_what_fits_moves_to_the_device_once() -> None:
    columns, asked = Columns(torch.arange(8), torch.zeros(8, 4)), []

    def free(device: torch.device) -> int:
        asked.append(device)
        return int(columns.nbytes / RESIDENT_SHARE)

    columns._free = free
    first = columns.resident(META)
    assert first is not None
    assert all(tensor.device == META for tensor in first)
    assert columns.resident(META) is first
    assert asked == [META]
    shapes = [tuple(tensor.shape for tensor in batch) for batch in columns.batches([torch.arange(3), torch.arange(2)], META)]
    assert shapes == [((3,), (3, 4)), ((2,), (2, 4))]


def test_what_does_not_fit_stays_and_is_sent_part_by_part() -> None:
    columns = Columns(torch.arange(8), torch.zeros(8, 4), free=lambda device: 0)
    assert columns.resident(META) is None
    made = list(columns.batches([torch.arange(3)], META))
    assert [tensor.device for tensor in made[0]] == [META, META]
    assert [tuple(tensor.shape) for tensor in made[0]] == [(3,), (3, 4)]
    one_byte_short = Columns(torch.arange(8), free=lambda device: int(64 / RESIDENT_SHARE) - 1)
    assert one_byte_short.resident(META) is None


def test_the_host_needs_no_copy() -> None:
    tensor = torch.arange(4)
    assert Columns(tensor).resident(CPU) == (tensor,)
    assert free_memory(CPU) == 0
    assert sent(tensor, CPU) is tensor


@pytest.fixture(scope="module")
def cohort(small_cohort: Path) -> PreparedCohort:
    return PreparedCohort.open(small_cohort)


def test_loader_processes_wait_for_the_next_pass(cohort: PreparedCohort) -> None:
    files = PatchFiles([cohort.patch_reader(section) for section in ("a1", "b1")], cohort.window_px)
    whole = np.concatenate([cohort.patches(section) for section in ("a1", "b1")])
    parts = [torch.tensor([3, 100]), torch.tensor([64])]
    alone = list(files.batches(parts, CPU, 0))
    for order in (parts, parts[::-1], parts[:1]):
        for part, patches in zip(order, files.batches(order, CPU, 1), strict=True):
            np.testing.assert_array_equal(patches.numpy(), whole[part.numpy()])
    assert all(np.array_equal(patches, whole[part.numpy()]) for part, patches in zip(parts, alone, strict=True))
    (kept,) = files._idle.values()
    first = next(files.batches(parts, CPU, 1))  # broken off: the loader in use then is let go
    assert torch.equal(first, alone[0])
    assert kept not in files._idle.values()
    again = list(files.batches(parts, CPU, 1))
    assert all(map(torch.equal, again, alone))
    assert pickle.loads(pickle.dumps(files))._idle == {}


def test_two_passes_at_a_time_do_not_mix(cohort: PreparedCohort) -> None:
    panel = GenePanel(main=("G00",), auxiliary=(), rule="list", scope="training", min_detection=0.0)
    data = SpotDataset(cohort, ["a1"], panel, window_px=16, in_memory=False)
    forward, backward = ([torch.tensor([row]) for row in rows] for rows in (range(4), range(3, -1, -1)))
    batches = zip(data.batches(forward, device=CPU, workers=1), data.batches(backward, device=CPU, workers=1), strict=True)
    patches = torch.from_numpy(cohort.patches("a1", 16)).permute(0, 3, 1, 2)
    for row, (one, other) in enumerate(batches):
        assert torch.equal(one.patches[0], patches[row])
        assert torch.equal(other.patches[0], patches[3 - row])
