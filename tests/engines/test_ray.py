"""Ray in a process of its own: what it leaves in a process, threads and variables, is not for other tests to inherit."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stexpr.engines import EngineOptions, make_engine
from stexpr.errors import ConfigError

TESTS = Path(__file__).resolve().parents[1]
DRIVER = """
import json, os, signal, sys
from pathlib import Path
from stexpr.engines import EngineOptions, make_engine
from stexpr.engines.tasks import Task
folder = Path(sys.argv[1])
for name in ("once", "always"):
    (folder / name).mkdir()
before = signal.getsignal(signal.SIGTERM)
engine = make_engine("ray", EngineOptions(workers=2, threads=2), folder / "logs")
assert signal.getsignal(signal.SIGTERM) is before
tasks = [
    Task("report", "engines_work:report", {"n": 1}),
    Task("fail", "engines_work:fail", {}),
    Task("once", "engines_work:die", {"folder": str(folder / "once"), "times": 1}),
    Task("always", "engines_work:die", {"folder": str(folder / "always"), "times": 99}),
]
said = {"engine": [engine.name, engine.slots, engine.threads]}
said["found"] = {o.key: [o.value, o.error, o.trace] for o in engine.run(tasks, lambda: False)}
def stopped():
    return len(list(folder.glob("waits-*"))) == 2
tasks = [Task(f"runs{i}", "engines_work:wait", {"folder": str(folder)}) for i in range(2)]
tasks += [Task(f"never{i}", "engines_work:report", {}) for i in range(9)]
said["stopped"] = [[o.key, o.value] for o in engine.run(tasks, stopped)]
engine.close()
said["token"] = os.environ.get("RAY_AUTH_TOKEN")
(folder / "said.json").write_text(json.dumps(said))
"""


@pytest.mark.timeout(400)
def test_ray_on_this_machine(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_ADDRESS"] = "127.0.0.1:1"  # of no cluster, and not asked for
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path)], capture_output=True, text=True, check=False, timeout=350, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["engine"] == ["ray", 2, 2]
    value, error, _ = said["found"]["report"]
    assert (value["given"], value["threads"], value["torch"], error) == ({"n": 1}, "2", 2, None)
    _, error, trace = said["found"]["fail"]
    assert error == "ValueError: no way"
    assert "in fail" in trace
    assert said["found"]["once"][0] == "lived"
    assert "its worker died, 3 times" in said["found"]["always"][1]
    assert len(list((tmp_path / "always").iterdir())) == 3
    assert (tmp_path / "saved").exists()
    # both slots are held, so that only the two queued ahead can slip in while the first is asked to end
    assert {key for key, _ in said["stopped"]} <= {"runs0", "runs1", "never0", "never1"}
    assert said["token"] is None
    assert list((tmp_path / "logs").glob("*.log"))


def test_an_address_that_does_not_answer_is_told_soon(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the address 'here' of the Ray cluster is not of the form HOST:PORT"):
        make_engine("ray", EngineOptions(address="here"), tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listens:
        port = listens.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(ConfigError, match=rf"the Ray cluster at 127.0.0.1:{port} cannot be joined: no answer within 15 s"):
            make_engine("ray", EngineOptions(address=f"127.0.0.1:{port}"), tmp_path)
        assert time.monotonic() - began < 25
    with pytest.raises(ConfigError, match=rf"no Ray cluster answers at 127.0.0.1:{port}"):
        make_engine("ray", EngineOptions(address=f"127.0.0.1:{port}"), tmp_path)
