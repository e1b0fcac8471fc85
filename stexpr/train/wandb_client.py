"""The one door to the wandb library: runs that open and close within a known time, and words that hold no secret."""

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import pandas as pd

__all__ = [
    "RESULTS_S",
    "SYNCED",
    "as_table",
    "client",
    "close_run",
    "default_entity",
    "harmless",
    "in_words",
    "open_run",
    "register_chart",
    "within",
]

T = TypeVar("T")
SYNCED: Final = ".synced"
"""Ending of the empty file that wandb puts beside the log of a run that is whole on the server."""
# waits for a server that does not answer; WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT change two of them
INIT_S: Final = 30.0
FINISH_S: Final = 60.0
RESULTS_S: Final = 30.0
LEAVE_S: Final = 10.0


def client() -> Any:
    """Return the library."""
    import wandb

    return wandb


def default_entity() -> str:
    """Return the account, or its team, that runs go to where none is named."""
    return str(client().Api(timeout=20).default_entity)


def register_chart(entity: str, name: str, title: str, spec: Mapping[str, Any]) -> str:
    """Register a Vega-Lite chart of an account, for panels to name.

    Returns:
        The name a panel gives.
    """
    api = client().Api(timeout=20)
    return str(api.create_custom_chart(entity, name, title, "vega2", "private", json.dumps(spec)))


def open_run(folder: Path, given: Mapping[str, Any], mode: str | None = None) -> tuple[Any, str | None]:
    """Start a run in some mode, or in the best there is.

    Returns:
        The run, and why it is offline where that was not asked for.
    """
    wandb = client()
    wandb.setup(settings=wandb.Settings(silent=True))
    trouble = None
    if mode is None:
        mode, trouble = _best_mode()
    init_s = _seconds("WANDB_INIT_TIMEOUT", INIT_S)
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=init_s,
        finish_timeout=_seconds("WANDB_FINISH_TIMEOUT", FINISH_S),
        finish_timeout_raises=True,
    )
    # a run that is still open, of a fold that failed, must not be taken for this one
    start = partial(wandb.init, **given, dir=str(folder), settings=settings, reinit="create_new")
    try:
        return within(init_s + LEAVE_S, partial(start, mode=mode)), trouble
    except Exception as err:
        if mode == "offline":
            raise
        return start(mode="offline"), in_words(err)


def _best_mode() -> tuple[str, str | None]:
    if asked := os.environ.get("WANDB_MODE"):
        return asked, None
    try:
        return "online" if client().login(prompt=False) else "offline", None
    except Exception as err:  # a key there is, but it is refused, or nobody answers
        return "offline", in_words(err)


def close_run(run: Any) -> str | None:
    """Finish a run.

    Returns:
        What wandb could not send; it gives up on a refusal without raising.
    """
    within(_seconds("WANDB_FINISH_TIMEOUT", FINISH_S) + LEAVE_S, run.finish)
    if run.disabled or run.offline:
        return None
    place = Path(run.dir).parent
    for line in (place / "logs" / "debug-internal.log").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if str(entry["level"]).startswith("ERROR") and entry["msg"] != "api: HTTP error":  # that alone is tried again
            return harmless(f"{entry['msg']} {entry.get('error', '')}")
    (place / f"run-{run.id}.wandb{SYNCED}").touch()
    return None


def within(seconds: float, call: Callable[[], T]) -> T:
    """Call, but wait no longer than so long: some of wandb's waits for a server have no end."""
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as err:
            done.set_exception(err)

    threading.Thread(target=work, daemon=True).start()
    return done.result(timeout=seconds)


def _seconds(variable: str, default: float) -> float:
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return default


def in_words(err: Exception) -> str:
    """Say what was raised, on one line, without secrets."""
    return harmless(f"{type(err).__name__}: {err}" if str(err) else type(err).__name__)


def harmless(words: str) -> str:
    """Keep the first line, without anything that may be a key or a password."""
    words = re.sub(r"//[^/@\s]+@", "//", " ".join(words.split("\n", 1)[0].split()))
    return re.sub(r"[\w-]{32,}", "...", words)[:200]


def as_table(frame: pd.DataFrame) -> Any:
    """Return a table of wandb; what is missing is None."""
    wandb = client()

    return wandb.Table(dataframe=frame.astype(object).where(frame.notna(), None))
