"""The scores of a fold are those of its test patients, by every measure of every kind, and undefined ones say why."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from simulated_heads import EVERYTHING, HORIZONS, KI67, MUTATION, SURVIVAL, simulate_patients, simulate_results
from sklearn.metrics import average_precision_score, roc_auc_score

from stexpr.config.slides import SlideProtocol
from stexpr.errors import DataError
from stexpr.evaluate.slides.censoring import Censoring
from stexpr.evaluate.slides.concordance import harrell_c, uno_c
from stexpr.evaluate.slides.horizons import integrated_auc, integrated_brier
from stexpr.evaluate.slides.results import SlideResults
from stexpr.evaluate.slides.score import score_fold

PROTOCOL = SlideProtocol(targets=EVERYTHING)
PATIENTS = simulate_patients()
RESULTS = simulate_results(PATIENTS, PROTOCOL, 2.0, 0)
PRIMARY, VALUES = score_fold(RESULTS, PROTOCOL)


def of_test(name: str, output: str = "") -> pd.DataFrame:
    outputs = RESULTS.outputs.query("target == @name and part == 'test' and output == @output")
    labels = RESULTS.labels.query("target == @name and part == 'test'").drop(columns=["value"])
    numbers = RESULTS.labels.query("target == @name and part == 'test'").set_index("patient")["value"]
    return labels.merge(outputs, on="patient").assign(truth=lambda table: table["patient"].map(numbers))


def test_every_kind_has_its_scores() -> None:
    assert PRIMARY == "auroc"
    assert {name.partition("/")[0] for name in VALUES} == {
        *("auroc", "auprc", "ece", "macro_auroc", "balanced_accuracy", "kappa", "quadratic_kappa", "spearman"),
        *("pearson", "ccc", "mae", "harrell_c", "uno_c", "integrated_auc", "integrated_brier"),
    }
    assert {name for name in VALUES if name.startswith("auroc")} == {"auroc", "auroc/PLANTED", "auroc/NULL", "auroc/RARE"}
    assert all(value.value is None or np.isfinite(value.value) for value in VALUES.values())


def test_they_are_those_of_the_test_patients() -> None:
    mutation, ki67 = of_test("PLANTED"), of_test("ki67")
    assert VALUES["auroc/PLANTED"].value == pytest.approx(roc_auc_score(mutation["truth"], mutation["value"]))
    assert VALUES["auprc/PLANTED"].value == pytest.approx(average_precision_score(mutation["truth"], mutation["value"]))
    assert VALUES["spearman/ki67"].value == pytest.approx(spearmanr(ki67["truth"], ki67["value"])[0])
    assert VALUES["pearson/ki67"].value == pytest.approx(pearsonr(ki67["truth"], ki67["value"])[0])
    assert VALUES["mae/ki67"].value == pytest.approx((ki67["truth"] - ki67["value"]).abs().mean())


def test_survival_is_weighed_by_the_training_patients_of_the_fold() -> None:
    people = of_test("OS")
    training = RESULTS.labels.query("target == 'OS' and part == 'train'")
    censoring = Censoring.of(training["time"].to_numpy(), training["event"].to_numpy() == 1)
    hazard, time, event = people["value"].to_numpy(), people["time"].to_numpy(), people["event"].to_numpy() == 1
    chances = np.column_stack([of_test("OS", f"{t:g}").set_index("patient")["value"][people["patient"]] for t in HORIZONS])
    times = np.array(HORIZONS)
    assert VALUES["harrell_c/OS"].value == pytest.approx(harrell_c(hazard, time, event))
    until = float(censoring.time[-1])
    assert VALUES["uno_c/OS"].value == pytest.approx(uno_c(hazard, time, event, censoring, until))
    assert VALUES["integrated_auc/OS"].value == pytest.approx(integrated_auc(hazard, time, event, times, censoring))
    assert VALUES["integrated_brier/OS"].value == pytest.approx(integrated_brier(chances, time, event, times, censoring))


def test_means_run_over_targets_that_are_defined() -> None:
    assert VALUES["auroc"].value == pytest.approx(np.mean([VALUES[f"auroc/{gene}"].value for gene in MUTATION.columns]))
    labels = RESULTS.labels[(RESULTS.labels["target"] != "RARE") | (RESULTS.labels["value"] == 0)]
    _, values = score_fold(dataclasses.replace(RESULTS, labels=labels), PROTOCOL)
    assert values["auroc/RARE"].value is None
    assert values["auroc/RARE"].interval == "undefined: 0 positive and 37 negative patients; at least one of each is needed"
    assert values["auroc"].interval == "mean of 2 targets, 1 undefined"
    assert values["auroc"].value == pytest.approx(np.mean([values[f"auroc/{gene}"].value for gene in ("PLANTED", "NULL")]))


@pytest.mark.parametrize(
    ("target", "primary"), [(KI67, "spearman"), (SURVIVAL, "harrell_c"), (EVERYTHING[4], "quadratic_kappa")]
)
def test_the_first_target_decides_what_a_status_line_shows(target: object, primary: str) -> None:
    protocol = SlideProtocol(targets=(target,))  # type: ignore[arg-type]
    name, values = score_fold(simulate_results(PATIENTS, protocol, 1.0, 0), protocol)
    assert name == primary
    assert values[name].value is not None


def test_what_is_undefined_says_why() -> None:
    untested = dataclasses.replace(RESULTS, labels=RESULTS.labels[RESULTS.labels["part"] == "train"])
    _, values = score_fold(untested, PROTOCOL)
    assert {value.value for value in values.values()} == {None}
    assert values["auroc/PLANTED"].interval == "undefined: no test patient of this fold has a label"
    constant = RESULTS.outputs.assign(value=0.5)
    _, values = score_fold(dataclasses.replace(RESULTS, outputs=constant), PROTOCOL)
    assert values["spearman/ki67"].interval == "undefined: the metric is not defined for these predictions (constant?)"
    assert (values["auroc/PLANTED"].value, values["harrell_c/OS"].value) == (0.5, 0.5)
    early = RESULTS.labels.assign(time=RESULTS.labels["time"].clip(upper=0.2))
    _, values = score_fold(dataclasses.replace(RESULTS, labels=early), PROTOCOL)
    assert values["integrated_brier/OS"].value is None
    assert "nobody is seen beyond" in values["integrated_brier/OS"].interval


def test_a_head_without_horizons_has_no_score_at_them() -> None:
    targets = {name: dataclasses.replace(info, horizons=()) for name, info in RESULTS.targets.items()}
    outputs = RESULTS.outputs[(RESULTS.outputs["target"] != "OS") | (RESULTS.outputs["output"] == "")]
    _, values = score_fold(dataclasses.replace(RESULTS, targets=targets, outputs=outputs), PROTOCOL)
    assert values["integrated_auc/OS"].interval == "undefined: the head predicts no survival at a horizon"
    assert values["harrell_c/OS"].value == VALUES["harrell_c/OS"].value


def changed(outputs: pd.DataFrame) -> SlideResults:
    return dataclasses.replace(RESULTS, outputs=outputs)


def test_predictions_that_are_missing_or_twice_there_are_refused() -> None:
    first = RESULTS.outputs.query("target == 'PLANTED' and part == 'test'").iloc[20:21]
    with pytest.raises(DataError, match="1 of 36 labeled test patients have no prediction of PLANTED"):
        score_fold(changed(RESULTS.outputs.drop(index=first.index)), PROTOCOL)
    with pytest.raises(DataError, match="two predictions of PLANTED"):
        score_fold(changed(pd.concat([RESULTS.outputs, first])), PROTOCOL)
    with pytest.raises(DataError, match="no target"):
        score_fold(dataclasses.replace(RESULTS, targets={}), PROTOCOL)
