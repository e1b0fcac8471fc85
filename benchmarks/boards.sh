#!/usr/bin/env bash
# The leaderboards on real tissue, MOB and HER2ST: three small backbones with and without the auxiliary head beside all null
# baselines, the pages, and the same predictions scored under the published protocols. What is done already is not done again.
# Usage: benchmarks/boards.sh [folder with the raw data [cohort ...]]
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-../shared/data}
cohorts=("${@:2}")
stexpr=${STEXPR:-.venv/bin/stexpr}
export OMP_NUM_THREADS=1 # the order of sums, and with it the last digits, depends on the number of threads
[ ${#cohorts[@]} -gt 0 ] || cohorts=(mob her2st)
for cohort in "${cohorts[@]}"; do
  "$stexpr" data fetch "$cohort" --from "$data/$cohort" -o "raw/$cohort"
  "$stexpr" prepare "$cohort" --from "raw/$cohort" -o "cohorts/$cohort"
  for backbone in resnet18 mobilenetv3_small_100 efficientnet_b0; do
    for weight in 0 1; do
      "$stexpr" train "$cohort" "model.backbone=$backbone" "model.auxiliary.weight=$weight" --runs "runs/$cohort"
    done
  done
  results=benchmarks/results/$cohort
  "$stexpr" evaluate "runs/$cohort"
  "$stexpr" evaluate "runs/$cohort" --protocol all > "$results/inflation.md"
  "$stexpr" leaderboard "runs/$cohort" -o "$results"
  "$stexpr" leaderboard "runs/$cohort" -o "boards/$cohort" --html # the page shows the tissue, so it stays out of the repository
  "$stexpr" audit "cohorts/$cohort" -o "$results/audit.json"
done
.venv/bin/python benchmarks/tables.py # writes the tables in benchmarks/README.md
