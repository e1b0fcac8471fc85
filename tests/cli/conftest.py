"""The command line in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stexpr import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stexpr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command line in an empty folder; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stexpr", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as err:
            code = int(err.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
