"""A head on the disk: it comes back the same, and anything else is refused."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stexpr.errors import DataError, ModelError
from stexpr.models.bag import PatchVote, make_head
from stexpr.models.bag.covariates import CovariateCoding
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.saved import LoadedHead, load_head, save_head
from stexpr.models.bag.targets import TargetGroup, fit_objective, make_objective

GROUPS = (
    TargetGroup("binary", ("A", "B"), weight=2.0),
    TargetGroup("ordinal", ("G",), ("G1", "G2", "G3")),
    TargetGroup("continuous", ("S",)),
    TargetGroup("discrete", ("OS",), bins=3),
)


def trained(kind: str = "gated_attention") -> LoadedHead:
    generator = torch.Generator().manual_seed(0)
    survival = torch.stack([torch.rand(20, generator=generator) + 0.1, torch.ones(20)], dim=1)
    yes = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(10, 1)
    targets = [yes, torch.arange(20) % 3, torch.randn(20, 1, generator=generator), survival]
    objectives = [fit_objective(group, target)[0] for group, target in zip(GROUPS, targets, strict=True)]
    head = make_head(kind, 5, sum(objective.n_outputs for objective in objectives), widths=(8,), seed=3)
    if isinstance(head, PatchVote):
        head.vote = "mean"
    model = BagModel(
        head,
        objectives,
        mean=torch.randn(5, generator=generator),
        sd=torch.rand(5, generator=generator) + 0.5,
        weights=[group.weight for group in GROUPS],
        n_covariates=3,
    )
    assert model.fusion is not None
    torch.nn.init.normal_(model.fusion.weight)
    coding = CovariateCoding.fit(["AGE", "SEX"], {"AGE": ["50", "60", None], "SEX": ["F", "M", "F"]})
    return LoadedHead(model.eval(), kind, "features", (), GROUPS, coding, encoder="e", fitted=({"name": "A"},))


def saved(folder: Path, head: LoadedHead) -> Path:
    save_head(folder, head, widths=(8,), dropout=0.25)
    return folder


@pytest.mark.parametrize("kind", ["gated_attention", "patch_vote", "transmil", "max"])
def test_a_head_comes_back_the_same(kind: str, tmp_path: Path) -> None:
    head = trained(kind)
    again = load_head(saved(tmp_path / "model", head))
    bags = again.model.pack([torch.randn(4, 5, generator=torch.Generator().manual_seed(1))])
    torch.testing.assert_close(again.model.head(bags).output, head.model.head(bags).output, rtol=0, atol=0)
    for one, other in zip(again.model.state_dict().items(), head.model.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
    assert (again.groups, again.covariates, again.encoder, again.fitted) == (GROUPS, head.covariates, "e", head.fitted)
    assert again.model.weights == (2.0, 1.0, 1.0, 1.0)
    assert again.output_of("B") == (1, GROUPS[0])
    assert again.output_of("S") == (3, GROUPS[2])
    with pytest.raises(ModelError, match="does not predict 'C'"):
        again.output_of("C")


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no slide head"):
        load_head(tmp_path)
    folder = saved(tmp_path / "model", trained())
    content = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"task": "spots"}, "load_model"),
        ({"head": "eval"}, "head"),
        ({"n_features": 7}, "do not fit"),
        ({"widths": []}, "widths"),
        ({"sha256": "0" * 64}, "vouches for"),
        ({"covariates": {"columns": 3}}, "covariates"),
        ({"groups": content["groups"][:3]}, "do not fit"),
        ({"surprise": 1}, "surprise"),
    ):
        (folder / "config.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(ModelError, match=words):
            load_head(folder)
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-3])
    with pytest.raises(ModelError, match="vouches for"):
        load_head(folder)


def test_targets_that_are_all_alike_are_named() -> None:
    objective, unlearned = fit_objective(TargetGroup("binary", ("A", "B")), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert unlearned == ("B",)
    assert objective.n_outputs == 2
    with pytest.raises(ModelError, match="all training patients are alike in A"):
        fit_objective(TargetGroup("binary", ("A",)), torch.ones(3, 1))
    assert TargetGroup("binary", ("A",)).as_classes().classes == ("no", "yes")
    with pytest.raises(ModelError, match="clam learns one classification"):
        GROUPS[0].as_classes()
    with pytest.raises(ModelError, match="lacks 'weights' of A, B"):
        make_objective(GROUPS[0], {})


ages = st.lists(st.one_of(st.none(), st.integers(20, 90).map(str)), min_size=3, max_size=30)


@given(ages, st.data())
def test_covariates_are_standardized_on_training_patients(cells: list[str | None], data: st.DataObject) -> None:
    known = [cell for cell in cells if cell is not None]
    words = data.draw(st.lists(st.sampled_from(["x", "y", "z"]), min_size=len(cells), max_size=len(cells)))
    table = {"AGE": cells, "WORD": words}
    if len(set(known)) < 2 or len(set(words)) < 2:
        with pytest.raises(DataError, match="leave it out"):
            CovariateCoding.fit(["AGE", "WORD"], table)
        return
    coding = CovariateCoding.fit(["AGE", "WORD"], table)
    values = coding(table)
    assert values.shape == (len(cells), len(coding.names))
    assert abs(float(values[:, 0].sum())) < 1e-3 * len(cells)
    assert [float(v) == 0 for v, cell in zip(values[:, 0], cells, strict=True) if cell is None] == [True] * cells.count(None)
    assert ("AGE is missing" in coding.names) == (None in cells)
    assert CovariateCoding.from_dict(json.loads(json.dumps(coding.to_dict()))) == coding


def test_covariates_of_other_patients() -> None:
    coding = CovariateCoding.fit(["AGE", "SEX"], {"AGE": ["50", "60"], "SEX": ["F", "M"]})
    assert coding.names == ("AGE", "SEX = M")
    torch.testing.assert_close(coding({"AGE": ["70", None], "SEX": ["?", "M"]}), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    with pytest.raises(DataError, match="no column 'SEX'"):
        coding({"AGE": ["70"]})
    with pytest.raises(DataError, match="was a number in training"):
        coding({"AGE": ["old"], "SEX": ["F"]})
