import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.images import ArrayImage
from stexpr.data.section import Section, check_mpp, check_section, join_genes, spot_pitch_px
from stexpr.errors import DataError, GeneError, ScaleError

LATTICE = np.array([(100.0 * x, 100.0 * y) for x in range(5) for y in range(4)])


def make(counts=None, genes=None, *, centers=LATTICE, mpp=2.0, source="card", pitch=200.0, name="S1", left_out=None):
    counts = np.arange(60).reshape(20, 3) if counts is None else counts
    genes = [f"g{i}" for i in range(counts.shape[1])] if genes is None else genes
    spots = anndata.AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame(index=[f"b{i}" for i in range(len(counts))]),
        var=pd.DataFrame(index=genes),
        obsm={"spatial": np.asarray(centers)[: len(counts)]},
    )
    image = ArrayImage(np.zeros((10, 10, 3), dtype=np.uint8))
    return Section(name, "P", spots, image, mpp, source, "symbol", left_out or {}, 100.0, pitch)


def test_a_sound_section_passes():
    check_section(make())


@pytest.mark.parametrize(("value", "shown"), [(-1, "-1"), (0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_values_that_are_not_counts_are_named_with_their_place(value, shown):
    counts = np.ones((20, 3))
    counts[7, 2] = value
    with pytest.raises(DataError, match=rf"section S1 has 1 values that are not counts, such as {shown} at spot b7, gene g2"):
        check_section(make(counts))


def test_empty_sections_say_what_was_left_out():
    with pytest.raises(DataError, match=r"S1 is empty: 0 spots x 3 genes \(left out: 12 not selected\)"):
        check_section(make(np.zeros((0, 3)), left_out={"not selected": 12}))
    with pytest.raises(DataError, match="left out: nothing"):
        check_section(make(np.zeros((20, 0)), []))


@pytest.mark.filterwarnings("ignore:.* names are not unique")
def test_names_that_stand_twice_are_refused():
    with pytest.raises(GeneError, match="genes more than once: a;"):
        check_section(make(genes=["a", "b", "a"]))
    section = make()
    section.spots.obs_names = ["b0"] * 20
    with pytest.raises(DataError, match="barcodes more than once: b0"):
        check_section(section)


def test_absurd_and_contradictory_scales_are_refused():
    for mpp in (0.0, 0.049, 20.1):
        with pytest.raises(ScaleError, match="absurd"):
            check_section(make(mpp=mpp, pitch=None))
    check_section(make(mpp=2.25))  # 12 % off
    with pytest.raises(ScaleError, match=r"100 px apart, 240 um at 2\.4 um/px \(card\)"):
        check_section(make(mpp=2.4))
    check_section(make(mpp=2.4, pitch=None))
    check_section(make(mpp=2.4, source="spot pitch (240 um / 100 px)"))
    with pytest.raises(ScaleError, match="here"):
        check_mpp(100.0, "here")


def test_centers_must_be_finite():
    centers = LATTICE.copy()
    centers[3, 1] = np.nan
    with pytest.raises(DataError, match="two finite numbers"):
        check_section(make(centers=centers))


def test_pitch_is_measured_and_unknown_with_few_spots():
    assert spot_pitch_px(LATTICE) == pytest.approx(100)
    assert spot_pitch_px(LATTICE[:9]) is None
    assert spot_pitch_px(np.zeros((20, 2))) is None


def gene_set(name, genes):
    return make(np.ones((20, len(genes))), list(genes), name=name)


def test_joining_genes_that_differ():
    sections = [gene_set("S1", "cab"), gene_set("S2", "bcd")]
    assert join_genes(sections, "zero") == (["c", "a", "b", "d"], {})
    assert join_genes(sections, "intersect") == (["c", "b"], {"missing in some section": 2})
    with pytest.raises(GeneError, match=r"2 of 4 genes .*such as a, d \(a in section S2\).*absent_genes"):
        join_genes(sections, "refuse")


def test_joining_nothing_is_refused():
    with pytest.raises(GeneError, match="no sections"):
        join_genes([], "zero")
    with pytest.raises(GeneError, match="share none of their 4 genes"):
        join_genes([gene_set("S1", "ab"), gene_set("S2", "cd")], "intersect")


@settings(deadline=None, max_examples=15)
@given(st.permutations("abcd"), st.permutations("abcd"))
def test_equal_gene_sets_join_under_any_rule_in_the_order_of_the_first(first, second):
    sections = [gene_set("S1", first), gene_set("S2", second)]
    for rule in ("zero", "intersect", "refuse"):
        assert join_genes(sections, rule) == (list(first), {})
