"""Write random keys and values below a directory of etcd, as fast as possible, until stdin is readable.

vandal.py SEED API HOST:PORT DIRECTORY BACKEND UNDERLAY SUBNET...    then print how many requests etcd has answered

API is 2 or 3, for etcd's v2 or v3 API.  BACKEND is the type of the network 11.0.0.0/16; the public IPs of leases that
hosts use are taken from UNDERLAY.  The SUBNETs are those of real hosts.  The script does not write what would lead
their packets elsewhere, or make their leases unusable: their leases, leases of parts of their subnets, and public IPs
in them.  It writes everything else: keys and values of any bytes, length and nesting, and leases that hosts must use.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import select
import string
import sys
import threading
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from urllib.parse import quote, urlencode

#: Distinct keys that are written again and again.
KEYS = 200
#: Keys of leases that hosts use.  Hosts remember all present ones, and those of the last minute.
LEASE_KEYS = 100
#: The number of other keys at a time: each is new, and the oldest one is deleted.
MOST_NEW_KEYS = 5000
WRITERS = 3
ODD = "\x00\x01\n\r\t\x1b\x7f\x9b\u00e9\u200b\u202e\u2028\ud7ff\ue000\ufeff\U0001f600 %/\\\"'{}[]$`;&#?"
LONGEST = 100_000
HUGE = 1_000_000
NETWORK = IPv4Network("11.0.0.0/16")


class Vandal:
    """A generator of random keys and values."""

    def __init__(self, rng: random.Random, backend: str, underlay: IPv4Network, real: Sequence[IPv4Network]) -> None:
        self._rng = rng
        self._backend = backend
        self._underlay = underlay
        self._real = real
        self._lease_keys = [self._new_lease_key() for _ in range(LEASE_KEYS)]
        self._keys = [self._key() for _ in range(KEYS)]

    def put(self) -> tuple[str, bytes, bool]:
        """Return key, value, and whether the key is new."""
        if self._rng.random() < 0.3:
            return self._lease_key(), self.lease(), False
        if self._rng.random() < 0.5:
            return self._key(), self._value(), True
        return self._rng.choice(self._keys), self._value(), False

    def known_key(self) -> str:
        return self._rng.choice((self._lease_key(), self._rng.choice(self._keys)))

    def _value(self) -> bytes:
        return self._rng.choice(VALUES)(self)

    def _key(self) -> str:
        kinds: list[Callable[[], str]] = [
            lambda: self._text(20),
            lambda: self._text(1000),
            lambda: f"{self._rng.randbytes(8).hex()}/" + "/".join(["x"] * self._rng.choice((1, 10, 300))),
            lambda: f"_{self._text(5)}",
            self._lease_key,
            self._foreign_key,
            self._foreign_key,
            lambda: f"{self._foreign_key()}/inside",
            lambda: self._foreign_key().replace("-", self._rng.choice("_/+ ")),
        ]
        return self._rng.choice(kinds)()

    def _lease_key(self) -> str:
        return self._rng.choice(self._lease_keys)

    def _new_lease_key(self) -> str:
        """Return the key of a subnet of the network that no real host's subnet contains."""
        while True:
            length = self._rng.choice((24, 24, 24, 24, 20, 23, 25, 28, 32))
            address = int(NETWORK.network_address) + self._rng.randrange(1 << 16)
            subnet = IPv4Network((address >> (32 - length) << (32 - length), length))
            if not any(subnet.subnet_of(real) for real in self._real):
                return f"{subnet.network_address}-{length}"

    def _public_ip_inside(self) -> str:
        """Return a public IP in the network."""
        while True:
            address = NETWORK[self._rng.randrange(1 << 16)]
            if not any(address in real for real in self._real):
                return str(address)

    def _foreign_key(self) -> str:
        """Return the key of a subnet of no host, or nearly one."""
        address = IPv4Address(self._rng.randrange(1 << 32))
        octets = self._rng.choice((f"10.{self._rng.randrange(256)}.8.0", str(address), "999.0.0.0", "11.0.256.0"))
        return f"{octets}-{self._rng.choice((24, 24, 24, 8, 32, 33, '024', ''))}"

    def _text(self, longest: int) -> str:
        letters = ODD + string.ascii_letters + string.digits
        return "".join(self._rng.choices(letters, k=self._rng.randint(1, longest)))

    def lease(self) -> bytes:
        """Return a lease that hosts use, or one that differs from that in one respect."""
        own = {} if self._backend == "udp" else {"BackendType": self._backend}
        mac = self._rng.choice((f"02:{self._rng.randbytes(5).hex(':')}", "02:00:00:00:00:07", "ff:ff:ff:ff:ff:ff", "x"))
        public_ip = self._underlay[self._rng.randrange(1, self._underlay.num_addresses - 1)]
        document: dict[str, object] = {"PublicIP": str(public_ip), **own, "BackendData": {"VtepMAC": mac}}
        wrong: list[dict[str, object]] = [
            {"PublicIP": self._public_ip_inside()},
            {"PublicIP": self._rng.choice(("10.77.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0", "::1"))},
            {"BackendType": self._rng.choice(("", "vxlan", "host-gw", "alloc", "UDP", "extension"))},
            {"HostID": self._rng.choice(("z", "a\nWATCHDOG=trigger", "ok-1")), "Claim": self._rng.random() < 0.5},
            {"BackendData": self._rng.choice(([], None, {"VtepMAC": None}, "02:00:00:00:00:09"))},
        ]
        if self._rng.random() < 0.4:
            document |= self._rng.choice(wrong)
        return json.dumps(document).encode()

    def json(self) -> bytes:
        """Return a value that resembles a lease, and leads nowhere."""
        fields: dict[str, object] = {
            "PublicIP": self._rng.choice(
                ("", "1.2.3", "224.0.0.1", "127.0.0.1", "255.255.255.255", "\ud800", 7, None, [])
            ),
            "BackendType": self._rng.choice(("", "vxlan", "udp\nE0101 forged", self._text(300), 7, [], None)),
            "BackendData": self._rng.choice((None, {"VtepMAC": "zz\n"}, [[]] * 50, {"VtepMAC": "\u202e"}, 1e300)),
            "HostID": self._rng.choice(("a\nWATCHDOG=trigger", "\x1b[2J", self._text(100), 7)),
        }
        pairs = [f"{json.dumps(key)}:{json.dumps(value)}" for key, value in self._rng.sample(list(fields.items()), 3)]
        pairs += self._rng.choices(('"publicip":"0.0.0.0"', '"a":NaN', '"b":1e400', f'"c":{"9" * 5000}'), k=2)
        return ("{" + ",".join(pairs) + "}").encode()

    def nested(self) -> bytes:
        depth = self._rng.choice((10, 70, 900, 20_000))
        opened = self._rng.choice(('{"PublicIP":', "[", '{"BackendData":['))
        return (opened * depth).encode()

    def rubbish(self) -> bytes:
        return self._rng.randbytes(self._rng.randrange(300))

    def long(self) -> bytes:
        return b"x" * (HUGE if self._rng.random() < 0.05 else self._rng.randrange(LONGEST))

    def text(self) -> bytes:
        return self._text(300).encode(errors="surrogatepass")


VALUES: Sequence[Callable[[Vandal], bytes]] = (
    [Vandal.json] * 8
    + [Vandal.lease] * 4
    + [
        Vandal.nested,
        Vandal.rubbish,
        Vandal.rubbish,
        Vandal.rubbish,
        Vandal.long,
        Vandal.text,
        Vandal.text,
    ]
)


class Writer:
    """One connection to etcd's v2 API."""

    def __init__(self, address: str, directory: str, vandal: Vandal, rng: random.Random) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=10)
        self._root = f"{directory}/"
        self._vandal = vandal
        self._rng = rng
        self._new: deque[str] = deque()

    def request(self) -> None:
        """Return one request and its answer."""
        if len(self._new) > MOST_NEW_KEYS // WRITERS:
            self._send("DELETE", self._new.popleft())
        elif self._rng.random() < 0.2:
            self._send("DELETE", self._vandal.known_key())
        else:
            key, value, is_new = self._vandal.put()
            if is_new:
                self._new.append(key.partition("/")[0] or key)
            fields: list[dict[str, object]] = [{}, {}, {"ttl": self._rng.choice((1, 5, 10**9))}, {"dir": "true"}]
            self._send("PUT", key, {"value": value} | self._rng.choices(fields, [12, 12, 12, 1])[0])

    def _send(self, method: str, key: str, form: dict[str, object] | None = None) -> None:
        path = "/v2/keys" + self._root + quote(key, errors="surrogatepass")
        if form is None:
            self._connection.request(method, f"{path}?recursive=true")
        else:
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            self._connection.request(method, path, urlencode(form), headers)
        self._connection.getresponse().read()


class V3Writer(Writer):
    """One connection to etcd's v3 API, where keys are bytes, and a TTL is a lease."""

    def _send(self, method: str, key: str, form: dict[str, object] | None = None) -> None:
        path = (self._root + key).encode(errors="surrogatepass")
        if form is None:
            self._call("kv/deleterange", key=_base64(path))
            self._call("kv/deleterange", key=_base64(path + b"/"), range_end=_base64(path + b"0"))
            return
        if self._rng.random() < 0.02:
            path += self._rng.randbytes(4)
        value = form["value"]
        assert isinstance(value, bytes)
        lease = self._call("lease/grant", TTL=form["ttl"])["ID"] if "ttl" in form else 0
        self._call("kv/put", key=_base64(path), value=_base64(value), lease=lease)

    def _call(self, path: str, **message: object) -> dict[str, object]:
        self._connection.request("POST", f"/v3/{path}", json.dumps(message))
        answer: dict[str, object] = json.loads(self._connection.getresponse().read())
        return answer


def _base64(content: bytes) -> str:
    return b64encode(content).decode()


WRITERS_OF = {"2": Writer, "3": V3Writer}


def main() -> None:
    seed, api, address, directory, backend, underlay, *real = sys.argv[1:]
    ended = threading.Event()
    counts = [0] * WRITERS

    def write(number: int) -> None:
        rng = random.Random(int(seed) + number)
        vandal = Vandal(rng, backend, IPv4Network(underlay), [IPv4Network(subnet) for subnet in real])
        writer = WRITERS_OF[api](address, directory, vandal, rng)
        for count in itertools.count():
            counts[number] = count
            if ended.is_set():
                return
            writer.request()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in writers:
        thread.start()
    select.select([sys.stdin], [], [])
    ended.set()
    for thread in writers:
        thread.join()
    print(sum(counts))


main()
