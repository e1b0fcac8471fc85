import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.config import SplitConfig, ValidationConfig
from stexpr.data.geometry import distance_to, spatial_block
from stexpr.data.splits import Fold, InnerSplit, make_folds, read_folds, write_folds
from stexpr.errors import ConfigError, DataError, LeakageError

PATIENTS = {"A1": "A", "B1": "B", "B2": "B", "C1": "C", "C2": "C", "C3": "C"}


def grid(section: str) -> pd.DataFrame:
    y, x = np.divmod(np.arange(20 * 15), 20)
    return pd.DataFrame({"x_um": x * 100.0, "y_um": y * 100.0}, index=[f"{section}-{i}" for i in range(300)])


def folds_of(patient_of=PATIENTS, split=None, validation=None, window_um=150.0):
    return make_folds(patient_of, split or SplitConfig(), validation or ValidationConfig(), spots_of=grid, window_um=window_um)


def test_each_patient_is_tested_once_and_never_beside_its_own_sections():
    folds = folds_of()
    assert [tuple(fold.test) for fold in folds] == [("A",), ("B",), ("C",)]
    for fold in folds:
        assert sorted(fold.train_sections + fold.test_sections) == sorted(PATIENTS)
        assert not {PATIENTS[s] for s in fold.train_sections} & {PATIENTS[s] for s in fold.test_sections}


@settings(max_examples=40, deadline=None)
@given(
    sections=st.lists(st.integers(0, 7), min_size=4, max_size=20),
    k=st.integers(2, 4),
    seed=st.integers(0, 5),
    splits=st.integers(1, 2),
    fraction=st.floats(0.1, 0.9),
)
def test_no_patient_is_ever_on_two_sides(sections, k, seed, splits, fraction):
    patient_of = {f"s{i}": f"p{p}" for i, p in enumerate(sections)}
    patients = set(patient_of.values())
    if len(patients) < max(k, 2):
        return
    split = SplitConfig(rule="grouped_kfold", k=k, seed=seed)
    validation = ValidationConfig(rule="auto", splits=splits, fraction=fraction, refit=True)
    folds = folds_of(patient_of, split, validation)
    tested = [patient for fold in folds for patient in fold.test]
    assert sorted(tested) == sorted(patients)
    for fold in folds:
        assert not fold.train.keys() & fold.test.keys()
        for inner in fold.inner:
            used = inner.train.keys() | inner.validation.keys()
            assert used == set(fold.train_sections)
            if fold.inner_rule == "patient":
                assert not {patient_of[s] for s in inner.train} & {patient_of[s] for s in inner.validation}


def test_a_patient_on_two_sides_is_a_leak():
    with pytest.raises(LeakageError, match="patient 'A' is in the training and the test set of fold 0"):
        Fold(0, train={"A": ("A1",)}, test={"A": ("A2",)})
    with pytest.raises(LeakageError, match="section 'S'"):
        Fold(0, train={"A": ("S",)}, test={"B": ("S",)})
    with pytest.raises(LeakageError, match="both train and validate"):
        InnerSplit(train={"S": ("a", "b")}, validation={"S": ("b",)})
    with pytest.raises(LeakageError, match="both train and validate"):
        InnerSplit(train={"S": None}, validation={"S": ("b",)})
    with pytest.raises(LeakageError, match="not in training"):
        Fold(0, {"A": ("A1",)}, {"B": ("B1",)}, "section", (InnerSplit({"A1": None}, {"B1": None}),))


def test_validation_goes_by_patient_then_section_then_block():
    by_patient = folds_of()[0]
    assert by_patient.inner_rule == "patient"
    two = {"A1": "A", "B1": "B", "B2": "B"}
    of_b, of_a = folds_of(two)[1], folds_of(two)[0]
    assert of_a.inner_rule == "section"
    assert of_a.inner[0].validation == {"B1": None}
    assert of_b.inner_rule == "block"


def test_a_block_is_contiguous_and_a_window_away_from_training():
    fold = folds_of({"A1": "A", "B1": "B"}, window_um=250.0)[0]
    inner = fold.inner[0]
    spots = grid("B1")
    train, held_out = spots.loc[list(inner.train["B1"])], spots.loc[list(inner.validation["B1"])]
    assert len(held_out) == 75  # a quarter of 300
    assert held_out["x_um"].max() - held_out["x_um"].min() < 500  # one slab across the long axis, not scattered spots
    gap = np.abs(train.to_numpy()[:, None] - held_out.to_numpy()[None]).max(axis=2).min()
    assert gap >= 250.0
    assert inner.left_out == 300 - len(train) - len(held_out) > 0


def test_several_blocks_are_different_places():
    validation = ValidationConfig(splits=3)
    inner = folds_of({"A1": "A", "B1": "B"}, validation=validation)[0].inner
    assert len({split.validation["B1"] for split in inner}) == 3


def test_a_section_too_small_for_its_window_says_what_to_do():
    with pytest.raises(DataError, match=r"too small .* 5000 um .*validation.rule=epochs"):
        folds_of({"A1": "A", "B1": "B"}, window_um=5000.0)


def test_epochs_set_in_advance_need_no_inner_split():
    assert all(fold.inner == () for fold in folds_of(validation=ValidationConfig(rule="epochs")))


def test_one_patient_cannot_be_tested():
    with pytest.raises(DataError, match=r"one patient only \(A\)"):
        folds_of({"A1": "A", "A2": "A"})


def test_fixed_patients():
    (fold,) = folds_of(split=SplitConfig(rule="fixed", test_patients=("A", "C")))
    assert tuple(fold.test) == ("A", "C")
    assert tuple(fold.train) == ("B",)
    with pytest.raises(ConfigError, match="did you mean 'patient'"):
        folds_of({"s": "patient", "t": "other"}, SplitConfig(rule="fixed", test_patients=("patiend",)))


def test_more_folds_than_patients():
    with pytest.raises(DataError, match="3 patients cannot make k = 4 folds"):
        folds_of(split=SplitConfig(rule="grouped_kfold", k=4))


def test_validation_by_section_needs_two_sections():
    with pytest.raises(DataError, match="validation by section needs at least 2 training sections"):
        folds_of({"A1": "A", "B1": "B"}, validation=ValidationConfig(rule="section"))


def test_folds_survive_the_disk_and_are_checked_again(tmp_path: Path):
    folds = folds_of({"A1": "A", "B1": "B", "B2": "B"})
    path = tmp_path / "folds.json"
    write_folds(path, folds)
    assert read_folds(path) == folds
    again = folds_of({"A1": "A", "B1": "B", "B2": "B"}, SplitConfig(rule="file", file=path))
    assert again == folds
    assert [fold.hash for fold in again] == [fold.hash for fold in folds]
    with pytest.raises(LeakageError, match="written for another cohort"):
        folds_of({"A1": "B", "B1": "B", "B2": "B"}, SplitConfig(rule="file", file=path))
    values = json.loads(path.read_text())
    values["folds"][0]["train"]["A"] = ["A1"]
    path.write_text(json.dumps(values))
    with pytest.raises(LeakageError):
        read_folds(path)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2, "folds": []}', '{"format": 1, "folds": [{}]}', "[1]"])
def test_a_file_that_holds_no_folds(tmp_path: Path, text: str):
    path = tmp_path / "folds.json"
    path.write_text(text)
    with pytest.raises(DataError):
        read_folds(path)


def test_the_hash_ignores_how_epochs_are_chosen():
    one, other = folds_of(), folds_of(validation=ValidationConfig(rule="epochs"))
    assert [fold.hash for fold in one] == [fold.hash for fold in other]
    assert one[0].outer() == other[0]
    assert len({fold.hash for fold in one}) == 3


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 60), fraction=st.floats(0.01, 1), start=st.floats(0, 1), seed=st.integers(0, 9))
def test_a_block_has_its_size_and_is_an_interval_of_the_long_axis(n, fraction, start, seed):
    xy = np.random.default_rng(seed).normal(size=(n, 2)) * [10, 1]
    block = spatial_block(xy, fraction, start=start)
    assert block.sum() == min(n, max(1, round(fraction * n)))


def test_windows_overlap_exactly_below_this_distance():
    xy = np.array([[0.0, 0.0], [3.0, 1.0]])
    assert distance_to(xy, np.array([[0.0, 2.0]])).tolist() == [2.0, 3.0]
