"""Slide heads on the synthetic slide cohort, whose truth is known: what `benchmarks/slide_heads.sh` measures, as numbers.

The encoder is the best network of `stexpr demo`, which learned expression on other sections; beside it stand the same network
before training, and colors. Command: benchmarks/slide_heads.sh   (writes benchmarks/results/slide-heads.json)
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from stexpr.config.any_study import load_any_study
from stexpr.config.slides import SlideStudyConfig
from stexpr.config.sweep import load_sweep
from stexpr.config.versions import versions
from stexpr.data.bags import Bag, read_bag
from stexpr.data.synthetic_slides import SQUARE_PX, read_slide_truth, write_synthetic_slides
from stexpr.engines import EngineOptions, make_engine
from stexpr.evaluate.records import MODEL
from stexpr.evaluate.slides.board import SlideBoard, build_slide_board
from stexpr.evaluate.slides.concordance import harrell_c
from stexpr.evaluate.slides.results import SlideResults
from stexpr.inference.bags import EmbedSettings
from stexpr.models.backbones import create_backbone
from stexpr.models.bag.saved import load_head
from stexpr.models.export import load_model, save_model
from stexpr.train.checkpoint import StopFlag
from stexpr.train.slides.demo import best_network
from stexpr.train.slides.embed import STATE, embed_slides
from stexpr.train.slides.embed_job import EncoderSource
from stexpr.train.slides.study import SlideStudy
from stexpr.train.study import run_study

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "slide-heads.json"
PATIENTS, SEED = 120, 11
PLANTED = 0.5
"""Share of a patch in planted regions from which on it counts as planted; patches with less, but some, are left out."""


def write_untrained(model: Path, folder: Path) -> Path:
    """Write the same architecture with the weights it would begin with."""
    loaded = load_model(model)
    backbone = loaded.model.backbone
    fresh = create_backbone(backbone.portable_name, window_px=backbone.window_px, fields_px=backbone.fields_px, seed=SEED)
    backbone.load_state_dict(fresh.state_dict())
    save_model(
        folder,
        loaded.model,
        panel=loaded.panel,
        transform=loaded.transform,
        preprocessing=loaded.preprocessing,
        provenance={**loaded.provenance, "label": "untrained"},
        release=loaded.release,
    )
    return folder


def train(work: Path) -> list[str]:
    """Train every head that is compared, all into one folder of runs; colors once, they are the same for both encoders."""
    at = [f"tables.clinical=[{work / 'slides' / 'clinical.csv'}]", f"tables.slides={work / 'slides' / 'slides.csv'}"]
    trained, untrained = ([*at, f"bags={work / 'bags' / name}", f"encoder={name}"] for name in ("trained", "untrained"))
    lines: list[str] = []
    for name in ("mutation", "ki67", "survival"):
        run_study(load_any_study(name, trained), work / "runs", report=lines.append)
        lines += without_colors(load_any_study(name, untrained), work / "runs")
    changes = ["model.head=additive", "model.instances=expression"]
    lines += without_colors(load_any_study("mutation", [*trained, *changes]), work / "runs")
    for study in load_sweep("ki67", trained).studies:
        model = study.model
        if model.patch_labels is not None:
            model = model.model_copy(update={"patch_labels": work / "slides" / "patch_labels"})
        lines += without_colors(study.model_copy(update={"model": model}), work / "runs")
    return lines


def without_colors(study: SlideStudyConfig, runs: Path) -> list[str]:
    opened, lines = SlideStudy(study), []
    for fold in opened.folds:
        opened.run(study, fold, runs, stop=StopFlag(), report=lines.append)
    return lines


def row(board: SlideBoard, model: str, target: str) -> dict[str, Any]:
    """One head's scores on one target."""
    found = board.targets[(board.targets["model"] == model) & (board.targets["target"] == target)].iloc[0]
    kept = ("low", "high", "p", "q", "significant", "n_patients", "n_positive")
    return plain({"value": found["score"], **{key: found[key] for key in kept}})


def plain(row: dict[Any, Any]) -> dict[str, Any]:
    """Write what is undefined as null."""
    items = {str(key): value.item() if hasattr(value, "item") else value for key, value in row.items()}
    return {key: None if pd.isna(value) else value for key, value in items.items()}


def paired(board: SlideBoard) -> list[dict[str, Any]]:
    """The tests between heads."""
    return [plain(row) for row in board.comparisons.drop(columns=["interval"]).to_dict("records")]


def attention_auroc(work: Path) -> dict[str, float]:
    """How well attention parts planted patches from the others, on mutated slides no head has trained on."""
    truth = read_slide_truth(work / "slides")
    scores = []
    for run in sorted((work / "runs").glob("*/record.json")):
        record = json.loads(run.read_text())
        if record["study"] != "mutation" or record["model_label"] != "gated_attention on trained features":
            continue
        head = load_head(run.parent / MODEL)
        slides = pd.read_csv(work / "slides" / "slides.csv").set_index("PATIENT")["FILENAME"]
        for patient in record["fold"]["test_patients"]:
            if not bool(truth.patients.loc[patient, "mutated"]):
                continue
            for slide in np.atleast_1d(slides.loc[patient]):
                bag = read_bag(work / "bags" / "trained" / f"{slide}.h5")
                with torch.inference_mode():
                    attention = head.model.head(head.model.pack([torch.from_numpy(bag.features())])).attention
                planted = planted_share(bag, truth.patches[truth.patches["slide"] == slide])
                clear = (planted == 0) | (planted >= PLANTED)
                if len(set((planted[clear] > 0).tolist())) == 2:
                    scores.append(roc_auc_score(planted[clear] > 0, attention.numpy()[clear]))
    return {"mean": float(np.mean(scores)), "least": float(np.min(scores)), "slides": len(scores)}


def planted_share(bag: Bag, squares: pd.DataFrame) -> np.ndarray:
    """Share of planted regions in each patch, from the squares of the truth it overlaps."""
    corners = bag.coords()
    found = np.zeros(len(corners))
    for x, y, share in squares[["x", "y", "planted"]].to_numpy():
        left, top = x - SQUARE_PX / 2, y - SQUARE_PX / 2
        wide = np.clip(np.minimum(corners[:, 0], left) + SQUARE_PX - np.maximum(corners[:, 0], left), 0, None)
        tall = np.clip(np.minimum(corners[:, 1], top) + SQUARE_PX - np.maximum(corners[:, 1], top), 0, None)
        found += share * wide * tall / SQUARE_PX**2
    return found


def true_c(work: Path) -> float:
    """c of the true hazard, within the test folds of the survival study, averaged as a head's is."""
    truth = read_slide_truth(work / "slides").patients["log_hazard"]
    values = []
    for run in sorted((work / "runs").glob("*/record.json")):
        record = json.loads(run.read_text())
        if record["study"] == "survival" and record["model_label"] == "gated_attention on trained features":
            labels = SlideResults.read(run.parent).labels
            test = labels[labels["part"] == "test"]
            hazard = truth.loc[test["patient"]].to_numpy()
            values.append(harrell_c(hazard, test["time"].to_numpy(), test["event"].to_numpy() == 1))
    return float(np.mean(values))


def main(demo: str, folder: str) -> None:
    work = Path(folder)
    model = best_network(Path(demo) / "runs") / MODEL
    write_synthetic_slides(work / "slides", patients=PATIENTS, seed=SEED)
    sources = {"trained": model, "untrained": write_untrained(model, work / "untrained")}
    for name, source in sources.items():
        engine = make_engine("local", EngineOptions(), work / "bags" / name / STATE / "logs")
        settings = EmbedSettings(expression=True)
        embed_slides(work / "slides" / "slides", EncoderSource(str(source)), work / "bags" / name, engine, settings=settings)
    print("\n".join(train(work)), flush=True)
    boards = {name: build_slide_board(work / "runs", protocol=name) for name in ("mutation", "ki67", "survival")}
    for name, board in boards.items():
        board.write(work / "boards" / name)
    targets = {"mutation": "PLANTED_mut", "ki67": "KI67", "survival": "OS"}
    heads = {
        name: {label: row(board, label, targets[name]) for label in board.models["model"]} for name, board in boards.items()
    }
    own = "gated_attention on trained features"
    seconds = [json.loads(path.read_text())["wall_time_s"] for path in work.glob("runs/*/record.json")]
    result = {
        "command": "benchmarks/slide_heads.sh",
        "patients": PATIENTS,
        "seed": SEED,
        "encoder": {"run": model.parent.name, **{k: load_model(model).provenance[k] for k in ("label", "cohort")}},
        "heads": heads,
        "unplanted": {name: row(boards["mutation"], own, name) for name in ("NULL1_mut", "NULL2_mut", "SITE_CONF_mut")},
        "attention_finds_planted_patches": attention_auroc(work),
        "true_hazard_c": true_c(work),
        "paired": {name: paired(board) for name, board in boards.items()},
        "training_minutes": round(sum(seconds) / 60, 1),
        "versions": versions(),
    }
    RESULT.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "paired"}, indent=1, allow_nan=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
