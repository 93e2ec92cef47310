"""The way to a server, rung by rung: name, connection, TLS, answer. The first rung that breaks says what is wrong."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opsctl import __version__

BODY_BYTES = 1 << 20
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME: Python has no name for it."""

EXPIRED, NOT_YET_VALID, WRONG_HOST = 10, 9, 62
"""OpenSSL's X509_V_ERR_…; a wrong address (64) is a wrong host, too."""


class RungBroken(Exception):
    """``code`` is the rung, or what is wrong with it; the text says it in a sentence, ``hint`` what to do."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """What a web server said, and how long that took from the name's resolution on."""

    status: int
    reason: str
    body: str
    location: str | None
    seconds: float


@dataclass
class Deadline:
    """When a connection has to be over: a server that sends a byte a second would never time out."""

    seconds: float

    def __post_init__(self) -> None:
        self._ends_at = time.monotonic() + self.seconds
        self.has_passed = False

    @property
    def left(self) -> float:
        return max(0.001, self._ends_at - time.monotonic())

    @contextmanager
    def over(self, connection: socket.socket) -> Iterator[None]:
        """Cut the connection off when the time is over."""

        def cut() -> None:
            self.has_passed = True
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

        timer = threading.Timer(self.left, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def connected(address: Address, deadline: Deadline) -> Iterator[socket.socket]:
    """A TCP connection. Raises RungBroken: dns, refused, timeout, unreachable."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RungBroken(
            "dns", f"The name {address.host} cannot be resolved: {reason}.", "Check its spelling, and DNS."
        ) from error
    connection = _first_that_answers(address, [(each[0], each[1], each[4]) for each in found], deadline)
    with closing(connection), deadline.over(connection):
        connection.settimeout(deadline.left)
        yield connection


def _first_that_answers(address: Address, found: list[tuple[int, int, Any]], deadline: Deadline) -> socket.socket:
    last: OSError | None = None
    for family, kind, place in found:
        connection = socket.socket(family, kind)
        connection.settimeout(deadline.left)
        try:
            connection.connect(place)
        except OSError as error:
            connection.close()
            last = error
        else:
            return connection
    if isinstance(last, TimeoutError):
        raise RungBroken(
            "timeout",
            f"{address} does not answer within {deadline.seconds:g} s.",
            "Is the machine up, and does a firewall drop what goes there?",
        ) from last
    if isinstance(last, ConnectionRefusedError):
        raise RungBroken(
            "refused", f"Nothing listens on {address}.", "Is the service running, and is this its port?"
        ) from last
    raise RungBroken(
        "unreachable",
        f"{address} cannot be reached: {last.strerror if last else 'it has no address'}.",
        "Check the network and its routes.",
    ) from last


@contextmanager
def secured(
    connection: socket.socket, address: Address, context: ssl.SSLContext, server_name: str, deadline: Deadline
) -> Iterator[ssl.SSLSocket]:
    """TLS over a connection. Raises RungBroken: certificate errors by their word, else tls."""
    try:
        wrapped = context.wrap_socket(connection, server_hostname=server_name)
    except ssl.SSLCertVerificationError as error:
        raise certificate_broken(error, address, server_name) from error
    except TimeoutError as error:
        raise _too_late("timeout", f"{address} takes the connection but does not answer", deadline) from error
    except (OSError, ValueError) as error:
        if deadline.has_passed:
            raise _too_late("timeout", f"{address} takes the connection but does not answer", deadline) from error
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise RungBroken(
            "tls", f"TLS with {address} failed: {reason}.", "Does the server speak TLS on that port?"
        ) from error
    with closing(wrapped), deadline.over(wrapped):
        yield wrapped


def certificate_broken(error: ssl.SSLCertVerificationError, address: Address, server_name: str) -> RungBroken:
    """What is wrong with a certificate, each in its own words."""
    if error.verify_code == EXPIRED:
        return RungBroken("expired", f"The certificate of {address} has expired.", "Renew it, and reload the server.")
    if error.verify_code == NOT_YET_VALID:
        return RungBroken(
            "not_yet_valid",
            f"The certificate of {address} is not valid yet.",
            "Is the clock right, here and where the certificate was made?",
        )
    if error.verify_code in {WRONG_HOST, WRONG_HOST + 2}:
        return RungBroken(
            "wrong_host",
            f"The certificate of {address} is not for {server_name}.",
            "Does the server send the right certificate? A name it should have goes into subjectAltName.",
        )
    return RungBroken(
        "untrusted",
        f"The certificate of {address} is not trusted: {error.verify_message}.",
        "Does the server send its intermediate certificates? An authority of your own is named with ca_bundle.",
    )


def tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """What trusts the usual authorities, or those of a file. Raises RungBroken."""
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except OSError as error:
        raise RungBroken(
            "ca_bundle", f"ca_bundle cannot be read: {ca_bundle}: {error.strerror}.", "It holds certificates in PEM."
        ) from error


def ask(url: str, *, headers: Mapping[str, str], ca_bundle: Path | None, timeout_seconds: float) -> Answer:
    """GET ``url``, redirects not followed, the body's first MiB. Raises RungBroken."""
    parts = urlsplit(url)
    is_secure = parts.scheme == "https"
    address = Address(parts.hostname or "", parts.port or (443 if is_secure else 80))
    context = tls_context(ca_bundle) if is_secure else None
    started, deadline = time.monotonic(), Deadline(timeout_seconds)
    with connected(address, deadline) as connection:
        if context is None:
            return _answer(connection, url, headers, deadline, started)
        with secured(connection, address, context, address.host, deadline) as wrapped:
            return _answer(wrapped, url, headers, deadline, started)


def _answer(
    connection: socket.socket, url: str, headers: Mapping[str, str], deadline: Deadline, started: float
) -> Answer:
    parts = urlsplit(url)
    client = http.client.HTTPConnection(parts.hostname or "", parts.port)
    client.sock = connection
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    own = {"Host": parts.netloc, "User-Agent": f"opsctl/{__version__}", "Accept": "*/*", "Connection": "close"}
    try:
        client.request("GET", path, headers={**own, **headers})
        response = client.getresponse()
        body = response.read(BODY_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if deadline.has_passed or isinstance(error, TimeoutError):
            raise _too_late("timeout", f"{url} takes the request but does not answer it", deadline) from error
        raise RungBroken(
            "protocol",
            f"What answers at {url} is no web server, or breaks off: {type(error).__name__}.",
            "Is this the port of the web server, and http or https right?",
        ) from error
    if deadline.has_passed:
        raise _too_late("timeout", f"{url} has not sent all of its answer", deadline)
    text = body.decode("utf-8", "replace")
    return Answer(response.status, response.reason, text, response.getheader("Location"), time.monotonic() - started)


def _too_late(code: str, what: str, deadline: Deadline) -> RungBroken:
    return RungBroken(
        code, f"{what} within {deadline.seconds:g} s.", "The process hangs or is overloaded: look at its logs."
    )
