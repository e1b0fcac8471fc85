"""Features of a prepared cohort and of a slide against a bare forward pass: `python benchmarks/speed/embed.py [--quick]`.

The peer is timm's network alone on tensors that are ready, batch after batch. Ours starts from files: of a cohort, patches on
the disk to a matrix of features (`extract_features`, MOB); of a slide, an image pyramid on the disk to a bag of features
(`embed_slide`) or to a file of predicted expression (`predict_slide`), tissue detection, JPEG decoding, heads and writing
included. Random weights, which do not change how long it takes; no symmetries.
"""

import comparison  # isort: split

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from slide import MPP, N_GENES, write_model
from spots import PACKAGES, Spots, plain_network, prepared
from stexpr.data.datasets import even_parts
from stexpr.data.synthetic_slide import write_large_slide
from stexpr.inference import extract_features
from stexpr.inference.bags import EmbedSettings, embed_slide
from stexpr.inference.slide import predict_slide
from stexpr.models.backbones import create_backbone
from stexpr.models.export import load_model

COHORT = (("resnet18", 64, 1000), ("efficientnet_b0", 64, 1000), ("resnet18", 224, 128), ("efficientnet_b0", 224, 128))
"""Backbone, window in px, spots."""
SLIDE, BLOCKS = ("resnet18",), 2
SLIDE_PX, WINDOW_PX, BATCH, BAR = 4096 * 2, 224, 32, 0.90


def rows(quick: bool) -> list[comparison.Row]:
    cohort, slide = ((("mobilenetv3_small_050", 32, 32),), ("mobilenetv3_small_050",)) if quick else (COHORT, SLIDE)
    stride, turns = (6, 1) if quick else (1, 5)
    found: list[comparison.Row] = []
    with prepared(quick) as path:
        for name, window_px, n in cohort:
            spots = Spots.of(path, f"input.window_px={window_px}", "runtime.patches_in_memory=false")
            found.append(of_cohort(spots, name, n, turns))
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "slide.tif"
        write_large_slide(image, width=SLIDE_PX, height=SLIDE_PX, n_blocks=BLOCKS, mpp=MPP)
        for name in slide:
            found += of_slide(image, Path(folder) / name, name, stride * WINDOW_PX * MPP, turns)
    return found


def bare(net: nn.Module, images: Tensor) -> None:
    """The peer: one batch after the other, features kept."""
    with torch.inference_mode():
        for part in images.split(BATCH):
            net(part).numpy()


def of_cohort(spots: Spots, name: str, n: int, turns: int) -> comparison.Row:
    data = spots.data
    use = torch.arange(min(n, len(data)))
    backbone = create_backbone(name, window_px=data.window_px).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = torch.cat(
        [backbone.preprocess(batch.patches) for batch in data.batches(even_parts(use, BATCH), device=torch.device("cpu"))]
    )
    net = plain_network(name, images.shape[-1], 0).eval()

    def ours() -> None:
        extract_features(backbone, data, use, batch_size=BATCH)

    (row,) = compare([f"embedding a cohort, {name}, {data.window_px} px"], [ours], partial(bare, net, images), len(use), turns)
    return row


def of_slide(image: Path, folder: Path, name: str, stride_um: float, turns: int) -> list[comparison.Row]:
    write_model(folder, name)
    model = load_model(folder)
    net = plain_network(name, WINDOW_PX, 0).eval()
    settings = EmbedSettings(symmetries=False, stride_um=stride_um)
    n = embed_slide(image, model, folder / "bag.h5", settings=settings).n
    images = torch.randn(n, 3, WINDOW_PX, WINDOW_PX).contiguous(memory_format=torch.channels_last)

    def embed() -> None:
        embed_slide(image, model, folder / "bag.h5", settings=settings, batch_size=BATCH)

    def predict() -> None:
        predict_slide(image, model, folder / "slide.h5ad", stride_um=stride_um, symmetries=False, batch_size=BATCH)

    paths = [f"{what}, {name}, {WINDOW_PX} px" for what in ("embedding a slide", f"predicting {N_GENES} genes of a slide")]
    return compare(paths, [embed, predict], partial(bare, net, images), n, turns)


def compare(
    paths: Sequence[str], ours: Sequence[Callable[[], None]], peer: Callable[[], None], n: int, turns: int
) -> list[comparison.Row]:
    """A row for each of our paths against one peer."""
    for call in (*ours, peer):
        call()  # what torch sets up once
    *seconds, of_peer = comparison.in_turns(turns, *ours, peer, of=min)
    return [
        comparison.compared(
            path,
            ours=n / own,
            peer=n / of_peer,
            at_least=BAR,
            unit="images/s",
            how=f"{n} patches in batches of {BATCH}, fp32; ours from files on the disk, peer: timm on ready tensors; processor "
            f"time, the fastest of {turns} turns",
            profile=comparison.profiled(call),
            packages=PACKAGES,
        )
        for path, own, call in zip(paths, seconds, ours, strict=True)
    ]


if __name__ == "__main__":
    comparison.main("embed", rows, __doc__)
