"""Ten times as much of everything a user has more of: `python benchmarks/speed/growth.py [--quick]`.

Each row is one path at some size (peer) and at ten times the size (ours): its processor time may grow eleven-fold, and where it
works through files one by one its memory must not grow with their number. Every measurement runs in a forked process of its
own, whose peak memory is counted above what it started with. `--quick` takes small sizes and twice of them.
"""

import comparison  # isort: split

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from stexpr.config import content_hash
from stexpr.config.sweep import load_sweep
from stexpr.data.bag_store import BagStore
from stexpr.data.bags import BagRows, write_bag
from stexpr.data.cards import load_card
from stexpr.data.prepare import prepare
from stexpr.data.store import PreparedCohort
from stexpr.evaluate.leaderboard import build_leaderboard
from stexpr.evaluate.records import write_record
from stexpr.evaluate.score import score
from stexpr.models.bag import make_head
from stexpr.models.baselines import color_features
from stexpr.models.ridge import GroupedRidge
from stexpr.panel import fit_panel
from stexpr.train.sweep.plan import plan_sweep
from stexpr.train.sweep.run import missing_runs
from stexpr.train.sweep.states import sweep_status
from stexpr.types import BagBatch

sys.path += [str(Path(__file__).resolve().parents[2] / "tests" / part) for part in ("", "evaluate")]
from planted_runs import GENES, MODELS, make_predictions, make_record, planted_scores

from raw_sections import CARD, write_raw_section

BAR, STREAMS_MB, EPOCHS = 11.0, 20.0, 20
Task = Callable[[], object]
Made = Callable[[int, Path], Task]
"""Makes what a path works on, of some size, and returns the path itself."""


def scoring_sections(n: int, _: Path) -> Task:
    predictions = make_predictions(sections=n, spots=400, genes=100)
    predictions.obs["x_um"] += np.repeat(100 * n + np.arange(n), 400) * np.tile(np.linspace(0, 1, 400), n)  # no two alike
    return lambda: score(predictions)


def scoring_one_section(n: int, _: Path) -> Task:
    predictions = make_predictions(spots=n, genes=100)
    # Its spatial patterns are found once for all models, in time with the cube of the spots, up to 6,000 of them.
    score(predictions[:, :2].copy(), n_replicates=2)
    return lambda: score(predictions)


def scoring_genes(n: int, _: Path) -> Task:
    predictions = make_predictions(spots=400, genes=n)
    return lambda: score(predictions)


def color_ridge(n: int, _: Path) -> Task:
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)
    expression, groups = rng.normal(size=(n, 250)), np.arange(n) % 4

    def run() -> None:
        features = color_features(patches, (4, 8, 16, 32))
        GroupedRidge((1.0, 100.0)).fit(features, expression, groups).predict(features)

    return run


def panel_choice(n: int, _: Path) -> Task:
    counts = sp.random(n, 5000, density=0.1, format="csr", rng=0, dtype=np.float32).ceil()
    genes = [f"GENE{i}" for i in range(5000)]
    return lambda: fit_panel(counts, genes)


def preparing(n: int, folder: Path) -> Task:
    (folder / "raw").mkdir()
    entries = ""
    for i in range(n):
        write_raw_section(folder / "raw", f"s{i}", i, step_px=100)
        files = f"counts: s{i}.h5ad, image: s{i}.png"
        entries += f"  - {{section: s{i}, patient: p{i}, {files}, mpp: 1.0, mpp_source: known}}\n"
    (folder / "raw" / "small.md").write_text(f"{CARD}{entries}---\n# Small\n")
    card = load_card(folder / "raw" / "small.md")
    config = card.prepare
    assert config is not None
    return lambda: prepare(card, folder / "raw", folder / "cohort", config)


def reading_cohort(n: int, folder: Path) -> Task:
    preparing(n, folder)()

    def run() -> None:
        cohort = PreparedCohort.open(folder / "cohort")
        for section in cohort.sections:
            cohort.spots(section)
            reader = cohort.patch_reader(section)
            for i in range(EPOCHS * len(reader)):
                reader[i % len(reader)]
            reader.close()

    return run


def predicting_slides(n: int, folder: Path) -> Task:
    rng = np.random.default_rng(0)
    for i in range(n):
        rows = BagRows(rng.normal(size=(2000, 256)).astype(np.float32), np.stack([np.arange(2000)] * 2, axis=1))
        write_bag(folder / f"S{i:04d}.h5", [rows], mpp=0.5, patch_px=224, side=224.0, encoder="a")
    head = make_head("gated_attention", 256, 1).eval()

    def run() -> None:
        store = BagStore.open(folder)
        with torch.inference_mode():
            for bag in store.bags.values():
                head(BagBatch.of([torch.from_numpy(bag.features().astype(np.float32))]))

    return run


def ranking_runs(n: int, folder: Path) -> Task:
    """Networks with one run per fold of three, beside all baselines."""
    networks = {f"network {i}": (0.7, {"model": {"kind": "network", "backbone": f"b{i}"}}) for i in range(n)}
    models: dict[str, tuple[float, dict[str, Any]]] = {**MODELS, **networks}
    del models["tiny"]
    for label, (strength, changes) in models.items():
        for fold in range(3):
            identity = content_hash([label, fold])
            run = folder / identity
            run.mkdir()
            scores = planted_scores(fold, 3, strength, GENES, 200)
            scores.write(run)
            panel = {**make_record().panel.model_dump(), "hash": f"p{fold}", "n_main": GENES}
            of_fold = {"index": fold, "test_patients": [chr(65 + fold)], "validation": "patient"}
            own = {"model_label": label, "fold": of_fold, "panel": panel, "config_hash": identity, "values": scores.summary}
            write_record(run, make_record(**{**own, **changes}))
    return lambda: build_leaderboard(folder)


def planning_runs(n: int, folder: Path) -> Task:
    preparing(2, folder)()
    (folder / "base.yaml").write_text(f"cohort: {folder / 'cohort'}\nmodel: {{backbone: tiny}}\nfolds: [0, 1]\n")
    (folder / "sweep.yaml").write_text(f"name: many\nstudy: base.yaml\nseeds: {list(range(n))}\n")

    def run() -> None:
        plan = plan_sweep(load_sweep(folder / "sweep.yaml"))
        plan.write(folder / "runs")
        missing_runs(plan, folder / "runs")
        sweep_status(folder / "runs", "many")

    return run


PATHS: dict[str, tuple[Made, int, int, bool, str]] = {
    "spots: score, sections": (scoring_sections, 2, 1, False, "sections of 400 spots x 100 genes, scored, resampled, compared"),
    "spots: score, one section": (scoring_one_section, 400, 60, False, "spots of a section, 100 genes, its patterns known"),
    "genes: score": (scoring_genes, 250, 10, False, "genes of 400 spots"),
    "spots: color ridge": (color_ridge, 500, 50, False, "patches of 64 px, 250 genes: features, penalty, fit, prediction"),
    "spots: panel": (panel_choice, 3000, 300, False, "spots x 5,000 genes"),
    "sections: prepare": (preparing, 4, 1, True, "sections with 800 px images"),
    "sections: patches from disk": (reading_cohort, 2, 1, True, "sections with 800 px images, every patch 20 times"),
    "slides: predict": (predicting_slides, 10, 1, True, "bags of 2,000 patches x 256 features, read and predicted"),
    "runs: leaderboard": (ranking_runs, 10, 2, False, "networks of three runs each, ranked, compared and noted"),
    "runs: plan a sweep": (planning_runs, 50, 2, False, "seeds of two folds: planned, written, looked for, listed"),
}
"""What is made, its size, its size with `--quick`, whether it must stream, and what there is n of."""


def rows(quick: bool) -> list[comparison.Row]:
    found = []
    for path, (make, size, small, streams, what) in PATHS.items():
        n, times, turns = (small, 2, 1) if quick else (size, 10, 3)
        measured = [here(make, m) if quick else apart(make, m, small) for _ in range(turns) for m in (n, times * n)]
        (peer, peer_mb), (ours, ours_mb) = (np.median(measured[which::2], axis=0).tolist() for which in (0, 1))
        row = comparison.compared(
            f"growth_{path}",
            ours=ours,
            peer=peer,
            at_most=BAR,
            packages=("stexpr", "numpy", "torch"),
            how=f"{n:,} (peer) and {times * n:,} (ours) {what}; medians of {turns} turns; memory above the start {peer_mb:.0f} "
            f"and {ours_mb:.0f} MB",
            profile="" if quick else profile(make, n),
            peak_mb=[round(peer_mb, 1), round(ours_mb, 1)],
        )
        print(f"{path:28} {peer_mb:8.0f} {ours_mb:8.0f} MB", flush=True)
        assert quick or not streams or ours_mb - peer_mb < STREAMS_MB, row["how"]
        found.append(row)
    return found


def here(make: Made, n: int) -> tuple[float, float]:
    """Processor seconds of a path, and MB by which it raised the peak of this process."""
    with tempfile.TemporaryDirectory() as folder:
        task = make(n, Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before, start = status_mb("VmRSS"), time.process_time()
        task()
        return time.process_time() - start, max(0.0, status_mb("VmHWM") - before)


def apart(make: Made, n: int, warm: int) -> tuple[float, float]:
    """The same in a forked process, after as much as `warm` went through it once."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def run() -> None:
        here(make, warm)
        send.send(here(make, n))

    process = context.Process(target=run)
    process.start()
    send.close()
    seconds, mb = receive.recv()
    process.join()
    return seconds, mb


def profile(make: Made, n: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return comparison.profiled(make(n, Path(folder)))


def status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1e3


if __name__ == "__main__":
    comparison.main("growth", rows, __doc__)
