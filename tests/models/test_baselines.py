"""The color ridge: features against a plain loop, the penalty from training spots only, and its level on real tissue."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.errors import ModelError
from stexpr.models.baselines import color_features, disc_masks, fitting_radii
from stexpr.models.ridge import GroupedRidge
from stexpr.panel import ExpressionTransform


def noise(n: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 33), st.lists(st.integers(1, 16), min_size=1, max_size=3, unique=True), st.integers(0, 10**6))
def test_features_are_means_and_sds_of_the_pixels_in_each_disc(side, radii, seed):
    radii = [radius for radius in radii if 2 * radius <= side]
    if not radii:
        return
    patches = noise(3, side, seed)
    features = color_features(patches, radii).reshape(3, len(radii), 2, 3)
    center = (side - 1) / 2
    for i, radius in enumerate(radii):
        inside = [(y, x) for y in range(side) for x in range(side) if (y - center) ** 2 + (x - center) ** 2 <= radius**2]
        y, x = np.array(inside).T
        np.testing.assert_allclose(features[:, i, 0], patches[:, y, x].mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(features[:, i, 1], patches[:, y, x].std(axis=1), rtol=1e-5, atol=1e-4)


def test_a_plain_patch_has_no_spread_at_all():
    features = color_features(np.full((2, 256, 256, 3), 201, dtype=np.uint8), (4, 128)).reshape(2, 2, 2, 3)
    assert (features[:, :, 0] == 201).all()
    assert (features[:, :, 1] == 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(12, 40), st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 10**6))
def test_sums_over_rings_are_those_over_discs_to_the_last_bit(side, radii, seed):
    patches = noise(2, side, seed)
    discs, pixels = disc_masks(radii, side).astype(np.float64), patches.reshape(2, -1, 3).astype(np.float64)
    n_pixels = discs.sum(axis=1)[:, None]
    mean = discs @ pixels / n_pixels
    spread = np.sqrt(np.maximum(discs @ np.square(pixels) / n_pixels - np.square(mean), 0))
    expected = np.concatenate([mean, spread], axis=2).astype(np.float32).reshape(2, -1)
    np.testing.assert_array_equal(color_features(patches, radii), expected)


def test_many_spots_are_those_of_single_calls():
    patches = noise(70, 16)
    one_by_one = np.concatenate([color_features(patches[i : i + 1], (4, 8)) for i in range(70)])
    np.testing.assert_array_equal(color_features(patches, (4, 8)), one_by_one)


def test_no_spots_have_no_features():
    assert color_features(noise(0, 16), (4, 8)).shape == (0, 12)


@given(st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_discs_have_the_symmetries_of_the_square(radius):
    (disc,) = disc_masks((radius,), 80)
    disc = disc.reshape(80, 80)
    assert (disc == disc.T).all()
    assert (disc == disc[::-1]).all()
    assert abs(disc.sum() - np.pi * radius**2) < 8 * radius + 4


def test_radii_beyond_the_window_are_left_out():
    assert fitting_radii((128, 4, 32), 64) == (4, 32)
    with pytest.raises(ModelError, match="no disc of radius 64, 128 px fits a window of 64 px"):
        fitting_radii((64, 128), 64)
    with pytest.raises(ModelError, match="do not fit"):
        color_features(noise(1, 16), (4, 16))


def read_mob(folder: Path, section: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read one section by hand: 256-px patches, counts, genes."""
    import pandas as pd
    from PIL import Image

    counts = pd.read_csv(folder / f"{section}.tsv", sep="\t", index_col=0)
    spots = pd.read_csv(folder / f"alignment_table_{section}.tsv", sep="\t")
    spots = spots[spots["selected"] == 1]
    spots.index = [f"{round(x)}x{round(y)}" for x, y in zip(spots["x"], spots["y"], strict=True)]
    counts.index = [f"{round(float(x))}x{round(float(y))}" for x, y in (name.split("x") for name in counts.index)]
    names = [name for name in spots.index if name in counts.index]
    image = np.asarray(Image.open(folder / f"{section}.jpg").convert("RGB"))
    corners = spots.loc[names, ["pixel_y", "pixel_x"]].round().astype(int).to_numpy() - 128
    patches = np.stack([image[y : y + 256, x : x + 256] for y, x in corners])
    return patches, counts.loc[names].to_numpy(dtype=np.float32), [gene.split(".")[0] for gene in counts.columns]


@pytest.mark.real
def test_colors_predict_the_other_mouse_of_the_olfactory_bulb(shared_data, record_property):
    sections = {name: read_mob(shared_data / "mob", name) for name in ("MOB1", "MOB2", "MOB3")}
    mouse = {"MOB1": 1, "MOB2": 1, "MOB3": 2}
    radii = fitting_radii((4, 8, 16, 32, 64, 128), 256)
    features = {name: color_features(patches, radii) for name, (patches, _, _) in sections.items()}
    shared = sorted(set.intersection(*(set(genes) for _, _, genes in sections.values())))
    column = {name: [genes.index(gene) for gene in shared] for name, (_, _, genes) in sections.items()}
    for held_out in (1, 2):
        train = [name for name in sections if mouse[name] != held_out]
        raw = np.concatenate([sections[name][1][:, column[name]] for name in train])
        top = np.argsort(-raw.mean(axis=0))[:250]
        expression = {
            name: ExpressionTransform()(sections[name][1][:, column[name]], sections[name][1].sum(axis=1))[:, top]
            for name in sections
        }
        groups = np.concatenate([np.repeat(name, len(features[name])) for name in train])
        ridge = GroupedRidge((0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)).fit(
            np.concatenate([features[name] for name in train]), np.concatenate([expression[name] for name in train]), groups
        )
        for name in sections.keys() - set(train):
            predicted, measured = ridge.predict(features[name]).astype(float), expression[name].astype(float)
            r = [np.corrcoef(predicted[:, i], measured[:, i])[0, 1] for i in range(250) if measured[:, i].std() > 0]
            record_property(name, round(float(np.mean(r)), 4))
            print(f"{name}: mean r {np.mean(r):.4f} over {len(r)} genes, alpha {ridge.alpha:g}, {len(measured)} spots")
            assert np.mean(r) > 0.2
