"""A training step of gated attention on a bag of 100,000 x 1,024: `python benchmarks/speed/attention.py [--quick]`.

Time against the matrix products alone that any such step has (the layer of 512, both layers of the attention, and the
gradients of their weights), on one thread, processor seconds; memory above what the process held before, as a share of the bag
in single precision, with the C library as it is. `--quick` takes a fiftieth of the patches.
"""

import comparison  # isort: split

import resource

import torch
from torch import Tensor

from stexpr.models.bag import BagHead, make_head
from stexpr.types import BagBatch

PATCHES, FEATURES, PART, REPEATS = 100_000, 1024, 2048, 3
BAR_MEMORY = 1.0


def step(head: BagHead, bag: Tensor) -> None:
    head(BagBatch.of([bag])).output.sum().backward()


@torch.no_grad()
def products(head: BagHead, bag: Tensor) -> None:
    """The products of a step, with the weights' gradients summed, in parts that fit into the cache as in a head."""
    first = head.get_parameter("trunk.0.weight")
    both = torch.cat([head.get_parameter(f"score.{name}.weight") for name in ("value", "gate")])
    of_first, of_both = torch.zeros_like(first), torch.zeros_like(both)
    for rows in torch.split(bag, PART):
        embedded = rows @ first.T
        hidden = embedded @ both.T
        of_both.addmm_(hidden.T, embedded)
        of_first.addmm_((hidden @ both).T, rows)


def rows(quick: bool) -> list[comparison.Row]:
    bag = torch.rand(PATCHES // 50 if quick else PATCHES, FEATURES)
    head = make_head("gated_attention", FEATURES, 1).train()
    step(head, bag[:64])  # what torch sets up once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(head, bag)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / bag.nbytes
    ours, peer = comparison.in_turns(REPEATS, lambda: step(head, bag), lambda: products(head, bag))
    assert quick or memory <= BAR_MEMORY
    return [
        comparison.compared(
            "gated_attention_step",
            ours=ours,
            peer=peer,
            at_most=3.0,
            packages=("stexpr", "torch"),
            how=f"{len(bag):,} patches x {FEATURES} features, forward and backward; peer: the matrix products alone; medians "
            f"of {REPEATS} turns; memory above what was there before: {memory:.2f} of the bag (at most {BAR_MEMORY:g})",
            profile=comparison.profiled(lambda: step(head, bag)),
            extra_memory_of_bag=round(memory, 3),
            bar_memory=BAR_MEMORY,
        )
    ]


if __name__ == "__main__":
    comparison.main("attention", rows, __doc__)
