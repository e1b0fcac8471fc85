"""One slide to embed, as an engine performs it in whatever process."""

import time
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from stexpr.config.files import is_disk_full
from stexpr.data.grid import NoTissueError
from stexpr.engines.tasks import Task, in_one_line
from stexpr.errors import DomainWarning, ModelError, StexprError
from stexpr.inference import pick_device
from stexpr.inference.bags import EmbedSettings, embed_slide
from stexpr.inference.encoder import PatchModel, open_encoder
from stexpr.train.checkpoint import InterruptedTrainingError, StopFlag, stop_on_file, stop_on_signals
from stexpr.types import Progress

T = TypeVar("T")
Became: TypeAlias = Literal["done", "no tissue", "failed", "stopped", "no model", "disk full"]


@dataclass(frozen=True)
class EncoderSource:
    """How every process of an embedding comes to the same encoder.

    Attributes:
        source: As for `open_encoder`.
        weights: As for `open_encoder`.
        download: As for `open_encoder`.
        device: As for `pick_device`.
        batch_size: Patches at a time.
    """

    source: str
    weights: Path | None = None
    download: bool = False
    device: str = "auto"
    batch_size: int = 64

    def open(self) -> PatchModel:
        """Load the encoder and place it.

        Raises:
            ModelError: As `open_encoder`.
        """
        return open_encoder(self.source, weights=self.weights, download=self.download).to(pick_device(self.device))


def shared_argument(bags: Path, stop: Path, encoder: EncoderSource, hash: str, settings: EmbedSettings) -> dict[str, Any]:
    """Write down what all slides share; paths are absolute, because workers may start elsewhere."""
    folder = Path(encoder.source)
    return {
        "bags": str(bags.resolve()),
        "stop": str(stop.resolve()),
        "encoder": str(folder.resolve()) if folder.exists() else encoder.source,
        "weights": None if encoder.weights is None else str(encoder.weights.resolve()),
        "download": encoder.download,
        "device": encoder.device,
        "batch_size": encoder.batch_size,
        "hash": hash,
        "settings": settings.described,
    }


def task_of(name: str, slide: Path, rois: Path | None, shared: dict[str, Any]) -> Task:
    """Write a slide down for an engine."""
    own = {"slide": str(slide.resolve()), "name": name, "rois": None if rois is None else str(rois.resolve())}
    return Task(name, f"{__name__}:perform_slide", {**shared, **own})


def perform_slide(argument: dict[str, Any]) -> dict[str, Any]:
    """Embed one slide.

    Args:
        argument: As `task_of` wrote it.

    Returns:
        `became` (done; no tissue or failed, which is the slide's fault; no model or disk full, which is not; stopped), with
        `seconds` or `error`.
    """
    stop_file = Path(argument["stop"])
    if stop_file.exists():
        return {"became": "stopped"}
    began = time.monotonic()
    try:
        with stop_on_signals() as stop, stop_on_file(stop, stop_file), warnings.catch_warnings():
            warnings.simplefilter("ignore", DomainWarning)  # the bag and the summary say it
            embed_slide(
                argument["slide"],
                open_once(argument),
                Path(argument["bags"]) / f"{argument['name']}.h5",
                settings=settings_of(argument["settings"]),
                rois=argument["rois"],
                batch_size=argument["batch_size"],
                progress=until(stop),
            )
    except InterruptedTrainingError:
        return {"became": "stopped"}
    except Exception as err:  # the other slides go on
        return {**failure(err), "trace": traceback.format_exc()}
    return {"became": "done", "seconds": round(time.monotonic() - began, 2)}


def failure(err: Exception) -> dict[str, Any]:
    """Tell whose fault an error is: the slide's, the model's or the disk's."""
    became: Became = "failed"
    if is_disk_full(err):
        became = "disk full"
    elif isinstance(err, ModelError):
        became = "no model"
    elif isinstance(err, NoTissueError):
        became = "no tissue"
    return {"became": became, "error": str(err) if isinstance(err, StexprError) else in_one_line(err)}


def settings_of(described: dict[str, Any]) -> EmbedSettings:
    """Return settings from their plain JSON values."""
    return EmbedSettings(**{**described, "roi_classes": tuple(described["roi_classes"])})


def until(stop: StopFlag) -> Progress:
    """Return a progress that shows nothing and raises once a signal has arrived."""

    def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
        for item in items:
            stop.raise_if_set()
            yield item

    return progress


def open_once(argument: dict[str, Any]) -> PatchModel:
    """Load the encoder of a task, once in a process.

    Raises:
        ModelError: As `open_encoder`; or it is not the one the embedding began with.
    """
    model = _opened(argument["encoder"], argument["weights"], argument["download"], argument["device"])
    if model.hash != argument["hash"]:
        raise ModelError(f"{argument['encoder']} changed since the embedding began; start it again")
    return model


@lru_cache(maxsize=1)
def _opened(source: str, weights: str | None, download: bool, device: str) -> PatchModel:
    return EncoderSource(source, None if weights is None else Path(weights), download, device).open()
