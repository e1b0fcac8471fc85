import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from stexpr.errors import TrainingError
from stexpr.train.checkpoint import InterruptedTrainingError, load_checkpoint, save_checkpoint, stop_on_signals


def test_a_checkpoint_comes_back(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"phase": 1, "state": {"model": {"w": torch.arange(3.0)}}})
    state = load_checkpoint(path)
    assert state is not None
    assert state["phase"] == 1
    assert torch.equal(state["state"]["model"]["w"], torch.arange(3.0))
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_checkpoint_is_named(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"phase": 1})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"checkpoint.pt cannot be read; delete it"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_version(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 99}, path)
    with pytest.raises(TrainingError, match="another version"):
        load_checkpoint(path)


class Payload:
    def __reduce__(self):
        return (os.system, ("touch /tmp/stexpr-was-here",))


def test_a_checkpoint_never_runs_code(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 1, "x": Payload()}, path)
    with pytest.raises(TrainingError):
        load_checkpoint(path)
    assert not Path("/tmp/stexpr-was-here").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_becomes_a_flag(number: signal.Signals):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        stop.raise_if_set()
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
        assert signal.getsignal(number) == before  # a second signal acts as usual
        with pytest.raises(InterruptedTrainingError, match=f"stopped by {number.name}") as caught:
            stop.raise_if_set()
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


def test_no_handler_outside_the_main_thread():
    seen = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append(stop.signal_number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
