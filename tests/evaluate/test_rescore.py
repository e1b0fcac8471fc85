"""The same predictions under other protocols."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from planted_runs import make_predictions, predictions_of_fold

from stexpr.config import load_protocol, preset_names
from stexpr.errors import ConfigError, DataError, ProtocolError
from stexpr.evaluate.inflation import inflation
from stexpr.evaluate.leaderboard import leaderboard
from stexpr.evaluate.records import Run
from stexpr.evaluate.rescore import FoldPredictions, fold_predictions, rescore, scoring_protocol
from stexpr.evaluate.score import score
from stexpr.panel import ExpressionTransform


def consistent(predictions: anndata.AnnData) -> anndata.AnnData:
    """Measured expression is what the counts say."""
    library = predictions.obs["library"].to_numpy()
    counts = predictions.layers["counts"].toarray()
    predictions.layers["measured"] = ExpressionTransform()(counts, library).astype(np.float32)
    return predictions


def as_fold(predictions: anndata.AnnData) -> FoldPredictions:
    spots = predictions.obs[["section", "patient", "x_um", "y_um", "library"]].reset_index(drop=True)
    names = tuple(predictions.var_names)
    return FoldPredictions(names, np.asarray(predictions.X), sp.csr_matrix(predictions.layers["counts"]), spots, 1000)


def by_patient(predictions: anndata.AnnData) -> list[FoldPredictions]:
    return [as_fold(predictions[predictions.obs["patient"] == name].copy()) for name in predictions.obs["patient"].unique()]


@pytest.fixture
def predictions() -> anndata.AnnData:
    return consistent(make_predictions(3, 2, strength=0.6))


def test_under_its_own_protocol_a_run_scores_as_recorded(predictions: anndata.AnnData) -> None:
    ours, spots = rescore(by_patient(predictions), scoring_protocol("stexpr"))
    theirs = score(predictions, n_replicates=2).aggregate
    for name in ("pearson", "spearman"):
        assert ours.values[name] == pytest.approx(theirs.values[name], abs=1e-6)
    np.testing.assert_allclose(ours.patient_gene, theirs.patient_gene, atol=1e-6)
    assert spots == len(predictions)


def test_each_part_of_a_protocol_does_what_it_says(predictions: anndata.AnnData) -> None:
    folds = by_patient(predictions)
    least = int(predictions.obs["library"].median())
    base = load_protocol("stexpr")
    r = lambda **change: rescore(folds, load_protocol("stexpr", {"leaky": True, **change}))[0].values["pearson"]  # noqa: E731
    filtered, spots = rescore(folds, load_protocol("stexpr", {"min_counts": least}))
    assert spots == (predictions.obs["library"] >= least).sum()
    assert filtered.values["pearson"] != rescore(folds, base)[0].values["pearson"]
    deep = predictions[predictions.obs["library"] >= least].copy()
    assert filtered.values["pearson"] == pytest.approx(score(deep, n_replicates=2).aggregate.values["pearson"], abs=1e-6)
    # the planted expression is smooth and its noise is not: smoothing the target flatters
    assert r(expression={"smoothing": "neighbors"}) > r() + 0.05
    few, _ = rescore(folds, load_protocol("stexpr", {"leaky": True, "panel": {"scope": "cohort", "n_main": 5}}))
    means = np.asarray(predictions.layers["counts"].mean(axis=0)).ravel()
    assert set(few.genes.index) == set(predictions.var_names[np.argsort(-means)[:5]])


@pytest.mark.parametrize(("library", "kind"), [("whole", "log1p"), ("whole", "stnet"), ("panel", "library_log1p")])
def test_units_are_computed_from_the_counts(predictions: anndata.AnnData, library: str, kind: str) -> None:
    folds = by_patient(predictions)
    protocol = load_protocol("stexpr", {"expression": {"kind": kind, "library": library}})
    counts, depth = predictions.layers["counts"].toarray(), predictions.obs["library"].to_numpy()
    divisor = counts.sum(axis=1) if library == "panel" else depth
    predictions.layers["measured"] = ExpressionTransform(kind, 1e4, 1000)(counts, divisor).astype(np.float32)
    expected = score(predictions, n_replicates=2).aggregate.values["pearson"]
    assert rescore(folds, protocol)[0].values["pearson"] == pytest.approx(expected, abs=1e-5)


def test_pooling_rewards_a_model_that_only_tells_sections_apart() -> None:
    predictions = consistent(make_predictions(1, 4, strength=0.0))
    rng = np.random.default_rng(0)
    section = predictions.obs["section"].cat.codes if hasattr(predictions.obs["section"], "cat") else None
    codes = np.unique(predictions.obs["section"], return_inverse=True)[1] if section is None else section.to_numpy()
    level = codes[:, None].astype(np.float32)
    predictions.layers["counts"] = sp.csr_matrix(
        rng.poisson(np.exp(level + 1), (len(codes), predictions.n_vars)).astype(np.float32)
    )
    predictions.X = level + rng.normal(0, 0.3, predictions.shape).astype(np.float32)
    within, pooled = (
        rescore([as_fold(predictions)], load_protocol("stexpr", {"pooling": pooling}))[0].values["pearson"]
        for pooling in ("within_section", "pooled")
    )
    assert abs(within) < 0.1
    assert pooled > 0.7


def test_a_section_left_with_one_spot_is_not_scored_and_not_counted(predictions: anndata.AnnData) -> None:
    folds = by_patient(predictions)
    section = (folds[0].spots["section"] == "A1").to_numpy()
    folds[0].spots.loc[np.flatnonzero(section)[1:], "library"] = 1.0
    scores, spots = rescore(folds, load_protocol("stexpr", {"min_counts": 2}))
    assert spots == len(predictions) - section.sum()
    assert np.isfinite(scores.values["pearson"])


def test_what_cannot_be_scored_is_said(predictions: anndata.AnnData) -> None:
    folds = by_patient(predictions)
    with pytest.raises(ProtocolError, match="no section has two spots of at least 10,000,000 counts"):
        rescore(folds, load_protocol("stexpr", {"min_counts": 10_000_000}))
    listed = {"leaky": True, "panel": {"rule": "list", "genes": ["NOPE"], "scope": "cohort"}}
    with pytest.raises(ProtocolError, match="no gene of its panel is predicted in every fold"):
        rescore(folds, load_protocol("stexpr", listed))
    with pytest.raises(ConfigError, match="did you mean 'triplex'"):
        scoring_protocol("tripleks")


@pytest.fixture
def runs(write_runs: Callable[..., list[Run]]) -> list[Run]:
    def keep(predictions: anndata.AnnData, label: str, fold: int) -> None:
        consistent(predictions)

    found = write_runs(change=keep)
    strengths = {"tiny": 0.7, "color ridge": 0.4, "training mean": 0.0, "neighbor oracle (sees the test data)": 0.9}
    for run in found:
        strength = strengths.get(run.record.model_label, 0.1)
        own = consistent(predictions_of_fold(run.record.fold.index, 3, strength, 12, 0))
        own.write_h5ad(run.folder / "predictions.h5ad")
    return found


def test_all_presets_stand_side_by_side(runs: list[Run]) -> None:
    table = inflation(runs[0].folder.parent)
    board = leaderboard(runs)
    assert [protocol.name for protocol in table.protocols] == list(preset_names())
    scores = table.scores.set_index(["model", "protocol"])
    assert scores.loc[("tiny", "stexpr"), "r"] == pytest.approx(board.models["r"][0], abs=1e-6)
    assert scores.xs("stexpr", level="protocol")["inflation"].dropna().eq(0).all()
    row = scores.loc[("tiny", "triplex")]
    assert row["inflation"] == pytest.approx(row["r"] - scores.loc[("tiny", "stexpr"), "r"])
    text = table.markdown()
    for words in ("triplex (LEAKY)", "**hest** is LEAKY", "12 above 0, ", "not testable: n = 3", "12 genes, 270 of 270 spots"):
        assert words in text
    assert "nan" not in text.lower().replace("finance", "")
    assert inflation(runs[0].folder.parent).markdown() == text


def test_incomplete_models_and_unfinished_runs_are_named(runs: list[Run]) -> None:
    first = next(run for run in runs if run.record.model_label == "tiny")
    (first.folder / "record.json").unlink()
    text = inflation(first.folder.parent, ["hest"]).markdown()
    assert "Left out: Incomplete, not ranked: tiny, seed 0 lacks fold" in text
    assert f"Left out: {first.folder.name} has no record.json" in text


def test_one_protocol_is_shown_beside_the_default(runs: list[Run]) -> None:
    assert [protocol.name for protocol in inflation(runs[0].folder.parent, ["hest"]).protocols] == ["stexpr", "hest"]


def test_predictions_of_older_versions_are_refused(runs: list[Run], tmp_path: Path) -> None:
    path = runs[0].folder / "predictions.h5ad"
    old = anndata.read_h5ad(path)
    del old.layers["counts"]
    old.write_h5ad(path)
    with pytest.raises(DataError, match="holds no counts, which other protocols need"):
        fold_predictions(runs[0])
    path.unlink()
    with pytest.raises(DataError, match=r"lacks predictions\.h5ad"):
        inflation(runs[0].folder.parent)
