"""Notes in `uns`: each key keeps its own, and what others wrote stays."""

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stexpr.data.provenance import note, noted, read_provenance
from stexpr.errors import DataError

NOTES = st.lists(st.tuples(st.sampled_from("abc"), st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5))))


@given(NOTES, st.dictionaries(st.sampled_from(["protocol", "label"]), st.text()))
def test_the_last_note_of_each_key_is_kept(notes: list[tuple[str, dict[str, object]]], before: dict[str, str]) -> None:
    adata = anndata.AnnData(np.zeros((1, 1)), uns={"stexpr": json.dumps(before)} if before else {})
    for key, values in notes:
        note(adata, key, values)
    for key in "abc":
        assert noted(adata, key) == dict(notes).get(key, {})
    assert {key: value for key, value in read_provenance(adata).items() if key != "tl"} == before


def test_notes_survive_the_way_through_a_file(tmp_path: Path) -> None:
    adata = anndata.AnnData(np.zeros((1, 1)), uns={"stexpr": {"genes_renamed": 3}})
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")  # the number is NumPy's now
    note(again, "X_stexpr", {"mpp": 0.5})
    assert read_provenance(again) == {"genes_renamed": 3, "tl": {"X_stexpr": {"mpp": 0.5}}}


@pytest.mark.parametrize("other", ["words", "[1, 2]", 3])
def test_another_thing_of_that_name_is_refused(other: object) -> None:
    with pytest.raises(DataError, match=r"uns\['stexpr'\] holds (str|int), not what stexpr writes; rename it"):
        note(anndata.AnnData(np.zeros((1, 1)), uns={"stexpr": other}), "a", {})
