"""The second half of the demonstration: three slide heads on the encoder that the first half has trained."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from stexpr.config.any_study import load_any_study
from stexpr.data.synthetic_slides import write_synthetic_slides
from stexpr.engines import EngineOptions, make_engine
from stexpr.errors import DataError
from stexpr.evaluate.page.slides import publish_slides
from stexpr.evaluate.records import MODEL, read_records
from stexpr.evaluate.slides.board import SlideBoard
from stexpr.evaluate.slides.resampling import Draws
from stexpr.inference.bags import EmbedSettings
from stexpr.train.slides.embed import STATE, embed_slides
from stexpr.train.slides.embed_job import EncoderSource
from stexpr.train.study import run_study
from stexpr.types import Progress, silent

__all__ = ["STUDIES", "run_slide_demo"]

STUDIES: Final = ("mutation", "ki67", "survival")
QUICK_SIZE: Final[Mapping[str, Any]] = {"patients": 24, "squares_per_slide": 16, "two_slides": 0.1}
QUICK_DRAWS: Final = Draws(replicates=100, permutations=99, swaps=99)
SHORT_STUDY: Final = ("protocol.split={k: 3, inner_k: 2}", "training.epochs=40")
"""The shipped studies with fewer folds, so that a demonstration takes minutes."""
QUICK_STUDY: Final = ("protocol.split={k: 2, inner_k: 2}", "training.epochs=3")


def run_slide_demo(
    folder: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, SlideBoard]:
    """Draw slides, embed them by the best network of `run_demo`, and train heads of mutation, Ki67 and survival.

    What an earlier call finished is not done again.

    Args:
        folder: That of `run_demo`; `slides/`, `bags/`, `slide_runs/` and `slide_leaderboard/` are made in it.
        seed: Of the slides and the weights.
        quick: Fewer patients and epochs, to see that everything works; the scores mean little.
        progress: Shows how far it is.
        report: Receives one line per step.

    Returns:
        A board for each study, also written below `slide_leaderboard/`.

    Raises:
        DataError: `run_demo` did not finish there, or a folder holds something else.
    """
    model = best_network(folder / "runs") / MODEL
    report(f"drawing slides, and embedding them by the encoder of {model.parent.name}")
    write_synthetic_slides(folder / "slides", seed=seed, progress=progress, **(QUICK_SIZE if quick else {}))
    bags = folder / "bags"
    engine = make_engine("local", EngineOptions(), bags / STATE / "logs")
    settings = EmbedSettings(expression=True, patches=True)
    encoder = EncoderSource(str(model))
    result = embed_slides(folder / "slides" / "slides", encoder, bags, engine, settings=settings, progress=progress)
    report(result.in_words(bags))
    boards = {}
    for name in STUDIES:
        overrides = [
            f"bags={bags}",
            "encoder=demo",
            f"tables.clinical=[{folder / 'slides' / 'clinical.csv'}]",
            f"tables.slides={folder / 'slides' / 'slides.csv'}",
            f"seed={seed}",
            *(QUICK_STUDY if quick else SHORT_STUDY),
        ]
        run_study(load_any_study(name, overrides), folder / "slide_runs", progress=progress, report=report)
        output = folder / "slide_leaderboard" / name
        draws = QUICK_DRAWS if quick else Draws()
        boards[name] = publish_slides(folder / "slide_runs", output, protocol=name, draws=draws, progress=progress)
        report(f"open {output / 'index.html'} in a browser; the same as tables beside it\n")
    return boards


def best_network(runs: Path) -> Path:
    """Return the folder of the run with the highest mean r among networks with an auxiliary head, which saw the most genes.

    Raises:
        DataError: No such network finished there.
    """
    complete = read_records(runs).complete
    networks = [run for run in complete if run.record.kind == "network" and run.record.model_label.endswith("aux")]
    scored = [(run.record.main_value[1] or 0.0, run.folder) for run in networks]
    if not scored:
        raise DataError(f"no network finished in {runs}; run stexpr demo first")
    return max(scored, key=lambda pair: pair[0])[1]
