import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.slide_cohort import match_slides
from stexpr.data.slide_folds import SlideFolds, make_slide_folds
from stexpr.data.splits import Fold, InnerSplit, read_folds, write_folds
from stexpr.data.tables import read_clinical, read_slides, read_tcga_sites, tcga_sites
from stexpr.data.targets import Labels, Survival, read_labels
from stexpr.errors import DataError, LeakageError


def cohort(n: int, prevalence: float = 0.3, n_sites: int = 8, seed: int = 0):
    """Patients p0, p1, ... with a slide or two each, a binary label and a site."""
    rng = np.random.default_rng(seed)
    patients = [f"p{i}" for i in range(n)]
    slides = {patient: tuple(f"{patient}-{j}" for j in range(rng.integers(1, 3))) for patient in patients}
    positive = rng.permutation(n) < max(1, round(prevalence * n))
    labels = Labels("gene", "binary", dict(zip(patients, positive.tolist(), strict=True)))
    sites = {patient: f"site{rng.integers(n_sites)}" for patient in patients}
    return slides, {"gene": labels}, sites


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(12, 60),
    k=st.integers(2, 4),
    repeats=st.integers(1, 2),
    inner_k=st.sampled_from([0, 2]),
    n_sites=st.integers(4, 12),
    whole_sites=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_patient_and_no_site_is_ever_on_two_sides(n, k, repeats, inner_k, n_sites, whole_sites, seed):
    slides, targets, sites = cohort(n, n_sites=n_sites, seed=seed)
    try:
        made = make_slide_folds(
            slides, targets, k=k, repeats=repeats, inner_k=inner_k, site_of=sites if whole_sites else None, seed=seed
        )
    except DataError:
        assert whole_sites  # too few sites for k, for the inner partitions, or for another repeat
        return
    assert len(made.folds) == k * repeats
    for repeat in range(repeats):
        tested = [patient for fold in made.folds[repeat * k : (repeat + 1) * k] for patient in fold.test]
        assert sorted(tested) == sorted(slides)
    partitions = {frozenset(frozenset(fold.test) for fold in made.folds[r * k : (r + 1) * k]) for r in range(repeats)}
    assert len(partitions) == repeats
    for fold in made.folds:
        assert {**fold.train, **fold.test} == slides
        assert not fold.train.keys() & fold.test.keys()
        assert not whole_sites or not {sites[p] for p in fold.train} & {sites[p] for p in fold.test}
        assert len(fold.inner) == inner_k
        validated = [slide for split in fold.inner for slide in split.validation]
        assert not inner_k or sorted(validated) == sorted(fold.train_sections)
        for split in fold.inner:
            one, other = ({slide.split("-")[0] for slide in side} for side in (split.train, split.validation))
            assert not one & other
            assert not whole_sites or not {sites[p] for p in one} & {sites[p] for p in other}


@settings(max_examples=25, deadline=None)
@given(n=st.integers(20, 120), prevalence=st.floats(0.1, 0.9), k=st.integers(2, 5), seed=st.integers(0, 99))
def test_one_label_is_spread_as_evenly_as_can_be(n, prevalence, k, seed):
    slides, targets, _ = cohort(n, prevalence, seed=seed)
    made = make_slide_folds(slides, targets, k=k, seed=seed)
    for row in made.balance:
        assert max(row.tested) - min(row.tested) <= 1
        assert sum(row.tested) == sum(str(value) == row.label for value in targets["gene"].values.values())
    assert made.not_reached == {}


def test_several_rare_labels_are_in_every_fold_at_once():
    rng = np.random.default_rng(3)
    patients = [f"p{i}" for i in range(200)]
    targets = {}
    for gene in range(20):
        positive = set(rng.choice(200, 5 + gene, replace=False).tolist())
        targets[f"g{gene}"] = Labels(f"g{gene}", "binary", {patient: i in positive for i, patient in enumerate(patients)})
    made = make_slide_folds({patient: (patient,) for patient in patients}, targets, k=5)
    assert made.infeasible == made.not_reached == {}
    at_random = np.random.default_rng(0).permutation(200).reshape(5, 40)
    lacking = sum(
        not any(target.values[patients[i]] for i in part) for target in targets.values() for part in at_random.tolist()
    )
    assert lacking > 3  # what dealing without regard to labels leaves


def test_the_same_seed_makes_the_same_folds_and_another_makes_others():
    slides, targets, sites = cohort(50, n_sites=12)
    first, again, other = (make_slide_folds(slides, targets, k=3, site_of=sites, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [fold.hash for fold in first.folds] != [fold.hash for fold in other.folds]


def test_targets_that_no_partition_can_serve_are_named():
    slides, targets, _ = cohort(30)
    patients = list(slides)
    sites = {patient: f"site{i % 6}" for i, patient in enumerate(patients)}
    targets["few"] = Labels("few", "binary", {patient: i < 2 for i, patient in enumerate(patients)})
    targets["local"] = Labels("local", "binary", {patient: sites[patient] == "site1" for patient in patients})
    targets["grade"] = Labels(
        "grade", "multiclass", {patient: "G3" if i == 4 else f"G{i % 2}" for i, patient in enumerate(patients)}
    )
    targets["score"] = Labels("score", "continuous", {patient: float(i) for i, patient in enumerate(patients)})
    made = make_slide_folds(slides, targets, k=3, site_of=sites)
    assert made.infeasible == {
        "few": "only 2 patients are True, for 3 folds",
        "local": "the 5 patients that are True come from 1 sites only, for 3 folds",
        "grade": "only 1 patients are G3, for 3 folds",
    }
    assert made.left_out == ("score",)
    assert "few: only 2 patients" in made.describe()
    assert "score: continuous" in made.describe()
    for row in made.balance:
        assert row.gaps == tuple(i for i, n in enumerate(row.tested) if n == 0)


def test_events_are_spread_and_missing_labels_count_nowhere():
    slides, _, _ = cohort(40)
    event = {patient: i % 4 == 0 for i, patient in enumerate(slides) if i < 36}
    survival = Survival("OS", dict.fromkeys(event, 1.0), event, missing=("p36", "p37", "p38", "p39"))
    (row,) = make_slide_folds(slides, {"OS": survival}, k=3).balance
    assert (row.target, row.label, row.tested) == ("OS", "True", (3, 3, 3))


def test_what_cannot_be_asked_for_is_refused():
    slides, targets, sites = cohort(20, n_sites=3)
    for arguments, message in (
        ({"k": 1}, "k >= 2"),
        ({"inner_k": 1}, "inner_k 0 or >= 2"),
        ({"k": 21}, "20 patients cannot make 21 folds"),
        ({"k": 4, "site_of": sites}, r"3 sites \(site0, site1, site2\) cannot make 4 folds"),
        ({"k": 3, "site_of": sites, "repeats": 2}, "only 1 different partitions"),
        ({"site_of": {"p0": "a"}}, r"19 patients \(p1, .*have no site"),
    ):
        with pytest.raises(DataError, match=message):
            make_slide_folds(slides, targets, **arguments)


def test_leaks_cannot_be_built():
    sites = {"a": "x", "b": "x", "c": "y"}
    fold = Fold(0, {"a": ("a1", "a2"), "c": ("c1",)}, {"b": ("b1",)})
    with pytest.raises(LeakageError, match="site 'x' is on both sides of fold 0"):
        SlideFolds((fold,), 1, sites, ())
    inner = InnerSplit({"a1": None, "c1": None}, {"a2": None})
    with pytest.raises(LeakageError, match="patient 'a' is on both sides of an inner split"):
        SlideFolds((Fold(0, fold.train, fold.test, "patient", (inner,)),), 1, {}, ())


def test_folds_go_through_a_file(tmp_path):
    slides, targets, sites = cohort(40, n_sites=10)
    folds = make_slide_folds(slides, targets, k=3, inner_k=2, site_of=sites).folds
    write_folds(tmp_path / "folds.json", folds)
    assert read_folds(tmp_path / "folds.json") == folds


@pytest.mark.real
def test_all_mutations_of_tcga_breast_cancer_with_sites_kept_whole(shared_data):
    tables = shared_data / "tables"
    clinical, slides = read_clinical(tables / "TCGA-BRCA-DX_CLINI.xlsx"), read_slides(tables / "TCGA-BRCA-DX_SLIDE.csv")
    genes = [name for name in clinical.columns if name.endswith("_anymut")]
    matched = match_slides(slides, [read_labels(clinical, gene, "binary") for gene in genes])
    assert (len(matched.targets), len(matched.slides_of), len(matched.without_slide)) == (76, 1062, 35)
    assert {len(patients) for patients in matched.without_label.values()} == {14}
    sites = tcga_sites(matched.slides_of, read_tcga_sites(tables / "tcga-institution-sites.csv"))
    start = time.process_time()
    made = make_slide_folds(matched.slides_of, matched.targets, k=5, site_of=sites)
    assert time.process_time() - start < 30
    for fold in made.folds:
        assert not fold.train.keys() & fold.test.keys()
        assert not {sites[patient] for patient in fold.train} & {sites[patient] for patient in fold.test}
        assert 0.9 < len(fold.test) / (1062 / 5) < 1.1
    positives = {row.target: row for row in made.balance if row.label == "True"}
    carriers = {
        gene: len({sites[patient] for patient, mutated in target.values.items() if mutated})
        for gene, target in matched.targets.items()
    }
    assert set(made.infeasible) == {gene for gene, n in carriers.items() if n < 5}
    assert len(made.infeasible) == 8
    assert set(made.not_reached) == {gene for gene, row in positives.items() if row.gaps} - set(made.infeasible)
    assert len(made.not_reached) <= 12
    assert all(sum(positives[gene].tested) < 15 for gene in made.not_reached)
    for gene in ("TP53_anymut", "PIK3CA_anymut", "TTN_anymut"):
        tested = np.array(positives[gene].tested)
        assert abs(tested / tested.mean() - 1).max() < 0.3
