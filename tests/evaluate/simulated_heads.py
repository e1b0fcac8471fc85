"""Runs of slide studies made from patients whose truth is known, as tests of boards need them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stexpr.config import content_hash
from stexpr.config.slides import (
    BinaryTarget,
    ContinuousTarget,
    FractionTarget,
    MultiClassTarget,
    OrdinalTarget,
    SlideProtocol,
    SlideSplit,
    SurvivalTarget,
)
from stexpr.evaluate.records import SlideRecord, SlideRun, write_record
from stexpr.evaluate.slides.results import SlideResults, TargetInfo
from stexpr.evaluate.slides.score import score_fold

K = 3
HORIZONS = (0.3, 0.8)
MUTATION = BinaryTarget(columns=("PLANTED", "NULL", "RARE"))
KI67 = FractionTarget(column="ki67")
SURVIVAL = SurvivalTarget(event="OS", time="OS.time")
EVERYTHING = (
    MUTATION,
    KI67,
    SURVIVAL,
    MultiClassTarget(column="subtype"),
    OrdinalTarget(column="grade", order=("1", "2", "3")),
    ContinuousTarget(columns=("signature",)),
)
PLANTED = {"gated_attention on enc features": 2.0, "mean on enc features": 1.0, "gated_attention on enc color": 0.3}
"""Heads and how many standard deviations their logits know of the truth."""


@dataclass(frozen=True)
class Patients:
    """Patients and what is true of them: one hidden number decides all targets but NULL."""

    table: pd.DataFrame
    hidden: np.ndarray


def simulate_patients(n: int = 120, seed: int = 0) -> Patients:
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=n)
    died, left = rng.exponential(np.exp(-hidden)), rng.exponential(1.5, n)
    table = pd.DataFrame(
        {
            "patient": [f"P{i:03d}" for i in range(n)],
            "site": np.where(hidden + rng.normal(0, 1.5, n) > 0, "north", "south"),
            "sex": rng.choice(["f", "m", ""], n, p=[0.5, 0.45, 0.05]),
            "age": np.round(rng.normal(60, 10, n), 1).astype(str),
            "PLANTED": (hidden + rng.normal(0, 0.5, n) > 0.5).astype(float),
            "NULL": (rng.random(n) < 0.3).astype(float),
            "RARE": (np.arange(n) % 40 == 0).astype(float),
            "ki67": 1 / (1 + np.exp(-hidden + 1)),
            "signature": hidden + rng.normal(0, 0.5, n),
            "subtype": np.digitize(hidden, [-0.5, 0.5]),
            "grade": np.digitize(hidden + rng.normal(0, 0.3, n), [-0.5, 0.8]),
            "time": np.maximum(np.minimum(died, left), 0.01),
            "event": died <= left,
        }
    )
    table.loc[: n // 10, "PLANTED"] = np.nan
    return Patients(table, hidden)


def folds_of(patients: Patients, repeat: int) -> np.ndarray:
    """Fold of each patient, PLANTED dealt evenly."""
    order = np.random.default_rng([5, repeat]).permutation(len(patients.table))
    order = order[np.argsort(patients.table["PLANTED"].fillna(2).to_numpy()[order], kind="stable")]
    fold = np.empty(len(order), dtype=int)
    fold[order] = np.arange(len(order)) % K
    return fold


def simulate_results(
    patients: Patients, protocol: SlideProtocol, strength: float, fold: int, *, repeat: int = 0, seed: int = 0
) -> SlideResults:
    """What a head that knows `strength` SDs of the hidden number predicts of one fold."""
    test = folds_of(patients, repeat) == fold
    rng = np.random.default_rng([seed, fold, repeat, int(100 * strength)])
    knows = strength * patients.hidden + rng.normal(size=len(test))
    outputs: list[pd.DataFrame] = []
    labels: list[pd.DataFrame] = []
    targets: dict[str, TargetInfo] = {}
    people = patients.table["patient"].to_numpy()
    for target in protocol.targets:
        columns = getattr(target, "columns", None) or (target.event if target.kind == "survival" else target.column,)
        for name in columns:
            raw = rng.normal(size=len(test)) if name == "NULL" else knows + 0.4 * (fold - 1)
            info, parts = described(name, target.kind, raw, test, patients)
            targets[name] = info
            outputs += [
                pd.DataFrame({"patient": people, "target": name, "output": output, "value": value, "raw": own})
                for output, (value, own) in parts.items()
            ]
            labels.append(labels_of(name, target.kind, patients))
    part = pd.Series(np.where(test, "test", "train"), index=people)
    predicted, labeled = pd.concat(outputs, ignore_index=True), pd.concat(labels, ignore_index=True)
    predicted["part"] = np.where(predicted["patient"].map(part) == "test", "test", "inner")
    labeled["part"] = labeled["patient"].map(part)
    who = patients.table[["patient", "site", "sex", "age"]].assign(part=part.to_numpy(), n_slides=1, n_patches=50)
    return SlideResults(predicted, labeled, who, targets)


def described(
    name: str, kind: Any, raw: np.ndarray, test: np.ndarray, patients: Patients
) -> tuple[TargetInfo, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The target and its outputs: value and raw by output."""
    if kind == "binary":
        return TargetInfo(name, kind, temperature=2.0, threshold=0.4), {"": (1 / (1 + np.exp(-raw / 2)), raw)}
    if kind == "fraction":
        return TargetInfo(name, kind), {"": (1 / (1 + np.exp(-raw / 2 + 1)), raw)}
    if kind == "continuous":
        return TargetInfo(name, kind), {"": (raw, raw)}
    if kind == "survival":
        chances = {f"{t:g}": (np.exp(-t * np.exp(raw / 2)), np.full(len(raw), np.nan)) for t in HORIZONS}
        return TargetInfo(name, kind, threshold=float(np.median(raw[~test])), horizons=HORIZONS), {"": (raw, raw), **chances}
    classes = ("A", "B", "C") if kind == "multiclass" else ("1", "2", "3")
    logits = -(((raw[:, None] / 2) - np.array([-1.0, 0.0, 1.0])) ** 2) * 2
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return TargetInfo(name, kind, classes=classes), {c: (chances[:, k], logits[:, k]) for k, c in enumerate(classes)}


def labels_of(name: str, kind: Any, patients: Patients) -> pd.DataFrame:
    table = patients.table
    if kind == "survival":
        own = {"value": np.nan, "time": table["time"], "event": table["event"].astype(float), "label": ""}
    else:
        own = {"value": table[name].astype(float), "time": np.nan, "event": np.nan, "label": table[name].astype(str)}
    labels = pd.DataFrame({"patient": table["patient"], "target": name, **own})
    return labels if kind == "survival" else labels[labels["value"].notna()]


def make_slide_record(**changes: Any) -> SlideRecord:
    """A record of one fold of a head; `changes` replace fields."""
    protocol = changes.pop("protocol", SlideProtocol(targets=(MUTATION,)).decisive())
    values = {
        "study": "heads",
        "model_label": "gated_attention on enc features",
        "kind": "network",
        "model": {"kind": "bag_head", "head": "gated_attention", "instances": "features"},
        "protocol": protocol,
        "protocol_hash": content_hash(protocol),
        "cohort": {"name": "simulated", "hash": "c0", "patients": ["P000", "P001"], "details": {"slides": 120}},
        "split_hash": "s0",
        "fold": {"index": 0, "test_patients": ["P000"], "validation": "patient"},
        "config_hash": "h0",
        "seed": 0,
        "n": {"patients": 40, "training_patients": 80, "slides": 40, "patches": 2000, "targets": 3},
        "bags": {"hash": "b0", "encoder": "enc", "encoder_hash": None, "width": 64},
        "epochs": {"planned": 40, "chosen": 12},
        "parameters": 1000,
        "primary": "auroc",
        "values": {"auroc": {"value": 0.5}},
        "wall_time_s": 60.0,
        "device": "cpu",
        "versions": {"stexpr": "0.1.0"},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return SlideRecord.model_validate({**values, **changes})


def write_slide_runs(
    folder: Path,
    heads: dict[str, float] = PLANTED,
    *,
    protocol: SlideProtocol | None = None,
    seeds: tuple[int, ...] = (0,),
    patients: Patients | None = None,
    **changes: Any,
) -> list[SlideRun]:
    """Write one run per head, seed, repeat and fold."""
    protocol = protocol or SlideProtocol(targets=(MUTATION,), split=SlideSplit(k=K))
    people, runs = patients or simulate_patients(), []
    for label, strength in heads.items():
        instances = label.rsplit(" ", 1)[-1]
        for seed in seeds:
            for index in range(K * protocol.split.repeats):
                repeat, fold = divmod(index, K)
                results = simulate_results(people, protocol, strength, fold, repeat=repeat, seed=seed)
                primary, values = score_fold(results, protocol)
                identity = content_hash([label, seed, index, protocol.hash, repr(changes)])
                own = folder / identity
                own.mkdir(parents=True)
                results.write(own)
                record = make_slide_record(
                    **{
                        "model_label": label,
                        "kind": "baseline" if instances == "color" else "network",
                        "model": {"kind": "bag_head", "head": label.split(" ")[0], "instances": instances},
                        "protocol": protocol.decisive(),
                        "cohort": {
                            "name": "simulated",
                            "hash": "c0",
                            "patients": people.table["patient"].tolist(),
                            "details": {"slides": len(people.table)},
                        },
                        "fold": {
                            "index": index,
                            "test_patients": people.table["patient"][folds_of(people, repeat) == fold].tolist(),
                            "validation": "patient",
                        },
                        "config_hash": identity,
                        "seed": seed,
                        "primary": primary,
                        "values": {name: value.model_dump() for name, value in values.items()},
                        **changes,
                    }
                )
                write_record(own, record)
                runs.append(SlideRun(own, record))
    return runs
