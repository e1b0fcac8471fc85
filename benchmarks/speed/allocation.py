"""What it is worth that freed memory stays for the next batch: `python benchmarks/speed/allocation.py [--quick]`.

The same bare network in processes of its own, with `stexpr.config.allocation.keep_freed_memory`, as the command line and the
workers of sweeps call it, and without.
"""

import comparison  # isort: split

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from spots import PACKAGES, plain_network
from stexpr.config.allocation import keep_freed_memory

BATCH, BAR, TURNS = 32, 1.0, 3
TASKS = (("forward", "resnet18", 224, 8), ("forward", "efficientnet_b0", 224, 8), ("training", "resnet18", 64, 20))
"""What, the network, side of the images, batches."""
QUICK = (("forward", "mobilenetv3_small_050", 32, 2), ("training", "mobilenetv3_small_050", 32, 2))


def work(what: str, name: str, px: int) -> Callable[[], None]:
    net = plain_network(name, px, 250 if what == "training" else 0).train(what == "training")
    images = torch.randn(BATCH, 3, px, px).contiguous(memory_format=torch.channels_last)
    targets, optimizer = torch.randn(BATCH, 250), torch.optim.AdamW(net.parameters())

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.mse_loss(net(images), targets).backward()
        optimizer.step()

    def predict() -> None:
        with torch.inference_mode():
            net(images).numpy()

    return train if what == "training" else predict


def child(kept: str, what: str, name: str, px: str, batches: str) -> None:
    """Print images per second of processor time."""
    if kept == "kept" and not keep_freed_memory():
        raise SystemExit("this C library cannot keep freed memory")
    torch.manual_seed(0)
    step = work(what, name, int(px))
    for _ in range(2):
        step()
    start = time.process_time()
    for _ in range(int(batches)):
        step()
    print(int(batches) * BATCH / (time.process_time() - start))


def images_per_s(kept: str, task: tuple[str, str, int, int]) -> float:
    command = [sys.executable, str(Path(__file__).resolve()), kept, *map(str, task)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rows(quick: bool) -> list[comparison.Row]:
    found = []
    for task in QUICK if quick else TASKS:
        what, name, px, batches = task
        turns = [[images_per_s(kept, task) for kept in ("kept", "given back")] for _ in range(1 if quick else TURNS)]
        ours, peer = (sorted(speeds)[len(speeds) // 2] for speeds in zip(*turns, strict=True))
        found.append(
            comparison.compared(
                f"freed memory kept, {what}, {name}, {px} px",
                ours=ours,
                peer=peer,
                at_least=BAR,
                unit="images/s",
                how=f"{batches} batches of {BATCH} through bare timm, fp32, a process each; ours: freed memory stays, peer: "
                f"malloc as it is; processor time, median of {len(turns)} turns",
                profile=comparison.profiled(work(what, name, px)),
                packages=PACKAGES,
            )
        )
    return found


if __name__ == "__main__":
    if sys.argv[1:2] in (["kept"], ["given back"]):
        child(*sys.argv[1:])
    else:
        comparison.main("allocation", rows, __doc__)
