#!/usr/bin/env bash
# The models that predict best, on MOB and HER2ST: five seeds beside all baselines, how far above each, what each part is worth
# on inner validation, and what seeds and symmetries add. Runs that are there are not run again.
# Usage: benchmarks/skill.sh [folder with the raw data [cohort ...]]
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-../shared/data}
cohorts=("${@:2}")
stexpr=${STEXPR:-.venv/bin/stexpr}
export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
[ ${#cohorts[@]} -gt 0 ] || cohorts=(mob her2st)
for cohort in "${cohorts[@]}"; do
  "$stexpr" data fetch "$cohort" --from "$data/$cohort" -o "raw/$cohort"
  "$stexpr" prepare "$cohort" --from "raw/$cohort" -o "cohorts/$cohort"
  for sweep in "best_$cohort" "ablation_$cohort"; do
    "$stexpr" sweep "$sweep" --runs "runs/$sweep"
  done
  "$stexpr" leaderboard "runs/best_$cohort" -o "benchmarks/results/best_$cohort"
  "$stexpr" leaderboard "runs/best_$cohort" -o "boards/best_$cohort" --html # shows the tissue, so it stays out of the repository
  .venv/bin/python benchmarks/skill/margins.py "runs/best_$cohort" --name "$cohort"
  .venv/bin/python benchmarks/skill/ablation.py "runs/ablation_$cohort" --sweep "ablation_$cohort"
  .venv/bin/python benchmarks/skill/regression.py "best_$cohort"
  .venv/bin/python benchmarks/skill/ensembles.py "runs/best_$cohort" --study "best_$cohort"
done
.venv/bin/python benchmarks/tables.py # writes the tables in benchmarks/README.md
