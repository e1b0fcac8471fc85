import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stexpr.config import StudyConfig, load_study
from stexpr.errors import TrainingError
from stexpr.train import folder
from stexpr.train.folder import STALE_S, BusyError, exclusive, is_held, write_config

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


def test_a_holder_on_another_host_is_believed_until_its_heartbeat_stops(tmp_path: Path):
    lock = tmp_path / "lock"
    lock.write_text('{"process": 7, "host": "elsewhere"}\n')
    with pytest.raises(BusyError, match=r"process 7 on elsewhere, last heard of \d+ s ago"), exclusive(tmp_path):
        pass
    assert is_held(tmp_path)
    long_ago = time.time() - STALE_S - 1
    os.utime(lock, (long_ago, long_ago))
    assert not is_held(tmp_path)
    with exclusive(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    assert lock.read_text() == ""


def test_a_held_lock_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder, "HEARTBEAT_S", 0.01)
    with exclusive(tmp_path):
        os.utime(tmp_path / "lock", (1.0, 1.0))
        deadline = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime == 1.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_looking_at_a_lock_does_not_keep_others_out(tmp_path: Path):
    with exclusive(tmp_path):
        pass
    (tmp_path / "lock").write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
    with (tmp_path / "lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        threading.Timer(0.15, fcntl.flock, (look, fcntl.LOCK_UN)).start()
        with exclusive(tmp_path):
            pass
