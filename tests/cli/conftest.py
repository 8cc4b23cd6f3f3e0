"""Commands run in the process of the test."""

import os
import sys
from pathlib import Path

import pytest
from cli.in_process import Ended, Run
from processes import plain_environment

from groupreplay_cli import main


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `groupreplay` in this process."""
    for name in set(os.environ) - plain_environment().keys():
        monkeypatch.delenv(name)

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["groupreplay", *map(str, arguments)])
        with pytest.raises(SystemExit) as raised:
            main()
        captured = capsys.readouterr()
        code = raised.value.code
        return Ended(code if isinstance(code, int) else 1, captured.out, captured.err + str(code))

    return run
