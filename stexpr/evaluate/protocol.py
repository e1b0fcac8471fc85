"""What may share a table, and the protocol in words.

A correlation means nothing without its protocol: the same model is printed at .31 and at .78. Records are compared only where
task, protocol, cohort, split and, fold by fold, the gene panel are the same.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from stexpr.errors import ProtocolError, nearest
from stexpr.evaluate.records import Record, Run

__all__ = ["check_comparable", "flat", "protocol_card", "select_runs"]

REQUIRED: Final = {"training_mean": "training mean", "color_ridge": "color ridge"}


def select_runs(runs: Sequence[Run], cohort: str | None, protocol: str | None) -> list[Run]:
    """Keep the runs on one cohort and under one protocol, each given by name or hash.

    Raises:
        ProtocolError: None is left.
    """
    wanted: list[tuple[str, str | None, Callable[[Record], tuple[str, str]]]] = [
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


def check_comparable(records: Sequence[Record]) -> None:
    """Refuse records that must not share a table.

    Raises:
        ProtocolError: Unlike tasks, protocols, cohorts or splits; a fold with two panels or two sets of test patients; a
            model, seed and fold with unlike results on record; a missing baseline.
    """
    if not records:
        raise ProtocolError("there is no finished run to compare; make some with stexpr train")
    shared: list[tuple[str, str, Callable[[Record], str]]] = [
        ("task", "give the runs of one task at a time", lambda r: r.task),
        (
            "protocol",
            "choose one with --protocol NAME or HASH",
            lambda r: f"{r.protocol.get('name', 'unnamed')} {r.protocol_hash}",
        ),
        ("cohort", "choose one with --cohort NAME or HASH", lambda r: f"{r.cohort.name} {r.cohort.hash}"),
        ("split", "give the runs of one split at a time", lambda r: r.split_hash),
    ]
    for what, advice, value in shared:
        found = sorted({value(record) for record in records})
        if len(found) > 1:
            reason = _protocol_difference(records) if what == "protocol" else ""
            raise ProtocolError(
                f"the runs hold {len(found)} {what}s ({', '.join(found)}{reason}), which never share a table; {advice}"
            )
    _check_folds(records, "gene panels", lambda record: record.panel.hash)
    _check_folds(records, "sets of test patients", lambda record: record.fold.test_patients)
    missing = [name for kind, name in REQUIRED.items() if all(record.model["kind"] != kind for record in records)]
    if missing:
        raise ProtocolError(
            f"the baselines are missing: {', '.join(missing)}; run stexpr train on the same study, which adds them"
        )


def _check_folds(records: Sequence[Record], what: str, part: Callable[[Record], Any]) -> None:
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


def _protocol_difference(records: Sequence[Record]) -> str:
    one = flat(records[0].protocol)
    other = flat(next(record.protocol for record in records if record.protocol_hash != records[0].protocol_hash))
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key) and key != "name")
    return "; they differ in " + ", ".join(f"{key}: {one.get(key)} / {other.get(key)}" for key in keys[:3]) if keys else ""


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


def protocol_card(records: Sequence[Record], interval: str) -> list[tuple[str, str]]:
    """Say in words what was predicted, on whom it was tested and how it was scored.

    Args:
        records: Comparable records.
        interval: Kind of the intervals on the board.

    Returns:
        Pairs of a heading and a sentence; protocol keys this version has no words for stand at the end as they are.
    """
    first = records[0]
    protocol = flat(first.protocol)
    used: set[str] = set()

    def take(key: str, default: Any = None) -> Any:
        used.add(key)
        return protocol.get(key, default)

    details = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in first.cohort.details.items()
        if value is not None
    )
    patients = sorted({patient for record in records for patient in record.fold.test_patients})
    by_fold = sorted({record.fold.index: record for record in records}.items())
    folds = "; ".join(f"fold {index}: {', '.join(record.fold.test_patients)}" for index, record in by_fold)
    rules = sorted({record.fold.validation for record in records if record.kind == "network"})
    card = [
        ("Protocol", f"{take('name', 'unnamed')} ({first.protocol_hash})"),
        (
            "Cohort",
            f"{first.cohort.name} ({first.cohort.hash}); {details}"
            if details
            else f"{first.cohort.name} ({first.cohort.hash})",
        ),
        (
            "Tested",
            f"{len(patients)} of {len(first.cohort.patients)} patients ({_few(patients)}), each by a model that never saw them",
        ),
        ("Split", _split(take)),
        ("Folds", folds if len(by_fold) <= 12 else f"{len(by_fold)} folds"),
        ("Genes", _genes(take, records)),
        ("Expression", _expression(take)),
        ("Number of epochs", _validation(take, rules)),
        ("Correlation", _pooling(take)),
        ("Aggregation", _aggregation(records)),
        ("Interval", interval),
    ]
    rest = {key: value for key, value in protocol.items() if key not in used and value not in (None, [], "")}
    if rest:
        card.append(("Further settings", ", ".join(f"{key} = {value}" for key, value in sorted(rest.items()))))
    return card


def _few(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])}, … {len(names) - most} more"


def _split(take: Callable[..., Any]) -> str:
    rule, k, seed, fixed = take("split.rule"), take("split.k"), take("split.seed"), take("split.test_patients", [])
    words = {
        "leave_one_patient_out": "leave one patient out: each patient is tested by a model trained on all others",
        "grouped_kfold": f"{k} folds over patients (seed {seed}); all sections of a patient stay on one side",
        "fixed": f"fixed test patients: {', '.join(fixed or [])}",
    }
    return words.get(str(rule), str(rule))


def _genes(take: Callable[..., Any], records: Sequence[Record]) -> str:
    rule, detection = take("panel.rule"), take("panel.min_detection", 0)
    included, scope = take("panel.include", []), take("panel.scope")
    take("panel.n_main"), take("panel.genes")
    sizes = sorted({record.panel.n_main for record in records})
    n = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}–{sizes[-1]}"
    words = {
        "top_mean": f"the {n} genes of highest mean count",
        "highly_variable": f"the {n} most variable genes",
        "list": f"a given list of {n} genes",
    }.get(str(rule), f"{n} genes by the rule {rule}")
    words += f" among those with a count in at least {detection:.0%} of spots" if rule != "list" else ""
    words += f", {', '.join(included)} always included" if included else ""
    if rule == "list":
        return words
    if scope == "training":
        return f"{words}; chosen on the training spots of each fold ({len({r.panel.hash for r in records})} different panels)"
    return f"{words}; chosen on the whole cohort, TEST SPOTS INCLUDED, as in the papers: optimistic"


def _aggregation(records: Sequence[Record]) -> str:
    order = "gene × section → mean over a patient's sections → mean over patients → mean over genes"
    if len({record.panel.hash for record in records}) == 1:
        return order
    return f"{order}; a gene's mean runs over the patients whose fold's panel holds it (n_patients in per_gene.csv)"


def _expression(take: Callable[..., Any]) -> str:
    kind, target = take("expression.kind"), take("expression.target_sum", 1e4)
    return {
        "library_log1p": f"log(1 + counts per {target:,.0f}), over every gene the cohort measured; raw, never smoothed",
        "log1p": "log(1 + counts), without library size; raw, never smoothed",
        "stnet": "log((1 + counts) / (library + genes)), as ST-Net; raw, never smoothed",
    }.get(str(kind), str(kind))


def _validation(take: Callable[..., Any], used: Sequence[str]) -> str:
    splits, fraction, refit = take("validation.splits"), take("validation.fraction"), take("validation.refit")
    asked = take("validation.rule")
    words = {
        "patient": "held-out training patients",
        "section": "held-out training sections",
        "block": "a held-out spatial block of training spots, a window apart from the rest",
        "epochs": "set in advance",
    }
    how = "; or ".join(words.get(rule, rule) for rule in used) or "no network on this board"
    if set(used) <= {"epochs"} or fraction is None:
        return f"{how} (rule {asked})"
    again = "then trained again on all training spots" if refit else "that model is kept"
    return f"chosen on {how} (rule {asked}, share {fraction:g}, {splits} inner split{'s' if splits != 1 else ''}), {again}"


def _pooling(take: Callable[..., Any]) -> str:
    pooling = take("pooling")
    return {
        "within_section": "Pearson's r over the spots of one section at a time",
        "pooled": "Pearson's r over all test spots of a fold at once, WHICH REWARDS DIFFERENCES BETWEEN PATIENTS: optimistic",
    }.get(str(pooling), str(pooling))
