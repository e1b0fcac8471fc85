"""The whole way in miniature: a synthetic cohort, two backbones with and without the auxiliary head, a leaderboard."""

from collections.abc import Callable
from pathlib import Path

from stexpr.config import load_study
from stexpr.data.cards import load_card
from stexpr.data.prepare import prepare
from stexpr.data.synthetic import write_synthetic
from stexpr.errors import DataError
from stexpr.evaluate.leaderboard import Leaderboard
from stexpr.evaluate.page.publish import publish
from stexpr.train.study import run_study
from stexpr.types import Progress, silent

VARIANTS = (
    ("model.backbone=tiny", "model.auxiliary.weight=0"),
    ("model.backbone=tiny", "model.auxiliary.weight=1"),
    ("model.backbone=mobilenetv3_small_050", "model.auxiliary.weight=0"),
    ("model.backbone=mobilenetv3_small_050", "model.auxiliary.weight=1"),
)
QUICK_SIZE = {"patients": 3, "spots_per_section": 64, "genes": 160}
QUICK_STUDY = ("training.epochs=2", "protocol.panel.n_main=20")


def run_demo(
    folder: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> Leaderboard:
    """Run the demonstration study `configs/studies/demo.yaml`; what an earlier call finished is not done again.

    Args:
        folder: Where everything is written: `raw/`, `cohort/`, `runs/` and `leaderboard/`.
        seed: Of the cohort and the weights.
        quick: A third of the cohort and two epochs, to see within a minute that everything works; the ranking means little.
        progress: Shows how far it is.
        report: Receives one line per step.

    Returns:
        The leaderboard, also written to `leaderboard/`.

    Raises:
        DataError: The folder holds something else, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "raw").is_dir())):
        raise DataError(f"{folder} holds something that is not a demo; give another folder with --output")
    size = QUICK_SIZE if quick else {}
    report(f"making a synthetic cohort: {size.get('patients', 4)} patients, one section each")
    card = load_card(write_synthetic(folder / "raw", seed=seed, progress=progress, **size))
    assert card.prepare is not None
    report("cutting patches")
    prepare(card, folder / "raw", folder / "cohort", card.prepare, progress=progress)
    for variant in VARIANTS:
        overrides = [f"cohort={folder / 'cohort'}", f"seed={seed}", *variant, *(QUICK_STUDY if quick else ())]
        study = load_study("demo", overrides)
        run_study(study, folder / "runs", progress=progress, report=report)
    report("ranking models and writing the page")
    board, _ = publish(folder / "runs", folder / "leaderboard", progress=progress)
    report(f"open {folder / 'leaderboard' / 'index.html'} in a browser; the same as tables beside it\n")
    return board
