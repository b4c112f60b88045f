"""The part of an etcd client that is independent of the version of etcd's API.

The module parses -etcd-endpoints, checks TLS files, rotates over the endpoints and words the causes of failures.

Each call runs in a daemon thread of its own.  A slow answer therefore never delays a renewal, and no thread keeps the
process alive.  A cancelled call only stops waiting for its answer: a cancelled write may still take effect.

Each endpoint has ``REPLY_TIMEOUT`` for a whole call (bounded_http.py), then ``Rotation`` asks the next one.  A client
library must not retry or fail over by itself, because flannelpy has to know whether a write was sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from flannelpy.errors import ApiSwitchedOff, FlannelError, HostError, RegistryUnavailable, UsageError
from flannelpy.foreign import shown
from flannelpy.registry.answers import Answers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flannelpy.report import StoreReport

DEFAULT_PORT = 2379
REPLY_TIMEOUT = 4.0  # seconds for a whole call of one endpoint; bounded_http.py gives a long answer more
LONGEST_CAUSE = 200  # characters; a proxy may answer with a whole web page


class Endpoint(NamedTuple):
    """One address of etcd; the host of an IPv6 address keeps its brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Parse ``http(s)://host[:port]``.  Raises UsageError."""
    wrong = UsageError(f"-etcd-endpoints: {text!r} is not of the form http://host:port or https://host:port")
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname, DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        raise wrong from None
    if "@" in parts.netloc:  # the message omits the value, which holds a password
        raise UsageError("-etcd-endpoints: give the user by -etcd-username and -etcd-password, not inside the URL")
    if parts.scheme not in ("http", "https") or not host or " " in host or not port:
        raise wrong
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise wrong
    return Endpoint(parts.scheme, f"[{host}]" if ":" in host else host, port)


@dataclass(frozen=True, slots=True)
class Access:
    """How flannelpy proves to etcd who it is, and checks who etcd is: paths of PEM files, and a user."""

    keyfile: str | None = None
    certfile: str | None = None
    cafile: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def tls(self) -> dict[str, Any]:
        """The options of a pool of urllib3."""
        files = {"key_file": self.keyfile, "cert_file": self.certfile, "ca_certs": self.cafile}
        return {option: path for option, path in files.items() if path}

    def check_files(self) -> None:
        """Load the TLS files: a client library would do so at its first call.  Raises UsageError, HostError."""
        if bool(self.keyfile) != bool(self.certfile):
            raise UsageError("-etcd-keyfile and -etcd-certfile must be given together")
        for flag in ("keyfile", "certfile", "cafile"):
            if path := getattr(self, flag):
                _check_readable(f"-etcd-{flag}", path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._load_ca(context)
        self._load_certificate(context)

    def _load_ca(self, context: ssl.SSLContext) -> None:
        if not self.cafile:
            return
        try:
            context.load_verify_locations(self.cafile)
        except ssl.SSLError as error:
            raise HostError(f"-etcd-cafile: {self.cafile} holds no CA certificate in PEM form") from error

    def _load_certificate(self, context: ssl.SSLContext) -> None:
        if not self.certfile:
            return
        try:
            context.load_cert_chain(self.certfile, self.keyfile, password=lambda: "")  # or OpenSSL asks on the terminal
        except ssl.SSLError as error:
            raise HostError(
                f"-etcd-certfile, -etcd-keyfile: {self.certfile} and {self.keyfile} are not a certificate and its "
                "unencrypted key in PEM form"
            ) from error


ANONYMOUS = Access()  # no user, and no certificate


def _check_readable(flag: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise HostError(f"{flag}: cannot read {path}: {error.strerror}") from error


def as_latin1(credential: str) -> str:
    """Recode a credential so that urllib3, which sends it as Latin-1, sends its UTF-8 bytes."""
    return credential.encode("utf-8", "surrogateescape").decode("latin-1")


class NoAnswer(Exception):
    """An endpoint gave no usable answer; ``sent``: the request may have taken effect nevertheless."""

    def __init__(self, cause: str, sent: bool) -> None:
        super().__init__(shown(" ".join(cause[: 10 * LONGEST_CAUSE].split()), LONGEST_CAUSE))
        self.sent = sent


class NoSuchApi(NoAnswer):
    """An endpoint answered that it does not have this version of etcd's API; it did nothing."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause, sent=False)


class EndpointClient(Protocol):
    """A client of one endpoint.  Its methods raise etcd's refusals as RegistryError, and NoAnswer."""

    url: Endpoint


Client = TypeVar("Client", bound=EndpointClient)
Answer = TypeVar("Answer")


class Rotation(Generic[Client]):
    """The clients of all endpoints, in rotation: the endpoint that answered last comes first.

    Raises UsageError from the constructor if there is no endpoint.
    """

    def __init__(self, clients: Sequence[Client]) -> None:
        if not clients:
            raise UsageError("-etcd-endpoints: name at least one endpoint")
        self.clients = clients
        self.answers = Answers()
        self._first = 0  # shared by all threads: each only ever stores a valid index

    def ask(self, request: Callable[[Client], Answer], settle: Callable[[Client], Answer] | None = None) -> Answer:
        """Return the first usable answer; each endpoint is asked once.

        If an endpoint may have executed ``request`` but its reply was lost, ``settle`` replaces ``request``.  Raises
        etcd's refusals as RegistryError, RegistryUnavailable, and ApiSwitchedOff if at least half of the endpoints
        answer that they do not have this API, and none has it.  Each member of etcd has a flag of its own, so one
        endpoint does not speak for all; and a cluster works with one half of its members being down at most.  The error
        is certain if all of them answer so.
        """
        failures = []
        start, count = self._first, len(self.clients)
        for turn in range(start, start + count):
            client = self.clients[turn % count]
            try:
                return self._usable_answer(request, client)
            except NoAnswer as failure:
                self.pass_over(client)
                if settle and failure.sent:
                    return self.ask(settle)
                failures.append((client, failure))
        raise _unavailable(failures)

    def ask_at(self, client: Client, request: Callable[[Client], Answer]) -> Answer:
        """Return the answer of one endpoint.  Raises etcd's refusals as RegistryError, and RegistryUnavailable."""
        try:
            return self._usable_answer(request, client)
        except NoAnswer as failure:
            self.pass_over(client)
            raise RegistryUnavailable(f"{client.url}: {failure}") from failure

    def _usable_answer(self, request: Callable[[Client], Answer], client: Client) -> Answer:
        """Return the answer, and note whether there was one; a refusal is one, too."""
        began = self.answers.now()
        try:
            answer = _usable_answer(request, client)
        except (FlannelError, NoSuchApi):
            self.answers.answered()
            raise
        except NoAnswer as failure:
            self.answers.failed(began, f"{client.url}: {failure}")
            raise
        self.answers.answered()
        return answer

    def report(self, api: int) -> StoreReport:
        """Return when the store answered; ``api``: the version of etcd's API that the clients use."""
        return self.answers.report(api, str(self.preferred.url))

    @property
    def preferred(self) -> Client:
        """The client that the next call begins with."""
        return self.clients[self._first]

    def pass_over(self, client: Client) -> None:
        """Begin the next calls with the endpoint after this one."""
        self._first = (self.clients.index(client) + 1) % len(self.clients)


def _unavailable(failures: Sequence[tuple[EndpointClient, NoAnswer]]) -> RegistryUnavailable:
    """Return the error for a call that no endpoint has answered."""
    text = "; ".join(f"{client.url}: {failure}" for client, failure in failures)
    without = sum(isinstance(failure, NoSuchApi) for _, failure in failures)
    if 2 * without < len(failures):
        return RegistryUnavailable(text)
    return ApiSwitchedOff(text, is_certain=without == len(failures))


def _usable_answer(request: Callable[[Client], Answer], client: Client) -> Answer:
    """Return the answer.  Raises NoAnswer also if a client library fails on an answer that etcd would never give.

    Such an exception may be any, RecursionError and MemoryError included.
    """
    try:
        return request(client)
    except (FlannelError, NoAnswer):
        raise
    except Exception as error:
        raise NoAnswer(f"not an answer of etcd's ({str(error) or type(error).__name__})", sent=True) from error


class CallThreads:
    """Runs blocking calls for the event loop, each in a daemon thread of its own."""

    def __init__(self) -> None:
        self._pending: set[asyncio.Future[Any]] = set()
        self._closed = False

    async def run(self, call: Callable[[], Answer], discard: Callable[[Answer], None] = lambda _: None) -> Answer:
        """Return the result of ``call``.  Raises its exceptions, and RegistryUnavailable if no thread can start.

        ``discard`` releases a result that arrives after this coroutine was cancelled or ``close`` was called.
        """
        if self._closed:
            raise RegistryUnavailable("the registry was closed")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending.add(answer)
        answer.add_done_callback(self._pending.discard)
        try:
            threading.Thread(target=self._deliver, args=(call, answer, discard), name="etcd", daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            answer.cancel()
            raise RegistryUnavailable(f"no thread to ask in: {error}") from error
        try:
            return await answer
        except asyncio.CancelledError:
            # The result may have arrived in the same turn of the event loop.
            if not answer.cancelled() and not answer.exception():
                _release(answer.result(), discard)
            raise

    def close(self) -> None:
        """End every pending ``run`` by RegistryUnavailable; the threads end by their own time-outs."""
        self._closed = True
        for answer in self._pending:
            if not answer.done():
                answer.set_exception(RegistryUnavailable("the registry was closed"))

    def _deliver(
        self, call: Callable[[], Answer], answer: asyncio.Future[Answer], discard: Callable[[Answer], None]
    ) -> None:
        """Make the call in this thread and hand its outcome to the event loop."""
        try:
            result = call()
        except Exception as error:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and no coroutine waits any more
                answer.get_loop().call_soon_threadsafe(_fail, answer, error)
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if not self._closed:  # a loop that ends may run no more callbacks
                answer.get_loop().call_soon_threadsafe(_succeed, answer, result, discard)
                return
        _release(result, discard)


def _succeed(answer: asyncio.Future[Answer], result: Answer, discard: Callable[[Answer], None]) -> None:
    if answer.done():  # cancelled or closed meanwhile
        _release(result, discard)
    else:
        answer.set_result(result)


def _release(result: Answer, discard: Callable[[Answer], None]) -> None:
    with contextlib.suppress(Exception):
        discard(result)


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


def no_answer(error: Exception) -> NoAnswer:
    """Translate an exception of urllib3, or of a library on top of it, into words that an operator can act on."""
    import urllib3

    causes = list(_causes(error))
    # In urllib3 every failure before the connection stands is a ConnectTimeoutError.
    sent = not any(isinstance(cause, urllib3.exceptions.ConnectTimeoutError) for cause in causes)
    return NoAnswer(_in_words(causes[-1]), sent)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and its causes, in any of the places where python-etcd and urllib3 keep them."""
    while error is not None:
        yield error
        kept = (getattr(error, "cause", None), getattr(error, "reason", None), *error.args, error.__cause__)
        error = next((inner for inner in kept if isinstance(inner, BaseException)), None)


def _in_words(cause: BaseException) -> str:
    if isinstance(cause, TimeoutError) and not cause.strerror:
        return "no answer in time"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"certificate refused: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or cause}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause) or type(cause).__name__
