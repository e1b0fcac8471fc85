"""Parts read again: outputs, gradients and dropout are those of reading them once and keeping everything."""

import pytest
import torch
from torch import Tensor, nn

from stexpr.models.bag.parts import Known, read_parts

D = 5


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 3)).train()


def parts(*, fine_tuned: bool = False) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    index = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1])
    rows = torch.randn(len(index), D, generator=generator).requires_grad_(fine_tuned)
    return list(zip(torch.split(rows, 4), torch.split(index, 4), strict=True))


def reader(layers: nn.Sequential):
    def read(instances: Tensor, index: Tensor) -> Known:
        values = layers(instances)
        return Known(
            (values.new_zeros(2, 3).index_add(0, index, values), values.detach().new_full((2,), len(index))), (values,)
        )

    return read


def kept(read, given: list[tuple[Tensor, Tensor]]) -> Known:
    """Everything kept by autograd, the way it is not to be done."""
    known = [read(*part) for part in given]
    of_bags = tuple(torch.stack(values) for values in zip(*(part.bags for part in known), strict=True))
    return Known(of_bags, tuple(torch.cat(values) for values in zip(*(part.instances for part in known), strict=True)))


@pytest.mark.parametrize("fine_tuned", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_parts_are_read_as_if_all_were_kept(fine_tuned: bool, half: bool) -> None:
    found = []
    for way in (kept, read_parts):
        layers, given = network(), parts(fine_tuned=fine_tuned)
        spare = nn.Parameter(torch.ones(1))
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            arguments = () if way is kept else ([*layers.parameters(), spare],)
            known = way(reader(layers), given, *arguments)
        torch.rand(3)  # the second reading must not depend on what was drawn since
        before = torch.random.get_rng_state()
        wanted = [*layers.parameters(), *((part for part, _ in given) if fine_tuned else ())]
        total = known.bags[0].float().sin().sum() + known.instances[0].float().cos().sum()
        gradients = torch.autograd.grad(total, [*wanted, spare], allow_unused=True)
        assert gradients[-1] is None
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append([known.bags[0], known.bags[1], *known.instances, *gradients[:-1]])
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        tolerance = (
            0.02 if half else 1e-6
        )  # autograd sums gradients of weights it has cast in bfloat16, parts in single precision
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for a, b in zip(*(values[:3] for values in found), strict=True):
        assert torch.equal(a, b)


def test_without_gradients_nothing_is_read_twice() -> None:
    layers, read = network(), 0

    def counted(instances: Tensor, index: Tensor) -> Known:
        nonlocal read
        read += 1
        return reader(layers)(instances, index)

    for grad in (torch.no_grad, torch.inference_mode):
        with grad():
            known = read_parts(counted, parts(), list(layers.parameters()))
        assert not known.instances[0].requires_grad
    assert read == 2 * 3


def test_one_part_keeps_its_activations() -> None:
    layers = network().eval()
    part = (torch.cat([rows for rows, _ in parts()]), torch.cat([index for _, index in parts()]))
    (bags, _), (instances,) = read_parts(reader(layers), [part], list(layers.parameters()))
    assert bags.shape == (1, 2, 3)
    torch.testing.assert_close(instances, layers(part[0]))
