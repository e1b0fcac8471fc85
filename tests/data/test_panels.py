"""The panel of a fold by spatial structure, against squidpy."""

from pathlib import Path

import anndata
import numpy as np
import pytest

from raw_sections import write_raw_cohort
from stexpr.config import PanelConfig
from stexpr.data.cards import load_card
from stexpr.data.neighbors import neighbor_weights
from stexpr.data.panels import fold_panel, spatial_structure
from stexpr.data.prepare import prepare
from stexpr.data.splits import Fold
from stexpr.data.store import PreparedCohort
from stexpr.errors import GeneError
from stexpr.panel import ExpressionTransform, fit_panel

SMOOTH = "G20"
RULE = PanelConfig(rule="spatially_variable", n_main=5, min_detection=0.0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    """Three patients; a rare gene is smooth over the tissue of a and b, another one over that of c alone."""
    path = write_raw_cohort(tmp_path_factory.mktemp("raw"), {"a1": "a", "b1": "b", "c1": "c"})
    for section, gene in (("a1", SMOOTH), ("b1", SMOOTH), ("c1", "G21")):
        spots = anndata.read_h5ad(path.parent / f"{section}.h5ad")
        counts = spots.X.toarray()
        counts[:, list(spots.var_names).index(gene)] = np.round(6 + 5 * np.sin(spots.obsm["spatial"][:, 0] / 60))
        counts[:, list(spots.var_names).index("G23")] = 0
        spots.X = counts
        spots.write_h5ad(path.parent / f"{section}.h5ad")
    card = load_card(path)
    assert card.prepare is not None
    return prepare(card, path.parent, path.parent / "cohort", card.prepare)


def fold(test: str) -> Fold:
    patients = {"a": ("a1",), "b": ("b1",), "c": ("c1",)}
    return Fold(0, {name: own for name, own in patients.items() if name != test}, {test: patients[test]})


@pytest.mark.filterwarnings("ignore:.*is not a valid key!:SyntaxWarning")  # squidpy's own docstrings, at its import
def test_structure_is_the_mean_of_squidpys_moran_over_sections(cohort: PreparedCohort) -> None:
    import squidpy

    expected = []
    for section in ("a1", "b1"):
        spots = cohort.spots(section)
        values = ExpressionTransform()(cohort.counts(section).toarray().astype(float), spots["library"].to_numpy())
        weights = neighbor_weights(spots["x_um"].to_numpy(), spots["y_um"].to_numpy())
        data = anndata.AnnData(values, obsp={"spatial_connectivities": weights})
        data.var_names = list(cohort.genes)
        varies = [gene for gene in cohort.genes if gene != "G23"]
        table = squidpy.gr.spatial_autocorr(
            data, mode="moran", genes=varies, n_perms=None, n_jobs=1, copy=True, show_progress_bar=False
        )
        expected.append(table["I"].reindex(cohort.genes).fillna(0).to_numpy())
    np.testing.assert_allclose(spatial_structure(cohort, ["a1", "b1"]), np.mean(expected, axis=0), atol=1e-10)


def test_the_genes_are_the_smoothest_of_the_training_sections(cohort: PreparedCohort) -> None:
    panel = fold_panel(RULE, cohort, fold("c"))
    structure = dict(zip(cohort.genes, spatial_structure(cohort, ["a1", "b1"]), strict=True))
    assert panel.main == tuple(sorted(structure, key=lambda gene: (-structure[gene], gene))[:5])
    assert panel.main[0] == SMOOTH
    assert panel.rule == "spatially_variable"
    assert structure["G23"] == 0


def test_test_sections_have_no_say_unless_the_scope_says_so(cohort: PreparedCohort) -> None:
    assert fold_panel(RULE, cohort, fold("c")).main[0] != "G21"
    wide = RULE.model_copy(update={"n_main": 2, "scope": "cohort"})
    assert set(fold_panel(wide, cohort, fold("c")).main) == {SMOOTH, "G21"}


@pytest.mark.parametrize("scope", ["training", "cohort"])
def test_auxiliary_genes_are_those_of_most_counts_in_the_training_sections(cohort: PreparedCohort, scope: str) -> None:
    rule = PanelConfig(n_main=3, min_detection=0.0, scope=scope)
    whole = fold_panel(rule, cohort, fold("c"))
    counts = np.vstack([cohort.counts(section).toarray() for section in ("a1", "b1")]).mean(axis=0)
    mean = dict(zip(cohort.genes, counts, strict=True))
    for n in (1, 4, len(whole.auxiliary), 1000):
        panel = fold_panel(rule, cohort, fold("c"), n_auxiliary=n)
        assert panel.main == whole.main
        assert len(panel.auxiliary) == min(n, len(whole.auxiliary))
        assert [gene for gene in whole.auxiliary if gene in panel.auxiliary] == list(panel.auxiliary)
        left = set(whole.auxiliary) - set(panel.auxiliary)
        assert min(mean[gene] for gene in panel.auxiliary) >= max((mean[gene] for gene in left), default=0)


def test_hidden_spots_choose_no_gene(cohort: PreparedCohort) -> None:
    library = cohort.spots("a1")["library"]
    fewer = cohort.keeping(int(np.median(library)))
    assert not np.allclose(spatial_structure(fewer, ["a1"]), spatial_structure(cohort, ["a1"]))


def test_counts_alone_do_not_choose_spatially(cohort: PreparedCohort) -> None:
    with pytest.raises(GeneError, match=r"needs the spatial structure of 24 genes, and got none"):
        fit_panel(cohort.counts("a1"), cohort.genes, rule="spatially_variable", n_main=2)


@pytest.mark.real
def test_the_olfactory_bulb_has_layers(mob_cohort: Path) -> None:
    """Penk and the like mark layers: their ids rank high, mitochondrial rRNA does not lead."""
    cohort = PreparedCohort.open(mob_cohort)
    structure = spatial_structure(cohort, ["MOB1", "MOB2"])
    ranked = [cohort.genes[i] for i in np.argsort(-structure)]
    other = spatial_structure(cohort, ["MOB3"])
    assert np.corrcoef(structure, other)[0, 1] > 0.8  # another mouse says the same
    assert "ENSMUSG00000045573" in ranked[:30]  # Penk, of the granule cell layer
