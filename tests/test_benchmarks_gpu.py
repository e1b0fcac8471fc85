"""The benchmark for a GPU runs at a tiny size on the CPU, without the packages a borrowed machine lacks; cohorts to carry."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from stexpr.data.store import PreparedCohort

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
ABSENT = ["anndata", "scanpy", "squidpy", "wandb", "pooch", "openslide", "torchstain", "torchsurv", "imagecodecs", "openpyxl"]
ABSENT += ["plotly", "itables", "igraph"]
RUN = f"""import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def pack(cohort: Path, target: Path, window_px: int) -> None:
    command = [sys.executable, str(BENCHMARKS / "tools" / "pack_cohort.py"), str(cohort), str(target)]
    subprocess.run([*command, "--window-px", str(window_px)], check=True)


def test_the_gpu_benchmark_needs_little_and_writes_both_tables(small_cohort: Path, tmp_path: Path) -> None:
    pack(small_cohort, tmp_path / "cohorts" / "small", 24)
    whole, packed = PreparedCohort.open(small_cohort), PreparedCohort.open(tmp_path / "cohorts" / "small")
    packed.verify()
    assert packed.window_px == 24
    for section in whole.sections:
        np.testing.assert_array_equal(packed.patches(section), whole.patches(section, 24))
        np.testing.assert_array_equal(packed.patch_reader(section, 16)[3], whole.patch_reader(section, 16)[3])
        assert (packed.counts(section) != whole.counts(section)).nnz == 0

    options = ["--quick", "--device", "cpu", "--backbones", "mobilenetv3_small_050", "--set", "training.epochs=1", "folds=[0]"]
    options += ["protocol.panel.n_main=12", "protocol.validation.rule=epochs"]
    command = [sys.executable, "-c", RUN, str(BENCHMARKS / "gpu.py"), str(tmp_path / "cohorts"), str(tmp_path / "out")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "speed-gpu.json").read_text(encoding="utf-8"))["rows"]
    assert {row["path"].split(",")[0] for row in rows} == {"training step", "training from disk", "embedding a cohort"}
    keys = {"path", "ours", "peer", "ratio", "bar", "unit", "device", "versions", "how", "profile"}
    assert all(keys <= set(row) and row["ours"] > 0 for row in rows)
    assert [row["compile"]["shapes"] for row in rows if "compile" in row] == [1]
    runs = json.loads((tmp_path / "out" / "gpu-sweep.json").read_text(encoding="utf-8"))["rows"]
    assert [row["auxiliary"] for row in runs] == [0, 1]
    assert all([row["section"] for row in run["sections"]] == ["a1"] and -1 <= run["r"] <= 1 for run in runs)
