import subprocess
import sys
from pathlib import Path

import pytest

from stexpr.config import StudyConfig, load_study
from stexpr.errors import TrainingError
from stexpr.train.folder import exclusive, write_config

HOLD = """
import sys, time
from pathlib import Path
from stexpr.train.folder import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_writer_at_a_time_and_a_kill_lets_go(tmp_path: Path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match=rf"being trained by process {holder.pid} on "), exclusive(tmp_path / "run"):
            pass
        holder.kill()
        holder.wait(timeout=10)
    with exclusive(tmp_path / "run"):
        pass


def test_the_resolved_config_reads_back(tmp_path: Path):
    study = StudyConfig(cohort=Path("cohorts/mob"), name="mine", seed=3)
    write_config(tmp_path / "config.yaml", study)
    assert load_study(tmp_path / "config.yaml") == study
