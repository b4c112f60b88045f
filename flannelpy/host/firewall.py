"""Restores the iptables rules of all networks of a daemon, and accept_local, when another program changes them.

Masquerading rules (-ip-masq) are added before the subnet file is written.  A task of its own adds all other rules, so
that they neither delay a start nor make it fail.  Every resync period, and when leases change, flannelpy lists each
table in use and restores its rules by one iptables-restore, unless the kernel's count of changes shows that nothing has
changed.
Counterpart: network/ipmasq.go, which adds its rules once; -iptables-resync is that of flannel v0.11.0.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Network
from typing import Never

from flannelpy import logs
from flannelpy.errors import HostError, one_line
from flannelpy.host import firewall_tables
from flannelpy.host.forward_check import ForwardCheck
from flannelpy.linux import accept_local, conntrack, iptables, rules_generation
from flannelpy.netfilter import network_rules
from flannelpy.netfilter.network_rules import KINDS, NetworkRules
from flannelpy.netfilter.obstacles import Traffic
from flannelpy.netfilter.ruleset import Chain, Fault, Repair
from flannelpy.report import FirewallReport
from flannelpy.subnet.lease_table import LeaseEvent

log = logging.getLogger(__name__)

# The pause between two checks: a list of peers is written at most once a second.
_PAUSE_SECONDS = 1.0
# If iptables-restore reported success without effect, flannelpy repeats the same commands after this time.
_FUTILE_SECONDS = 60.0
_ALL_RULES = "iptables rules"
_TABLES = "iptables tables"
# The time between two checks while packets are dropped, since an operator may remove the cause at any moment.
_BLOCKED_SECONDS = 5.0


def _accept_local_of(device: str) -> str:
    return f"accept_local of {device}"


class Firewall:
    """The rules of all networks, by their names; ``repairs``: the number of changes restored in each network's run."""

    def __init__(self, resync: float) -> None:
        """``resync``: seconds between two checks."""
        self.repairs: Counter[str] = Counter()
        self._resync = resync
        self._networks: dict[str, NetworkRules] = {}
        self._on_repair: dict[str, Callable[[], None]] = {}
        self._written: dict[tuple[str, str], Chain] = {}  # by table and name
        # The generation of the rules of which all tables had the wanted chains; an unchanged one is not listed again.
        self._verified: tuple[object, dict[str, dict[str, list[Chain]]]] | None = None
        self._unchecked: set[str] = set()  # tables that may hold chains of earlier runs
        self._unchecked_of_other: set[str] = set()  # those of the other flavour of iptables
        self._problems: dict[str, str] = {}
        self._failures = logs.FailureLog(log, "Failed to check the firewall")
        self._other_flavour = ""  # of iptables
        self._futile: dict[str, tuple[bytes, float]] = {}
        self._moves = logs.LogLimit(log, "Restored iptables chains that had moved", burst=5)
        self._is_tracking = False
        self._traffic: dict[str, Traffic] = {}
        self._on_check: dict[str, Callable[[], None]] = {}
        self._forward_check = ForwardCheck()
        self._changed = asyncio.Event()
        self._busy = asyncio.Lock()

    def add(self, name: str, rules: NetworkRules, on_repair: Callable[[], None]) -> None:
        """Check these rules of a network from now on, and no longer its earlier ones."""
        self._networks[name] = rules
        self._on_repair[name] = on_repair
        self._expect_earlier_chains()
        self._check_accept_local(name, rules)

    def release(self, name: str) -> None:
        """Stop checking the rules of a network; the rules stay in the kernel for the next start of the network."""
        rules = self._networks.pop(name, None)
        self._on_repair.pop(name, None)
        self.repairs.pop(name, None)
        self._traffic.pop(name, None)
        self._on_check.pop(name, None)
        self._forward_check.forget(name)
        if rules is None:
            return
        for table in KINDS:
            for chain in network_rules.names(table, rules.network):
                self._written.pop((table, chain), None)
        if rules.datagrams:
            what = _accept_local_of(rules.datagrams.device)
            self._problems.pop(what, None)
            self._failures.recovered(subject=what)

    def report(self, name: str) -> FirewallReport:
        """Return how many rules of a network were restored, and what stops its packets or the checks."""
        rules = self._networks.get(name)
        subjects = [_ALL_RULES, _TABLES]
        if rules and rules.datagrams:
            subjects.append(_accept_local_of(rules.datagrams.device))
        problem = "; ".join(self._problems[subject] for subject in subjects if subject in self._problems)
        return FirewallReport(self.repairs[name], problem, self._forward_check.certain(name))

    @property
    def is_clean(self) -> bool:
        """Whether the chains of earlier runs are gone."""
        return not self._unchecked and not self._unchecked_of_other

    def _expect_earlier_chains(self) -> None:
        self._unchecked.update(KINDS)
        self._unchecked_of_other.update(KINDS)

    async def masquerade(self, name: str) -> None:
        """Add the masquerading rules of a network now.  Raises HostError."""
        rules = self._networks[name]
        chain = network_rules.masquerade(rules.network)
        jumps = [line.decode().strip().removeprefix("-A ") for line in chain.jump_lines()]
        for rule in (*network_rules.masquerade_rules(rules.network), *jumps):
            log.info("Adding iptables rule: %s", rule)
        async with self._busy:
            try:
                if text := (await firewall_tables.compare("nat", [chain], [], rules.networks)).text("nat"):
                    await iptables.restore(text)
            except HostError as error:
                raise HostError(f"-ip-masq cannot put its rules: {error}; without -ip-masq none are needed") from error
            self._written["nat", chain.name] = chain

    def apply(self, name: str, events: Sequence[LeaseEvent]) -> None:
        """Follow the leases of a network's peers; the first call brings all leases."""
        self._networks[name].apply(events)
        self._changed.set()

    async def run(self) -> Never:
        """Check all rules and settings every resync period, and when leases change."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(self._period() - _PAUSE_SECONDS, 0)):
                    await self._changed.wait()
            self._changed.clear()
            start = asyncio.get_running_loop().time()
            await self._check_or_report()
            # iptables-nft takes seconds to list 30,000 rules: the pause keeps it from running all the time.
            await asyncio.sleep(max(_PAUSE_SECONDS, asyncio.get_running_loop().time() - start))

    def _period(self) -> float:
        return min(self._resync, _BLOCKED_SECONDS) if self._forward_check.is_blocked else self._resync

    async def _check_or_report(self) -> None:
        """Log an error of any type: packets travel without these checks, so the daemon must not end."""
        try:
            async with self._busy:
                await self._check()
            # A search may take several commands of 15 seconds each: a network that starts need not wait for it.
            await self._search()
            self._recovered(_ALL_RULES)
        except Exception as error:
            log.debug("Traceback of the error:", exc_info=error)
            self._failed(_ALL_RULES, f"Failed to check iptables rules: {one_line(error)}")

    async def _check(self) -> None:
        for name, rules in self._networks.items():
            self._check_accept_local(name, rules)
        self._check_flavour()
        generation = rules_generation.current()
        if generation is None or not self.is_clean or (generation, await self._all_chains()) != self._verified:
            self._verified = None
            wanted = await self._restore_all()
            self._verified = None if wanted is None else (generation, wanted)
        self._moves.report()

    async def _all_chains(self) -> dict[str, dict[str, list[Chain]]]:
        wanted = {}
        for table in KINDS:
            await asyncio.sleep(0)  # with thousands of peers, each of these steps takes milliseconds
            wanted[table] = self._chains(table)
        return wanted

    async def _restore_all(self) -> dict[str, dict[str, list[Chain]]] | None:
        """Restore the chains in each table, and return them; None after a failure, which is logged."""
        failed: dict[str, HostError] = {}
        left: dict[str, HostError] = {}  # tables that flannelpy needs only to remove chains
        wanted = {}
        for table in KINDS:
            await asyncio.sleep(0)
            wanted[table] = chains = self._chains(table)
            await asyncio.sleep(0)
            if (chains or table in self._unchecked) and (error := await self._restore(table, chains)):
                (failed if chains else left)[table] = error
            elif table in self._unchecked_of_other and (error := await self._remove_from_other_flavour(table, chains)):
                left[table] = error
        self._report_failures(failed, left)
        return None if failed or left else wanted

    async def _search(self) -> None:
        """Search for rules that drop packets of containers, and call the networks' ``on_check``."""
        await self._forward_check.check(self._traffic)
        for on_check in list(self._on_check.values()):
            on_check()

    def _check_flavour(self) -> None:
        """Look for chains of this run in the other flavour of iptables, if the operator has changed the flavour."""
        flavour = iptables.other_flavour()
        if flavour != self._other_flavour:
            self._expect_earlier_chains()
        self._other_flavour = flavour

    def _report_failures(self, failed: Mapping[str, HostError], left: Mapping[str, HostError]) -> None:
        """Log one line for all tables, since the same command fails for each."""
        if not failed and not left:
            self._recovered(_TABLES)
            return
        errors = failed or left
        tables = f"table{'s' if len(errors) > 1 else ''} {', '.join(errors)}"
        error = next(iter(errors.values()))
        cause = re.sub(r" -t \w+", "", str(error))  # the same for each table
        if not failed:
            self._failed(_TABLES, f"Failed to remove chains of earlier runs from iptables {tables}: {error}", cause)
            return
        missing = "; ".join(map(network_rules.purposes, failed))
        docker = "; Docker's rules may drop packets of containers" if "filter" in failed else ""
        self._failed(_TABLES, f"Failed to check iptables {tables}: {error}; {missing} may be missing{docker}", cause)

    def watch(self, name: str, traffic: Traffic | None, on_check: Callable[[], None]) -> None:
        """Search for rules that drop these packets of a network, at once if more than its peers has changed.

        ``on_check`` is called when the report's ``obstacle`` may have changed.
        """
        self._on_check[name] = on_check
        before = self._traffic.get(name)
        if (traffic and traffic.without_peers()) != (before and before.without_peers()):
            self._changed.set()
        if traffic:
            self._traffic[name] = traffic
        else:
            self._traffic.pop(name, None)

    def _check_accept_local(self, name: str, rules: NetworkRules) -> None:
        datagrams = rules.datagrams
        if datagrams is None or not datagrams.accepts_local:
            return
        what = _accept_local_of(datagrams.device)
        token = logs.network.set(name)
        try:
            if not accept_local.is_enabled(datagrams.device):
                accept_local.enable(datagrams.device)
                self._count(name, f"Restored {what}: another program set it to 0; ICMP errors were dropped")
            self._recovered(what)
        except HostError as error:
            effect = "packets travel, but this host drops ICMP errors unless net.ipv4.conf.all.accept_local is 1"
            self._failed(what, f"Failed to check {what}: {error}; {effect}")
        finally:
            logs.network.reset(token)

    def _chains(self, table: str) -> dict[str, list[Chain]]:
        """Return the chains that each network needs in a table now."""
        networks = self._networks.values()
        self._is_tracking |= conntrack.is_in_use() or any(rules.is_masqueraded for rules in networks)
        sources = [rules.network for rules in networks]
        devices = [device for rules in networks for device in rules.devices]
        wanted = {
            name: rules.chains(table, sources, is_tracking=self._is_tracking, devices=devices)
            for name, rules in self._networks.items()
        }
        return {name: chains for name, chains in wanted.items() if chains}

    async def _restore(self, table: str, wanted: Mapping[str, Sequence[Chain]]) -> HostError | None:
        """Restore the chains of all networks in one table, and remove those of earlier runs; return a failure."""
        networks = dict(self._networks)
        try:
            repair = await self._repair(table, [chain for chains in wanted.values() for chain in chains])
        except HostError as error:
            if wanted or iptables.is_installed():
                return error
            self._set_checked(self._unchecked, table, networks)
            return None
        for name, chains in wanted.items():
            if name in self._networks:
                self._report(name, table, chains, repair.faults)
        _log_removed(repair, table, "")
        self._set_checked(self._unchecked, table, networks)
        return None

    def _set_checked(self, unchecked: set[str], table: str, networks: Mapping[str, NetworkRules]) -> None:
        if networks == self._networks:  # a network that was added meanwhile may have had other chains
            unchecked.discard(table)

    async def _remove_from_other_flavour(self, table: str, wanted: Mapping[str, Sequence[Chain]]) -> HostError | None:
        """Remove the chains of earlier runs, and flanneld's, in the other flavour of iptables; return a failure.

        They act beside the new chains.
        """
        networks, flavour = dict(self._networks), self._other_flavour
        if flavour and iptables.may_exist(table, flavour):
            names = {name for each in networks.values() for name in each.leftovers(table)}
            try:
                repair = await firewall_tables.remove_chains(table, names, self._replaced(wanted), flavour)
            except HostError as error:
                return error
            _log_removed(repair, table, flavour)
        self._set_checked(self._unchecked_of_other, table, networks)
        return None

    async def _repair(self, table: str, chains: Sequence[Chain]) -> Repair:
        """Restore the chains in one table, verify the effect, and return what was restored.  Raises HostError."""
        networks = self._replaced(chains)
        obsolete = self._obsolete(table) - {chain.name for chain in chains}
        repair = await firewall_tables.compare(table, chains, obsolete, networks)
        if text := repair.text(table):
            self._refuse_futile(table, text)
            generation = rules_generation.current()
            await iptables.restore(text)
            is_same = (await firewall_tables.compare(table, chains, obsolete, networks)).text(table) == text
            if is_same and generation == rules_generation.current():  # else it had an effect, which is undone already
                self._futile[table] = text, asyncio.get_running_loop().time() + _FUTILE_SECONDS
                self._refuse_futile(table, text)
        self._futile.pop(table, None)
        return repair

    def _replaced(self, chains: Collection[object]) -> set[IPv4Network]:
        """Return the networks whose rules of flanneld are removed: none while flannelpy has no rules in their place."""
        rules = self._networks.values() if chains else ()
        return {network for each in rules for network in each.networks}

    def _obsolete(self, table: str) -> set[str]:
        """Return the chains that earlier runs may have left; none once the table has been checked."""
        rules = self._networks.values() if table in self._unchecked else ()
        return {name for each in rules for name in each.obsolete(table)}

    def _refuse_futile(self, table: str, text: bytes) -> None:
        """Raise HostError for commands that were accepted without effect: if they are repeated, jumps pile up."""
        before, until = self._futile.get(table, (b"", 0.0))
        if text == before and asyncio.get_running_loop().time() < until:
            raise HostError("iptables-restore reports success, but iptables-save does not show the rules")

    def _report(self, name: str, table: str, chains: Sequence[Chain], faults: Sequence[Fault]) -> None:
        """Log one line about changes by other programs to chains that this daemon wrote, and count the changes."""
        written = [chain.name for chain in chains if self._written.get((table, chain.name)) == chain]
        changed = [fault for fault in faults if fault.chain in written]
        if changed:
            is_interrupted = any(fault.interrupts for fault in changed)
            self._count(name, _describe(table, changed), len(changed), is_urgent=is_interrupted)
            for fault in changed:
                log.debug("Restored %s in table %s: %s", fault.chain, table, fault.what)
        for chain in chains:
            self._written[table, chain.name] = chain

    def _count(self, name: str, message: str, repairs: int = 1, *, is_urgent: bool = True) -> None:
        token = logs.network.set(name)
        if is_urgent:
            log.warning("%s", message)
        else:  # another program may keep its own rules last, so that each check moves the jumps again
            self._moves.message(logging.INFO, message)
        logs.network.reset(token)
        self.repairs[name] += repairs
        self._on_repair[name]()

    def _failed(self, what: str, message: str, cause: str = "") -> None:
        """Log a failure unless its cause is that of the last failure; an empty ``cause`` stands for the message."""
        self._problems[what] = cause or message
        line = f"{message}; trying again every {self._resync:g} s"
        self._failures.failed(cause or message, line, logging.WARNING, subject=what)

    def _recovered(self, what: str) -> None:
        self._problems.pop(what, None)
        is_or_are = "are" if what in (_ALL_RULES, _TABLES) else "is"
        self._failures.recovered(f"{what} {is_or_are} checked again", subject=what)


def _describe(table: str, faults: Sequence[Fault]) -> str:
    """Return the log line about changes that were restored; it names one change and the number of the others."""
    names = list(dict.fromkeys(fault.chain for fault in faults))
    what = list(dict.fromkeys(fault.what for fault in sorted(faults, key=lambda fault: not fault.interrupts)))
    more = f" and {len(what) - 1} more changes" if len(what) > 1 else ""
    interrupted = list(dict.fromkeys(fault.chain for fault in faults if fault.interrupts))
    effect = "was interrupted" if interrupted else "was not interrupted"
    return (
        f"Restored iptables chain{'s' if len(names) > 1 else ''} {', '.join(names)} in table {table}: "
        f"{what[0]}{more}; {network_rules.purposes(table, interrupted or names)} {effect}"
    )


def _log_removed(repair: Repair, table: str, flavour: str) -> None:
    for name in repair.removed:
        log.info("Removed %s chain %s of an earlier run in table %s", firewall_tables.program(flavour), name, table)
