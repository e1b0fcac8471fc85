"""A training step of gated attention on a bag of 100,000 x 1,024: `python benchmarks/speed/attention.py [--quick]`.

Time against the matrix products alone that any such step has (the layer of 512, both layers of the attention, and the
gradients of their weights), on one thread, processor seconds, the least of three; memory above what the process held before, as
a share of the bag in single precision, with the C library as it is. Writes benchmarks/results/speed-attention.json; `--quick`
takes a tenth of the patches and writes nothing.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before torch is imported

import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stexpr.config.versions import versions
from stexpr.models.bag import BagHead, make_head
from stexpr.types import BagBatch

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed-attention.json"
PATCHES, FEATURES, PART, REPEATS = 100_000, 1024, 2048, 3
BAR_TIME, BAR_MEMORY = 3.0, 1.0


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


def seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    bag = torch.rand(PATCHES // 10 if quick else PATCHES, FEATURES)
    head = make_head("gated_attention", FEATURES, 1).train()
    step(head, bag[:64])  # what torch sets up once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours = min(seconds(lambda: step(head, bag)) for _ in range(REPEATS))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / bag.nbytes
    peer = min(seconds(lambda: products(head, bag)) for _ in range(REPEATS))
    row = {
        "patches": len(bag),
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "ratio": round(ours / peer, 2),
        "bar": BAR_TIME,
        "extra_memory_of_bag": round(memory, 3),
        "bar_memory": BAR_MEMORY,
    }
    print(row)
    if quick:
        return
    assert row["ratio"] <= BAR_TIME
    assert memory <= BAR_MEMORY
    found = {"command": "python benchmarks/speed/attention.py", **row, "machine": platform.processor() or platform.machine()}
    RESULTS.write_text(json.dumps(found | {"versions": versions(("stexpr", "torch"))}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
