"""Scores of subgroups: the whole first, missing values a group, reasons where there is no score."""

import numpy as np
import pytest
from survivors import held_out

from stexpr.errors import DataError
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.held_out import score_folds
from stexpr.evaluate.slides.subgroups import subgroup_table


def test_every_value_has_a_row() -> None:
    rng = np.random.default_rng(0)
    positive, of = np.arange(60) % 2 == 0, held_out(60)
    predicted = rng.normal(size=60) + positive
    sex = [None if i < 3 else ("female" if i < 33 else "male") for i in range(60)]
    age = [float("nan") if i == 59 else float(i >= 30) for i in range(60)]
    table = subgroup_table(auroc, of, predicted, positive, groups={"sex": sex, "age": age}, n=50)
    found = list(zip(table["variable"], table["value"], table["n_patients"], strict=True))
    assert found == [
        ("all", "all", 60),
        ("sex", "female", 30),
        ("sex", "male", 27),
        ("sex", "missing", 3),
        ("age", "0.0", 30),
        ("age", "1.0", 29),
        ("age", "missing", 1),
    ]
    rows = np.arange(3, 33)
    expected = score_folds(auroc, of.only(rows), predicted[rows], positive[rows]).mean
    assert table["score"][0] == score_folds(auroc, of, predicted, positive).mean
    assert table["score"][1] == expected
    last = table.iloc[-1]
    assert np.isnan(last["score"])
    assert last["interval"] == "none: 1 patients, a bootstrap needs 10"
    assert "0 positive and 1 negative" in last["reason"]


def test_a_variable_needs_every_patient() -> None:
    with pytest.raises(DataError, match="site of 1 patients for 6"):
        subgroup_table(auroc, held_out(6), np.arange(6.0), np.arange(6) % 2 == 0, groups={"site": ["a"]})


def test_a_small_group_that_is_ranked_perfectly_is_not_certain() -> None:
    rng = np.random.default_rng(0)
    positive, of = np.arange(60) % 2 == 0, held_out(60)
    small = np.arange(60) < 12
    predicted = np.where(small, -1.0 * positive, rng.normal(size=60))
    groups = {"site": np.where(small, "small", "large").tolist()}
    table = subgroup_table(auroc, of, predicted, positive, groups=groups, strata=positive.astype(str).tolist(), n=50)
    row = table[table["value"] == "small"].iloc[0]
    assert (row["score"], row["low"]) == (0.0, 0.0)
    assert row["high"] == pytest.approx(1 - 0.025 ** (1 / 6))  # six patients of the rarer label, in three folds
    assert row["interval"].startswith("95 % exact")
    assert (table["interval"] == table["interval"][0]).sum() == 2  # the others are drawn again
