"""The null baselines: against oracles and planted structure, what they must not depend on, and their level on real tissue."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsRegressor

from stexpr.errors import GeneError, ModelError
from stexpr.models.nulls import DepthOnly, NearestColor, SpotCoordinates, neighbor_oracle, permuted_genes

SEEDS = st.integers(0, 10**6)
ALPHAS = (0.1, 10.0, 1000.0, 1e5)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scattered(n: int, seed: int = 0) -> np.ndarray:
    return rng(seed).uniform(0, 5000, (n, 2))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 30), st.integers(1, 5))
def test_depth_is_least_squares_on_the_log_of_the_library(seed, n, n_genes):
    library, new = rng(seed).uniform(500, 40000, (2, n)).astype(np.float32)
    expression = rng(seed + 1).normal(2, 1, (n, n_genes)).astype(np.float32)
    depth = np.log(library.astype(float))[:, None]
    oracle = LinearRegression().fit(depth, expression.astype(float))
    predicted = DepthOnly().fit(library, expression).predict(new)
    assert predicted.dtype == np.float32
    expected = oracle.predict(np.log(new.astype(float))[:, None]).reshape(n, n_genes)
    np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-4)


def test_one_depth_for_all_leaves_the_mean():
    expression = rng().normal(size=(7, 3))
    predicted = DepthOnly().fit(np.full(7, 1234.5), expression).predict(np.array([10.0, 1e6]))
    np.testing.assert_allclose(predicted, np.tile(expression.mean(axis=0), (2, 1)), rtol=1e-6)


def tissue(n_sections: int = 3, n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round sections and four genes: two in layers (a ring between center and edge, the edge), two along x and y."""
    angle, radius = rng().uniform(0, 2 * np.pi, n_sections * n), np.sqrt(rng(1).uniform(0, 1, n_sections * n))
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    expression = np.stack([np.exp(-((radius - 0.6) ** 2) / 0.05), radius, x, x + 0.1 * y], axis=1)
    return 2500 * (1 + np.stack([x, y], axis=1)), np.repeat([f"s{i}" for i in range(n_sections)], n), expression


def test_a_layout_shared_by_sections_is_found():
    xy, sections, expression = tissue()
    train, test = sections != "s2", sections == "s2"
    model = SpotCoordinates(ALPHAS).fit(xy[train], sections[train], expression[train], sections[train])
    predicted = model.predict(xy[test], sections[test])
    assert predicted.dtype == np.float32
    r = [np.corrcoef(predicted[:, i], expression[test, i])[0, 1] for i in range(4)]
    assert r[0] > 0.75  # a ring: a cubic reaches 0.35
    assert min(r[1:]) > 0.95


def test_the_penalty_is_judged_on_left_out_groups():
    """Five sections of one patient agree and the other patient's is mirrored: only leaving patients out shows it."""
    xy, sections, expression = tissue(6)
    xy[sections == "s5", 0] *= -1
    patients = np.where(sections == "s5", "b", "a")
    by_patient, by_section = (SpotCoordinates(ALPHAS).fit(xy, sections, expression[:, 2:], g) for g in (patients, sections))
    layers = SpotCoordinates(ALPHAS).fit(xy, sections, expression[:, :2], patients)
    assert by_patient.alpha == max(ALPHAS)
    assert by_section.alpha < max(ALPHAS)
    assert layers.alpha == min(ALPHAS)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(0.01, 100), st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)))
def test_moving_or_scaling_one_section_or_mixing_the_spots_changes_nothing(seed, factor, shift):
    xy, sections, expression = tissue(2, 60)
    model = SpotCoordinates((1.0,)).fit(xy, sections, expression, sections)
    moved = np.where((sections == "s0")[:, None], xy * factor + np.array(shift), xy)
    order = rng(seed).permutation(len(xy))
    predicted = model.predict(xy, sections)
    np.testing.assert_allclose(model.predict(moved[order], sections[order]), predicted[order], atol=1e-3)
    refitted = SpotCoordinates((1.0,)).fit(moved[order], sections[order], expression[order], sections[order])
    np.testing.assert_allclose(refitted.predict(xy, sections), predicted, atol=1e-3)


def test_both_axes_share_one_scale():
    """A narrow section is a narrow one, not a square: a spot's place across it stays near the middle."""
    xy, sections, _ = tissue(1)
    model = SpotCoordinates((0.1,)).fit(xy, sections, (xy - 2500) / 2500, sections)
    narrow = model.predict(xy * np.array([0.1, 1.0]), sections)
    assert narrow[:, 0].std() < 0.2 * narrow[:, 1].std()


def test_a_section_of_one_spot_lies_at_its_center():
    xy, sections, expression = tissue()
    model = SpotCoordinates(ALPHAS).fit(xy, sections, expression, sections)
    center = model.predict(np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), ["line"] * 3)[1]
    lone = model.predict(np.array([[700.0, 90.0], [0.0, 0.0], [0.0, 0.0]]), ["lone", "same", "same"])
    np.testing.assert_allclose(lone, np.tile(center, (3, 1)), rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 60), st.integers(1, 600), st.integers(1, 8))
def test_the_nearest_color_is_scikit_learns_on_standardized_features(seed, n, n_new, n_features):
    scale = rng(seed).uniform(0.1, 100, n_features)
    known, new = (rng(seed + i).normal(size=(size, n_features)) * scale for i, size in ((1, n), (2, n_new)))
    known, new, expression = known.astype(np.float32), new.astype(np.float32), rng(seed).normal(size=(n, 3)).astype(np.float32)
    mean, sd = known.astype(float).mean(axis=0), known.astype(float).std(axis=0)
    sd[sd == 0] = 1
    oracle = KNeighborsRegressor(1, algorithm="brute").fit((known - mean) / sd, expression)
    predicted = NearestColor().fit(known, expression).predict(new)
    assert predicted.dtype == np.float32
    np.testing.assert_array_equal(predicted, oracle.predict((new - mean) / sd))


def test_of_equally_near_colors_the_first_wins():
    colors = np.tile(rng().uniform(0, 255, (7, 36)).astype(np.float32), (3, 1))
    number = np.arange(21, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(NearestColor().fit(colors, number).predict(colors).ravel(), np.tile(np.arange(7), 3))
    between = NearestColor().fit(np.array([[3], [1], [6]], np.float32), number[:3]).predict(np.array([[2]], np.float32))
    assert between == 0  # once standardized, 1 is nearer by the last bit


def test_a_feature_that_never_varies_is_no_trouble():
    features = np.full((4, 2), 201, dtype=np.float32)
    features[:, 0] = [0, 1, 2, 3]
    predicted = NearestColor().fit(features, features).predict(np.array([[2.2, 90]], np.float32))
    assert predicted[0, 0] == 2


def trade(predicted: np.ndarray, genes: list[str], seed: int = 0) -> np.ndarray:
    return permuted_genes(predicted, genes, np.zeros(len(genes)), np.ones(len(genes)), seed=seed)


def donors(genes: list[str], seed: int = 0) -> dict[str, str]:
    """Gene -> the gene whose prediction it gets."""
    index = trade(np.arange(len(genes), dtype=float)[None], genes, seed)[0].astype(int)
    return {gene: genes[i] for gene, i in zip(genes, index, strict=True)}


NAMES = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=30, unique=True)


@settings(max_examples=40, deadline=None)
@given(NAMES, SEEDS, st.randoms(use_true_random=False))
def test_every_gene_gets_another_ones_prediction_whatever_their_order(genes, seed, random):
    donor = donors(genes, seed)
    assert sorted(donor.values()) == sorted(genes)
    assert all(gene != other for gene, other in donor.items())
    shuffled = random.sample(genes, len(genes))
    assert donors(shuffled, seed) == donor


def test_a_gene_more_in_the_panel_changes_one_donor_and_a_seed_nearly_all():
    genes = [f"gene {i}" for i in range(200)]
    before, after = donors(genes), donors([*genes, "new"])
    assert sum(before[gene] != after[gene] for gene in genes) == 1
    other = donors(genes, seed=1)
    assert sum(before[gene] != other[gene] for gene in genes) > 180


def test_a_traded_prediction_has_the_targets_mean_and_sd():
    genes = list("ABCDE")
    mean, sd = np.array([0.5, 1, 2, 4, 8]), np.array([0.1, 3, 1, 2, 0.5])
    predicted = mean + sd * rng().normal(size=(50, 5)) * 0.7
    traded = permuted_genes(predicted, genes, mean, sd, seed=3)
    assert traded.dtype == np.float32
    for i, (_, donor) in enumerate(donors(genes, 3).items()):
        j = genes.index(donor)
        np.testing.assert_allclose((traded[:, i] - mean[i]) / sd[i], (predicted[:, j] - mean[j]) / sd[j], rtol=1e-4, atol=1e-5)


def test_a_donor_that_never_varied_gives_the_training_mean():
    traded = permuted_genes(np.array([[7.0, 1.0]]), ["A", "B"], np.array([5.0, 0.5]), np.array([0.0, 2.0]), seed=0)
    np.testing.assert_allclose(traded, [[5.0, 0.5]])


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 40), st.integers(1, 10))
def test_the_oracle_is_the_mean_of_the_nearest_others(seed, n, k):
    xy, measured = scattered(n, seed), rng(seed).normal(size=(n, 3))
    distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, : min(k, n - 1)]
    predicted = neighbor_oracle(measured, xy, k)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, measured[nearest].mean(axis=1), rtol=1e-5, atol=1e-6)


def test_eight_neighbors_are_the_default():
    xy, measured = scattered(30), rng().normal(size=(30, 2))
    np.testing.assert_array_equal(neighbor_oracle(measured, xy), neighbor_oracle(measured, xy, 8))
    assert (neighbor_oracle(measured, xy) != neighbor_oracle(measured, xy, 7)).all()


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 7), st.integers(1, 9))
def test_ties_on_a_grid_do_not_depend_on_the_order_of_spots(seed, side, k):
    xy = np.stack(np.divmod(np.arange(side * side), side), axis=1) * 200.0
    measured = rng(seed).normal(size=(len(xy), 2))
    order = rng(seed).permutation(len(xy))
    np.testing.assert_array_equal(neighbor_oracle(measured[order], xy[order], k), neighbor_oracle(measured, xy, k)[order])


@pytest.mark.parametrize("n_same", [2, 6])
def test_a_spot_never_sees_itself_even_among_spots_in_its_place(n_same):
    xy = np.concatenate([np.zeros((n_same, 2)), scattered(4)])
    for i in range(len(xy)):
        measured = np.zeros((len(xy), 1))
        measured[i] = 1
        predicted = neighbor_oracle(measured, xy, k=2)
        assert predicted[i] == 0
        assert predicted.sum() <= len(xy)


def test_misuse_is_named():
    values, two = np.ones((2, 3)), np.ones(2)
    with pytest.raises(ModelError, match="at least two training spots, not 1"):
        DepthOnly().fit(two[:1], values[:1])
    for library in (np.array([5.0, 0.0]), np.array([5.0, np.nan])):
        with pytest.raises(ModelError, match="above 0"):
            DepthOnly().fit(library, values)
        with pytest.raises(ModelError, match="above 0"):
            DepthOnly().fit(two, values).predict(library)
    with pytest.raises(ModelError, match="depth baseline has to be fitted"):
        DepthOnly().predict(two)
    with pytest.raises(ModelError, match="coordinate baseline has to be fitted"):
        SpotCoordinates((1.0,)).predict(values[:, :2], ["a", "a"])
    with pytest.raises(ModelError, match="penalties"):
        SpotCoordinates(())
    with pytest.raises(ModelError, match="nearest color has to be fitted"):
        NearestColor().predict(values.astype(np.float32))
    with pytest.raises(ModelError, match="needs a training spot"):
        NearestColor().fit(values[:0].astype(np.float32), values[:0])
    for genes in (["A"], ["A", "A"]):
        with pytest.raises(GeneError, match="trade predictions"):
            trade(np.ones((1, len(genes))), genes)
    with pytest.raises(ModelError, match="not 1 spots"):
        neighbor_oracle(values[:1], values[:1, :2])
    with pytest.raises(ModelError, match="k = 0"):
        neighbor_oracle(values, scattered(2), 0)


@pytest.mark.real
def test_neighbors_in_the_olfactory_bulb_agree_as_measured_before(mob_cohort: Path, record_property):
    from stexpr.data.store import PreparedCohort
    from stexpr.evaluate.metrics import pearson_per_gene
    from stexpr.panel import ExpressionTransform

    cohort = PreparedCohort.open(mob_cohort)
    for section, expected in (("MOB1", 0.35), ("MOB2", 0.39), ("MOB3", 0.32)):
        counts, spots = cohort.counts(section), cohort.spots(section)
        top = np.argsort(-np.asarray(counts.mean(axis=0)).ravel(), kind="stable")[:250]
        measured = ExpressionTransform()(counts[:, top].toarray(), spots["library"].to_numpy())
        r = pearson_per_gene(neighbor_oracle(measured, spots[["x_um", "y_um"]].to_numpy()), measured)
        record_property(section, round(float(r.mean()), 4))
        assert r.mean() == pytest.approx(expected, abs=0.005)
