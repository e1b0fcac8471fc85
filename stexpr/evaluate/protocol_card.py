"""The protocol in words, as it stands above every table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from stexpr.config import ProtocolConfig
from stexpr.evaluate.protocol import flat
from stexpr.evaluate.records import Record

__all__ = ["protocol_card"]

NOISE_CEILING: Final = (
    "the correlation a perfect prediction would reach, per gene and section, by splitting counts in two ({} repeats, seed {}). "
    "It bounds the noise of counting only: depth and capture effects that all genes of a spot share count as signal, so a "
    "depth-blind ceiling stands beside it"
)
SPATIAL_NULL: Final = (
    "r against that of {} surrogate predictions as smooth as the prediction itself (signs of its spatial patterns flipped), "
    "combined over sections and patients; genes at a false discovery rate of 5 %"
)


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
    rules = sorted({record.fold.validation for record in records if record.epochs is not None})
    warning = _warning(take, first.protocol)
    card = [
        *([("Warning", warning)] if warning else []),
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
        ("Spots", _spots(take)),
        ("Number of epochs", _validation(take, rules)),
        ("Correlation", _pooling(take)),
        ("Aggregation", _aggregation(records)),
        ("Interval", interval),
        ("Noise ceiling", NOISE_CEILING.format(first.scoring.get("ceiling_repeats", "?"), first.scoring.get("seed", "?"))),
        ("Spatial null", SPATIAL_NULL.format(first.scoring.get("spatial_null_surrogates", "?"))),
    ]
    deviations = take("deviations", [])
    card += [("Deviations", "; ".join(deviations))] if deviations else []
    rest = {key: value for key, value in protocol.items() if key not in used and value not in (None, [], "")}
    if rest:
        card.append(("Further settings", ", ".join(f"{key} = {value}" for key, value in sorted(rest.items()))))
    return card


def _few(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])}, … {len(names) - most} more"


def _warning(take: Callable[..., Any], protocol: Mapping[str, Any]) -> str:
    why, leaky = take("why", ""), take("leaky", False)
    if not leaky:
        return ""
    leaks = ProtocolConfig.model_validate({**protocol, "split": {}}).leaks
    return f"LEAKY, looks at test data: {'; '.join([*leaks, *([why] if why else [])])}"


def _spots(take: Callable[..., Any]) -> str:
    least, window, stain, counted = take("min_counts", 0), take("window_um"), take("stain"), take("counted", "above_chance")
    words = [f"of at least {least:,} counts" if least else "all that were prepared"]
    words += [f"windows of {window:g} µm"] if window else []
    words += [f"stain normalization {stain}"] if stain else []
    own = {"above_chance": "genes above chance", "median_r": "genes by their median r"}.get(str(counted))
    return "; ".join([*words, *([f"the protocol counts {own}"] if own else [])])


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
        "spatially_variable": f"the {n} genes of highest Moran's I within sections",
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
    over = (
        "the genes of the panel alone" if take("expression.library", "whole") == "panel" else "every gene the cohort measured"
    )
    raw = "raw, never smoothed"
    if take("expression.smoothing", "none") == "neighbors":
        raw = "counts SMOOTHED over neighboring spots, also those of test spots"
    return {
        "library_log1p": f"log(1 + counts per {target:,.0f}), over {over}; {raw}",
        "log1p": f"log(1 + counts), without library size; {raw}",
        "stnet": f"log((1 + counts) / (library + genes)), as ST-Net; {raw}",
    }.get(str(kind), str(kind))


def _validation(take: Callable[..., Any], used: Sequence[str]) -> str:
    splits, fraction, refit = take("validation.splits"), take("validation.fraction"), take("validation.refit")
    asked = take("validation.rule")
    words = {
        "patient": "held-out training patients",
        "section": "held-out training sections",
        "block": "a held-out spatial block of training spots, a window apart from the rest",
        "epochs": "set in advance",
        "test": "THE TEST PATIENTS",
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
