"""Writes random keys and values below a directory of etcd, as fast as it takes them, until there is something on stdin.

vandal.py SEED HOST:PORT DIRECTORY    then prints how many requests etcd has answered

It never writes what a host would have to obey: the lease of a real host, or a well-formed one with a public IP of the
underlay.  Everything else may come: keys and values of any bytes, any length, any nesting.
"""

from __future__ import annotations

import http.client
import json
import random
import select
import string
import sys
from collections.abc import Callable, Sequence
from urllib.parse import quote, urlencode

#: Distinct keys: what is written takes the place of what was written before.
KEYS = 400
ODD = "\x00\x01\n\r\t\x1b\x7f\x9b\u00e9\u200b\u202e\u2028\ud7ff\ue000\ufeff\U0001f600 %/\\\"'{}[]$`;&#?"
LONGEST = 100_000


class Vandal:
    """Random keys and values."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._keys = [self._key() for _ in range(KEYS)]

    def key(self) -> str:
        return self._rng.choice(self._keys)

    def value(self) -> bytes:
        return self._rng.choice(VALUES)(self)

    def _key(self) -> str:
        kinds: list[Callable[[], str]] = [
            lambda: self._text(20),
            lambda: self._text(1000),
            lambda: "/".join(["x"] * self._rng.choice((2, 10, 300))),
            lambda: f"_{self._text(5)}",
            self._lease_key,
            self._lease_key,
            lambda: f"{self._lease_key()}/inside",
            lambda: self._lease_key().replace("-", self._rng.choice("_/+ ")),
        ]
        return self._rng.choice(kinds)()

    def _lease_key(self) -> str:
        """Of subnets that no real host has: they pick one of the first hundred."""
        octets = self._rng.choice(
            (
                f"11.0.{self._rng.randrange(150, 250)}.0",
                f"11.0.{self._rng.randrange(150, 250)}.7",
                "999.0.0.0",
                "10.9.8.0",
            )
        )
        return f"{octets}-{self._rng.choice((24, 24, 24, 8, 25, 32, 33, '024', ''))}"

    def _text(self, longest: int) -> str:
        letters = ODD + string.ascii_letters + string.digits
        return "".join(self._rng.choices(letters, k=self._rng.randint(1, longest)))

    def json(self) -> bytes:
        """A value that looks like a lease, and is none that leads anywhere."""
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
        return b"x" * self._rng.randrange(LONGEST)

    def text(self) -> bytes:
        return self._text(300).encode(errors="surrogatepass")


VALUES: Sequence[Callable[[Vandal], bytes]] = [Vandal.json] * 6 + [
    Vandal.nested,
    Vandal.rubbish,
    Vandal.long,
    Vandal.text,
]


def main() -> None:
    seed, address, directory = sys.argv[1:]
    rng = random.Random(int(seed))
    vandal = Vandal(rng)
    connection = http.client.HTTPConnection(address, timeout=10)
    answered = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        path = f"/v2/keys{directory}/{quote(vandal.key(), errors='surrogatepass')}"
        if rng.random() < 0.3:
            connection.request("DELETE", f"{path}?recursive=true")
        else:
            form: dict[str, object] = {"value": vandal.value()} | (
                {"ttl": rng.choice((1, 5, 10**9))} if rng.random() < 0.3 else {}
            )
            connection.request("PUT", path, urlencode(form), {"Content-Type": "application/x-www-form-urlencoded"})
        connection.getresponse().read()
        answered += 1
    print(answered)


main()
