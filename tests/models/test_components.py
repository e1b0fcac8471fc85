"""Closed-form regressions of components, against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.preprocessing import KernelCenterer, StandardScaler

from stexpr.errors import ModelError
from stexpr.models.components import GAMMA, View, component_axes, fit_view, gaussians, joined


def spots(n: int = 60, width: int = 7, components: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(n, width)) * rng.uniform(0.1, 50, width) + rng.uniform(-9, 200, width)
    standardized = (descriptors - descriptors.mean(0)) / descriptors.std(0)
    wanted = np.tanh(standardized[:, :components]) + rng.normal(size=(n, components)) * np.array([0.1, 1, 9])[:components]
    return descriptors, wanted, np.array([f"g{i}" for i in np.arange(n) * 4 // n])


def predicted(fitted, descriptors):
    standardized = (descriptors - fitted.center) / fitted.scale
    return (gaussians(standardized, fitted.landmarks) if len(fitted.landmarks) else standardized) @ fitted.weight + fitted.bias


def test_axes_are_principal_axes_whose_sign_the_data_decide():
    targets = np.random.default_rng(0).normal(size=(50, 12)) @ np.random.default_rng(1).normal(size=(12, 12))
    targets -= targets.mean(0)
    axes = component_axes(targets, 4)
    theirs = PCA(4).fit(targets).components_
    np.testing.assert_allclose(np.abs(np.sum(axes * theirs, axis=1)), 1, atol=1e-10)
    assert (axes[np.arange(4), np.abs(axes).argmax(axis=1)] > 0).all()
    np.testing.assert_allclose(component_axes(targets[::-1], 4), axes, atol=1e-10)
    assert len(component_axes(targets[:3], 20)) == 3


def test_a_linear_view_is_ridge_regression_with_the_penalties_chosen():
    descriptors, wanted, groups = spots()
    fitted = fit_view("linear", descriptors, wanted, groups)
    standardized = StandardScaler().fit_transform(descriptors)
    for component, penalty in enumerate(fitted.penalties):
        theirs = Ridge(penalty).fit(standardized, wanted[:, component]).predict(standardized)
        np.testing.assert_allclose(predicted(fitted, descriptors)[:, component], theirs, atol=1e-8)


def test_a_gaussian_view_is_kernel_ridge_regression_with_a_free_mean():
    descriptors, wanted, groups = spots(width=5)
    fitted = fit_view("gaussian", descriptors, wanted, groups, penalties=(3.0,))
    standardized = StandardScaler().fit_transform(descriptors)
    kernel = 5 * np.exp(-GAMMA / 5 * ((standardized[:, None] - standardized) ** 2).sum(-1))
    centered = KernelCenterer().fit_transform(kernel)
    theirs = KernelRidge(alpha=3.0, kernel="precomputed").fit(centered, wanted - wanted.mean(0)).predict(centered)
    # directions weaker than a millionth of the strongest are left out
    np.testing.assert_allclose(predicted(fitted, descriptors), theirs + wanted.mean(0), atol=5e-4)


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_each_component_has_the_penalty_that_predicts_left_out_groups_best(kernel):
    descriptors, wanted, groups = spots()
    fitted = fit_view(kernel, descriptors, wanted, groups)
    assert len(set(fitted.penalties)) > 1  # the third component is noise, and is shrunk away
    assert fitted.penalties[2] > fitted.penalties[0]
    for penalty in (1.0, 100.0, 1e4):
        other = fit_view(kernel, descriptors, wanted, groups, penalties=(penalty,))
        assert (np.square(fitted.held_out - wanted).sum(0) <= np.square(other.held_out - wanted).sum(0) + 1e-9).all()


def test_what_is_held_out_is_predicted_without_its_group():
    descriptors, wanted, groups = spots()
    one = fit_view("gaussian", descriptors, wanted, groups, penalties=(1.0,))
    changed = wanted.copy()
    changed[groups == "g2"] += 100
    other = fit_view("gaussian", descriptors, changed, groups, penalties=(1.0,))
    np.testing.assert_array_equal(one.held_out[groups == "g2"], other.held_out[groups == "g2"])
    assert not np.allclose(one.held_out[groups == "g1"], other.held_out[groups == "g1"])


def test_with_fewer_landmarks_the_fit_is_near_and_repeats_itself():
    descriptors, wanted, groups = spots(n=240, components=1)
    whole = predicted(fit_view("gaussian", descriptors, wanted, groups), descriptors)
    part = fit_view("gaussian", descriptors, wanted, groups, landmarks=120, seed=1)
    assert part.landmarks.shape == (120, 7)
    assert np.corrcoef(predicted(part, descriptors)[:, 0], whole[:, 0])[0, 1] > 0.97
    again = fit_view("gaussian", descriptors, wanted, groups, landmarks=120, seed=1)
    np.testing.assert_array_equal(part.weight, again.weight)
    assert not np.array_equal(part.landmarks, fit_view("gaussian", descriptors, wanted, groups, landmarks=120).landmarks)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.floats(0.1, 100), st.floats(-50, 50))
def test_the_unit_of_a_descriptor_does_not_matter(seed, factor, shift):
    descriptors, wanted, groups = spots(n=30, seed=seed)
    moved = descriptors * factor + shift
    for kernel in ("linear", "gaussian"):
        one, other = (fit_view(kernel, own, wanted, groups, penalties=(1.0,)) for own in (descriptors, moved))
        np.testing.assert_allclose(predicted(one, descriptors), predicted(other, moved), atol=1e-6)


def test_a_descriptor_that_never_varies_says_nothing():
    descriptors, wanted, groups = spots()
    beside = np.column_stack([descriptors, np.full(len(descriptors), 7.0)])
    one, other = (fit_view("linear", own, wanted, groups, penalties=(1.0,)) for own in (descriptors, beside))
    np.testing.assert_allclose(predicted(one, descriptors), predicted(other, beside), atol=1e-9)


def test_what_cannot_be_fitted_is_refused():
    descriptors, wanted, groups = spots()
    with pytest.raises(ModelError, match="all spots are of one group"):
        fit_view("linear", descriptors, wanted, np.full(len(groups), "a"))
    descriptors[3, 2] = np.nan
    with pytest.raises(ModelError, match="have to be finite"):
        fit_view("linear", descriptors, wanted, groups)


def test_views_read_their_groups_in_order():
    described = {"texture": np.zeros((2, 3)), "color": np.ones((2, 1))}
    np.testing.assert_array_equal(joined(described, View(("color", "texture"), "linear"))[0], [1, 0, 0, 0])
