"""The table of observations and verdicts.  Pure.

docs/check.md has the same table; a test compares the two.  Where two causes look alike from this host, the remedy
names both, as "either … or …".
Counterpart: none.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import NamedTuple

from flannelpy.check.codes import Code
from flannelpy.check.lines import Echo, Level, Line, Link


class Verdict(NamedTuple):
    """A row of the table.  ``remedy`` may have names in braces, which a line replaces by values."""

    link: Link
    level: Level
    observed: str
    remedy: str


BAD, WARNING = Level.BAD, Level.WARNING

TABLE: dict[Code, Verdict] = {
    Code.NO_INTERFACE: Verdict(
        Link.INTERFACE,
        BAD,
        "the flags choose no external interface",
        "name the interface that leads to the other hosts: -iface, or -public-ip",
    ),
    Code.INTERFACE_DOWN: Verdict(
        Link.INTERFACE,
        BAD,
        "the external interface is down, or has no carrier",
        "ip link set {name} up; without a carrier, look at the cable or the virtual switch",
    ),
    Code.ETCD_SILENT: Verdict(
        Link.ETCD,
        BAD,
        "no endpoint gives a usable answer",
        "either etcd is down, or a firewall is between, or -etcd-endpoints and the TLS files are wrong: the text has "
        "the cause for each endpoint",
    ),
    Code.ENDPOINT_SILENT: Verdict(
        Link.ETCD,
        WARNING,
        "one of several endpoints gives no answer",
        "start that member of etcd, or leave it out of -etcd-endpoints",
    ),
    Code.ETCD_FULL: Verdict(
        Link.ETCD,
        BAD,
        "etcd v3 has the alarm NOSPACE, so it refuses writes: its database is as large as its quota",
        "compact it: etcdctl compact REVISION, of etcdctl endpoint status -w json; defragment each member: etcdctl "
        "defrag; then etcdctl alarm disarm; raise --quota-backend-bytes if it is soon full again",
    ),
    Code.ETCD_CORRUPT: Verdict(
        Link.ETCD,
        BAD,
        "etcd v3 has the alarm CORRUPT, so it refuses writes: the data of its members differ",
        "replace that member: etcdctl member remove {member}, then etcdctl member add, and start it with an empty data "
        "directory; then etcdctl alarm disarm",
    ),
    Code.CLOCK_DIFFERS: Verdict(
        Link.CLOCK,
        WARNING,
        "the clocks of this host and of an etcd differ by more than ten seconds",
        "run NTP on both: certificates are checked, leases of etcd v2 expire, and logs are compared by these clocks",
    ),
    Code.CONFIG_MISSING: Verdict(
        Link.CONFIG,
        BAD,
        "etcd has no network config",
        "either no config is written yet, or -etcd-prefix, -networks or -etcd-api name another place: etcdctl put "
        '{key} \'{{"Network": "10.1.0.0/16"}}\'',
    ),
    Code.CONFIG_INVALID: Verdict(
        Link.CONFIG,
        BAD,
        "the config is invalid, or this host cannot run it",
        "correct {key} in etcd; all hosts continue by themselves",
    ),
    Code.CONFIG_CHANGED: Verdict(
        Link.CONFIG,
        WARNING,
        "the subnet file has another network or MTU than the config asks for",
        "the config, or the MTU of the interface, has changed since flannelpy started: restart flannelpy, then Docker",
    ),
    Code.LEASE_MISSING: Verdict(
        Link.LEASE,
        BAD,
        "etcd has no lease of this host",
        "either flannelpy has never run here or was stopped for longer than -subnet-lease-ttl: start it; or the flags "
        "of the daemon are others: check with the same ones",
    ),
    Code.LEASE_TAKEN: Verdict(
        Link.LEASE,
        BAD,
        "a lease with another public IP or host ID has the subnet of the subnet file",
        "either another host leased it while flannelpy was down: restart flannelpy, which leases another subnet, then "
        "Docker; or the flags of the daemon are others, such as -iface and FLANNELD_HOST_ID: check with the same ones",
    ),
    Code.LEASE_OVERDUE: Verdict(
        Link.LEASE,
        BAD,
        "the lease was not renewed when it was due",
        "either flannelpy does not run or hangs, or it cannot write to etcd: look at its log; or its "
        "-subnet-lease-ttl and -subnet-lease-renew-margin are others: check with the same ones",
    ),
    Code.PUBLIC_IP_TWICE: Verdict(
        Link.LEASE,
        BAD,
        "two leases have one public IP and different host IDs",
        "either two hosts have that address, or choose the wrong interface: give each its own -iface or -public-ip; or "
        "a host was reinstalled, and its former lease expires by itself",
    ),
    Code.PUBLIC_IP_LEFTOVER: Verdict(
        Link.LEASE,
        WARNING,
        "two leases have one public IP, and at least one has no host ID",
        "either a host had another subnet before, and that lease expires by itself; or two hosts have that address: "
        "give each its own -iface or -public-ip",
    ),
    Code.SUBNET_FILE_MISSING: Verdict(
        Link.LEASE,
        BAD,
        "there is no subnet file",
        "either flannelpy has not leased a subnet yet, or it writes another file: check with its -subnet-file",
    ),
    Code.SUBNET_FILE_DIFFERS: Verdict(
        Link.LEASE, BAD, "the subnet file has another subnet than the lease", "restart flannelpy, then Docker"
    ),
    Code.DAEMON_STOPPED: Verdict(
        Link.DAEMON,
        BAD,
        "no flannelpy runs with this subnet file",
        "start it: systemctl start flannelpy; until then this host follows no peer, and its lease expires",
    ),
    Code.DAEMON_SILENT: Verdict(
        Link.DAEMON,
        WARNING,
        "a flannelpy runs with this subnet file, and does not answer",
        "either it hangs, or it could not create its control socket: look at its log; or it is a version without one",
    ),
    Code.FLAGS_DIFFER: Verdict(
        Link.DAEMON,
        WARNING,
        "the flags of the daemon are others",
        "all other lines use what the daemon reports; check with its flags and FLANNELD_* variables",
    ),
    Code.DAEMON_PROBLEM: Verdict(
        Link.DAEMON,
        BAD,
        "the daemon itself reports a problem that no other line names",
        "what the daemon reports as the remedy",
    ),
    Code.DEVICE_MISSING: Verdict(
        Link.DEVICE,
        BAD,
        "there is no device of flannelpy",
        "either flannelpy does not run, or another program removed the device: flannelpy creates it at its start, and "
        "again within ten seconds",
    ),
    Code.DEVICE_FLAW: Verdict(
        Link.DEVICE,
        BAD,
        "the device is down, or has another address, MTU or route than it needs",
        "another program has changed it: a running flannelpy restores it within ten seconds; if it does not, look at "
        "its log",
    ),
    Code.BRIDGE_OF_OLD_SUBNET: Verdict(
        Link.BRIDGE,
        BAD,
        "a bridge has an address of the network that is not of this host's subnet",
        "restart Docker with the present subnet file: --bip={bridge}; then start the containers again",
    ),
    Code.BRIDGE_PREFIX: Verdict(
        Link.BRIDGE,
        BAD,
        "the prefix length of a bridge differs from that of the subnet",
        "restart Docker with the present subnet file: --bip={bridge}",
    ),
    Code.BRIDGE_ELSEWHERE: Verdict(
        Link.BRIDGE,
        WARNING,
        "no bridge has an address of this host's subnet, but docker0 has another one",
        "either Docker was started without the subnet file: restart it with --bip={bridge}; or Docker does not use the "
        "overlay, and no container does yet",
    ),
    Code.BRIDGE_DOWN: Verdict(Link.BRIDGE, BAD, "the bridge of the containers is down", "ip link set {name} up"),
    Code.BRIDGE_WITHOUT_ADDRESS: Verdict(
        Link.BRIDGE,
        BAD,
        "docker0 or cni0 has ports, and no address",
        "restart Docker with the present subnet file: --bip={bridge}; or ip address add {bridge} dev {name}",
    ),
    Code.SUBNET_DIVERTED: Verdict(
        Link.BRIDGE,
        BAD,
        "the kernel sends packets for this host's own subnet elsewhere than to the bridge of its containers",
        "either another program added a route: remove the one that the line names; or two bridges have an address of "
        "the subnet: leave it to the one with the containers",
    ),
    Code.CONTAINER_UNPLUGGED: Verdict(
        Link.BRIDGE,
        WARNING,
        "the veth of a container is at no bridge, although the subnet has one",
        "either its bridge was removed or has lost it: restart the container, or ip link set {name} master … up; or "
        "another program uses it without a bridge",
    ),
    Code.CONTAINER_MTU: Verdict(
        Link.BRIDGE,
        WARNING,
        "containers have a larger MTU than the overlay carries",
        "restart Docker with --mtu={mtu}, then create the containers again",
    ),
    Code.FORWARDING_OFF: Verdict(
        Link.FORWARDING, BAD, "the kernel forwards no packets of containers", "the sysctl command that the line names"
    ),
    Code.PACKETS_DROPPED: Verdict(
        Link.FORWARDING,
        BAD,
        "a rule of iptables or nftables (FORWARD, DOCKER-USER, raw and all others) drops packets of containers",
        "remove the rule that the line names, or accept these packets before it",
    ),
    Code.PACKETS_MAY_BE_DROPPED: Verdict(
        Link.FORWARDING,
        WARNING,
        "such a rule drops a part of these packets, such as those of TCP or of single ports, which may be intended; or "
        "the check cannot tell whether it does",
        "remove the rule that the line names, or accept these packets before it",
    ),
    Code.RULES_UNKNOWN: Verdict(
        Link.FORWARDING, WARNING, "the rules cannot be listed", "run the check as root, with iptables and nft installed"
    ),
    Code.CONNTRACK_FULL: Verdict(
        Link.FORWARDING,
        WARNING,
        "the kernel tracks nearly as many connections as it can, and drops packets of new ones beyond that",
        "raise the limit: sysctl -w net.netfilter.nf_conntrack_max={limit}",
    ),
    Code.MASQUERADING_MISSING: Verdict(
        Link.MASQUERADING,
        BAD,
        "-ip-masq is on, and rules of it are missing in table nat",
        "another program has removed them: a running flannelpy restores them within -iptables-resync seconds; if it "
        "does not, restart it",
    ),
    Code.ROUTE_DIVERTED: Verdict(
        Link.ROUTES,
        BAD,
        "the kernel sends packets for a peer's subnet another way than by flannelpy's route",
        "remove the route or rule that the line names; if it is flannelpy's own route that is missing, look at its log",
    ),
    Code.ENTRY_MISSING: Verdict(
        Link.ROUTES,
        BAD,
        "the VXLAN device has no neighbour or no forwarding for a peer, or one that leads elsewhere",
        "either another program has changed it, or flannelpy hangs while that host has a new device: a running "
        "flannelpy restores it within ten seconds; if it does not, look at its log",
    ),
    Code.RP_FILTER: Verdict(
        Link.RP_FILTER,
        BAD,
        "rp_filter drops what arrives from a peer, because the kernel's route to the peer leads elsewhere",
        "correct the route, or set rp_filter to 2: sysctl -w net.ipv4.conf.{device}.rp_filter=2",
    ),
    Code.LEASE_UNUSABLE: Verdict(
        Link.PEERS,
        BAD,
        "flannelpy ignores the lease of a peer",
        "correct what the line names, on that host or on this one",
    ),
    Code.PEERS_UNKNOWN: Verdict(
        Link.PEERS, WARNING, "neither etcd nor a daemon tells which peers there are", "see the line about etcd"
    ),
    Code.PING_REFUSED: Verdict(
        Link.PEERS,
        WARNING,
        "this host cannot ping",
        "either run the check as root (CAP_NET_RAW), or have the rules of OUTPUT on this host accept its pings, and "
        "its IPsec policies pass them: see ip xfrm policy",
    ),
    Code.NO_ROUTE_TO_PEER: Verdict(
        Link.PEERS,
        BAD,
        "the kernel has no route to the public IP of a peer",
        "add one, or remove the one that rejects: ip route get {address}",
    ),
    Code.PEER_SILENT: Verdict(
        Link.PEERS,
        BAD,
        "neither the public IP of a peer nor its overlay answers",
        "either that host is down, or the network between is cut, or a firewall drops pings and the packets of the "
        "overlay, or all of its answers are lost; if it is gone, its lease expires by itself",
    ),
    Code.PINGS_DROPPED: Verdict(
        Link.PEERS,
        WARNING,
        "a peer answers no ping in the overlay, and forwards packets for its containers",
        "a firewall there drops pings; accept them, so that the check sees loss and path MTU",
    ),
    Code.PORT_CLOSED: Verdict(
        Link.PEERS,
        BAD,
        "the public IP answers, the tunnel address does not, and the UDP port of the backend is closed",
        "either flannelpy does not run on that host: start it; or a firewall rejects UDP port {port}: accept it both "
        "ways",
    ),
    Code.PORT_PROHIBITED: Verdict(
        Link.PEERS,
        BAD,
        "the public IP answers, the tunnel address does not, and a firewall prohibits the UDP port of the backend",
        "a firewall on that host or between rejects UDP port {port}: accept it both ways",
    ),
    Code.DATAGRAMS_LOST: Verdict(
        Link.PEERS,
        BAD,
        "the public IP answers, the tunnel address does not, and nothing rejects the UDP port of the backend",
        "either a firewall drops UDP port {port} on a host or between them: accept it both ways; or the daemon there "
        "does not know this host, or another rule there drops packets: run the check there; or a NAT changes ports or "
        "addresses of the datagrams: -source-check=off on the hosts that drop them; or datagrams arrive there with a "
        "wrong checksum: nstat -az UdpInCsumErrors",
    ),
    Code.MTU_TOO_LARGE: Verdict(
        Link.PEERS,
        BAD,
        "small packets reach a peer, and packets as long as containers send do not",
        "a link on the way is narrower than the interface of this host: {change}",
    ),
    Code.DATAGRAMS_REFUSED: Verdict(
        Link.PEERS,
        BAD,
        "the public IP answers, the tunnel address does not, and this host's own rules drop datagrams for the UDP port "
        "of the backend",
        "either a rule drops them: have the rules of OUTPUT on this host accept UDP port {port}; or an IPsec policy "
        "blocks them: see ip xfrm policy",
    ),
    Code.SEND_FAILED: Verdict(
        Link.PEERS,
        BAD,
        "packets to a peer were lost, and the kernel of this host rejected datagrams of the daemon meanwhile (drop "
        "reason send_failed)",
        "either a rule drops them: have the rules of OUTPUT on this host accept the UDP datagrams of flannelpy; or an "
        "IPsec policy blocks them: see ip xfrm policy",
    ),
    Code.SENDERS_REJECTED: Verdict(
        Link.PEERS,
        WARNING,
        "a peer's tunnel did not answer, and the daemon of this host dropped datagrams by their sender meanwhile",
        "either a NAT changes ports or addresses of a peer's datagrams: -source-check=off on this host; or another "
        "machine sends them, or the receive buffer is full: the log names the senders",
    ),
    Code.DAEMON_HANGS: Verdict(
        Link.PEERS,
        BAD,
        "the public IP answers, and the overlay does not, while the flannelpy of this host, which carries its packets, "
        "gives no answer",
        "either flannelpy hangs: look at its log, and restart it; or it carries packets without a control socket: run "
        "the check on that host",
    ),
    Code.LONG_PACKETS_LOST: Verdict(
        Link.PEERS,
        BAD,
        "long packets do not pass the overlay to a peer, although long ones reach its public IP",
        "either the tunnel device or the bridge of that host has a smaller MTU: run the check there; or a firewall "
        "drops long datagrams of the overlay",
    ),
    Code.BRIDGE_SILENT: Verdict(
        Link.PEERS,
        WARNING,
        "the bridge of a peer does not answer, although its host does",
        "either that host has no container yet, or its bridge has another subnet, or it drops pings: run the check"
        " there",
    ),
    Code.LOSS: Verdict(
        Link.PEERS,
        WARNING,
        "some pings are lost",
        "look for a link that is overloaded or faulty on the way, or a host without processor time",
    ),
}


def found(
    code: Code,
    text: str,
    *,
    remedy: str = "",
    peer: IPv4Network | None = None,
    echo: Echo | None = None,
    **values: object,
) -> Line:
    """Return the line about an observation; ``values`` complete the remedy, and ``remedy`` replaces it."""
    row = TABLE[code]
    return Line(row.level, row.link, text, remedy or row.remedy.format(**values), code, peer=peer, echo=echo)
