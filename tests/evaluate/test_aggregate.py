"""The order of means, the rules for constant genes, and both published gene counts."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from stexpr.errors import MetricError
from stexpr.evaluate.aggregate import METRICS, aggregate, aggregate_replicates, average_seeds


def table(rows: list[tuple[str, str, str, float]], **flags: Any) -> pd.DataFrame:
    """Rows of patient, section, gene and r; every metric takes the value of r."""
    made = pd.DataFrame(rows, columns=["patient", "section", "gene", "pearson"])
    for metric in METRICS[1:]:
        made[metric] = made["pearson"]
    made["n_spots"] = 10
    made["measured_constant"] = flags.get("measured", [False] * len(rows))
    made["predicted_constant"] = flags.get("predicted", [False] * len(rows))
    return made


def test_sections_then_patients_then_genes() -> None:
    # patient A has three sections, B one: a plain mean would weigh A three times
    rows = [("A", "A1", "g", 0.1), ("A", "A2", "g", 0.2), ("A", "A3", "g", 0.3), ("B", "B1", "g", 0.8)]
    rows += [("A", "A1", "h", 0.0), ("A", "A2", "h", 0.0), ("A", "A3", "h", 0.0), ("B", "B1", "h", 0.4)]
    scores = aggregate(table(rows))
    assert scores.genes["pearson"].to_dict() == pytest.approx({"g": 0.5, "h": 0.2})
    assert scores.patients["pearson"].to_dict() == pytest.approx({"A": 0.1, "B": 0.6})
    assert scores.values["pearson"] == pytest.approx(0.35)
    assert scores.values["rmse"] == pytest.approx(0.35)


def test_a_constant_measured_gene_is_left_out_of_every_metric_and_listed() -> None:
    rows = [("A", "A1", "g", np.nan), ("A", "A2", "g", 0.4), ("A", "A1", "h", 0.2), ("A", "A2", "h", 0.2)]
    made = table(rows, measured=[True, False, False, False])
    made.loc[0, ["rmse", "mae", "r2"]] = 99.0  # defined, but not to be counted
    scores = aggregate(made)
    assert scores.values["pearson"] == pytest.approx(0.3)
    assert scores.values["rmse"] == pytest.approx(0.3)
    assert scores.left_out.to_dict("records") == [{"patient": "A", "section": "A1", "gene": "g"}]
    assert scores.constant_predictions == 0


def test_a_gene_left_out_everywhere_does_not_enter_the_mean() -> None:
    scores = aggregate(table([("A", "A1", "g", np.nan), ("A", "A1", "h", 0.2)], measured=[True, False]))
    assert scores.values["pearson"] == pytest.approx(0.2)
    assert np.isnan(scores.genes.loc["g", "pearson"])
    assert scores.genes["n_patients"].to_dict() == {"g": 0, "h": 1}


def test_a_constant_prediction_counts_as_zero_but_is_shown_undefined() -> None:
    rows = [("A", "A1", "g", np.nan), ("B", "B1", "g", 0.4), ("A", "A1", "h", np.nan), ("B", "B1", "h", np.nan)]
    made = table(rows, predicted=[True, False, True, True])
    made[["rmse", "mae", "r2"]] = 1.0
    scores = aggregate(made)
    assert scores.genes.loc["g", "pearson"] == pytest.approx(0.2)
    assert np.isnan(scores.genes.loc["h", "pearson"])
    assert np.isnan(scores.genes.loc["h", "median_r"])
    assert np.isnan(scores.patients.loc["A", "pearson"])
    assert scores.values["pearson"] == pytest.approx(0.1)  # g: .2, h: 0
    assert scores.values["rmse"] == 1.0
    assert scores.constant_predictions == 3


def test_the_training_mean_has_no_r_but_an_rmse() -> None:
    made = table([("A", "A1", "g", np.nan), ("A", "A1", "h", np.nan)], predicted=[True, True])
    made["rmse"] = 0.7
    scores = aggregate(made)
    assert np.isnan(scores.values[["pearson", "spearman"]]).all()
    assert scores.values["rmse"] == pytest.approx(0.7)
    assert scores.genes_above_0 is None
    assert scores.genes_above_half is None
    assert str(scores.gene_test).startswith("not testable")


def test_unlike_panels_average_over_the_patients_that_have_the_gene() -> None:
    scores = aggregate(table([("A", "A1", "g", 0.2), ("B", "B1", "g", 0.4), ("B", "B1", "h", 0.6)]))
    assert scores.genes["n_patients"].to_dict() == {"g": 2, "h": 1}
    assert scores.genes["pearson"].to_dict() == pytest.approx({"g": 0.3, "h": 0.6})
    assert scores.values["pearson"] == pytest.approx(0.45)


def test_brstnet_counts_use_the_median_over_patients() -> None:
    values = {"g": [0.9, 0.6, -1.0], "h": [0.1, 0.1, -0.5], "i": [-0.1, -0.1, 0.9]}
    rows = [(patient, f"{patient}1", gene, r) for gene, rs in values.items() for patient, r in zip("ABC", rs, strict=True)]
    scores = aggregate(table(rows))
    assert (scores.genes_above_0, scores.genes_above_half) == (2, 1)


def binomial_rows(positive: dict[str, int], patients: int) -> list[tuple[str, str, str, float]]:
    return [
        (f"p{patient}", f"s{patient}", gene, 0.3 if patient < count else -0.3)
        for gene, count in positive.items()
        for patient in range(patients)
    ]


def test_stnet_count_needs_20_of_23_patients_at_250_genes() -> None:
    # He et al. 2020: Holm at .1 over 250 genes; strong genes reduce what is left to correct for
    positive = {f"g{i}": 20 for i in range(100)} | {f"h{i}": 12 for i in range(150)}
    assert aggregate(table(binomial_rows(positive, 23))).gene_test.count == 100
    assert aggregate(table(binomial_rows(positive | {"g0": 18}, 23))).gene_test.count == 99


@pytest.mark.parametrize(("genes", "needed"), [(250, 12), (1, 4), (204, 11), (205, 12)])
def test_the_patients_needed_follow_from_alpha_and_genes(genes: int, needed: int) -> None:
    positive = {f"g{i}": 99 for i in range(genes)}
    two = aggregate(table(binomial_rows(positive, 2))).gene_test
    assert str(two) == f"not testable: n = 2, needs ≥ {needed}"
    assert two.count is None
    assert aggregate(table(binomial_rows(positive, needed))).gene_test.count == genes
    assert aggregate(table(binomial_rows(positive, needed - 1))).gene_test.count is None


def test_enough_patients_without_any_r_print_a_dash() -> None:
    rows = binomial_rows({"g": 0}, 12)
    assert str(aggregate(table(rows, predicted=[True] * 12)).gene_test) == "–"
    assert str(aggregate(table(rows)).gene_test) == "0"


def test_replicates_combine_as_the_point_does() -> None:
    rng = np.random.default_rng(0)
    rows = [("A", s, g, 0.0) for s in ("A1", "A2") for g in "gh"] + [("B", "B1", g, 0.0) for g in "ghi"]
    replicates = rng.normal(size=(7, 230)).astype(np.float32)
    replicates[1, 5] = np.nan  # measured constant in this replicate
    flags = [False] * 6 + [False]
    combined = aggregate_replicates(table(rows, measured=flags), replicates)
    for r in (0, 5, 229):
        column = replicates[:, r].astype(np.float64)
        made = table([(*row[:3], value) for row, value in zip(rows, column, strict=True)], measured=np.isnan(column).tolist())
        assert combined[r] == pytest.approx(aggregate(made).values["pearson"])


def test_left_out_rows_stay_out_of_replicates() -> None:
    made = table([("A", "A1", "g", 0.1), ("A", "A1", "h", np.nan)], measured=[False, True])
    combined = aggregate_replicates(made, np.array([[0.1, 0.2], [9, 9]], dtype=np.float32))
    np.testing.assert_allclose(combined, [0.1, 0.2], atol=1e-6)


def test_seeds_are_averaged_with_collapsed_ones_as_zero() -> None:
    rows = [("A", "A1", "g", 0.4), ("A", "A1", "h", 0.2), ("A", "A1", "i", np.nan)]
    one = table(rows, predicted=[False, False, True])
    two = table([("A", "A1", "g", 0.2), ("A", "A1", "h", np.nan), ("A", "A1", "i", np.nan)], predicted=[False, True, True])
    mean = average_seeds([one, two])
    assert mean["pearson"].tolist() == pytest.approx([0.3, 0.1, np.nan], nan_ok=True)
    assert mean["predicted_constant"].tolist() == [False, False, True]
    assert average_seeds([one]) is one
    with pytest.raises(MetricError, match="not scored on the same"):
        average_seeds([one, two.iloc[:2]])


def test_what_is_refused() -> None:
    rows = [("A", "A1", "g", 0.1), ("A", "A1", "g", 0.2)]
    with pytest.raises(MetricError, match="'g' of section 'A1' is scored twice"):
        aggregate(table(rows))
    with pytest.raises(MetricError, match="none of 1 genes has varying measured values"):
        aggregate(table(rows[:1], measured=[True]))
