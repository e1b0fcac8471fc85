#!/usr/bin/env bash
# The sweeps on the mouse olfactory bulb: the ten backbones with and without the auxiliary head, and five seeds of three backbones, which
# give the auxiliary effect an interval; their boards and pages. What is done already is not done again.
# Usage: benchmarks/sweeps.sh [folder with the raw data]
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-../shared/data}
stexpr=${STEXPR:-.venv/bin/stexpr}
"$stexpr" data fetch mob --from "$data/mob" -o raw/mob
"$stexpr" prepare mob --from raw/mob -o cohorts/mob
for sweep in ten_backbones auxiliary_weight; do
  "$stexpr" sweep "$sweep" --runs "runs/$sweep"
  "$stexpr" leaderboard "runs/$sweep" -o "benchmarks/results/$sweep"
  "$stexpr" leaderboard "runs/$sweep" -o "boards/$sweep" --html
done
.venv/bin/python benchmarks/sweeps/auxiliary.py runs/auxiliary_weight
.venv/bin/python benchmarks/sweeps/auxiliary.py runs/ten_backbones ten_backbones
.venv/bin/python benchmarks/tables.py
