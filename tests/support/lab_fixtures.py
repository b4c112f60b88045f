"""Fixtures for tests on hosts in network namespaces, and the hosts' logs in the report of a test that fails.

A conftest.py imports what its directory needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache

import pytest
from lab import Lab
from lab.etcd_stores import Api

LOG_TAIL = 50


@pytest.fixture(scope="session")
def root() -> None:
    """Skips the test when namespaces cannot be made."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root: sudo make test")


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    """Three hosts and a network config in etcd, for all tests of a module."""
    with Lab(hosts=3) as lab:
        lab.put_config()
        yield lab


@pytest.fixture
def api() -> Api:
    """Return the API of etcd whose store has the leases: v2, unless ``over_stores`` parametrizes the test."""
    return Api.V2


@pytest.fixture
def make_lab(root: None, api: Api) -> Iterator[Callable[..., Lab]]:
    """Starts labs of its own for one test: ``make_lab(hosts=20, mtu=9000)``."""
    with ExitStack() as labs:
        yield lambda **how: labs.enter_context(Lab(**{"api": api, **how}))


@pytest.fixture(scope="module")
def shared_lab(root: None) -> Iterator[Callable[..., Lab]]:
    """Starts labs for all tests of a module: ``shared_lab(config, hosts, api)``; the same request, the same lab."""
    with ExitStack() as labs:

        @cache
        def start(config: str, hosts: int, api: Api = Api.V2) -> Lab:
            lab = labs.enter_context(Lab(hosts=hosts, api=api))
            lab.put_config(config)
            return lab

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        labs = (value for value in item.funcargs.values() if isinstance(value, Lab))
        for host in (host for lab in labs for host in lab.hosts):
            report.sections.append((f"log of {host.name}", "\n".join(host.log().splitlines()[-LOG_TAIL:])))
    return report
