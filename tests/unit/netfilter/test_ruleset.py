"""What a listing shows of our chains, and the commands that make it what it should be."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes_iptables import FakeTables

from flannelpy.netfilter.ruleset import Chain, Fault, Jump, Listing, Place, Repair

NAME = "FLANNEL-M-11.0.0.0/16"
OTHER = "FLANNEL-M-11.7.0.0/16"
OWN = re.compile(rb"FLANNEL-[A-Z]-[0-9.]+/[0-9]+")
RULES = f"-A {NAME} -s 11.0.0.0/16 -j RETURN\n-A {NAME} -j MASQUERADE\n".encode()
CHAIN = Chain(NAME, RULES, (Jump("POSTROUTING", ""), Jump("OUTPUT", "-p udp")))
FOREIGN = (
    "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    f'-m comment --comment "not for -j {NAME}" -j DOCKER',
    f'-m comment --comment "-j {NAME}"',
    f"-m comment --comment {NAME} -j ACCEPT",
    "-j FLANNELX",
    "-j FLANNEL",
    "-j FLANNEL-POSTRTG",
    f"-j {NAME}-X",
)


def listed(text: str, chunk: int = 1 << 16) -> Listing:
    listing = Listing([NAME], ["POSTROUTING", "OUTPUT"], OWN, "FLANNEL")
    data = text.encode()
    for start in range(0, len(data), chunk):
        listing.feed(data[start : start + chunk])
    return listing


def repair(tables: FakeTables, chunk: int = 1 << 16) -> Repair:
    found = Repair()
    found.keep(listed(tables.text("nat"), chunk), CHAIN)
    return found


def whole() -> FakeTables:
    tables = FakeTables()
    tables.apply(repair(tables).text("nat").decode())
    assert repair(tables).text("nat") == b""
    return tables


def test_everything_is_put_at_once() -> None:
    found = repair(FakeTables())
    assert found.faults == [Fault(NAME, "it was removed")]
    assert found.text("nat").decode() == (
        f"*nat\n:{NAME} - [0:0]\n{RULES.decode()}-I POSTROUTING 1 -j {NAME}\n-I OUTPUT 1 -p udp -j {NAME}\nCOMMIT\n"
    )


def test_only_what_is_wrong_is_written() -> None:
    tables = whole()
    nat = tables.tables["nat"]
    nat[NAME].reverse()
    found = repair(tables)
    assert found.faults == [Fault(NAME, "it was changed")]
    assert found.text("nat") == b"*nat\n:%b - [0:0]\n%bCOMMIT\n" % (NAME.encode(), RULES)


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        ([], "its jump in POSTROUTING was removed"),
        (["-j ACCEPT", f"-j {NAME}"], "its jump in POSTROUTING was moved behind foreign rules"),
        (["-j RETURN", f"-j {NAME}"], "its jump in POSTROUTING was moved behind a RETURN for all packets"),
        (
            ["-j RETURN", f"-j {NAME}", f"-j {NAME}"],
            "its jump in POSTROUTING was moved behind a RETURN for all packets",
        ),
        ([f"-j {OTHER}", "-j FLANNEL", f"-j {NAME}"], "its jump in POSTROUTING was moved behind foreign rules"),
        ([f"-j {NAME}", f"-j {NAME}"], "its jump in POSTROUTING was repeated"),
        ([f"-j {NAME}", f"-p tcp -j {NAME}"], "another jump led there"),
        ([f"-j {NAME}", "-j ACCEPT", f"-p tcp -g {NAME}"], "another jump led there"),
    ],
)
def test_jumps(rules: list[str], fault: str) -> None:
    tables = whole()
    nat = tables.tables["nat"]
    nat["POSTROUTING"] = rules
    found = repair(tables)
    assert found.faults == [Fault(NAME, fault, interrupts="repeated" not in fault and "another" not in fault)]
    tables.apply(found.text("nat").decode())
    assert nat is not tables.tables["nat"]
    left = tables.tables["nat"]["POSTROUTING"]
    assert left.count(f"-j {NAME}") == 1
    assert [rule for rule in left if NAME not in rule] == [rule for rule in rules if NAME not in rule]
    assert repair(tables).text("nat") == b""


def test_chains_of_other_networks_of_ours_may_come_first() -> None:
    tables = whole()
    tables.tables["nat"]["POSTROUTING"] = [f"-j {OTHER}", f"-j {NAME}", *FOREIGN]
    assert repair(tables).text("nat") == b""


def test_a_chain_goes_with_its_jumps_and_nothing_else() -> None:
    tables = whole()
    before = {name: list(rules) for name, rules in tables.tables["nat"].items() if name != NAME}
    tables.tables["nat"]["POSTROUTING"] += [*FOREIGN, f"-p tcp -j {NAME}"]
    found = Repair()
    found.remove(listed(tables.text("nat")), NAME)
    tables.apply(found.text("nat").decode())
    before["POSTROUTING"], before["OUTPUT"] = list(FOREIGN), []
    assert tables.tables["nat"] == before
    assert found.removed == [NAME]
    again = Repair()
    again.remove(listed(tables.text("nat")), NAME)
    assert again.text("nat") == b""


random_rules = st.lists(
    st.sampled_from([*FOREIGN, f"-j {NAME}", f"-j {OTHER}", f"-p tcp -j {NAME}", "-p udp -j ACCEPT"]), max_size=6
)


@given(
    st.fixed_dictionaries({"POSTROUTING": random_rules, "OUTPUT": random_rules, "DOCKER": random_rules}),
    st.one_of(st.none(), st.lists(st.sampled_from(["-s 11.0.0.0/16 -j RETURN", "-j MASQUERADE", "-j DROP"]))),
    st.integers(1, 300),
)
def test_one_repair_is_enough_and_foreign_rules_keep_their_order(
    hooks: dict[str, list[str]], chain: list[str] | None, chunk: int
) -> None:
    tables = FakeTables()
    nat = tables.tables["nat"]
    nat["FLANNELX"] = ["-j RETURN"]
    nat.update({name: list(rules) for name, rules in hooks.items()})
    if chain is not None:
        nat[NAME] = chain
    else:  # a jump to a chain that does not exist is not possible
        for rules in nat.values():
            rules[:] = [rule for rule in rules if not rule.endswith(f"-j {NAME}")]
    before = {name: [rule for rule in rules if not rule.endswith(f"-j {NAME}")] for name, rules in nat.items()}
    if text := repair(tables, chunk).text("nat"):
        tables.apply(text.decode())
    assert repair(tables, chunk).text("nat") == b""
    after = tables.tables["nat"]
    assert [f"-A {NAME} {rule}" for rule in after.pop(NAME)] == RULES.decode().splitlines()
    assert after["POSTROUTING"].count(f"-j {NAME}") == 1
    before.pop(NAME, None)
    ours = (f"-j {NAME}", f"-p udp -j {NAME}")
    assert {name: [rule for rule in rules if rule not in ours] for name, rules in after.items()} == before


# Jumps that stand last

LAST = Chain(NAME, RULES, (Jump("DOCKER-USER", "", Place.LAST), Jump("FORWARD", "", Place.LAST)))


def is_return(rule: str) -> bool:
    """Whether a rule is a RETURN for all packets: only comments precede the target."""
    return re.fullmatch(r'(-m comment --comment (\S+|"([^"\\]|\\.)*") )*-j RETURN', rule) is not None


def repair_last(tables: FakeTables, chunk: int = 1 << 16) -> Repair:
    listing = Listing([NAME], ["DOCKER-USER", "FORWARD"], OWN, "FLANNEL")
    data = tables.text("filter").encode()
    for start in range(0, len(data), chunk):
        listing.feed(data[start : start + chunk])
    found = Repair()
    found.keep(listing, LAST)
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["-j OURS"]),
        (["-j RETURN"], ["-j OURS", "-j RETURN"]),
        (["-j DROP", "-j RETURN"], ["-j DROP", "-j OURS", "-j RETURN"]),
        (["-j OURS", "-j DROP", "-j RETURN"], ["-j DROP", "-j OURS", "-j RETURN"]),
        (["-j RETURN", "-j OURS"], ["-j OURS", "-j RETURN"]),
        (["-j RETURN", "-s 1.1.1.1 -j DROP"], ["-j OURS", "-j RETURN", "-s 1.1.1.1 -j DROP"]),
        (["-s 1.1.1.1 -j RETURN", "-j OURS"], ["-s 1.1.1.1 -j RETURN", "-j OURS"]),
        (["-s 1.1.1.1 -j RETURN", "-j RETURN"], ["-s 1.1.1.1 -j RETURN", "-j OURS", "-j RETURN"]),
        (["-j OURS", "-j OURS"], ["-j OURS"]),
        (["-j OTHER", "-j DROP"], ["-j OTHER", "-j DROP", "-j OURS"]),
        (["-j DROP", "-j OTHER", "-j RETURN"], ["-j DROP", "-j OURS", "-j OTHER", "-j RETURN"]),
        (["-j OURS", "-j OTHER", "-j RETURN"], ["-j OURS", "-j OTHER", "-j RETURN"]),
        (["-j OURS", "-j OTHER", "-j DROP", "-j OURS"], ["-j OTHER", "-j DROP", "-j OURS"]),
        (["-p tcp -j OURS", "-j DROP"], ["-j DROP", "-j OURS"]),
        *(
            ([f"{comments} -j RETURN", "-j OURS", "-j RETURN"], ["-j OURS", f"{comments} -j RETURN", "-j RETURN"])
            for comments in (
                "-m comment --comment end",
                '-m comment --comment "the end"',
                '-m comment --comment "a \\"quoted\\" -s 1.1.1.1 \\\\"',
                '-m comment --comment ""',
                "-m comment --comment one -m comment --comment two",
            )
        ),
        *(
            ([f"{match} -j RETURN", "-j OURS"], [f"{match} -j RETURN", "-j OURS"])
            for match in (
                "-m comment --comment end -m conntrack --ctstate ESTABLISHED",
                '-i eth1 -m comment --comment "the end"',
                '-m comment --comment "a" -p tcp -m comment --comment "b"',
                '! -s 1.1.1.1/32 -m comment --comment "-j RETURN"',
            )
        ),
        (["-m comment --comment end -j ACCEPT", "-j OURS"], ["-m comment --comment end -j ACCEPT", "-j OURS"]),
        (
            ['-m comment --comment "x -j RETURN" -j LOG', "-j OURS"],
            ['-m comment --comment "x -j RETURN" -j LOG', "-j OURS"],
        ),
    ],
)
def test_a_jump_stands_last_among_what_packets_reach(before: list[str], after: list[str]) -> None:
    def named(rules: list[str]) -> list[str]:
        return [rule.replace("OURS", NAME).replace("OTHER", OTHER) for rule in rules]

    tables = FakeTables()
    for hook in ("DOCKER-USER", "FORWARD"):
        tables.tables["filter"][hook] = named(before)
    tables.tables["filter"][NAME] = []
    found = repair_last(tables)
    if text := found.text("filter"):
        tables.apply(text.decode())
    reached = before[: next((at for at, rule in enumerate(before) if is_return(rule)), len(before))]
    for fault in found.faults:
        if fault.what.startswith("its jump"):
            assert fault.interrupts == ("-j OURS" not in reached), fault
    for hook in ("DOCKER-USER", "FORWARD"):
        assert tables.tables["filter"][hook] == named(after)
    assert repair_last(tables).text("filter") == b""


@given(
    st.lists(
        st.sampled_from(
            ["-j RETURN", "-j DROP", f"-j {NAME}", f"-j {OTHER}", "-s 1.1.1.1/32 -j RETURN", "-j DOCKER", "-j FLANNEL"]
        ),
        max_size=8,
    ),
    st.integers(1, 300),
)
def test_one_repair_brings_a_jump_to_the_end(rules: list[str], chunk: int) -> None:
    tables = FakeTables()
    for hook in ("DOCKER-USER", "FORWARD"):
        tables.tables["filter"][hook] = list(rules)
    tables.tables["filter"][NAME] = []
    if text := repair_last(tables, chunk).text("filter"):
        tables.apply(text.decode())
    assert repair_last(tables, chunk).text("filter") == b""
    found = tables.tables["filter"]["FORWARD"]
    assert [rule for rule in found if rule != f"-j {NAME}"] == [rule for rule in rules if rule != f"-j {NAME}"]
    reached = found[: found.index("-j RETURN")] if "-j RETURN" in found else found
    assert f"-j {NAME}" in reached
    assert {rule for rule in reached[reached.index(f"-j {NAME}") :] if "FLANNEL-M" not in rule} == set()


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_output_is_accepted_or_incomplete(data: bytes, chunk: int) -> None:
    listing = Listing([NAME], ["POSTROUTING"], OWN, "FLANNEL")
    listing.look_for(b"-A POSTROUTING -j X\n")
    for start in range(0, len(data), chunk):
        listing.feed(data[start : start + chunk])
    assert not listing.is_complete or not data or b"COMMIT" in data
    assert isinstance(listing.last_line, str)


def test_chunks_end_anywhere() -> None:
    tables = whole()
    tables.tables["nat"]["POSTROUTING"] += FOREIGN
    text = tables.text("nat")
    whole_listing = listed(text)
    for chunk in random.Random(1).sample(range(1, 200), 20):
        assert listed(text, chunk).jumps(NAME.encode()) == whole_listing.jumps(NAME.encode())
        assert listed(text, chunk).rules == whole_listing.rules


# Comments of several lines

#: What an operator may write into a comment, as iptables-save prints it.
COMMENTS = [
    "a\nb",
    f"a\n-A POSTROUTING -j {NAME}\nb",
    f"\n-A {NAME} -j DROP\n",
    "\n-A POSTROUTING -j RETURN\n",
    "COMMIT\n*nat\n:POSTROUTING ACCEPT [0:0]",
    f"\n:{NAME} - [0:0]\n",
    f'a \\"\n-A OUTPUT -j {NAME}\n\\"\\\\',
    "\n",
]


def foreign_rules(comment: str) -> list[str]:
    return [
        f'-p tcp -m comment --comment "{comment}" -j ACCEPT',
        f'-m comment --comment "{comment}" -m mark --mark 0x1',
    ]


@pytest.mark.parametrize("comment", COMMENTS)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_a_line_inside_quotes_is_no_rule(comment: str, chunk: int) -> None:
    tables = whole()
    nat = tables.tables["nat"]
    for hook in ("POSTROUTING", "OUTPUT", "DOCKER"):
        nat.setdefault(hook, []).extend(foreign_rules(comment))
    assert repair(tables, chunk).text("nat") == b""
    assert listed(tables.text("nat"), chunk).is_complete


@pytest.mark.parametrize("comment", COMMENTS)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_a_rule_of_several_lines_counts_once_where_a_jump_stands_last(comment: str, chunk: int) -> None:
    for before in (foreign_rules(comment), [*foreign_rules(comment), f'-m comment --comment "{comment}" -j RETURN']):
        tables = FakeTables()
        for hook in ("DOCKER-USER", "FORWARD"):
            tables.tables["filter"][hook] = list(before)
        tables.apply(repair_last(tables, chunk).text("filter").decode())
        for hook in ("DOCKER-USER", "FORWARD"):
            assert tables.tables["filter"][hook] == [*before[:2], f"-j {NAME}", *before[2:]]
        assert repair_last(tables, chunk).text("filter") == b""


@pytest.mark.parametrize("comment", COMMENTS)
def test_a_jump_with_a_comment_of_several_lines_stays_because_no_command_can_name_it(comment: str) -> None:
    tables = whole()
    tables.tables["nat"]["POSTROUTING"].append(f'-m comment --comment "{comment}" -j {NAME}')
    assert repair(tables).text("nat") == b""


def test_a_quote_that_does_not_end_is_no_listing() -> None:
    listing = listed(f'*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -m comment --comment "{RULES.decode()}COMMIT\n')
    assert not listing.is_complete
    with pytest.raises(ValueError, match="a line without an end"):
        listing.feed(b"x\n" * (1 << 20))


@pytest.mark.parametrize("rule", ['-m set --match-set a"b src -j ACCEPT', '-m comment --comment 5\\" -j ACCEPT'])
def test_a_quote_inside_a_word_opens_nothing(rule: str) -> None:
    tables = whole()
    tables.tables["nat"]["POSTROUTING"] += [rule, "-j ACCEPT"]
    assert repair(tables).text("nat") == b""
