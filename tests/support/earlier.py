"""Earlier versions of this project, run as they were, interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: The first version whose hosts have a host ID and claim leases.
FIRST_WITH_CLAIMS = "46c003e1"
#: The last version whose udp backend has the loop alone.
LAST_WITHOUT_KERNEL = "85fdc79b"


def unpack(version: str, directory: Path) -> dict[str, str]:
    """The variables with which Python runs that commit's flannelpy; its files are put into ``directory``.

    Needs a clone with its history.
    """
    archive = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "archive", version, "flannelpy"]
    files = subprocess.run(archive, check=True, capture_output=True).stdout
    directory.mkdir()
    subprocess.run(["tar", "-x", "-C", str(directory)], input=files, check=True)
    env = {"PYTHONPATH": str(directory)}
    which = [sys.executable, "-P", "-c", "import flannelpy; print(flannelpy.__file__)"]
    found = subprocess.run(which, check=True, capture_output=True, text=True, env=os.environ | env).stdout
    assert found.startswith(str(directory)), found
    return env
