"""The speed table and the ten-backbone sweep on a GPU: `python benchmarks/gpu.py COHORTS OUT [--part speed|sweep] [--quick]`.

For a machine that has torch, torchvision, timm, h5py, pandas, scipy, scikit-learn, pydantic and jaxtyping, and nothing more: no
AnnData, no scanpy, no W&B. COHORTS is a folder of prepared cohorts (benchmarks/tools/pack_cohort.py makes small ones to carry),
OUT takes `speed-gpu.json` and `gpu-sweep.json`, written again after each row, so that a run that is stopped leaves what it has.

Speed is measured on spots of the first cohort, repeated to 13,000, with random patches of 224 px (2 GB, in the GPU's memory);
seconds of the clock, the device waited for. Each figure stands beside the same network's synthetic peak: the same step on one
batch, over and over, with nothing else around it. The sweep trains each backbone with and without the auxiliary head on every
fold of every cohort, whole spots at the cohort's own window, and scores r within sections.

`--quick --device cpu` runs two tiny cases to see that all works, which is all that was ever run where there is no GPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "speed"))
import comparison  # isort: split

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import h5py
import numpy as np
import torch

from spots import PACKAGES, TEN, Bare, Ours, Spots, now, plain_network
from stexpr.config import load_study
from stexpr.data.batches import Columns, PatchFiles
from stexpr.data.datasets import SpotDataset, even_parts
from stexpr.data.panels import fold_panel
from stexpr.data.patches import PatchReader
from stexpr.evaluate.metrics import pearson_per_gene
from stexpr.inference import autocast, extract_features, pick_device, predict_expression
from stexpr.panel import ExpressionTransform
from stexpr.train.checkpoint import StopFlag
from stexpr.train.compiling import Compiling
from stexpr.train.network import NetworkTraining, without_auxiliary
from stexpr.train.run import window_px
from stexpr.train.spots import open_cohort, study_folds
from stexpr.types import SpotBatch

WORKERS, COMPILED = 8, ("resnet101", "vit_b16", "efficientnet_b0")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    spots: int
    px: int
    batch: int
    steps: int
    turns: int
    workers: int


FULL, QUICK = Size(13_000, 224, 64, 40, 3, WORKERS), Size(48, 32, 8, 2, 1, 1)


class Repeated(SpotDataset):
    """The spots of a dataset again and again, with random patches: speed does not depend on what they show."""

    def __init__(self, spots: SpotDataset, size: Size, file: Path | None = None) -> None:
        rows = torch.arange(size.spots) % len(spots)
        self.spots = spots.spots.iloc[rows.numpy()]
        self.window_px = size.px
        self.counts_main, self.counts_auxiliary = spots.counts_main[rows], spots.counts_auxiliary[rows]
        self.library = spots.library[rows]
        columns = [self.counts_main, self.counts_auxiliary, self.library]
        drawn = torch.Generator().manual_seed(0)
        shape = (size.spots, size.px, size.px, 3)
        patches = torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn)
        self._files = None
        if file is None:
            columns.append(patches)
        else:
            with h5py.File(file, "w") as written:
                written.create_dataset("img", data=patches.numpy())
            self._files = PatchFiles([PatchReader(file, size.spots, size.px, size.px)], size.px)
        self._columns = Columns(*columns)


def peak(ours: Ours, batch: SpotBatch, steps: int) -> None:
    """Steps on one batch: forward, backward, clip, optimizer, and nothing around them."""
    model, training = ours.fit.model, ours.fit.training
    model.train()
    for _ in range(steps):
        ours.fit.optimizer.zero_grad(set_to_none=True)
        with autocast(batch.patches.device, training.precision):
            loss = model.loss(batch)
        loss.total.backward()
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        ours.fit.optimizer.step()


def waits(ours: Ours, device: torch.device) -> int | None:
    """How often an epoch makes the host wait for the GPU, as torch tells."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ours.epoch()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message).lower() for one in said)


def speed(cohort: Path, names: Sequence[str], size: Size, device: torch.device) -> Iterator[comparison.Row]:
    """The rows of the speed table, one backbone after the other."""
    data: Repeated | None = None
    for name in names:
        overrides = [f"model.backbone={name}", f"training.batch_size={size.batch}", f"runtime.device={device}"]
        overrides += [f"runtime.workers={size.workers}", "input.window_px=null"]
        read = Spots.of(cohort, *overrides)
        data = data or Repeated(read.data, size)
        spots = Spots(read.study, data, read.transform)
        yield from of_training(name, spots, size, device)
        yield of_embedding(name, spots, size, device)
        if name == names[0]:
            yield of_disk(name, spots, size, device)


def of_training(name: str, spots: Spots, size: Size, device: torch.device) -> Iterator[comparison.Row]:
    use = torch.arange(min(size.batch * size.steps, size.spots))
    row = partial(figure, n=len(use), at_least=0.95, size=size, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    ours = spots.training(use, epochs=2 * size.turns + 9)
    ours.epoch()
    about: dict[str, Any] = {"resident": spots.data._columns.resident(device) is not None}
    if device.type == "cuda":
        about |= {"peak_memory_gb": round(torch.cuda.max_memory_allocated(device) / 1e9, 2)}
    (batch,) = spots.data.batches([use[: size.batch]], device=device)
    steps = len(even_parts(use, size.batch))
    one_batch = partial(peak, ours, batch, steps)
    peer = Bare(spots, use, ours.fit.model)
    calls = (ours.epoch, peer.epoch, one_batch)
    seconds = measured(calls, size.turns, device)
    yield row(f"training step, {name}", seconds, **about, host_waits_per_epoch=waits(ours, device))
    if name not in COMPILED and size is FULL:
        return
    compiling = Compiling("inductor" if size is FULL else "eager")
    compiled = spots.training(use, epochs=2 * size.turns + 9, compiling=compiling)
    while compiling.shapes == 0:  # statistics are young for ten steps
        compiled.epoch()
    seconds = measured((compiled.epoch, peer.epoch, one_batch), size.turns, device)
    yield row(f"training step, {name}, compiled", seconds, compile=compiling.described())


def of_disk(name: str, spots: Spots, size: Size, device: torch.device) -> comparison.Row:
    use = torch.arange(size.spots)
    with tempfile.TemporaryDirectory() as folder:
        disk = Spots(spots.study, Repeated(spots.data, size, Path(folder) / "patches.h5"), spots.transform)
        from_disk = disk.training(use, epochs=size.turns + 9)
        from_memory = spots.training(use, epochs=size.turns + 9)
        seconds = measured((from_disk.epoch, from_memory.epoch), size.turns, device)
        how = {"loader_processes": size.workers}
        return figure(f"training from disk, {name}", seconds, n=len(use), at_least=0.90, size=size, device=device, **how)


def of_embedding(name: str, spots: Spots, size: Size, device: torch.device) -> comparison.Row:
    use = torch.arange(min(size.batch * size.steps, size.spots))
    backbone = spots.training(use[: size.batch], epochs=1).fit.model.backbone.eval()
    (batch,) = spots.data.batches([use[: size.batch]], device=device)
    images = backbone.preprocess(batch.patches)
    net = plain_network(name, images.shape[-1], 0).eval().to(device)
    ours = partial(extract_features, backbone, spots.data, use, batch_size=size.batch)

    def peer() -> None:
        with torch.inference_mode(), autocast(device, "auto"):
            for _ in even_parts(use, size.batch):
                net(images)

    return figure(
        f"embedding a cohort, {name}",
        measured((ours, peer), size.turns, device),
        n=len(use),
        at_least=0.90,
        size=size,
        device=device,
    )


def measured(calls: Sequence[Any], turns: int, device: torch.device) -> list[float]:
    for call in calls:
        call()  # what torch and cuDNN set up once
    return comparison.in_turns(turns, *calls, clock=partial(now, device))


def figure(
    path: str, seconds: list[float], *, n: int, at_least: float, size: Size, device: torch.device, **more: Any
) -> comparison.Row:
    """A row: images a second of ours and of the peer, and the share of the synthetic peak where that was measured."""
    if len(seconds) == 3:
        more |= {"synthetic_peak": round(n / seconds[2], 1), "of_synthetic_peak": round(seconds[2] / seconds[0], 3)}
    precision = "bf16" if device.type == "cuda" else "fp32"
    return comparison.compared(
        path,
        ours=n / seconds[0],
        peer=n / seconds[1],
        at_least=at_least,
        unit="images/s",
        on=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        packages=PACKAGES,
        how=f"{size.px} px, batches of {size.batch}, {precision}, seconds of the clock, median of {size.turns} turns",
        profile="of the synthetic peak, see of_synthetic_peak; a profile of the device was not taken",
        **more,
    )


def sweep(
    cohorts: Sequence[Path], names: Sequence[str], device: torch.device, overrides: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Train and score each backbone with and without the auxiliary head on every fold of every cohort."""
    for cohort in cohorts:
        for name in names:
            for weight in (0, 1):
                choices = [f"model.backbone={name}", f"model.auxiliary.weight={weight}", f"runtime.device={device}"]
                began = time.perf_counter()
                sections = list(scored(cohort, [*choices, *overrides]))
                by_patient = {row["patient"]: [] for row in sections}
                for row in sections:
                    by_patient[row["patient"]].append(row["r"])
                r = float(np.mean([np.mean(values) for values in by_patient.values()]))
                seconds = round(time.perf_counter() - began, 1)
                yield {
                    "cohort": cohort.name,
                    "backbone": name,
                    "auxiliary": weight,
                    "r": r,
                    "seconds": seconds,
                    "sections": sections,
                }


def scored(cohort_path: Path, overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Train every fold of a study and yield the mean r over genes of each test section."""
    study = load_study("mob", [f"cohort={cohort_path}", "input.window_px=null", "runtime.checkpoint_epochs=1000", *overrides])
    cohort = open_cohort(study)
    transform = ExpressionTransform(n_genes=len(cohort.genes))
    for fold in study_folds(study, cohort):
        if study.folds is not None and fold.index not in study.folds:
            continue
        panel = fold_panel(study.protocol.panel, cohort, fold)
        needed = panel.without_auxiliary() if without_auxiliary(study) else panel
        window = window_px(study, cohort)
        data = SpotDataset(cohort, fold.train_sections, needed, window_px=window)
        with tempfile.TemporaryDirectory() as folder:
            training = NetworkTraining(study, fold, data, transform, Path(folder))
            trained = training.run(None, [], StopFlag(), None)
        test = SpotDataset(cohort, fold.test_sections, panel.without_auxiliary(), window_px=window)
        whole, symmetries = torch.arange(len(test)), study.input.test_symmetries
        predicted = predict_expression(trained.model, test, whole, batch_size=256, symmetries=symmetries)
        measured_expression = transform(test.counts_main.numpy(), test.library.numpy())
        for section in fold.test_sections:
            here = (test.spots["section"] == section).to_numpy()
            varies = measured_expression[here].std(axis=0) > 0
            r = pearson_per_gene(predicted[here][:, varies], measured_expression[here][:, varies])
            about = {
                "fold": fold.index,
                "patient": cohort.patient_of[section],
                "section": section,
                "epochs": trained.chosen_epochs,
            }
            yield {**about, "r": float(np.nan_to_num(r).mean()), "train_s": round(trained.seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohorts", type=Path, help="folder of prepared cohorts")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--part", choices=("speed", "sweep", "both"), default="both")
    parser.add_argument("--backbones", nargs="+", default=TEN)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the studies of the sweep")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; no bar is held")
    asked = parser.parse_args()
    device, size = pick_device(asked.device), QUICK if asked.quick else FULL
    if device.type == "cuda":
        torch.set_num_threads(8)  # the host only feeds the device; loaders are processes of their own
    cohorts = sorted(path for path in asked.cohorts.iterdir() if (path / "cohort.json").is_file())
    asked.out.mkdir(parents=True, exist_ok=True)
    overrides = ["training.epochs=8", "training.batch_size=32", *asked.set]
    parts = {"speed-gpu": partial(speed, cohorts[0], asked.backbones, size, device)}
    parts["gpu-sweep"] = partial(sweep, cohorts, asked.backbones, device, overrides)
    chosen = {"speed": ["speed-gpu"], "sweep": ["gpu-sweep"], "both": list(parts)}[asked.part]
    for name in chosen:
        rows: list[dict[str, Any]] = []
        for row in parts[name]():
            rows.append(row)
            print(comparison.line(row) if "path" in row else {key: row[key] for key in row if key != "sections"}, flush=True)
            text = json.dumps({"command": f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}", "rows": rows}, indent=1)
            (asked.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
