"""What an offline run of Weights & Biases left on disk."""

import time
from pathlib import Path


def assert_logged(folder: Path, *expected: bytes) -> None:
    """Find words in the log of the one offline run below a folder; wandb's own process closes it a moment after `finish`."""
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30
    while missing := [words for words in expected if words not in log.read_bytes()]:
        assert time.monotonic() < deadline, f"{missing} never reached {log} ({log.stat().st_size} bytes)"
        time.sleep(0.1)
