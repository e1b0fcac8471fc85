import os
import sys
import time
from pathlib import Path

import pytest

from stexpr.engines import EngineOptions, make_engine
from stexpr.engines import slurm as module
from stexpr.engines.slurm import SlurmEngine
from stexpr.engines.tasks import ATTEMPTS, Task
from stexpr.errors import ConfigError

TESTS = Path(__file__).resolve().parents[1]
LOCAL = {"cluster": "local"}


@pytest.fixture(autouse=True)
def _jobs_find_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(module, "GRACE_S", 0.5)
    monkeypatch.setattr(module, "POLL_S", 0.1)


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # submitit leaves its controllers
def test_jobs_return_fail_and_die(tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "always").mkdir()
    engine = make_engine("slurm", EngineOptions(workers=2, threads=2, slurm=LOCAL), tmp_path / "logs")
    assert (engine.name, engine.slots, engine.threads) == ("slurm", 2, 2)
    before = dict(os.environ)
    tasks = [
        Task("report", "engines_work:report", {"n": 1}),
        Task("fail", "engines_work:fail", {}),
        Task("once", "engines_work:die", {"folder": str(tmp_path / "once"), "times": 1}),
        Task("always", "engines_work:die", {"folder": str(tmp_path / "always"), "times": 99}),
    ]
    found = {outcome.key: outcome for outcome in engine.run(tasks, lambda: False)}
    assert dict(os.environ) == before
    assert found["report"].value["given"] == {"n": 1}
    assert (found["report"].value["threads"], found["report"].value["torch"]) == ("2", 2)
    assert found["fail"].error == "ValueError: no way"
    assert found["once"].value == "lived"
    assert f"its job died, {ATTEMPTS} times" in str(found["always"].error)
    assert len(list((tmp_path / "always").iterdir())) == ATTEMPTS


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_stop_waits_for_what_runs_and_begins_nothing(tmp_path: Path) -> None:
    engine = SlurmEngine(tmp_path / "logs", workers=1, options=LOCAL)
    tasks = [Task("runs", "engines_work:wait", {"folder": str(tmp_path)}), Task("never", "engines_work:report", {})]

    def stopped() -> bool:
        if list(tmp_path.glob("waits-*")):
            (tmp_path / "stop").touch()
        return (tmp_path / "stop").exists()

    began = time.monotonic()
    found = list(engine.run(tasks, stopped))
    assert [(outcome.key, outcome.value) for outcome in found] == [("runs", "saw the file")]
    assert time.monotonic() - began < 100


@pytest.mark.parametrize(
    ("options", "more", "words"),
    [
        ({}, {}, "there is no Slurm on this machine"),
        ({"cluster": "pbs"}, {}, "the Slurm option cluster is 'pbs', neither slurm nor local"),
        ({**LOCAL, "slurm_array_parallelism": "3"}, {}, "slurm_array_parallelism is set by --workers"),
        ({**LOCAL, "slurm_partitoin": "gpu"}, {}, "submitit refuses .* Unknown argument 'partitoin'"),
        ({**LOCAL, "timeout_min": "long"}, {}, 'submitit refuses .* "timeout_min" expected type'),
        (LOCAL, {"gpus": 0.5}, "whole GPUs"),
    ],
)
def test_what_is_wrong_is_told(
    options: dict[str, str], more: dict[str, float], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # without srun, wherever the tests run
    with pytest.raises(ConfigError, match=words):
        SlurmEngine(tmp_path / "logs", options=options, **more)  # type: ignore[arg-type]
