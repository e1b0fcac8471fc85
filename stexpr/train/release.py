"""Finished runs into one exported model: with its training features, intervals from held-out patients, and its scores.

A run's own `model/` holds the weights. Here it gets what needs the cohort and the held-out predictions, so that the folder
alone says where the model may be trusted, and how far.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32

from stexpr.config import StudyConfig, load_study
from stexpr.data.stain_reference import stain_reference
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError, ModelError, nearest
from stexpr.evaluate.conformal import fit_intervals
from stexpr.evaluate.lines import read_lines
from stexpr.evaluate.records import CONFIG, MODEL, RECORD, Run, read_predictions, read_record, read_records
from stexpr.evaluate.risk_coverage import risk_coverage
from stexpr.inference import pick_device
from stexpr.inference.patches import run_model
from stexpr.models.export import LoadedModel, load_model, save_ensemble
from stexpr.models.export.applicability import Applicability, Views, appearance, fit_applicability
from stexpr.models.export.intervals import PredictionIntervals
from stexpr.types import MEASURED, Progress, silent

__all__ = ["choose_runs", "export_runs"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

BANK: Final = 2000
"""Training patches whose features travel with a model."""
HELD_OUT: Final = 4000
"""Held-out patches that set the threshold of foreign tissue."""
BATCH: Final = 64
TOLERANCE: Final = 0.1
"""Largest difference between a run's predictions and those its weights give again: bf16 on a GPU stays well below."""


def choose_runs(sources: Sequence[Path], *, model: str | None = None, seed: int | None = None) -> list[Run]:
    """Find the runs to export.

    Args:
        sources: Run folders, or folders of runs.
        model: Label of a model, to take only its runs.
        seed: To take only the runs of this seed.

    Returns:
        Finished runs of one network, in the order of folds and seeds.

    Raises:
        DataError: A source is no run and holds none, or no run is left.
        ModelError: The runs are of several models, or of a baseline.
    """
    found: list[Run] = []
    for source in sources:
        if (source / RECORD).is_file():
            found.append(Run(source, read_record(source)))
        else:
            found += [run for run in read_records(source).complete if run.record.kind == "network"]
    labels = sorted({run.record.model_label for run in found})
    if model is not None and model not in labels:
        raise DataError(f"no finished run of {model!r}; {nearest(model, labels)}")
    chosen = [run for run in found if model in (None, run.record.model_label) and seed in (None, run.record.seed)]
    if not chosen:
        raise DataError(f"no finished run of a network{'' if seed is None else f' with seed {seed}'} in the folders given")
    unlike = {run.record.settings_hash: run.record for run in chosen}
    if len({record.model_label for record in unlike.values()}) > 1:
        raise ModelError(f"the runs are of several models; choose one with --model: {', '.join(labels)}")
    if len(unlike) > 1 or len({(r.record.protocol_hash, r.record.cohort.hash, r.record.split_hash) for r in chosen}) > 1:
        raise ModelError("the runs differ in settings, protocol, cohort or split; give the runs of one study")
    if chosen[0].record.kind != "network":
        raise ModelError(f"{chosen[0].folder} is a run of the {chosen[0].record.kind} {labels[0]!r}, which has no weights")
    chosen.sort(key=lambda run: (run.record.fold.index, run.record.seed))
    cells = [(run.record.fold.index, run.record.seed) for run in chosen]
    if len(set(cells)) < len(cells):
        raise ModelError("a fold and seed is there twice; give each run once")
    return chosen


def export_runs(
    runs: Sequence[Run],
    folder: Path,
    *,
    cohort: Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> LoadedModel:
    """Write one run, or the runs of several folds and seeds as an ensemble, as one model.

    Args:
        runs: From `choose_runs`.
        folder: Made if need be.
        cohort: Where the prepared cohort is now; by default where the study says. Without it the model knows neither its
            training features nor, for normalized stain, the reference.
        device: Where features are computed.
        progress: Shows the runs.

    Returns:
        The model as written, on the CPU.

    Raises:
        ModelError: The weights do not give the predictions of their run, or the folder holds another library's model.
        DataError: The cohort given is another one, a run lacks a file, or the folder cannot be written.
    """
    members = [_member(run, cohort, device) for run in progress(runs, "exporting runs", len(runs))]
    if len(members) == 1:
        members[0].model.save(folder)
    else:
        first = members[0].model.release
        notes = tuple(dict.fromkeys(note for member in members for note in member.model.release.notes))
        release = first.model_copy(update={"scores": _scores(runs), "risk_coverage": _risk_coverage(members), "notes": notes})
        save_ensemble(folder, tuple(m.model for m in members), release=release, intervals=_intervals(members))
    return load_model(folder)


@dataclass(frozen=True)
class _Member:
    """A run's model, and what its held-out spots say of it: residuals, and how novel they are to it."""

    model: LoadedModel
    residuals: pd.DataFrame  # spots x genes
    patients: pd.Series
    novelty: pd.Series | None = None  # of those that the reference was fitted with


def _member(run: Run, cohort: Path | None, device: str) -> _Member:
    config = load_study(run.folder / CONFIG)
    loaded = load_model(run.folder / MODEL).to(pick_device(device))
    adata = read_predictions(run.folder)
    residuals = pd.DataFrame(adata.layers[MEASURED] - adata.X, index=adata.obs_names, columns=adata.var_names)
    member = _Member(loaded, residuals, adata.obs["patient"].astype(str))
    opened, notes = _cohort_of(run, config, cohort)
    reference, novelty = None, None
    update: dict[str, Any] = {"symmetries": config.input.test_symmetries, "scores": _scores([run])}
    loaded = replace(loaded, release=loaded.release.model_copy(update=update))
    if opened is not None:
        update["stain_reference"] = stain_reference(opened)
        reference, novelty = _reference(loaded, opened, run, pd.DataFrame(adata.X, adata.obs_names, adata.var_names))
    network = replace(loaded.networks[0], applicability=reference)
    member = replace(member, novelty=novelty)
    release = loaded.release.model_copy(update={**update, "risk_coverage": _risk_coverage([member]), "notes": notes})
    model = replace(loaded, networks=(network,), release=release, intervals=_intervals([member]))
    return replace(member, model=model.to("cpu"))


def _cohort_of(run: Run, config: StudyConfig, given: Path | None) -> tuple[PreparedCohort | None, tuple[str, ...]]:
    """Open the cohort a run was made of; None, with a note, where nobody says where it is now."""
    path = given or config.cohort
    if given is None and not path.is_dir():
        return None, (f"exported without its cohort ({run.record.cohort.name}): foreign tissue cannot be told",)
    opened = PreparedCohort.open(path).keeping(config.protocol.min_counts)
    if opened.hash != run.record.cohort.hash:
        raise DataError(
            f"{path} is not the cohort of {run.folder}: its hash is {opened.hash}, the record says {run.record.cohort.hash}; "
            "give the right one with --cohort"
        )
    return opened.colored(config.input.colors), ()


def _reference(
    model: LoadedModel, cohort: PreparedCohort, run: Run, predicted: pd.DataFrame
) -> tuple[Applicability, pd.Series]:
    """Compute features of training and held-out spots, and check on the way that the weights are those of the run.

    Returns:
        The reference, and the novelty of the held-out spots by it.
    """
    record = run.record
    tested = cohort.sections_of(record.fold.test_patients)
    trained = cohort.sections_of([patient for patient in cohort.patients if patient in _training_patients(model, record)])
    names, held_out, expression = _views(model, cohort, tested, HELD_OUT)
    difference = float(np.abs(expression - predicted.loc[names, list(model.genes)].to_numpy()).max())
    if difference > TOLERANCE:
        raise ModelError(
            f"{run.folder / MODEL} does not give the predictions of its run: they differ by up to {difference:.3g}; "
            "the folder was changed since, or this version of timm builds another network"
        )
    of_bank, bank, _ = _views(model, cohort, trained, BANK)
    reference = fit_applicability(bank, np.array([name.partition(":")[0] for name in of_bank]), held_out)
    return reference, pd.Series(reference.novelty(held_out).numpy(), names)


def _training_patients(model: LoadedModel, record: Any) -> set[str]:
    named = model.provenance.get("training_patients")
    return set(named or set(record.cohort.patients) - set(record.fold.test_patients))


def _views(
    model: LoadedModel, cohort: PreparedCohort, sections: Sequence[str], at_most: int
) -> tuple[list[str], Views, Float32[Array, "S G"]]:
    """Run the model over spots spread evenly over the sections.

    Returns:
        Names of the spots, what the applicability reference sees of them, and their predicted expression.
    """
    named = [(section, i, name) for section in sections for i, name in enumerate(cohort.spots(section).index)]
    chosen = [named[i] for i in np.unique(np.linspace(0, len(named) - 1, min(at_most, len(named))).astype(int))]
    readers = {section: cohort.patch_reader(section, model.preprocessing.window_px) for section in sections}
    features, seen, expression = [], [], []
    for start in range(0, len(chosen), BATCH):
        patches = np.stack([readers[section][i] for section, i, _ in chosen[start : start + BATCH]])
        output = next(run_model(model, [patches]))
        features.append(torch.from_numpy(output.features))
        seen.append(appearance(torch.from_numpy(patches).permute(0, 3, 1, 2)))
        expression.append(output.expression)
    for reader in readers.values():
        reader.close()
    names = [f"{section}:{name}" for section, _, name in chosen]
    return names, Views(torch.cat(features), torch.cat(seen)), np.concatenate(expression)


def _intervals(members: Sequence[_Member]) -> PredictionIntervals:
    """Calibrate on the held-out spots of all runs; a spot that several seeds predicted has the mean of their residuals."""
    genes = list(dict.fromkeys(gene for member in members for gene in member.model.genes))
    sums: dict[str, Float32[Array, "S G"]] = {}
    counts: dict[str, Float32[Array, "S G"]] = {}
    patients: dict[str, Sequence[str]] = {}
    by_spots: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        by_spots["\n".join(member.residuals.index)].append(member)
    for key, group in by_spots.items():
        tables = np.stack([member.residuals.reindex(columns=genes).to_numpy(dtype=np.float32) for member in group])
        known = np.isfinite(tables)
        counts[key], sums[key] = known.sum(axis=0), np.where(known, tables, 0).sum(axis=0)
        patients[key] = group[0].patients.tolist()
    total, n = (np.concatenate([parts[key] for key in by_spots]) for parts in (sums, counts))
    residuals = np.where(n > 0, total / np.maximum(n, 1), np.nan)
    return fit_intervals(residuals, [patient for key in by_spots for patient in patients[key]], genes)


def _risk_coverage(members: Sequence[_Member]) -> dict[str, Any] | None:
    """Say what abstaining by novelty is worth on the held-out spots, each by the novelty its own run gives it."""
    known = [(member, member.novelty) for member in members if member.novelty is not None]
    if len(known) < len(members):
        return None
    novelty, error, patients = (
        np.concatenate(parts)
        for parts in zip(
            *(
                (
                    own.to_numpy(),
                    np.abs(member.residuals.loc[own.index].to_numpy()).mean(axis=1),
                    member.patients.loc[own.index].to_numpy(dtype=str),
                )
                for member, own in known
            ),
            strict=True,
        )
    )
    return risk_coverage(novelty, error, patients).to_dict()


def _scores(runs: Sequence[Run]) -> dict[str, Any]:
    """Score the runs together as a leaderboard does: held-out patients, seeds averaged."""
    by_seed: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        by_seed[run.record.seed].append(run)
    if len({tuple(run.record.fold.index for run in own) for own in by_seed.values()}) > 1:
        raise ModelError("the seeds have unlike folds; give every seed of every fold, or choose one with --seed")
    line = read_lines({runs[0].record.model_label: dict(by_seed)})[0]
    interval, values = line.interval(), line.scores.values
    first = next(iter(by_seed.values()))
    numbers = {
        "pearson": values["pearson"],
        "low": interval.low,
        "high": interval.high,
        "ceiling": values["ceiling"],
        "r_over_ceiling": line.scores.r_over_ceiling,
    }
    return {
        **{key: float(value) if np.isfinite(value) else None for key, value in numbers.items()},
        "interval": interval.kind or None,
        "n_seeds": len(by_seed),
        "test_patients": [patient for run in first for patient in run.record.fold.test_patients],
        "n_sections": sum(run.record.n.sections for run in first),
        "n_spots": sum(run.record.n.spots for run in first),
        "n_genes": int((line.scores.genes["n_patients"] > 0).sum()),
    }
