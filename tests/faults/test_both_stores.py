"""The two stores of a real etcd: which one -etcd-api=auto uses, a host with its lease in both, and copy-to-v3."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from lab import ETCD_PREFIX, wait_for
from lab.etcd_server import EtcdServer, free_ports
from lab.etcd_stores import Api
from support.etcd_faults import LossyProxy

from flannelpy import cli
from flannelpy.errors import ApiSwitchedOff, KeyNotFound, LeaseLost, RegistryUnavailable
from flannelpy.leasing.both_stores import BothStores
from flannelpy.leasing.manager import SubnetManager
from flannelpy.linux.clock import BootClock
from flannelpy.registry.base import Registry, Schema
from flannelpy.registry.connect import connect
from flannelpy.registry.etcd_v2 import EtcdV2Registry
from flannelpy.registry.etcd_v3 import EtcdV3Registry
from flannelpy.subnet import config
from flannelpy.subnet.copied import copy_of, original
from flannelpy.subnet.lease import HostIdentity, LeaseAttrs
from flannelpy.subnet.lease_policy import Terms

CONFIG_KEY, SUBNETS = f"{ETCD_PREFIX}/config", f"{ETCD_PREFIX}/subnets"
CONFIG = '{"Network":"11.0.0.0/16"}'
NAME, OWN = "11.0.59.0-24", IPv4Network("11.0.59.0/24")
KEY = f"{SUBNETS}/{NAME}"
US = HostIdentity(IPv4Address("172.17.8.101"), "host1")
OURS = '{"PublicIP":"172.17.8.101","PublicIPv6":null,"HostID":"host1"}'
OTHERS = '{"PublicIP":"172.17.8.102","HostID":"host2"}'
TTL = 60
DEADLINE = 20.0


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def etcd(shared_server: EtcdServer) -> EtcdServer:
    """Return an etcd with two empty stores."""
    for node in shared_server.v2.list("/"):
        shared_server.v2.delete(node.key)
    shared_server.v3.delete("/coreos.com")
    return shared_server


@pytest.fixture
def without_v2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd"), api=Api.V3) as server:
        yield server


def value_in(store: str, etcd: EtcdServer) -> str:
    """The value of our lease in a store; empty if there is none."""
    return next((key.value for key in getattr(etcd, store).list(SUBNETS) if key.key == KEY), "")


def values(etcd: EtcdServer) -> list[str]:
    return [value_in(store, etcd) for store in ("v2", "v3")]


class TestAuto:
    def read(self, *urls: str, network: str = "") -> tuple[Schema, str]:
        async def test() -> tuple[Schema, str]:
            registry = connect(cli.parse([f"-etcd-endpoints={','.join(urls)}"]), network)
            try:
                found = await registry.read_config()
                await registry.snapshot()
                return registry.schema, found
            finally:
                await registry.close()

        return asyncio.run(test())

    def test_v2_is_used_while_it_has_a_config(self, etcd: EtcdServer) -> None:
        etcd.v3.put(CONFIG_KEY, "three")
        assert self.read(etcd.url) == (Schema.V3, "three")
        etcd.v2.put(CONFIG_KEY, "two")
        assert self.read(etcd.url) == (Schema.V2, "two")

    def test_each_network_decides_for_itself(self, etcd: EtcdServer) -> None:
        etcd.v2.put(f"{ETCD_PREFIX}/blue/config", "two")
        etcd.v3.put(f"{ETCD_PREFIX}/green/config", "three")
        assert self.read(etcd.url, network="blue") == (Schema.V2, "two")
        assert self.read(etcd.url, network="green") == (Schema.V3, "three")

    def test_an_etcd_without_the_v2_api(self, without_v2: EtcdServer) -> None:
        with pytest.raises(KeyNotFound, match=r"v2: .*the v2 API is switched off.*; v3: .*config: key not found"):
            self.read(without_v2.url)
        without_v2.v3.put(CONFIG_KEY, "three")
        assert self.read(without_v2.url) == (Schema.V3, "three")

    def test_an_endpoint_without_the_v2_api_does_not_speak_for_two_that_are_down(
        self, etcd: EtcdServer, without_v2: EtcdServer
    ) -> None:
        """Each member has a flag of its own; those that are down may have v2's config."""
        without_v2.v3.put(CONFIG_KEY, "three")
        etcd.v2.put(CONFIG_KEY, "two")
        assert self.read(without_v2.url, etcd.url) == (Schema.V2, "two")
        dead = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
        with pytest.raises(RegistryUnavailable, match=r"the v2 API is switched off.*connection refused") as caught:
            self.read(without_v2.url, *dead)
        assert not isinstance(caught.value, ApiSwitchedOff)

    def test_without_the_v2_api_a_host_starts_while_a_minority_is_down(self, without_v2: EtcdServer) -> None:
        without_v2.v3.put(CONFIG_KEY, "three")
        assert self.read(f"http://127.0.0.1:{free_ports(1)[0]}", without_v2.url) == (Schema.V3, "three")

    def test_neither_has_a_config(self, etcd: EtcdServer) -> None:
        with pytest.raises(KeyNotFound, match=f"v2: {CONFIG_KEY}: Key not found .*; v3: {CONFIG_KEY}: key not found"):
            self.read(etcd.url)

    def test_no_endpoint_answers(self) -> None:
        with pytest.raises(RegistryUnavailable) as caught:
            self.read(f"http://127.0.0.1:{free_ports(1)[0]}")
        assert not isinstance(caught.value, ApiSwitchedOff)

    def test_python_etcd_is_not_loaded_for_v3(self, etcd: EtcdServer) -> None:
        """It takes a tenth of the time of a start."""
        etcd.v3.put(CONFIG_KEY, "three")
        script = (
            "import asyncio, sys\n"
            "from flannelpy import cli\n"
            "from flannelpy.registry.connect import connect\n"
            "registry = connect(cli.parse([sys.argv[1]]))\n"
            "print(asyncio.run(registry.read_config()), 'etcd' in sys.modules)\n"
        )
        argv = [sys.executable, "-P", "-c", script, f"-etcd-endpoints={etcd.url}"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=DEADLINE)
        assert done.stdout == "three False\n"


class TestBothStores:
    def run(self, test: Callable[[Registry], Awaitable[None]], v2_url: str, v3_url: str) -> None:
        async def body() -> None:
            registry = BothStores(EtcdV3Registry([v3_url], ETCD_PREFIX), EtcdV2Registry([v2_url], ETCD_PREFIX), US)
            try:
                async with asyncio.timeout(3 * DEADLINE):
                    await test(registry)
            finally:
                await registry.close()

        asyncio.run(body())

    def hold(self, etcd: EtcdServer, disturb: Callable[[], None], after: Callable[[], bool], ttl: int = TTL) -> None:
        """A host holds its lease while ``disturb`` happens, until ``after`` is so."""
        for store in (etcd.v2, etcd.v3):
            store.put(CONFIG_KEY, CONFIG)

        async def test(registry: Registry) -> None:
            manager = SubnetManager(registry, BootClock(), random.Random(1), US, Terms(ttl, ttl // 2))
            await manager.acquire(config.parse(CONFIG), lambda _: LeaseAttrs(US.public_ip), OWN)
            assert values(etcd) == [OURS, OURS]
            tasks = [asyncio.create_task(work) for work in (manager.watch(_ignore), manager.keep_lease())]
            await asyncio.sleep(1)
            await asyncio.to_thread(disturb)
            try:
                while not await asyncio.to_thread(after):
                    for task in tasks:
                        if task.done():
                            task.result()
                    await asyncio.sleep(0.05)
            finally:
                for task in tasks:
                    task.cancel()

        self.run(test, etcd.url, etcd.url)

    def test_a_lease_that_is_deleted_in_either_store_is_recreated(self, etcd: EtcdServer) -> None:
        for store in (etcd.v2, etcd.v3):
            self.hold(etcd, partial(store.delete, KEY), lambda: values(etcd) == [OURS, OURS])

    @pytest.mark.parametrize("store", ["v2", "v3"])
    def test_another_holder_in_either_store_is_noticed_at_once(self, etcd: EtcdServer, store: str) -> None:
        began: list[float] = []

        def disturb() -> None:
            began.append(time.monotonic())
            getattr(etcd, store).put(KEY, OTHERS, TTL)

        with pytest.raises(LeaseLost, match=r"held by 172\.17\.8\.102"):
            self.hold(etcd, disturb, lambda: False)
        assert time.monotonic() - began[0] < 10
        assert OURS not in values(etcd)

    def test_leases_outlive_their_time_and_an_outage_in_both(self, etcd: EtcdServer) -> None:
        def disturb() -> None:
            etcd.kill()
            time.sleep(7)
            etcd.start()

        ends = time.monotonic() + 16
        self.hold(etcd, disturb, lambda: time.monotonic() > ends and values(etcd) == [OURS, OURS], ttl=6)

    @pytest.mark.parametrize("store", ["v2", "v3"])
    def test_what_is_reserved_in_either_store_is_reserved_in_both(self, etcd: EtcdServer, store: str) -> None:
        def lifetimes() -> list[int | None]:
            return [key.ttl for each in (etcd.v2, etcd.v3) for key in each.list(SUBNETS)]

        def disturb() -> None:
            getattr(etcd, store).put(KEY, OURS)

        self.hold(etcd, disturb, lambda: lifetimes() == [None, None])
        assert values(etcd) == [OURS, OURS]

    def test_the_end_of_v2_is_noticed(self, etcd: EtcdServer) -> None:
        """Within half a minute by the clock; here by the deletion of the whole directory, which the watch reports."""

        def disturb() -> None:
            etcd.v2.delete(ETCD_PREFIX)

        def is_quiet() -> bool:
            time.sleep(3)
            return values(etcd) == ["", OURS]

        self.hold(etcd, disturb, is_quiet)

    @pytest.mark.parametrize("request_line", ["PUT /v2/", "POST /v3/kv/txn", "POST /v3/lease/grant"])
    @pytest.mark.parametrize("loss", ["request", "reply"])
    def test_a_lost_message_of_a_create_leaves_both_or_none(
        self, etcd: EtcdServer, request_line: str, loss: str
    ) -> None:
        for store in (etcd.v2, etcd.v3):
            store.put(CONFIG_KEY, CONFIG)
        proxy = LossyProxy(etcd)

        async def test(registry: Registry) -> None:
            proxy.lose(loss, request_line)
            try:
                await registry.create(NAME, OURS, TTL)
            except RegistryUnavailable:
                found = await registry.snapshot()
                if found.entries:
                    await registry.compare_and_swap(NAME, OURS, TTL, found.entries[0].version)
                else:
                    await registry.create(NAME, OURS, TTL)

        with proxy.running():
            self.run(test, proxy.url, proxy.url)
        assert values(etcd) == [OURS, OURS]


async def _ignore(_: object) -> None:
    pass


class TestCopy:
    """The command as a process of its own."""

    def command(self, etcd: EtcdServer, *flags: str) -> list[str]:
        return [sys.executable, "-P", "-m", "flannelpy", "copy-to-v3", f"-etcd-endpoints={etcd.url}", *flags]

    def run(self, etcd: EtcdServer, *flags: str) -> tuple[int, list[str], str]:
        argv = self.command(etcd, *flags)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=DEADLINE)
        return done.returncode, done.stdout.splitlines(), done.stderr

    def test_config_leases_and_reservations_of_several_networks(self, etcd: EtcdServer) -> None:
        for network in ("blue", "green"):
            etcd.v2.put(f"{ETCD_PREFIX}/{network}/config", CONFIG)
            etcd.v2.put(f"{ETCD_PREFIX}/{network}/subnets/{NAME}", OTHERS, 3600)
            etcd.v2.put(f"{ETCD_PREFIX}/{network}/subnets/11.0.60.0-24", OURS)
        before = etcd.v2.list(f"{ETCD_PREFIX}/blue/subnets")
        code, lines, _ = self.run(etcd, "-networks=blue,green")
        assert code == 0
        assert lines[:4] == [
            "blue: config: copied",
            lines[1],
            "blue: 11.0.60.0-24: copied, a reservation",
            "blue: 3 copied, 0 updated, 0 removed, 0 unchanged, 0 kept, 0 conflict, 0 failed, 0 ignored",
        ]
        [lease, reservation] = etcd.v3.list(f"{ETCD_PREFIX}/green/subnets")
        assert original(lease.value) == (OTHERS, etcd.v2.list(f"{ETCD_PREFIX}/green/subnets")[0].version)
        assert lease.ttl in range(3590, 3601)
        assert reservation.ttl is None
        assert json.loads(reservation.value).items() >= json.loads(OURS).items()
        assert [key[:2] for key in etcd.v2.list(f"{ETCD_PREFIX}/blue/subnets")] == [key[:2] for key in before]
        versions = [key.version for key in etcd.v3.list(f"{ETCD_PREFIX}/blue/subnets")]
        assert self.run(etcd, "-networks=blue,green")[0] == 0
        assert [key.version for key in etcd.v3.list(f"{ETCD_PREFIX}/blue/subnets")] == versions

    @pytest.mark.parametrize("flags", [(), ("-follow",)])
    def test_a_network_without_a_config_is_one_line_and_the_others_are_copied(
        self, etcd: EtcdServer, flags: tuple[str, ...]
    ) -> None:
        etcd.v2.put(f"{ETCD_PREFIX}/blue/config", CONFIG)
        etcd.v2.put(f"{ETCD_PREFIX}/blue/subnets/{NAME}", OTHERS, 3600)
        process = subprocess.Popen(
            self.command(etcd, "-networks=green,blue,red", *flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for(lambda: etcd.v3.list(f"{ETCD_PREFIX}/blue/subnets"), DEADLINE, "the copy", pause=0.1)
            time.sleep(1)
            etcd.v2.delete(f"{ETCD_PREFIX}/blue")
        finally:
            if not flags:
                process.wait(DEADLINE)
        output, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 1
        for network in ("green", "red"):
            [line] = [line for line in errors.splitlines() if f"] {network}: " in line]
            assert line.endswith(": this network is not copied")
            assert f"{ETCD_PREFIX}/{network}/config: Key not found" in line
        assert len(errors.splitlines()) == 2
        assert output.startswith("blue: config: copied\nblue: 11.0.59.0-24: copied, expires in ")

    def test_a_prefix_without_a_slash_is_that_of_flanneld_in_each_store(self, etcd: EtcdServer) -> None:
        """v2 adds a slash to every key, v3 adds none; so what -etcd-prefix names is copied to what it names."""
        etcd.v2.put(CONFIG_KEY, CONFIG)
        etcd.v2.put(KEY, OTHERS, 3600)
        try:
            assert self.run(etcd, f"-etcd-prefix={ETCD_PREFIX[1:]}")[0] == 0
            assert [key.key for key in etcd.v3.list(SUBNETS[1:])] == [KEY[1:]]
            assert etcd.v3.list(ETCD_PREFIX) == ()
        finally:
            etcd.v3.delete(ETCD_PREFIX[1:])

    def test_exit_codes(self, etcd: EtcdServer) -> None:
        code, _, error = self.run(etcd)
        assert (code, "Key not found" in error) == (1, True)
        etcd.v2.put(CONFIG_KEY, CONFIG)
        etcd.v2.put(KEY, OURS, TTL)
        etcd.v3.put(KEY, OTHERS, TTL)
        code, lines, _ = self.run(etcd)
        assert (code, any(f"{NAME}: conflict, v2 names 172.17.8.101" in line for line in lines)) == (1, True)
        assert self.run(etcd, "-iface=eth1")[0] == 2
        dead = f"-etcd-endpoints=http://127.0.0.1:{free_ports(1)[0]}"
        code, _, error = self.run(etcd, dead)
        assert (code, "Traceback" in error, "connection refused" in error) == (1, False, True)

    def test_follow_until_a_signal_with_etcd_away_in_between(self, etcd: EtcdServer, tmp_path: Path) -> None:
        etcd.v2.put(CONFIG_KEY, CONFIG)
        log = tmp_path / "log"
        with log.open("w") as stdout:
            process = subprocess.Popen(self.command(etcd, "-follow"), stdout=stdout)
        try:
            etcd.v2.put(KEY, OTHERS, 3600)
            self.wait_for_copy(etcd)
            etcd.kill()
            etcd.start()
            etcd.v2.put(KEY, OURS, 1800)
            self.wait_for_copy(etcd)
            etcd.v3.delete(KEY)
            self.wait_for_copy(etcd)
            etcd.v2.delete(KEY)
            end = f"{NAME}: removed, the lease in v2 is gone\n"
            wait_for(lambda: log.read_text().endswith(end), DEADLINE, "the line of the removal")
            assert etcd.v3.list(SUBNETS) == ()
        finally:
            process.terminate()
            process.wait(DEADLINE)
        assert process.returncode == 0

    def wait_for_copy(self, etcd: EtcdServer) -> None:
        [second] = etcd.v2.list(SUBNETS)
        copy = copy_of(second.value, second.version)
        wait_for(lambda: value_in("v3", etcd) == copy, DEADLINE, "the copy", pause=0.1)
        [first] = etcd.v3.list(SUBNETS)
        assert first.ttl is not None
        assert second.ttl is not None
        assert abs(first.ttl - second.ttl) < 10
