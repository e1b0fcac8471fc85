"""The bag model: exact gradients in parts, patients of several slides, covariates, votes, and an encoder that learns along."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from stexpr.errors import ModelError
from stexpr.models.bag import make_head
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.objectives import BagObjective, Continuous, Fraction, MultiClass, MultiLabel, Ordinal
from stexpr.models.bag.survival import Cox, DiscreteTime
from stexpr.types import PatientBatch

D, P = 6, 9


@dataclass(frozen=True)
class Held:
    """Instances that are in memory."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def read(self) -> Tensor:
        return self.values


def targets_of(generator: torch.Generator) -> dict[str, tuple[BagObjective, Tensor]]:
    yes = (torch.rand(P, 2, generator=generator) < 0.5).float()
    yes[0, 1] = torch.nan
    time, event = torch.rand(P, generator=generator) + 0.1, (torch.rand(P, generator=generator) < 0.7).float()
    event[0] = 1
    survival = torch.stack([time, event], dim=1)
    classes = torch.arange(P) % 3
    return {
        "binary": (MultiLabel(torch.tensor([1.5, 0.5])), yes),
        "fraction": (Fraction(), torch.rand(P, generator=generator)),
        "multiclass": (MultiClass(torch.tensor([1.0, 2.0, 0.5])), classes),
        "ordinal": (Ordinal(3), classes),
        "continuous": (Continuous(torch.tensor([1.0]), torch.tensor([2.0])), torch.randn(P, 1, generator=generator)),
        "cox": (Cox(), survival),
        "discrete": (DiscreteTime(torch.tensor([0.3, 0.6])), survival),
    }


def batch_of(targets: list[Tensor], *, several: bool = True, seed: int = 0) -> PatientBatch:
    generator = torch.Generator().manual_seed(seed)
    patient = [p for p in range(P) for _ in range(1 + (several and p % 3 == 0))]
    bags = tuple(Held(torch.randn(1 + i % 5, D, generator=generator)) for i in range(len(patient)))
    return PatientBatch(bags, torch.tensor(patient), tuple(targets), torch.randn(P, 2, generator=generator))


def model_of(head: str, objectives: list[BagObjective], **arguments: object) -> BagModel:
    n = sum(objective.n_outputs for objective in objectives)
    built = make_head(head, D, n, widths=(8,), dropout=0.0, seed=1)
    mean, sd = torch.linspace(-1, 1, D), torch.linspace(0.5, 2, D)
    return BagModel(built, objectives, mean=mean, sd=sd, n_covariates=2, **arguments)  # type: ignore[arg-type]


def gradients(model: nn.Module) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "kinds", [("binary", "fraction", "ordinal"), ("multiclass", "continuous", "discrete"), ("binary", "cox")]
)
@pytest.mark.parametrize("head", ["gated_attention", "patch_vote", "transmil"])
def test_parts_give_the_gradient_of_the_whole(head: str, kinds: tuple[str, ...], several: bool) -> None:
    made = targets_of(torch.Generator().manual_seed(2))
    model = model_of(head, [made[kind][0] for kind in kinds], weights=(1.0, 0.5, 2.0)[: len(kinds)])
    batch = batch_of([made[kind][1] for kind in kinds], several=several)
    loss = model.loss(batch)
    loss.total.backward()
    whole = gradients(model)
    model.packed = 7
    in_parts = model.gradient(batch)
    assert float(in_parts.total) == pytest.approx(float(loss.total.detach()), abs=1e-5)
    for one, other in zip(gradients(model), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_clam_in_parts_teaches_its_extremes_as_in_the_whole() -> None:
    objective, classes = targets_of(torch.Generator().manual_seed(2))["multiclass"]
    model = model_of("clam", [objective])
    patient = torch.arange(P)
    bags = tuple(Held(torch.randn(20, D, generator=torch.Generator().manual_seed(i))) for i in range(P))
    batch = PatientBatch(bags, patient, (classes,), torch.zeros(P, 2))
    model.loss(batch).total.backward()
    whole = gradients(model)
    model.packed = 45
    model.gradient(batch)
    for one, other in zip(gradients(model), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_patient_is_predicted_alike_in_any_company() -> None:
    made = targets_of(torch.Generator().manual_seed(2))
    model = model_of("gated_attention", [made["binary"][0]]).eval()
    batch = batch_of([made["binary"][1]])
    whole = model.predict(batch)
    alone = torch.cat([model.predict(batch.rows(p, p + 1)) for p in range(P)])
    torch.testing.assert_close(whole, alone)
    assert whole.shape == (P, 2)


def test_outputs_of_several_slides_are_averaged_and_covariates_added() -> None:
    made = targets_of(torch.Generator().manual_seed(2))
    model = model_of("mean", [made["fraction"][0]]).eval()
    batch = batch_of([made["fraction"][1]])
    assert model.fusion is not None
    nn.init.constant_(model.fusion.weight, 2.0)
    slides = torch.cat([model.head(model.pack([bag.read()])).output for bag in batch.bags])
    assert batch.patient[:3].tolist() == [0, 0, 1]
    expected = slides[:2].mean(dim=0) + 2.0 * batch.covariates[0].sum()
    torch.testing.assert_close(model.predict(batch)[0], expected)


def test_patches_vote_by_their_mean_probability_or_their_majority() -> None:
    objective, target = targets_of(torch.Generator().manual_seed(2))["binary"]
    model = model_of("patch_vote", [objective]).eval()
    batch = batch_of([target], several=False)
    head: object = model.head
    with torch.no_grad():
        patches = head.patches(model.pack([batch.bags[3].read()]))  # type: ignore[attr-defined]
    model.fusion = None
    torch.testing.assert_close(model.predict(batch)[3].sigmoid(), patches.sigmoid().mean(dim=0))
    head.vote = "majority"  # type: ignore[attr-defined]
    yes = (patches > 0).sum(dim=0)
    torch.testing.assert_close(model.predict(batch)[3].sigmoid(), (yes + 0.5) / (len(patches) + 1))


def test_labels_of_patches_take_the_place_of_those_of_slides() -> None:
    objective, target = targets_of(torch.Generator().manual_seed(2))["fraction"]
    model = model_of("patch_vote", [objective])
    batch = batch_of([target], several=False)
    labels = tuple(Held(torch.full((len(bag),), 0.25)) for bag in batch.bags)
    own = PatientBatch(batch.bags, batch.patient, (torch.full((P,), 0.25),), batch.covariates)
    by_patch = PatientBatch(batch.bags, batch.patient, batch.targets, batch.covariates, labels)
    torch.testing.assert_close(model.loss(by_patch).total, model.loss(own).total)
    unknown = tuple(Held(torch.full((len(bag),), torch.nan)) for bag in batch.bags)
    nothing = PatientBatch(batch.bags, batch.patient, batch.targets, batch.covariates, unknown)
    assert model.loss(nothing).total.item() == 0


class Small(nn.Module):
    """An encoder with dropout and batch normalization, which must not couple the bags of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.5), nn.Flatten())
        self.last = nn.LazyLinear(D)

    def forward(self, patches: Tensor) -> Tensor:
        out: Tensor = self.last(self.layers(patches.float() / 255))
        return out


def test_cox_is_exact_in_parts_when_the_encoder_learns_along() -> None:
    objective, target = targets_of(torch.Generator().manual_seed(2))["cox"]
    encoder = Small()
    encoder(torch.zeros(1, 3, 6, 6))
    model = model_of("gated_attention", [objective], encoder=encoder, lr_scale=0.1).train()
    generator = torch.Generator().manual_seed(0)
    bags = tuple(Held(torch.randint(0, 256, (2 + p % 3, 3, 6, 6), generator=generator, dtype=torch.uint8)) for p in range(P))
    batch = PatientBatch(bags, torch.arange(P), (target,), torch.zeros(P, 2))
    model.loss(batch).total.backward()
    whole = gradients(model)
    model.packed = 5
    model.gradient(batch)
    for one, other in zip(gradients(model), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    scales = {group["lr_scale"] for group in model.parameter_groups(0.1)}
    assert scales == {1.0, 0.1}
    assert sum(len(group["params"]) for group in model.parameter_groups(0.1)) == len(list(model.parameters()))


def test_a_head_of_other_outputs_is_refused() -> None:
    head = make_head("mean", D, 3, widths=(4,))
    with pytest.raises(ModelError, match="3 outputs, its objectives need 1"):
        BagModel(head, [Fraction()], mean=torch.zeros(D), sd=torch.ones(D))
