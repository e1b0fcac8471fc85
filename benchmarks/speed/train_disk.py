"""Training with patches on the disk against patches in memory: `python benchmarks/speed/train_disk.py [--quick]`.

Whole epochs of the study `mob` (one mouse) in turns, each network twice from the same weights: with
`runtime.patches_in_memory=false`, every patch read anew from its file in each epoch by the process that trains, and with all
patches in memory. No loader processes: what they do would be missing in processor time. Both give the same losses, bit by bit,
which is checked. The files are in the page cache: what a disk would add is not seen.
"""

import comparison  # isort: split

import torch

from spots import PACKAGES, Spots, prepared

NETWORKS = (("resnet18", 64, 1000), ("efficientnet_b0", 64, 379), ("tiny", 64, 1000), ("resnet18", 224, 64), ("tiny", 224, 379))
"""Backbone, window in px, most spots; the study's own network first. The faster the network, the more reading weighs."""
TURNS = 9
BAR = 0.97


def rows(quick: bool) -> list[comparison.Row]:
    with prepared(quick) as cohort:
        found = []
        for name, window_px, most in (("tiny", 24, 64),) if quick else NETWORKS:
            overrides = [f"model.backbone={name}", f"input.window_px={window_px}", "runtime.device=cpu"]
            disk = Spots.of(cohort, *overrides, "runtime.patches_in_memory=false")
            found.append(compare(name, disk, Spots.of(cohort, *overrides), most, 1 if quick else TURNS))
        return found


def compare(name: str, disk: Spots, memory: Spots, most: int, turns: int) -> comparison.Row:
    use = torch.arange(min(most, len(memory.data)))
    from_disk, from_memory = (spots.training(use, epochs=turns + 2) for spots in (disk, memory))
    from_disk.epoch()
    from_memory.epoch()  # what torch sets up once
    seconds = comparison.in_turns(turns, from_disk.epoch, from_memory.epoch)
    assert from_disk.said == from_memory.said
    return comparison.compared(
        f"training from disk, {name}, {memory.data.window_px} px",
        ours=len(use) / seconds[0],
        peer=len(use) / seconds[1],
        at_least=BAR,
        unit="images/s",
        how=f"epochs of {len(use)} spots in batches of {memory.study.training.batch_size}; peer: the same from memory; "
        f"processor time, median of {turns} turns",
        profile=comparison.profiled(from_disk.epoch),
        packages=PACKAGES,
    )


if __name__ == "__main__":
    comparison.main("train-disk", rows, __doc__)
