"""Judges what etcd has: endpoints, clocks, config and leases.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network

from flannelpy.check.codes import Code
from flannelpy.check.lines import Line, Link, ok
from flannelpy.check.observations import EndpointSeen, FileSeen, StoreSeen
from flannelpy.check.plan import Plan
from flannelpy.check.verdicts import found
from flannelpy.report import LeaseReport
from flannelpy.subnet.lease import HostIdentity, Lease
from flannelpy.subnet.lease_policy import Terms, renewal_lead
from flannelpy.units import span

# The Date header has whole seconds, and NTP keeps clocks closer than this.
CLOCK_LIMIT = 10
# A lease that has this part of its lead left was due long ago.
_OVERDUE = 0.5
_NAMED = 4
_ALARMS = {"NOSPACE": Code.ETCD_FULL, "CORRUPT": Code.ETCD_CORRUPT}


def endpoints(seen: Sequence[EndpointSeen]) -> Iterator[Line]:
    """Yield the lines about the endpoints and their clocks.  If none answers, the store's own line has the causes."""
    answering = [one for one in seen if not one.failure]
    for one in seen:
        # The default names two ports of this host, and etcd listens on one of them.
        if one.failure and answering and not one.is_on_this_host:
            yield found(Code.ENDPOINT_SILENT, f"{one.url} does not answer: {one.failure}")
    yield from map(_clock, (one for one in answering if one.ahead is not None))


def _clock(one: EndpointSeen) -> Line:
    assert one.ahead is not None
    if abs(one.ahead) <= CLOCK_LIMIT:
        return ok(Link.CLOCK, f"within {CLOCK_LIMIT} s of {one.url}")
    direction = "ahead of" if one.ahead > 0 else "behind"
    text = f"the clock of this host is {abs(one.ahead):.0f} s {direction} that of {one.url}"
    return found(Code.CLOCK_DIFFERS, text)


def store(seen: StoreSeen, file: FileSeen, plan: Plan | None) -> Iterator[Line]:
    """Yield the lines about the store and the config; ``plan``: the way that the config asks for, None without one."""
    if seen.failure:
        yield found(Code.ETCD_SILENT, f"no answer: {seen.failure}")
        return
    schema = seen.config.schema.value if seen.config else ""
    alarms = list(_alarms(seen))
    yield from alarms or [ok(Link.ETCD, f"answers, with the leases in v{schema}" if schema else "answers")]
    if seen.flaw:
        yield found(Code.CONFIG_INVALID, seen.flaw, key=seen.key)
    elif seen.config is None:
        yield found(Code.CONFIG_MISSING, f"{seen.key} has no network config", key=seen.key)
    else:
        yield _config(seen, file, plan)


def _alarms(seen: StoreSeen) -> Iterator[Line]:
    for name, code in _ALARMS.items():
        members = [one.member for one in seen.alarms if one.name == name]
        if members:
            yield found(code, f"refuses writes: alarm {name} of member {', '.join(members)}", member=members[0])


def _config(seen: StoreSeen, file: FileSeen, plan: Plan | None) -> Line:
    config = seen.config
    assert config is not None
    text = f"{seen.key}: {config.network} by {config.backend.type}"
    if plan and file.network and (file.network, file.mtu) != (plan.network, plan.mtu):
        wanted = f"{plan.network} with MTU {plan.mtu}"
        return found(Code.CONFIG_CHANGED, f"{file.path} has {file.network} with MTU {file.mtu}, the config {wanted}")
    return ok(Link.CONFIG, text)


def identity(leases: Sequence[Lease], chosen: HostIdentity, leased: IPv4Network | None) -> HostIdentity:
    """Return the identity of this host; a lease of the subnet that the daemon has ``leased`` tells the host ID."""
    for lease in leases:
        if lease.subnet == leased and lease.attrs.public_ip == chosen.public_ip and lease.attrs.host_id:
            return HostIdentity(chosen.public_ip, lease.attrs.host_id)
    return chosen


def own_lease(leases: Sequence[Lease], identity: HostIdentity, file: FileSeen) -> Lease | None:
    """Return the lease of this host, that of the subnet file if it has several."""
    held = [one for one in leases if _is_own(one, identity)]
    return next((one for one in held if one.subnet == file.subnet), held[0] if held else None)


def _is_own(lease: Lease, identity: HostIdentity) -> bool:
    return lease.attrs.public_ip == identity.public_ip and lease.attrs.host_id in ("", identity.host_id)


def leases(
    seen: StoreSeen, file: FileSeen, identity: HostIdentity, terms: Terms, reported: LeaseReport | None = None
) -> Iterator[Line]:
    """Yield the lines about the lease of this host, its subnet file, and public IPs that two leases have.

    ``terms``: of these flags; those of the daemon may be others.  ``reported``: the lease that the daemon has.
    """
    own = own_lease(seen.leases, identity, file)
    holder = next((one for one in seen.leases if one.subnet == file.subnet and not _is_own(one, identity)), None)
    if holder:
        text = f"{file.path} has {file.subnet}, which is leased to {holder.attrs.public_ip} ({holder.attrs.host_id})"
        yield found(Code.LEASE_TAKEN, text)
    elif own is None:
        yield found(Code.LEASE_MISSING, f"no lease has the public IP {identity.public_ip} and our host ID")
    else:
        yield _lifetime(own, seen.seconds_left, terms, reported)
    yield from _subnet_file(file, own)
    yield from _duplicates(seen.leases, identity.public_ip)


def _lifetime(own: Lease, left: int | None, terms: Terms, reported: LeaseReport | None) -> Line:
    if own.is_reservation or left is None:
        return ok(Link.LEASE, f"{own.subnet}{', a reservation' if own.is_reservation else ''}")
    lead = renewal_lead(max(terms.lease_ttl, left), terms, 0)
    if left < lead * _OVERDUE and reported and reported.subnet == own.subnet and not reported.problem:
        return ok(Link.LEASE, f"{own.subnet} expires in {span(left)}, and flannelpy renews it by flags of its own")
    if left < lead * _OVERDUE:
        text = f"{own.subnet} expires in {span(left)}, and a renewal was due {span(lead - left)} ago"
        return found(Code.LEASE_OVERDUE, text)
    return ok(Link.LEASE, f"{own.subnet} expires in {span(left)}, and is renewed {span(lead)} before")


def _subnet_file(file: FileSeen, own: Lease | None) -> Iterator[Line]:
    if file.subnet is None:
        yield found(Code.SUBNET_FILE_MISSING, f"{file.path} is missing, or has no FLANNEL_NETWORK and FLANNEL_SUBNET")
    elif own and own.subnet != file.subnet:
        yield found(Code.SUBNET_FILE_DIFFERS, f"{file.path} has {file.subnet}, and the lease is for {own.subnet}")


def _duplicates(held: Sequence[Lease], our_ip: IPv4Address) -> Iterator[Line]:
    by_address: dict[IPv4Address, list[Lease]] = {}
    for lease in held:
        by_address.setdefault(lease.attrs.public_ip, []).append(lease)
    for address, several in by_address.items():
        if len(several) > 1:
            yield _duplicate(f"the public IP {address}{' of this host' if address == our_ip else ''}", several)


def _duplicate(what: str, several: Sequence[Lease]) -> Line:
    ids = {lease.attrs.host_id for lease in several}
    named = ", ".join(
        f"{lease.subnet} ({lease.attrs.host_id or 'no host ID'})"
        for lease in sorted(several, key=lambda one: one.subnet)[:_NAMED]
    )
    code = Code.PUBLIC_IP_TWICE if len(ids - {""}) > 1 else Code.PUBLIC_IP_LEFTOVER
    return found(code, f"{what} is in {len(several)} leases: {named}")
