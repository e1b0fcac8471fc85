#!/usr/bin/env bash
# The first leaderboards on real tissue: MOB and HER2ST, one small backbone with and without the auxiliary head, beside the
# baselines. What is done already is not done again. Usage: benchmarks/spine.sh [folder with the raw data]
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-../shared/data}
stexpr=${STEXPR:-.venv/bin/stexpr}
for cohort in mob her2st; do
  "$stexpr" data fetch "$cohort" --from "$data/$cohort" -o "raw/$cohort"
  "$stexpr" prepare "$cohort" --from "raw/$cohort" -o "cohorts/$cohort"
  "$stexpr" train "$cohort" --runs "runs/$cohort"
  "$stexpr" train "$cohort" model.auxiliary.weight=0 --runs "runs/$cohort"
  "$stexpr" evaluate "runs/$cohort"
  "$stexpr" leaderboard "runs/$cohort" -o "benchmarks/results/$cohort"
done
