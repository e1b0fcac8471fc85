"""The synthetic cohort: reproducible, readable like any other, and true to what it says about its genes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.cards import load_card
from stexpr.data.fetch import verify
from stexpr.data.readers import read_section
from stexpr.data.synthetic import Truth, read_truth, write_synthetic
from stexpr.data.synthetic_genes import draw_counts, plan_genes
from stexpr.data.synthetic_image import Stain, draw
from stexpr.data.synthetic_tissue import MORPHOLOGY, grow, measure_spots, spot_grid
from stexpr.errors import ConfigError, DataError, StexprError

SMALL = {"patients": 2, "spots_per_section": 9, "genes": 12, "seed": 3}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients whose counts scatter around the truth by sampling alone."""
    return write_synthetic(
        tmp_path_factory.mktemp("cohort"), patients=2, spots_per_section=150, genes=120, counts_per_gene=15, dispersion=0
    )


@pytest.fixture(scope="module")
def truth(cohort: Path) -> Truth:
    return read_truth(cohort)


@pytest.fixture(scope="module")
def counts(cohort: Path) -> dict[str, np.ndarray]:
    card = load_card(cohort)
    return {entry.section: read_section(entry, cohort.parent, card).spots.X.toarray() for entry in card.sections}


def normalized(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([np.corrcoef(a[:, g], b[:, g])[0, 1] for g in range(a.shape[1])])


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_choices_give_equal_files(tmp_path: Path) -> None:
    first, second = write_synthetic(tmp_path / "a", **SMALL), write_synthetic(tmp_path / "b", **SMALL)
    assert files_of(first.parent) == files_of(second.parent)
    other = write_synthetic(tmp_path / "c", **{**SMALL, "seed": 4})
    assert not set(files_of(first.parent).values()) & set(files_of(other.parent).values())


def test_more_patients_leave_the_first_ones_unchanged(tmp_path: Path) -> None:
    few, many = write_synthetic(tmp_path / "a", **SMALL), write_synthetic(tmp_path / "b", **{**SMALL, "patients": 3})
    for name in ("P1S1.png", "P2S1.png", "P1S1.h5ad", "P2S1.h5ad"):
        assert files_of(few.parent)[name] == files_of(many.parent)[name]


def test_a_second_call_writes_nothing_and_repairs_what_was_altered(tmp_path: Path) -> None:
    card_path = write_synthetic(tmp_path, **SMALL)
    before, written = files_of(tmp_path), (tmp_path / "P1S1.png").stat().st_mtime_ns
    assert write_synthetic(tmp_path, **SMALL) == card_path
    assert (tmp_path / "P1S1.png").stat().st_mtime_ns == written
    (tmp_path / "P1S1.png").write_bytes(b"no image")
    write_synthetic(tmp_path, **SMALL)
    assert files_of(tmp_path) == before
    write_synthetic(tmp_path, **{**SMALL, "library_log_sd": 0.0})
    assert files_of(tmp_path)["P1S1.h5ad"] != before["P1S1.h5ad"]


def test_the_card_describes_files_that_any_reader_takes(cohort: Path, truth: Truth) -> None:
    card = load_card(cohort)
    assert verify(card, cohort.parent).whole
    assert card.access == "generated"
    assert card.prepare is not None
    for entry in card.sections:
        section = read_section(entry, cohort.parent, card)
        assert section.mpp == 1.0
        assert section.spots.shape == (150, 120)
        assert tuple(section.spots.var_names) == truth.genes
        assert list(section.spots.obs_names) == list(truth.expression[entry.section].index)
        centers = section.spots.obsm["spatial"]
        reach = card.prepare.window_px * card.prepare.mpp / 2
        assert centers.min() >= reach
        assert centers.max() <= section.image.width - reach


def test_planted_genes_reach_their_noise_ceiling(truth: Truth, counts: dict[str, np.ndarray]) -> None:
    """The noise ceiling knows nothing of the truth: it compares random halves of the counts."""
    planted = np.isin(truth.genes, truth.planted)
    rng = np.random.default_rng(0)
    for name, measured in counts.items():
        half = rng.binomial(measured, 0.5)
        h = correlations(normalized(half)[:, planted], normalized(measured - half)[:, planted])
        ceiling = np.sqrt(2 * h.clip(0) / (1 + h.clip(0)))
        found = correlations(truth.expression[name].to_numpy()[:, planted], normalized(measured)[:, planted])
        assert found.mean() == pytest.approx(ceiling.mean(), abs=0.03)
        assert found.mean() > 0.5


def test_null_genes_follow_nothing(truth: Truth, counts: dict[str, np.ndarray]) -> None:
    null = np.isin(truth.genes, truth.null)
    assert 0.25 < null.mean() < 0.35
    for name, measured in counts.items():
        assert np.ptp(truth.expression[name].to_numpy()[:, null], axis=0).max() < 1e-5
        for feature in MORPHOLOGY:
            values = np.tile(truth.morphology[name][feature].to_numpy()[:, None], (1, null.sum()))
            assert abs(correlations(values, normalized(measured)[:, null]).mean()) < 0.06


def test_genes_follow_the_feature_they_are_said_to_follow(truth: Truth) -> None:
    expression, morphology = truth.expression["P1S1"], truth.morphology["P1S1"]
    strengths = [abs(np.corrcoef(expression[gene], morphology[what])[0, 1]) for gene, what in truth.follows.items()]
    assert np.mean(strengths) > 0.8


def test_one_gene_that_rises_with_dark_nuclei_is_called_as_in_real_tissue() -> None:
    genes = plan_genes(np.random.default_rng([0, 0]), 400, 0.3)
    named = genes.names.index("MKI67")
    assert genes.follows[named] == "nuclear_darkness"
    assert genes.loading[named, MORPHOLOGY.index("nuclear_darkness")] > 0.4
    assert genes.log_mean[named] > np.quantile(genes.log_mean, 0.9)
    assert "MKI67" not in plan_genes(np.random.default_rng(0), 20, 1.0).names


def test_both_kinds_are_among_the_highest_means(truth: Truth, counts: dict[str, np.ndarray]) -> None:
    mean = sum(measured.mean(axis=0) for measured in counts.values())
    top = {truth.genes[i] for i in np.argsort(-mean)[:40]}
    assert top & set(truth.planted)
    assert top & set(truth.null)


def test_mean_color_hardly_shows_nuclear_size_but_a_fine_texture_does() -> None:
    rng = np.random.default_rng(5)
    centers, side = spot_grid(150, 100, 120)
    tissue = grow(rng, centers, side)
    image = draw(rng, tissue, Stain.draw(rng)).astype(float)
    table = dict(zip(MORPHOLOGY, measure_spots(tissue, centers, 80.0).T, strict=True))
    discs = [image[int(y) - 28 : int(y) + 28, int(x) - 28 : int(x) + 28, 0] for x, y in centers]
    tumor = table["tumor"] > 0.7
    assert tumor.sum() > 20
    cover = -np.array([disc.mean() for disc in discs])
    # A derivative sees edges: small nuclei have more of them per area.
    edges = np.array([np.abs(np.diff(disc[::2, ::2])).mean() for disc in discs])
    size = table["nuclear_size"]
    assert np.corrcoef(cover[tumor], table["nuclear_cover"][tumor])[0, 1] > 0.5
    assert abs(np.corrcoef(cover[tumor], size[tumor])[0, 1]) < abs(np.corrcoef(edges[tumor], size[tumor])[0, 1]) - 0.2


def test_stains_differ_between_patients_and_background_is_bright(cohort: Path) -> None:
    card = load_card(cohort)
    means = []
    for entry in card.sections:
        with read_section(entry, cohort.parent, card).image as image:
            pixels = image.thumbnail(400)
        assert pixels[:6, :6].min() > 225
        tissue = pixels[pixels.max(axis=2) - pixels.min(axis=2) > 25]
        assert tissue[:, 1].mean() < tissue[:, 2].mean()  # pink to purple: least green
        assert tissue[:, 1].mean() < tissue[:, 0].mean()
        means.append(tissue.mean(axis=0))
    assert np.abs(means[0] - means[1]).max() > 2


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 300))
def test_a_grid_has_exactly_the_spots_asked_for(n: int) -> None:
    centers, side = spot_grid(n, 100, 120)
    assert len(np.unique(centers, axis=0)) == n
    assert side % 4 == 0
    assert centers.min() >= 120
    assert centers.max() <= side - 120


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_rates_are_shares_and_null_genes_never_move(n: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    genes = plan_genes(rng, n, share)
    rates = genes.rates(rng.normal(0.3, 0.5, size=(8, len(MORPHOLOGY))), rng.normal(0, 0.3, size=n))
    np.testing.assert_allclose(rates.sum(axis=1), 1)
    assert (rates > 0).all()
    np.testing.assert_allclose(
        rates[:, ~genes.planted], np.broadcast_to(rates[:1, ~genes.planted], (8, (~genes.planted).sum()))
    )
    assert len(set(genes.names)) == n
    assert (~genes.planted).sum() == round(n * share)
    assert [bool(what) for what in genes.follows] == list(genes.planted)


@pytest.mark.parametrize("dispersion", [0.0, 0.3])
def test_counts_have_the_variance_of_a_negative_binomial(dispersion: float) -> None:
    counts = draw_counts(np.random.default_rng(0), np.full((40_000, 1), 9.0), dispersion)
    assert counts.mean() == pytest.approx(9, rel=0.02)
    assert counts.var() == pytest.approx(9 + dispersion * 81, rel=0.04)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"patient": 3}, "did you mean 'patients'"),
        ({"patients": 0}, "patients"),
        ({"null_fraction": 1.5}, "null_fraction"),
        ({"name": "../out"}, "name"),
    ],
)
def test_choices_are_checked(tmp_path: Path, choices: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_synthetic(tmp_path / "x", **choices)
    assert not (tmp_path / "x").exists()


def test_a_foreign_card_of_the_same_name_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "synthetic.md").write_text("mine")
    with pytest.raises(DataError, match="not the card of a synthetic cohort"):
        write_synthetic(tmp_path, **SMALL)
    assert (tmp_path / "synthetic.md").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write into"):
        write_synthetic(tmp_path / "file" / "raw", **SMALL)


def test_an_interrupted_call_leaves_no_card(tmp_path: Path) -> None:
    def stop(items, label, total=None):
        for i, item in enumerate(items):
            if i == 1:
                raise KeyboardInterrupt
            yield item

    write_synthetic(tmp_path, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path, **{**SMALL, "seed": 9}, progress=stop)
    assert not (tmp_path / "synthetic.md").exists()
    assert not list(tmp_path.glob(".*"))
    assert verify(load_card(write_synthetic(tmp_path, **SMALL)), tmp_path).whole


@pytest.mark.parametrize("content", [None, b"not HDF5"])
def test_a_missing_or_broken_truth_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "truth.h5").write_bytes(content)
    with pytest.raises(StexprError, match="not the truth"):
        read_truth(tmp_path / "synthetic.md")
