"""The HEST-Benchmark: how well a frozen encoder's features predict expression, scored as HEST does and in honest variants."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from stexpr.errors import ConfigError, StexprError
from stexpr.evaluate.hest.encoder import FrozenEncoder, open_encoder
from stexpr.evaluate.hest.folder import BenchTask, find_tasks, read_spots, read_task
from stexpr.evaluate.hest.probe import ProbeSection, probe
from stexpr.evaluate.hest.scores import FoldScore, HestBenchmark, TaskScore, result_notes
from stexpr.types import Progress, silent

__all__ = ["hest_bench"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def hest_bench(
    folder: Path,
    encoder: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    pretrained: bool = True,
    weights: Path | None = None,
    download: bool = False,
    device: str = "auto",
    batch_size: int = 128,
    progress: Progress = silent,
) -> HestBenchmark:
    """Score a frozen encoder on the HEST-Benchmark.

    Splits, genes, target, regression and averaging are those of the benchmark's code; three variants stand beside its
    score (see `probe.probe`). Features are computed in float32 and once per sample, also for samples of several tasks.
    Splits are the benchmark's: they name samples, not patients, so only a sample on both sides can be told and is refused.

    Args:
        folder: The benchmark's folder, or that of one task.
        encoder: A name for `create_backbone`, or a folder: a model stexpr exported, or timm's own format.
        tasks: Names of the tasks, in this order; None takes all.
        pretrained: Load the weights that belong to a name; False scores random ones.
        weights: A safetensors file with the weights of the architecture named, instead.
        download: Fetch weights that are not in the cache of huggingface_hub.
        device: `auto`, `cpu`, `cuda` …
        batch_size: Patches at a time.
        progress: Shows how far embedding is.

    Returns:
        The scores. Not HEST's own `resnet50`, which stops after the third stage: a timm name gives the features before
        the classifier.

    Raises:
        ConfigError: There is no such task, or the batch size is below 1.
        DataError: A file is missing or wrong, or barcodes do not match (also GeneError and LeakageError).
        ModelError: The encoder cannot be loaded.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    folders, others = find_tasks(Path(folder), tasks)
    found = [read_task(path) for path in folders]
    frozen = open_encoder(encoder, pretrained=pretrained, weights=weights, download=download, device=device)
    notes = [*frozen.notes, *(note for task in found for note in task.notes)]
    if others:
        notes.append(f"folders without splits, left out: {', '.join(others)}")
    features: dict[Path, Array] = {}
    scores = tuple(_score_task(task, frozen, features, notes, batch_size, progress) for task in found)
    return HestBenchmark(
        frozen.identity, scores, str(next(frozen.backbone.parameters()).device), (*notes, *result_notes(scores))
    )


def _score_task(
    task: BenchTask,
    encoder: FrozenEncoder,
    features: dict[Path, Array],
    notes: list[str],
    batch_size: int,
    progress: Progress,
) -> TaskScore:
    spots = {}
    for row in task.rows:  # every file is read and checked before the first patch is embedded
        spots[row] = read_spots(row, task.genes)
        notes += [f"task {task.name}: {note}" for note in spots[row].notes]
    for row in progress(task.rows, f"embedding {task.name}", len(task.rows)):
        path = row.patches.resolve()
        if path not in features:
            features[path] = encoder.embed(path, batch_size=batch_size)
    sections = {
        row: ProbeSection(row.sample, features[row.patches.resolve()], read.genes, read.counts) for row, read in spots.items()
    }
    folds = []
    for fold in task.folds:
        train, test = ([sections[row] for row in side] for side in (fold.train, fold.test))
        try:
            variants, n_components = probe(train, test, task.genes)
        except StexprError as err:
            err.add_note(f"in fold {fold.index} of task {task.name}")
            raise
        folds.append(
            FoldScore(
                fold.index,
                train=tuple(section.sample for section in train),
                test=tuple(section.sample for section in test),
                n_train_spots=sum(len(section.features) for section in train),
                n_test_spots=sum(len(section.features) for section in test),
                n_components=n_components,
                variants=variants,
            )
        )
    return TaskScore(task.name, task.sha256, tuple(folds))
