"""Ridge regression over patients: scikit-learn's, with a penalty that whole groups chose, and as one linear map."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stexpr.errors import ModelError
from stexpr.models.ridge import GroupedRidge


def planted(n: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 12)).astype(np.float32)
    expression = features[:, :3] @ rng.normal(size=(3, 4)) + 0.1 * rng.normal(size=(n, 4)) + 5
    return features, expression, np.repeat(["a", "b", "c"], n // 3)


def test_a_linear_relation_is_found_and_is_sklearns_ridge():
    features, expression, groups = planted(150)
    (features, new), (expression, truth) = np.split(features, [120]), np.split(expression, [120])
    ridge = GroupedRidge((0.1, 1.0, 1e4)).fit(features, expression, groups[:120])
    assert ridge.alpha in (0.1, 1.0)
    predicted = ridge.predict(new)
    assert np.corrcoef(predicted[:, 0], truth[:, 0])[0, 1] > 0.99
    scaler = StandardScaler().fit(features.astype(float))
    oracle = Ridge(ridge.alpha, solver="svd").fit(scaler.transform(features.astype(float)), expression)
    np.testing.assert_allclose(predicted, oracle.predict(scaler.transform(new.astype(float))), rtol=1e-5)


@pytest.mark.parametrize("groups", [np.repeat(["a", "b", "c"], 30), np.repeat("a", 90)])
def test_noise_gets_the_strongest_penalty(groups):
    rng = np.random.default_rng(1)
    ridge = GroupedRidge((0.1, 10.0, 1e5)).fit(rng.normal(size=(90, 36)).astype(np.float32), rng.normal(size=(90, 20)), groups)
    assert ridge.alpha == 1e5


def test_the_penalty_is_judged_on_whole_groups():
    """Within a group a feature tells the group's offset; across groups it is misleading, which only groups can show."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 20)
    offset = rng.normal(size=6)
    codes = np.eye(6)[group] + 0.01 * rng.normal(size=(120, 6))
    expression = offset[group][:, None] + 0.1 * rng.normal(size=(120, 3))
    shuffled = rng.permutation(120)
    by_group = GroupedRidge((0.1, 1e5)).fit(codes.astype(np.float32), expression, group)
    by_rows = GroupedRidge((0.1, 1e5)).fit(codes[shuffled].astype(np.float32), expression[shuffled], np.zeros(120))
    assert by_group.alpha == 1e5
    assert by_rows.alpha == 0.1


def test_collinear_and_constant_features_are_no_trouble():
    features, expression, groups = planted()
    doubled = np.concatenate([features, features, np.ones((len(features), 1), np.float32)], axis=1)
    predicted = GroupedRidge((0.1,)).fit(doubled, expression, groups).predict(doubled)
    assert np.isfinite(predicted).all()


def test_one_gene_has_the_penalty_of_the_same_gene_twice():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(90, 4)).astype(np.float32)
    one = features @ rng.normal(size=(4, 1)) + rng.normal(0, 0.05, (90, 1))
    groups = np.repeat(["a", "b", "c"], 30)
    alphas = (0.1, 10.0, 1000.0, 1e5)
    fitted = [GroupedRidge(alphas).fit(features, expression, groups).alpha for expression in (one, np.hstack([one, one]))]
    assert fitted == [0.1, 0.1]


def test_one_gene_keeps_its_column():
    features, expression, groups = planted()
    ridge = GroupedRidge((1.0,)).fit(features, expression[:, :1], groups)
    assert ridge.predict(features).shape == (90, 1)


def test_misuse_is_named():
    features, expression, groups = planted()
    with pytest.raises(ModelError, match="at least two training spots"):
        GroupedRidge((1.0,)).fit(features[:1], expression[:1], groups[:1])
    with pytest.raises(ModelError, match="fitted before"):
        GroupedRidge((1.0,)).predict(features)
    for alphas in ((), (-1.0,)):
        with pytest.raises(ModelError, match="penalties"):
            GroupedRidge(alphas)


def test_components_are_those_of_scikit_learn():
    features, expression, groups = planted()
    ridge = GroupedRidge((1.0,), components=5).fit(features, expression, groups)
    oracle = make_pipeline(StandardScaler(), PCA(5), Ridge(1.0)).fit(features.astype(float), expression)
    np.testing.assert_allclose(ridge.predict(features), oracle.predict(features.astype(float)), rtol=1e-5)
    assert ridge.n_components == 5
    assert GroupedRidge((1.0,)).fit(features, expression, groups).n_components is None


@pytest.mark.parametrize(("n", "components", "kept"), [(90, 500, 12), (9, 500, 8), (2, 4, 1)])
def test_there_are_no_more_components_than_features_or_spots(n, components, kept):
    features, expression, groups = planted()
    ridge = GroupedRidge((1.0,), components=components).fit(features[:n], expression[:n], groups[:n])
    assert ridge.n_components == kept
    assert np.isfinite(ridge.predict(features)).all()


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(8, 40),
    width=st.integers(1, 9),
    genes=st.integers(1, 4),
    components=st.none() | st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_the_linear_map_predicts_the_same(n, width, genes, components, seed):
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, width)) * rng.uniform(0.1, 10, width) + rng.normal(size=width)).astype(np.float32)
    features[:, 0] = 3  # a constant feature has no scale
    expression = rng.normal(size=(n, genes)) + 2
    ridge = GroupedRidge((0.1, 10.0), components=components).fit(features, expression, np.arange(n) % 3)
    weight, bias = ridge.linear()
    assert weight.shape == (genes, width)
    np.testing.assert_allclose(features @ weight.T + bias, ridge.predict(features), rtol=1e-4, atol=1e-5)


def test_no_linear_map_before_it_is_fitted():
    with pytest.raises(ModelError, match="fitted before"):
        GroupedRidge((1.0,)).linear()
