"""One run of a sweep, as an engine performs it in whatever process."""

import json
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from stexpr.config.any_study import absolute, any_study_of
from stexpr.config.files import is_disk_full, write_whole
from stexpr.engines.tasks import Task, in_one_line
from stexpr.errors import DataError, StexprError
from stexpr.evaluate.records import read_any_record
from stexpr.train.checkpoint import InterruptedTrainingError, stop_on_file, stop_on_signals
from stexpr.train.folder import FAILURE, BusyError
from stexpr.train.opened import OpenedStudy
from stexpr.train.study import open_study
from stexpr.train.sweep.plan import STOP, Plan, PlannedRun

Became: TypeAlias = Literal["done", "failed", "busy", "stopped", "disk full"]


def task_of(run: PlannedRun, plan: Plan, runs: Path) -> Task:
    """Write a planned run down for an engine; paths are absolute, because workers may start elsewhere."""
    argument = {
        "study": absolute(run.study).model_dump(mode="json"),
        "fold": run.fold.index,
        "key": run.key,
        "runs": str(runs.resolve()),
        "stop": str((plan.state_folder(runs) / STOP).resolve()),
    }
    return Task(run.key, f"{__name__}:perform_run", argument)


def perform_run(argument: dict[str, Any]) -> dict[str, Any]:
    """Train, score and record one run.

    Args:
        argument: As `task_of` wrote it.

    Returns:
        `became` (done, failed, busy: another process holds the run, stopped, disk full), with `value` and `words`, or `error`.
        A failure also stands in the run's folder, with its traceback.
    """
    folder = Path(argument["runs"]) / argument["key"]
    stop_file = Path(argument["stop"])
    if stop_file.exists():
        return {"became": "stopped"}
    try:
        (folder / FAILURE).unlink(missing_ok=True)
        with stop_on_signals() as stop, stop_on_file(stop, stop_file):
            opened = _opened(json.dumps(argument["study"], sort_keys=True))
            fold = opened.fold(opened.config, argument["fold"])
            if opened.folder(opened.config, fold, folder.parent) != folder:
                raise DataError(f"the data of {opened.cohort_name} are not those the sweep was planned with; start it again")
            opened.run(opened.config, fold, folder.parent, stop=stop)
    except InterruptedTrainingError:
        return {"became": "stopped"}
    except BusyError as err:
        return {"became": "busy", "error": str(err)}
    except Exception as err:  # the other runs of the sweep go on
        if is_disk_full(err):
            return {"became": "disk full", "error": str(err)}
        error = str(err) if isinstance(err, StexprError) else in_one_line(err)
        write_failure(folder, error, traceback.format_exc())
        return {"became": "failed", "error": error}
    record = read_any_record(folder)
    return {"became": "done", "value": record.main_value[1], "words": record.in_words}


def write_failure(folder: Path, error: str, trace: str) -> None:
    """Keep why a run failed in its folder."""
    content = {"error": error, "traceback": trace, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    write_whole(folder / FAILURE, lambda path: path.write_text(json.dumps(content, indent=1), encoding="utf-8"))


@lru_cache(maxsize=8)
def _opened(study: str) -> OpenedStudy[Any]:
    return open_study(any_study_of(json.loads(study), "the study of a sweep"))
