"""Explanations of slide heads: what sums, sums; what is left out, is left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stexpr.data.bags import Bag, BagRows, write_bag
from stexpr.errors import ModelError
from stexpr.inference import explain, gene_credit
from stexpr.inference.explain import SlideExplanation, explain_slide, read_slide
from stexpr.inference.explained_output import explained_output, explained_outputs
from stexpr.inference.gene_credit import credit_genes, feature_credit, has_genes, map_genes
from stexpr.models.bag import HEADS, make_head
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.objectives import MISSING_CLASS, BagObjective
from stexpr.models.bag.saved import LoadedHead
from stexpr.models.bag.survival import DiscreteTime
from stexpr.models.bag.targets import TargetGroup, fit_objective
from stexpr.models.bag.vote import PatchVote

GENES = ("ERBB2", "MKI67", "ESR1")
N_FEATURES = 5
GROUPS = {
    "binary": TargetGroup("binary", ("A_mut", "B_mut")),
    "fraction": TargetGroup("fraction", ("KI67",)),
    "continuous": TargetGroup("continuous", ("S1", "S2")),
    "multiclass": TargetGroup("multiclass", ("SUBTYPE",), ("x", "y", "z")),
    "ordinal": TargetGroup("ordinal", ("GRADE",), ("G1", "G2", "G3")),
    "cox": TargetGroup("cox", ("OS",)),
    "discrete": TargetGroup("discrete", ("PFI",)),
}


def some_target(group: TargetGroup) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    if group.kind in ("binary", "continuous"):
        drawn = torch.rand(30, len(group.names), generator=rng)
        return (drawn > 0.5).float() if group.kind == "binary" else 7 * drawn
    if group.kind in ("cox", "discrete"):
        return torch.stack([1 + 100 * torch.rand(30, generator=rng), torch.ones(30)], dim=1)
    if group.kind == "fraction":
        return torch.rand(30, generator=rng)
    return torch.arange(30) % len(group.classes)


def some_head(kind: str, *names: str, instances: Any = "both", vote: Any = "mean") -> LoadedHead:
    """A head with random weights, all of them large enough to matter."""
    groups = tuple(GROUPS[name] for name in names or GROUPS)
    objectives: list[BagObjective] = [fit_objective(group, some_target(group))[0] for group in groups]
    width = {"both": N_FEATURES + len(GENES), "expression": len(GENES), "features": N_FEATURES}[instances]
    head = make_head(kind, width, sum(objective.n_outputs for objective in objectives), widths=(16,), seed=3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(2)
    if isinstance(head, PatchVote):
        head.vote = vote
    mean, sd = torch.linspace(-1, 1, width), torch.linspace(0.5, 2, width)
    model = BagModel(head, objectives, mean=mean, sd=sd)
    return LoadedHead(model.eval(), kind, instances, GENES if instances != "features" else (), groups, encoder="drawn")


def some_bag(folder: Path, n: int = 20, *, encoder: str = "drawn", genes: tuple[str, ...] = GENES) -> Bag:
    rng = np.random.default_rng(n)
    features = 2 * rng.normal(size=(n, N_FEATURES)).astype(np.float32)
    expression = rng.normal(size=(n, len(genes))).astype(np.float32)
    coords = 64 * np.column_stack([np.arange(n) % 8, np.arange(n) // 8])
    rows = BagRows(features, coords, expression=expression)
    return write_bag(folder / "slide.h5", [rows], mpp=0.5, patch_px=32, side=64.0, encoder=encoder, genes=genes)


def outputs_of(head: LoadedHead, instances: torch.Tensor) -> torch.Tensor:
    """What the head itself says of a bag."""
    packed = head.model.pack([instances])
    if isinstance(head.model.head, PatchVote):
        return head.model.vote(head.model.head.patches(packed)).detach()[None]
    return head.model.head(packed).output.detach()


def brute(head: LoadedHead, bag: Bag) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of a bag, and those without each patch."""
    instances = torch.from_numpy(bag.features(head.instances)).float()
    others = [torch.arange(len(instances)) != i for i in range(len(instances))]
    return outputs_of(head, instances), torch.cat([outputs_of(head, instances[kept]) for kept in others])


def explained(head: LoadedHead, bag: Bag) -> list[SlideExplanation]:
    reading = read_slide(head, bag)
    return [reading.explain(output) for output in explained_outputs(head)]


@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind != "clam"])
def test_leaving_out_a_patch_is_what_the_head_says_without_it(kind: str, tmp_path: Path) -> None:
    head, bag = some_head(kind), some_bag(tmp_path)
    whole, without = brute(head, bag)
    for found in explained(head, bag):
        assert found.value == pytest.approx(float(found.output(whole)[0]), abs=2e-5)
        np.testing.assert_allclose(found.perturbation, found.output(whole) - found.output(without), atol=4e-5)
        assert found.group_size == 1


def test_a_vote_of_the_majority_and_two_classes(tmp_path: Path) -> None:
    bag = some_bag(tmp_path)
    head = some_head("patch_vote", "binary", vote="majority")
    whole, without = brute(head, bag)
    for found in explained(head, bag):
        np.testing.assert_allclose(found.perturbation, found.output(whole) - found.output(without), atol=1e-5)
        assert found.ranked_by == "patch output"
    assert not has_genes(read_slide(head, bag))
    with pytest.raises(ModelError, match="majority"):
        credit_genes(read_slide(head, bag), explained_output(head, "A_mut"))


@pytest.mark.parametrize("kind", ["mean", "attention", "gated_attention", "additive"])
def test_credits_of_patches_sum_to_the_output(kind: str, tmp_path: Path) -> None:
    for found in explained(some_head(kind), some_bag(tmp_path)):
        assert found.credit is not None
        assert found.base is not None
        assert found.base + found.credit.sum() == pytest.approx(found.value, abs=1e-6)
        assert (found.attention is None) == (kind == "mean")
        if found.attention is not None:
            assert found.attention.sum() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["max", "patch_vote", "transmil"])
def test_where_an_output_is_no_sum_no_credit_is_given(kind: str, tmp_path: Path) -> None:
    for found in explained(some_head(kind), some_bag(tmp_path)):
        assert found.credit is None
        assert found.attention is None
        assert found.ranked_by == ("patch output" if kind == "patch_vote" else "perturbation")


def test_a_patch_with_all_the_attention_is_left_out_without_rounding(tmp_path: Path) -> None:
    head, bag = some_head("attention", "fraction"), some_bag(tmp_path)
    with torch.no_grad():
        head.model.head.score.weight.weight.mul_(400)
    found = explain_slide(head, bag, "KI67")
    assert found.attention is not None
    assert found.attention.max() > 1 - 1e-9
    whole, without = brute(head, bag)
    np.testing.assert_allclose(found.perturbation, found.output(whole) - found.output(without), atol=1e-4)
    assert np.abs(found.perturbation).argmax() == found.attention.argmax()


def test_patches_that_see_each_other_are_left_out_by_neighborhoods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "GROUPS", 8)
    head, bag = some_head("transmil", "fraction"), some_bag(tmp_path)
    found = explain_slide(head, bag, "KI67")
    assert found.group_size == 3
    group = explain._neighborhoods(bag.coords(), 8)
    kept = torch.from_numpy(group != group[0])
    instances = torch.from_numpy(bag.features("both")).float()
    output = explained_output(head, "KI67")
    fall = float(output(outputs_of(head, instances))[0] - output(outputs_of(head, instances[kept]))[0])
    np.testing.assert_allclose(found.perturbation[group == group[0]], fall / (group == group[0]).sum(), atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "max", "patch_vote", "gated_attention", "transmil"])
def test_nothing_is_left_of_a_slide_without_its_only_patch(kind: str, tmp_path: Path) -> None:
    found = explain_slide(some_head(kind, "fraction"), some_bag(tmp_path, 1), "KI67")
    assert np.isnan(found.perturbation).all()
    assert np.isfinite(found.value)


def test_additive_credit_of_genes_is_that_of_the_head_itself(tmp_path: Path) -> None:
    head, bag = some_head("additive"), some_bag(tmp_path)
    reading = read_slide(head, bag)
    packed = head.model.pack([torch.from_numpy(bag.features("both")).float()])
    own = head.model.head.credit(packed, 2)  # type: ignore[operator]
    output = explained_output(head, "KI67")
    np.testing.assert_allclose(np.concatenate(list(feature_credit(reading, output))), own.features.numpy(), atol=1e-5)
    np.testing.assert_allclose(reading.explain(output).credit, own.patches.numpy(), atol=1e-5)
    np.testing.assert_allclose(map_genes(reading, output, ["ESR1", "ERBB2"]), own.features.numpy()[:, [7, 5]], atol=1e-5)
    for output in explained_outputs(head):
        genes = credit_genes(reading, output)
        assert genes.method == "exact"
        assert abs(genes.gap) < 1e-5
        value = reading.explain(output).value
        assert genes.start + genes.features + genes.total.sum() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("kind", ["mean", "max", "patch_vote", "attention", "gated_attention", "transmil"])
def test_integrated_gradients_sum_to_the_difference_from_mean_expression(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gene_credit, "STEPS", 12)
    head, bag = some_head(kind, "fraction", "discrete"), some_bag(tmp_path, 12)
    reading = read_slide(head, bag)
    instances = torch.from_numpy(bag.features("both")).float()
    plain = instances.clone()
    plain[:, N_FEATURES:] = head.model.mean[N_FEATURES:]
    for output in explained_outputs(head):
        genes = credit_genes(reading, output)
        moved = float(output(outputs_of(head, instances))[0] - output(outputs_of(head, plain))[0])
        assert genes.total.sum() == pytest.approx(moved, abs=0.1 * max(1.0, abs(moved)))
        assert genes.total.sum() + genes.gap == pytest.approx(moved, abs=1e-4)
        assert genes.features == 0
        assert (genes.absolute >= np.abs(genes.total) - 1e-9).all()
        assert genes.leading.sum() == pytest.approx(1)
    np.testing.assert_allclose(map_genes(reading, output, GENES).sum(axis=0), genes.total, atol=1e-5)


def test_gradients_are_integrated_alike_whatever_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, bag = some_head("gated_attention", "fraction", instances="expression"), some_bag(tmp_path, 30)
    output = explained_output(head, "KI67")
    whole = credit_genes(read_slide(head, bag), output)
    chunks = Bag.chunks
    monkeypatch.setattr(Bag, "chunks", lambda self, rows=7, instances="features": chunks(self, 7, instances))
    parts = credit_genes(read_slide(head, bag), output)
    np.testing.assert_allclose(parts.total, whole.total, atol=1e-6)
    np.testing.assert_array_equal(parts.leader, whole.leader)


def test_what_is_asked_for_is_named(tmp_path: Path) -> None:
    head, bag = some_head("gated_attention"), some_bag(tmp_path)
    assert [output.name for output in explained_outputs(head, ["SUBTYPE", "OS"])] == [
        *("SUBTYPE=x", "SUBTYPE=y", "SUBTYPE=z", "OS")
    ]
    assert explained_output(head, "SUBTYPE=y").unit == "log odds against the mean of the other classes"
    with pytest.raises(ModelError, match="several classes; name one of SUBTYPE=x"):
        explain_slide(head, bag, "SUBTYPE")
    with pytest.raises(ModelError, match="did you mean 'KI67'"):
        explain_slide(head, bag, "KI76")
    with pytest.raises(ModelError, match="did you mean 'ERBB2'"):
        map_genes(read_slide(head, bag), explained_output(head, "OS"), ["ERBB"])
    two = LoadedHead(**{**vars(some_head("mean", "multiclass")), "groups": (TargetGroup("binary", ("R",)).as_classes(),)})
    assert MISSING_CLASS < 0
    assert [output.name for output in explained_outputs(two)] == ["R=yes"]
    unlearned = LoadedHead(**{**vars(head), "unlearned": ("A_mut",)})
    assert "A_mut" not in [output.name for output in explained_outputs(unlearned)]
    with pytest.raises(ModelError, match="learned nothing of 'A_mut'"):
        explained_output(unlearned, "A_mut")


def test_bags_of_another_encoder_or_genes_are_refused(tmp_path: Path) -> None:
    head = some_head("mean")
    with pytest.raises(ModelError, match="of encoder other, the head was trained on those of drawn"):
        read_slide(head, some_bag(tmp_path, encoder="other"))
    with pytest.raises(ModelError, match="other genes"):
        read_slide(head, some_bag(tmp_path, genes=("A", "B", "C")))
    with pytest.raises(ModelError, match="7 both where it reads 8"):
        read_slide(head, some_bag(tmp_path, genes=("A", "B")))


def test_the_slopes_of_a_log_hazard_account_for_its_whole_difference() -> None:
    head = some_head("mean", "discrete", "cox")
    output = explained_output(head, "PFI")
    assert isinstance(output.objective, DiscreteTime)
    start, end = torch.linspace(-3, 2, 5, dtype=torch.float64), torch.linspace(4, -2, 5, dtype=torch.float64)
    difference = float(output(end[None])[0] - output(start[None])[0])
    assert float((end - start) @ output.slopes(start, end)) == pytest.approx(difference, abs=1e-6)
