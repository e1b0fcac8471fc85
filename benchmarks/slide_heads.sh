#!/usr/bin/env bash
# Slide heads where the truth is known: the encoder of `stexpr demo`, which learned expression on other sections, embeds synthetic
# slides with a planted mutation, Ki67 and hazard; beside it the same network untrained, and colors.
# Usage: benchmarks/slide_heads.sh [folder to work in]
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-slides/heads}
export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 # the order of sums, and with it the last digits, depends on the number of threads
[ -d "$work/demo/leaderboard" ] || "${STEXPR:-.venv/bin/stexpr}" demo -o "$work/demo"
.venv/bin/python benchmarks/tools/slide_heads.py "$work/demo" "$work"
