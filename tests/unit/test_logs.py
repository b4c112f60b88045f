"""The log's lines, byte for byte."""

from __future__ import annotations

import contextlib
import contextvars
import io
import logging
import re
import sys
import time
from datetime import datetime
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest

from flannelpy import logs
from flannelpy.backend.lease_log import LeaseLog
from flannelpy.errors import HostError
from flannelpy.logs import FailureLog

if TYPE_CHECKING:
    from collections.abc import Iterator

# 22 November, 10:59:23 local time, in any time zone of the machine.
MOMENT = datetime(2026, 11, 22, 10, 59, 23).astimezone().timestamp()


def record(level: int = logging.INFO, text: str = "text", *args: object, created: float = MOMENT) -> logging.LogRecord:
    made = logging.LogRecord("flannelpy.x", level, "/somewhere/udp.py", 222, text, args, None)
    made.created = created
    made.process = 11737
    return made


def formatted(made: logging.LogRecord) -> str:
    return logs.GlogFormatter().format(made)


@pytest.mark.parametrize(
    ("level", "letter"),
    [
        (logging.DEBUG, "I"),
        (logging.INFO, "I"),
        (logging.WARNING, "W"),
        (logging.ERROR, "E"),
        (logging.CRITICAL, "F"),
    ],
)
def test_a_line_is_glogs(level: int, letter: str) -> None:
    line = formatted(record(level, "Subnet added: %s", "11.0.101.0/24", created=MOMENT + 0.645089))
    assert re.fullmatch(rf"{letter}1122 10:59:23\.64508\d 11737 udp\.py:222\] Subnet added: 11\.0\.101\.0/24", line)


@pytest.mark.parametrize(("fraction", "digits"), [(0.0, "000000"), (0.25, "250000"), (0.5, "500000")])
def test_microseconds_have_six_digits(fraction: float, digits: str) -> None:
    assert formatted(record(created=MOMENT + fraction)) == f"I1122 10:59:23.{digits} 11737 udp.py:222] text"


def test_a_fraction_just_below_a_second_stays_below_it() -> None:
    assert formatted(record(created=MOMENT + 0.9999998)).startswith("I1122 10:59:23.999999 ")


@pytest.mark.parametrize(("process", "digits"), [(7, "00007"), (11737, "11737"), (4194304, "4194304")])
def test_the_process_id_has_at_least_five_digits(process: int, digits: str) -> None:
    made = record()
    made.process = process
    assert formatted(made) == f"I1122 10:59:23.000000 {digits} udp.py:222] text"


def test_single_digits_of_a_date_are_padded() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5).astimezone().timestamp()
    assert formatted(record(created=moment)) == "I0102 03:04:05.000000 11737 udp.py:222] text"


def test_the_time_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-5:30")
    time.tzset()
    try:
        assert formatted(record(created=0.0)).startswith("I0101 05:30:00.000000 ")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_traceback_follows_on_lines_of_its_own() -> None:
    made = record(logging.ERROR)
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        made.exc_info = sys.exc_info()
    first, second, *_, last = formatted(made).splitlines()
    assert first == "E1122 10:59:23.000000 11737 udp.py:222] text"
    assert second == "    Traceback (most recent call last):"
    assert last == "    RuntimeError: boom"


FOREIGN = [
    "a\nE1122 10:59:23.000000 00001 udp.py:1] forged",
    "a\r\x1b[2Jb",
    "\u2028\u2029\x85\x0b\x0c",
    "\u202e\u200f",
    "\ud800",
]


@pytest.mark.parametrize("text", FOREIGN)
def test_a_record_is_one_line_with_any_text(text: str) -> None:
    line = formatted(record(logging.ERROR, "Ignoring %s", text))
    assert line.isprintable()
    assert line.startswith("E1122 10:59:23.000000 11737 udp.py:222] Ignoring ")


@pytest.mark.parametrize("text", FOREIGN)
def test_a_traceback_begins_no_record(text: str) -> None:
    made = record(logging.ERROR)
    try:
        raise RuntimeError(text)
    except RuntimeError:
        made.exc_info = sys.exc_info()
    _, *lines = formatted(made).split("\n")
    assert all(line.startswith("    ") and line.isprintable() for line in lines)


def test_a_line_has_an_end() -> None:
    assert formatted(record(logging.ERROR, "x" * 10_000_000)).endswith("x... (10000000 characters)")
    assert len(formatted(record(logging.ERROR, "%s", "\n" * 100_000))) < 5000


def test_messages_without_end_are_logged_up_to_a_limit_and_counted(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    limit = logs.LogLimit(logging.getLogger("flannelpy.x"), "Ignoring leases")
    for number in range(10_000):
        clock[0] = 100.0 + number / 1000
        limit.message(logging.ERROR, f"message {number}")
        limit.report()
    assert caplog.messages == [f"message {number}" for number in range(limit.BURST)]
    clock[0] = 219.0
    limit.report()
    assert len(caplog.messages) == limit.BURST
    for clock[0] in (221.0, 400.0):
        limit.report()
    assert caplog.messages[limit.BURST :] == [f"Ignoring leases: {10_000 - limit.BURST} more in the last two minutes"]
    limit.message(logging.WARNING, "later")
    assert caplog.messages[-1] == "later"


def test_of_what_alternates_little_is_logged(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    failures = FailureLog(logging.getLogger("flannelpy"), "Watch subnets")
    for number in range(6000):
        clock[0] = number / 10
        failures.failed(HostError("one" if number % 2 else "another"))
    assert caplog.messages[:2] == ["Watch subnets: another", "Watch subnets: one"]
    assert len(caplog.messages) <= logs.LogLimit.BURST + 600 // 120
    assert caplog.messages[-1].startswith("Watch subnets: ")
    assert caplog.messages[-1].endswith(" more in the last two minutes")


def test_a_failure_is_logged_with_the_place_where_it_happened(caplog: pytest.LogCaptureFixture) -> None:
    FailureLog(logging.getLogger("flannelpy"), "Watch subnets").failed("no leader")
    assert [record.filename for record in caplog.records] == ["test_logs.py"]


def test_a_failure_is_logged_once_for_each_cause_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog(logging.getLogger("flannelpy"), "Watch subnets")
    causes = "refused", "refused", "no answer", "no answer", "refused"
    assert [failures.failed(HostError(cause)) for cause in causes] == [True, False, True, False, True]
    assert failures.recovered()
    assert not failures.recovered()
    assert failures.failed("refused", "Another line", logging.WARNING)
    assert caplog.messages == [
        "Watch subnets: refused",
        "Watch subnets: no answer",
        "Watch subnets: refused",
        "Another line",
    ]
    assert caplog.records[-1].levelno == logging.WARNING


def note(failures: FailureLog, causes: dict[str, str]) -> None:
    failures.note_all(causes, lambda subjects, cause: f"{'+'.join(subjects)} {cause}")


def test_subjects_that_fail_for_one_cause_are_one_line_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog(logging.getLogger("flannelpy"), "Add routes")
    for _ in range(3):
        note(failures, {"a": "refused", "b": "invalid", "c": "refused"})
    note(failures, {"a": "refused", "c": "invalid", "d": "refused"})
    note(failures, {"b": "invalid"})
    failures.note_logged("refused", "a")
    note(failures, {"a": "refused", "b": "invalid"})
    assert caplog.messages == ["a+c refused", "b invalid", "c invalid", "d refused", "b invalid"]
    assert {record.filename for record in caplog.records} == {"test_logs.py"}


def test_any_number_of_subjects_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog(logging.getLogger("flannelpy"), "Add routes")
    failures.note_all(dict.fromkeys(range(5000), "refused"), lambda subjects, _: str(len(subjects)))
    assert caplog.messages == ["5000"]


def test_each_subject_of_an_operation_has_its_own_cause(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    failures = FailureLog(logging.getLogger("flannelpy"), "Check")
    for subject in ("one", "other", "one"):
        failures.failed("refused", f"{subject}: refused", subject=subject)
    assert failures.recovered("one works again", subject="one")
    assert not failures.recovered("one works again", subject="one")
    assert caplog.messages == ["one: refused", "other: refused", "one works again"]


def test_what_was_omitted_is_reported_without_another_failure(
    caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    failures = FailureLog(logging.getLogger("flannelpy"), "Check", burst=5)
    for number in range(9):
        failures.failed(str(number))
    clock[0] = 121.0
    failures.report()
    assert caplog.messages[5:] == ["Check: 4 more in the last two minutes"]


def test_a_limit_uses_the_clock_that_it_is_given(caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    limit = logs.LogLimit(logging.getLogger("flannelpy"), "Ignoring leases", 1, lambda: now[0])
    for text in ("one", "two"):
        limit.message(logging.ERROR, text)
    now[0] += limit.PAUSE + 1
    limit.report()
    assert caplog.messages == ["one", "Ignoring leases: 1 more in the last two minutes"]


def test_leases_that_come_and_go_without_end_fill_no_log(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    lease_log = LeaseLog(logging.getLogger("flannelpy.x"))
    caplog.set_level(logging.INFO)
    subnets = [IPv4Network((number << 8, 24)) for number in range(1000)]
    for number in range(60_000):
        clock[0] = number / 100
        lease_log.added(subnets[number % 1000])
        lease_log.removed(subnets[number % 1000])
        lease_log.ignored({subnets[number % 1000]: "why"})
        lease_log.report()
    assert len(caplog.messages) < 100
    lines = [message for message in caplog.messages if message.startswith("Subnet ")]
    assert lines[:3] == ["Subnet added: 0.0.0.0/24", "Subnet removed: 0.0.0.0/24", "Subnet added: 0.0.1.0/24"]
    assert len(lines) >= 50  # those of a cluster that starts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_an_hour_of_it_is_a_hundred_lines(caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    limit = logs.LogLimit(logging.getLogger("flannelpy.x"), "Ignoring leases")
    for number in range(36_000):
        clock[0] = number / 10
        limit.message(logging.ERROR, "message")
        limit.report()
    assert len(caplog.messages) < 150


@contextlib.contextmanager
def configured(verbosity: int) -> Iterator[io.StringIO]:
    """What the configured log writes to stderr; the loggers are as they were afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("flannelpy")
    before = root.handlers[:], root.level, ours.level
    root.handlers.clear()
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            logs.configure(verbosity)
        yield written
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [(0, ["info", "warning"]), (1, ["debug", "info", "warning"]), (5, ["debug", "info", "warning"])],
)
def test_verbosity_decides_what_is_logged(verbosity: int, expected: list[str]) -> None:
    log = logging.getLogger("flannelpy.somewhere")
    with configured(verbosity) as written:
        log.debug("debug")
        log.info("info")
        log.warning("warning")
    lines = written.getvalue().splitlines()
    assert [line.partition("] ")[2] for line in lines] == expected
    assert all(re.match(r"[IW]\d{4} \d\d:\d\d:\d\d\.\d{6} \d{5,} test_logs\.py:\d+\] ", line) for line in lines)


def test_libraries_log_from_warnings_on() -> None:
    log = logging.getLogger("some.package")
    with configured(9) as written:
        log.info("info")
        log.warning("warning")
    assert [line.partition("] ")[2] for line in written.getvalue().splitlines()] == ["warning"]


def test_a_line_names_its_network_if_there_are_several() -> None:
    def line() -> str:
        logs.network.set("blue")
        return formatted(record(logging.ERROR, "text"))

    assert contextvars.copy_context().run(line) == "E1122 10:59:23.000000 11737 udp.py:222] blue: text"
    assert formatted(record()) == "I1122 10:59:23.000000 11737 udp.py:222] text"


def test_the_level_changes_while_the_daemon_runs(capsys: pytest.CaptureFixture[str]) -> None:
    package = logging.getLogger("flannelpy")
    before, handlers = package.level, logging.getLogger().handlers[:]
    try:
        logging.getLogger().handlers.clear()
        logs.configure(0)
        for level in (0, 1, 0):
            logs.change_level(level)
            package.debug("a detail at level %d", level)
    finally:
        logging.getLogger().handlers[:] = handlers
        package.setLevel(before)
    lines = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    asked = "as flannelpy log-level asked"
    assert lines == [
        f"Changed the log level to 0, {asked}",
        f"Changed the log level to 1, {asked}",
        "a detail at level 1",
        f"Changed the log level to 0, {asked}",
    ]
