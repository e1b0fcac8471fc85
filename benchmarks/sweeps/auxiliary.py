"""The effect of the auxiliary head in a sweep of several seeds: pairs that differ in nothing else, an interval over seeds.

    .venv/bin/python benchmarks/sweeps/auxiliary.py RUNS [SWEEP]

The interval says how sure the effect is *on these patients* when training is repeated; it says nothing of other patients. Where
each backbone has one seed, backbones take the place of seeds in the interval of all. Writes
benchmarks/results/SWEEP/effect.csv, of auxiliary_weight where none is named.
"""

import sys
from pathlib import Path

import pandas as pd

from stexpr.evaluate.intervals import t_interval
from stexpr.evaluate.records import read_records

RESULTS = Path(__file__).resolve().parents[1] / "results"


def effects(runs: Path) -> pd.DataFrame:
    """Return one row per backbone and weight, against the same backbone and seeds without the auxiliary head."""
    rows = [
        {
            "backbone": record.model["backbone"],
            "weight": float(record.model["auxiliary"]["weight"]),  # type: ignore[arg-type, index, call-overload]
            "seed": record.seed,
            "fold": record.fold.index,
            "r": record.values["pearson"].value,
        }
        for record in (run.record for run in read_records(runs).complete)
        if record.kind == "network"
    ]
    r = pd.DataFrame(rows).pivot_table(index=["backbone", "seed"], columns="weight", values="r", aggfunc="mean")
    found = []
    for backbone, own in r.groupby(level="backbone"):
        for weight in [one for one in r.columns if one]:
            pairs = (own[weight] - own[0.0]).dropna().to_numpy()
            interval = t_interval(pairs)
            found.append(
                {
                    "backbone": backbone,
                    "weight": weight,
                    "seeds": len(pairs),
                    "r_without": own[0.0].mean(),
                    "r_with": own[weight].mean(),
                    "seed_sd_without": own[0.0].std(ddof=1),
                    "effect": pairs.mean(),
                    "low": interval.low,
                    "high": interval.high,
                }
            )
    pairs = r[r.columns[-1]] - r[0.0]
    one_seed = pairs.index.get_level_values("seed").nunique() == 1
    means = pairs.groupby(level="backbone" if one_seed else "seed").mean().to_numpy()
    interval = t_interval(means)
    name = f"all {len(means)}, interval over backbones" if one_seed else "all"
    every = {"backbone": name, "weight": r.columns[-1], "seeds": 1 if one_seed else len(means), "effect": means.mean()}
    return pd.DataFrame([*found, {**every, "low": interval.low, "high": interval.high}])


def main() -> None:
    frame = effects(Path(sys.argv[1]))
    path = RESULTS / (sys.argv[2] if len(sys.argv) > 2 else "auxiliary_weight") / "effect.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, float_format="%.6f")
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
