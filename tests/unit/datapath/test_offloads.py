"""Which offloads are used: what -offload asks for, the kernels that must not, and the packets that ask the TUN."""

from __future__ import annotations

import pytest
from support import oracle
from support.packets import checksum

from flannelpy.datapath.offloads import ALL, INTERPRETED, Offload, choose, parse, probe
from flannelpy.errors import UsageError

GOOD_KERNEL = "6.1.0-18-amd64"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", frozenset()),
        ("tso", frozenset({"tso"})),
        ("gso,gro", frozenset({"gso", "gro"})),
        (" gro , gso ", frozenset({"gso", "gro"})),
        ("gso,gso", frozenset({"gso"})),
        (",".join(Offload), ALL),
        ("merge-tcp,merge-udp,tso,uso,gso,gro", ALL),
    ],
)
def test_names_are_read(text: str, expected: frozenset[str]) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", " ", ",", "on", "all", "TSO", "tso;gso", "tso gso", "tso,", "off,tso", "merge"])
def test_an_unknown_offload_is_rejected_with_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == (
        f"-offload: {text!r} is neither auto nor off nor some of tso,uso,merge-tcp,merge-udp,gso,gro"
    )


@pytest.mark.parametrize(
    ("compiled", "kernel", "expected"),
    [
        pytest.param(True, GOOD_KERNEL, ALL, id="compiled: everything"),
        pytest.param(False, GOOD_KERNEL, INTERPRETED, id="interpreted: what costs nothing for each segment"),
        pytest.param(False, "7.0.3", INTERPRETED - {"gso"}, id="interpreted on a bad kernel"),
        pytest.param(True, "5.4.0-216-generic", ALL, id="an old one, which is asked"),
        pytest.param(True, "6.99.99", ALL, id="just before"),
        pytest.param(True, "7.0.0", ALL - {"gso"}, id="the first bad"),
        pytest.param(True, "7.0.0-rc1", ALL - {"gso"}, id="and what came before it"),
        pytest.param(True, "7.0", ALL - {"gso"}, id="without a third number"),
        pytest.param(True, "7.0-custom", ALL - {"gso"}, id="nor anything like it"),
        pytest.param(True, "7.0.0-14-generic", ALL - {"gso"}, id="a distribution's"),
        pytest.param(True, "7.0.10+deb13-amd64", ALL - {"gso"}, id="a two-digit one"),
        pytest.param(True, "7.1.4-arch1-1", ALL - {"gso"}, id="the last bad"),
        pytest.param(True, "7.1.5", ALL, id="the first good"),
        pytest.param(True, "7.1.10", ALL, id="a later good"),
        pytest.param(True, "7.2.0-rc1", ALL, id="the next"),
        pytest.param(True, "8.0.1", ALL, id="another"),
        pytest.param(True, "70.0.0", ALL, id="far in the future"),
        pytest.param(True, "unknown", ALL, id="no number"),
    ],
)
def test_without_a_choice_the_best_offloads_are_used(compiled: bool, kernel: str, expected: frozenset[str]) -> None:
    assert choose(None, compiled=compiled, kernel=kernel) == expected


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kernel", [GOOD_KERNEL, "7.0.3"])
@pytest.mark.parametrize("wanted", [frozenset(), frozenset({"gso"}), ALL], ids=["off", "gso", "all"])
def test_a_choice_is_used_as_it_is(compiled: bool, kernel: str, wanted: frozenset[str]) -> None:
    assert choose(wanted, compiled=compiled, kernel=kernel) == wanted


@pytest.mark.parametrize(("merge", "protocol"), [(Offload.MERGE_TCP, 6), (Offload.MERGE_UDP, 17)])
def test_a_probe_is_a_super_packet_of_two_segments_and_a_shorter_one_that_the_kernel_drops(
    merge: Offload, protocol: int
) -> None:
    header, packet = probe(merge)
    l4 = 20 if merge is Offload.MERGE_TCP else 8
    gso_type, csum_offset = (1, 16) if merge is Offload.MERGE_TCP else (5, 6)
    assert oracle.VnetHeader.decode(header) == oracle.VnetHeader(1, gso_type, 20 + l4, 10, 20, csum_offset)
    assert list(map(len, oracle.segments(packet, 10))) == [30 + l4, 30 + l4, 25 + l4]
    assert (packet[0], packet[8], packet[9]) == (0x45, 0, protocol)
    assert int.from_bytes(packet[2:4], "big") == len(packet)
    assert checksum(packet[:20]) == 0
    assert (packet[12:16], packet[16:20]) == (bytes(4), bytes((192, 0, 2, 1)))
    if merge is Offload.MERGE_UDP:
        assert int.from_bytes(packet[24:26], "big") == len(packet) - 20
