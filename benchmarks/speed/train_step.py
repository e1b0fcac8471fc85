"""Training steps of ten backbones against a bare loop of timm and PyTorch: `python benchmarks/speed/train_step.py [--quick]`.

MOB at 64 px (Inception-v3 enlarges them to 75), 250 genes, batches of 16, single precision, channels last, AdamW, gradients
clipped. Ours is the loop of `stexpr train` as the study `mob` sets it, without the auxiliary head, which the peer has not: it
reads bytes, draws a symmetry of each patch, normalizes colors and targets in each step, watches for signals and keeps every
loss. The peer is a loop written by hand over tensors that are ready (see `spots.Bare`). They take turns of a few steps.
"""

import comparison  # isort: split

import torch

from spots import PACKAGES, TEN, Bare, Spots, prepared

BATCH, STEPS, TURNS = 16, 2, 11
BAR = 0.95


def rows(quick: bool) -> list[comparison.Row]:
    names, turns = (("mobilenetv3_small_050",), 1) if quick else (TEN, TURNS)
    with prepared(quick) as cohort:
        found = []
        for name in names:
            overrides = [f"model.backbone={name}", f"training.batch_size={BATCH}", "runtime.device=cpu"]
            found.append(compare(name, Spots.of(cohort, *overrides), turns))
        return found


def compare(name: str, spots: Spots, turns: int) -> comparison.Row:
    use = torch.arange(BATCH * STEPS)
    ours = spots.training(use, epochs=turns + 2)
    peer = Bare(spots, use, ours.fit.model)
    ours.epoch()
    peer.epoch()  # what torch sets up once
    seconds = comparison.in_turns(turns, ours.epoch, peer.epoch)
    return comparison.compared(
        f"training step, {name}",
        ours=len(use) / seconds[0],
        peer=len(use) / seconds[1],
        at_least=BAR,
        unit="images/s",
        how=f"{spots.data.window_px} px, batches of {BATCH}, {spots.data.counts_main.shape[1]} genes, fp32; peer: timm and "
        f"PyTorch on ready tensors; processor time, median of {turns} turns of {STEPS} steps",
        profile=comparison.profiled(ours.epoch),
        packages=PACKAGES,
    )


if __name__ == "__main__":
    comparison.main("train-step", rows, __doc__)
