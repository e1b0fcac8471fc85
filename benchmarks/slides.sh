#!/usr/bin/env bash
# A model trained on patient C of HER2ST at the 0.73 um/px of its images, exported, and applied to a scanner's slide it knows
# nothing of. Patient A, whose only image has 3.44 um/px, is held out: its patches are enlarged, which its record says.
# Usage: benchmarks/slides.sh [folder with the raw data]
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-../shared/data}
stexpr=${STEXPR:-.venv/bin/stexpr}
export OMP_NUM_THREADS=1 # the order of sums, and with it the last digits, depends on the number of threads
"$stexpr" data fetch her2st --from "$data/her2st" -o raw/her2st
"$stexpr" prepare her2st --from raw/her2st -o cohorts/her2st_fine mpp=0.73 window_px=224
"$stexpr" train her2st cohort=cohorts/her2st_fine name=her2st_fine input.window_px=224 model.backbone=mobilenetv3_small_100 \
  training.epochs=6 'folds=[0]' --runs runs/her2st_fine
"$stexpr" export runs/her2st_fine -o models/her2st_fine --timm --onnx
"$stexpr" predict "$data/wsi/cmu_small_region.svs" -m models/her2st_fine -o slides/cmu.h5ad --stride 82 --preservation FFPE \
  --genes ERBB2 --genes KRT19 --coverage 0.9
.venv/bin/python benchmarks/tools/slide_summary.py
