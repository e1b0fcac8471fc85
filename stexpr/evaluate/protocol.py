"""What may share a table.

A correlation means nothing without its protocol: the same model is printed at .31 and at .78. Records are compared only where
task, protocol, cohort, split and, fold by fold, the gene panel are the same.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from stexpr.config import BASELINES
from stexpr.errors import ProtocolError, nearest
from stexpr.evaluate.records import Record, Run, RunRecord, SlideRecord, SlideRun

__all__ = ["REQUIRED", "check_comparable", "flat", "protocol_name", "select_runs"]

REQUIRED: Final[Mapping[str, str]] = {model.kind: model.label for model in BASELINES}
"""What stands on every board."""


R = TypeVar("R", Run, SlideRun)
S = TypeVar("S", bound=RunRecord)


def select_runs(runs: Sequence[R], cohort: str | None, protocol: str | None) -> list[R]:
    """Keep the runs on one cohort and under one protocol, each given by name or hash.

    Raises:
        ProtocolError: None is left.
    """
    wanted: list[tuple[str, str | None, Callable[[RunRecord], tuple[str, str]]]] = [
        ("cohort", cohort, lambda record: (record.cohort.name, record.cohort.hash)),
        ("protocol", protocol, lambda record: (str(record.protocol.get("name", "")), record.protocol_hash)),
    ]
    chosen = list(runs)
    for what, name, names in wanted:
        if name is None:
            continue
        known = {each for run in chosen for each in names(run.record)}
        chosen = [run for run in chosen if name in names(run.record)]
        if not chosen:
            raise ProtocolError(f"no finished run has the {what} {name!r}; {nearest(name, known)}")
    return chosen


def check_comparable(records: Sequence[Record] | Sequence[SlideRecord]) -> None:
    """Refuse records that must not share a table.

    Studies of spots need their baselines; one of slides without a baseline says so in its notes.

    Raises:
        ProtocolError: Unlike tasks, protocols, cohorts or splits; a fold with two panels or two sets of test patients; a
            model, seed and fold with unlike results on record; a study of spots without a baseline.
    """
    if not records:
        raise ProtocolError("there is no finished run to compare; make some with stexpr train")
    shared: list[tuple[str, str, Callable[[Record | SlideRecord], str]]] = [
        ("task", "give the runs of one task at a time", lambda r: r.task),
        (
            "protocol",
            "choose one with --protocol NAME or HASH",
            lambda r: f"{r.protocol.get('name', 'unnamed')} {r.protocol_hash}",
        ),
        ("cohort", "choose one with --cohort NAME or HASH", lambda r: f"{r.cohort.name} {r.cohort.hash}"),
        ("split", "give the runs of one split at a time", lambda r: r.split_hash),
        (
            "scoring setting",
            "score all of them again with stexpr evaluate --refresh",
            lambda r: str(dict(sorted(r.scoring.items()))),
        ),
    ]
    for what, advice, value in shared:
        found = sorted({value(record) for record in records})
        if len(found) > 1:
            reason = _protocol_difference(records) if what == "protocol" else ""
            raise ProtocolError(
                f"the runs hold {len(found)} {what}s ({', '.join(found)}{reason}), which never share a table; {advice}"
            )
    spots = [record for record in records if isinstance(record, Record)]
    _check_folds(spots, "gene panels", lambda record: record.panel.hash)
    _check_folds(records, "sets of test patients", lambda record: record.fold.test_patients)
    kinds = {record.model["kind"] for record in spots}
    missing = [name for kind, name in REQUIRED.items() if spots and kind not in kinds]
    if missing:
        raise ProtocolError(
            f"the baselines are missing: {', '.join(missing)}; run stexpr train on the same study, which adds them"
        )


def _check_folds(records: Sequence[S], what: str, part: Callable[[S], Any]) -> None:
    in_fold: dict[int, dict[Any, str]] = defaultdict(dict)
    for record in records:
        in_fold[record.fold.index].setdefault(part(record), record.model_label)
    for fold, found in sorted(in_fold.items()):
        if len(found) > 1:
            names = " and ".join(repr(label) for label in sorted(found.values())[:2])
            raise ProtocolError(
                f"fold {fold} has {len(found)} {what} ({names} differ), which never share a table; train these models again "
                "on the cohort as it is now, or move the older runs away"
            )


def _protocol_difference(records: Sequence[RunRecord]) -> str:
    one = flat(records[0].protocol)
    other = flat(next(record.protocol for record in records if record.protocol_hash != records[0].protocol_hash))
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key) and key != "name")
    return "; they differ in " + ", ".join(f"{key}: {one.get(key)} / {other.get(key)}" for key in keys[:3]) if keys else ""


def protocol_name(protocol: Mapping[str, Any]) -> str:
    """Return a protocol's name, with the word that a protocol looking at test data carries everywhere."""
    return f"{protocol.get('name', 'unnamed')}{' (LEAKY)' if protocol.get('leaky') else ''}"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into `a.b.c` keys.

    Example:
        >>> flat({"training": {"lr": 0.1}, "seed": 0})
        {'training.lr': 0.1, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
