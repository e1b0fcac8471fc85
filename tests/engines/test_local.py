import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stexpr.engines import EngineOptions, make_engine
from stexpr.engines.local import LocalEngine, visible_gpus
from stexpr.engines.tasks import ATTEMPTS, Engine, Outcome, Task
from stexpr.errors import ConfigError

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _workers_find_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))


def work(name: str, key: str | None = None, **argument: object) -> Task:
    return Task(key or name, f"engines_work:{name}", dict(argument))


def outcomes(engine: Engine, *tasks: Task) -> dict[str, Outcome]:
    found = {outcome.key: outcome for outcome in engine.run(tasks, lambda: False)}
    assert set(found) == {task.key for task in tasks}
    return found


def within(seconds: float, folder: Path, pattern: str) -> Path:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := sorted(folder.glob(pattern)):
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {folder} after {seconds} s")


def test_tasks_return_fail_and_share_workers(tmp_path: Path) -> None:
    engine = make_engine("local", EngineOptions(workers=1, threads=2), tmp_path / "logs")
    assert (engine.name, engine.slots, engine.threads) == ("local", 1, 2)
    found = outcomes(engine, work("report", "a", n=1), work("fail"), work("report", "b"), work("none"))
    assert found["a"].value["given"] == {"n": 1}
    assert (found["a"].value["threads"], found["a"].value["torch"]) == ("2", 2)
    assert found["a"].value["pid"] == found["b"].value["pid"] != os.getpid()
    assert found["fail"].error == "ValueError: no way"
    assert 'raise ValueError("no\\nway")' in found["fail"].trace
    assert "has no attribute 'none'" in str(found["none"].error)
    with pytest.raises(ConfigError, match=r"no engine 'locall'.*local"):
        make_engine("locall", EngineOptions(), tmp_path)


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "once").mkdir()
    (tmp_path / "always").mkdir()
    engine = LocalEngine(tmp_path / "logs", workers=2, threads=1)
    found = outcomes(
        engine,
        work("die", "always", folder=str(tmp_path / "always"), times=99),
        work("die", "once", folder=str(tmp_path / "once"), times=1),
        work("fail"),
    )
    assert found["once"].value == "lived"
    assert found["always"].error == f"its worker was killed by signal 9, {ATTEMPTS} times; see {tmp_path / 'logs'}"
    assert len(list((tmp_path / "always").iterdir())) == ATTEMPTS


def test_a_stop_asks_what_runs_and_drops_the_rest(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path / "logs", workers=1, threads=1)
    tasks = [work("wait", "runs", folder=str(tmp_path)), work("report", "never")]
    found = list(engine.run(tasks, lambda: bool(list(tmp_path.glob("waits-*")))))
    assert [(outcome.key, outcome.value) for outcome in found] == [("runs", "asked")]


def test_workers_end_with_a_killed_engine(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from stexpr.engines.local import LocalEngine; from stexpr.engines.tasks import Task\n"
        f"engine = LocalEngine(Path({str(tmp_path / 'logs')!r}), workers=1, threads=1)\n"
        f"list(engine.run([Task('t', 'engines_work:wait', {{'folder': {str(tmp_path)!r}}})], lambda: False))"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        worker = int(within(60, tmp_path, "waits-*").name.removeprefix("waits-"))
        process.send_signal(signal.SIGKILL)
    within(20, tmp_path, "saved")
    until = time.monotonic() + 20
    while Path(f"/proc/{worker}/cwd").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}/cwd").exists()


@pytest.mark.parametrize(("named", "gpus"), [("", []), ("-1", []), ("0, 2", ["0", "2"]), ("GPU-8a,MIG-7", ["GPU-8a", "MIG-7"])])
def test_gpus_are_those_the_environment_names(monkeypatch: pytest.MonkeyPatch, named: str, gpus: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus
