"""A node of a Ray cluster is killed under a sweep, and nothing of it shows in the results: the benchmark, in short."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "sweeps" / "ray_cluster.py"
TIMEOUT_S = 560


@pytest.mark.timeout(TIMEOUT_S + 40)
def test_a_node_killed_in_the_middle_changes_nothing(tmp_path: Path, small_cohort: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, str(BENCHMARK), "--quick", "--cohort", str(small_cohort), "--result", str(result)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        try:
            said = process.communicate(timeout=TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            process.terminate()  # it saves, leaves the cluster and ends it
            said = process.communicate(timeout=60)[0]
    assert result.exists(), said
    found = json.loads(result.read_text())
    assert found["differences"] == []
    assert found["runs_done"]["ray"] == found["networks"] == 3
    assert found["killed"]["processes"] >= 2, "the raylet and at least one worker"
    assert found["killed"]["epochs_done"] >= 2
    assert process.returncode == 0, said
    assert "(raylet)" not in said
