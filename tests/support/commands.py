"""Commands of other programs, replaced by shell scripts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

#: Its arguments: the name of the command, and the script.
Command = Callable[[str, str], None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Puts a shell script in the place of a command."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return put
