"""The server itself: where it listens, and how it begins and ends."""

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opsctl.errors import ConfigurationError, OpsctlError
from opsctl.telemetry.logs import get_logger

if TYPE_CHECKING:
    from opsctl.web.guard import Application

ENDING_SECONDS = 5
"""How long what is being answered may take once the server is to end."""

MOST_AT_ONCE = 200
"""Requests under way; more are told to come again (503)."""

BACKLOG = 128
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def require_libraries() -> None:
    """Raises ConfigurationError where the extra is not installed."""
    try:
        import fastapi  # noqa: F401
        import jinja2  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"opsctl serve needs what the extra `serve` installs; {error.name} is missing.",
            hint="Install opsctl again with it, `pipx install --force '.[serve]'` in its clone: docs/install.md.",
        ) from error


def addresses_of(host: str, port: int) -> list[tuple[int, Any]]:
    """The addresses that a host's name means here, with their families. Raises ConfigurationError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(
            f"{host!r} is no address of this host: {error.strerror}.", hint="For example 127.0.0.1."
        ) from error
    return [(family, address) for family, _, _, _, address in dict.fromkeys(found)]


def is_loopback(addresses: list[tuple[int, Any]]) -> bool:
    """Whether nobody from outside can reach them."""
    return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback for _, address in addresses)


def listen(addresses: list[tuple[int, Any]]) -> list[socket.socket]:
    """Sockets at these addresses. Raises OpsctlError when one is taken, or not ours to take."""
    sockets: list[socket.socket] = []
    for family, address in addresses:
        host, port, *rest = address
        if port == 0 and sockets:  # the same one everywhere
            port = sockets[0].getsockname()[1]
        try:
            made = socket.create_server((host, port, *rest)[:2], family=family, backlog=BACKLOG)
        except OSError as error:
            for each in sockets:
                each.close()
            raise OpsctlError(
                f"opsctl cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}.",
                hint="Is it running already? --port chooses another port.",
            ) from error
        # Accepted ones inherit it; without it every answer waits 40 ms for the client's acknowledgement of its head.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets.append(made)
    return sockets


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def run(application: "Application", sockets: list[socket.socket], *, started: Callable[[], None]) -> int:
    """Answer until a signal comes, then what is under way, then end; how many requests there were."""
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """A signal is how a server ends, no failure: it is not raised again, and a dropped terminal counts too."""
            before = {number: signal.signal(number, self.handle_exit) for number in ENDING}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            started()

    _send_logs_on()
    server = Server(
        uvicorn.Config(
            application,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            loop="asyncio",
            http="h11",
            ws="none",
            limit_concurrency=MOST_AT_ONCE,
            timeout_graceful_shutdown=ENDING_SECONDS,
        )
    )
    server.run(sockets)
    return server.server_state.total_requests


class _ToOurs(logging.Handler):
    """What the server's library has to say, in our log."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger().warning("serve.library", message=record.getMessage())


def _send_logs_on() -> None:
    log = logging.getLogger("uvicorn")
    log.handlers = [_ToOurs(logging.WARNING)]
    log.setLevel(logging.WARNING)
    log.propagate = False
