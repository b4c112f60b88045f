"""Tests with a real dockerd: the release that FLANNELPY_DOCKER names, of docker_packages.RELEASES, or Debian 12's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest
from lab import docker_packages
from lab.docker_packages import Release
from support.docker_rig import Rig, rig
from support.lab_fixtures import pytest_runtest_makereport, root

__all__ = ["pytest_runtest_makereport", "root"]

StartRig = Callable[..., Rig]


@pytest.fixture(scope="session")
def release(root: None) -> Release:
    return docker_packages.unpack(os.environ.get("FLANNELPY_DOCKER", "debian12"))


@pytest.fixture
def start_rig(release: Release) -> Iterator[StartRig]:
    """Return a function that starts rigs for one test, as docker_rig.rig does."""
    with ExitStack() as stack:

        def start(*what: str, **how: object) -> Rig:
            context: AbstractContextManager[Rig] = rig(release, *what, **how)  # type: ignore[arg-type]
            return stack.enter_context(context)

        yield start
