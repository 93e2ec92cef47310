"""A TCP proxy that does to connections what networks and overloaded services do."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

PIECE = 1 << 16
UNAVAILABLE = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
DENIAL = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
DENIED = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"


class Proxy:
    """Passes connections on to ``target``; ``faults`` are tried on each, in the order they were added, until one acts.

    A fault is ``fault(request) -> act or None``: ``request`` is the first piece a client sends on its connection,
    ``act`` one of :func:`refuse`, :func:`reset`, :func:`stall`, :func:`truncate`, :func:`spoil`, :func:`deny`.
    Keep-alive is undone, so that each request is a connection of its own.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        self.faults: list[Fault] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            self._keep(client)
            first = b""
            while b"\r\n\r\n" not in first:
                piece = client.recv(PIECE)
                if not piece:
                    return
                first += piece
            self.requests.append(first.partition(b"\r\n")[0].decode())
            fault = self._chosen(self.requests[-1])
            if fault is not None:
                fault(self, client, first)
            else:
                self.forward(client, first)
        with self._lock:
            self._open.discard(client)

    def _chosen(self, request: str) -> "Act | None":
        with self._lock:
            for fault in self.faults:
                act = fault(request)
                if act is not None:
                    return act
        return None

    def forward(
        self,
        client: socket.socket,
        first: bytes,
        *,
        upto: int | None = None,
        spoiled: bool = False,
        bytes_per_second: int | None = None,
    ) -> None:
        """One request there and its answer back, of which the client gets ``upto`` bytes.

        ``spoiled``: a bit of the request's body is another one when it arrives.
        """
        head, end, body = first.partition(b"\r\n\r\n")
        if spoiled and body:
            first, spoiled = head + end + _spoil(body), False
        with socket.create_connection(self._target) as server:
            self._keep(server)
            server.sendall(first.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            threading.Thread(target=_pump, args=(client, server, spoiled, bytes_per_second), daemon=True).start()
            left = upto
            with suppress(OSError):
                while (left is None or left > 0) and (piece := server.recv(PIECE)):
                    piece = piece if left is None else piece[:left]
                    left = None if left is None else left - len(piece)
                    client.sendall(piece)
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._open.discard(server)

    def wait(self) -> None:
        """Until the proxy ends."""
        self._ended.wait(600)

    def _keep(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)


def _pump(source: socket.socket, sink: socket.socket, spoiled: bool, bytes_per_second: int | None) -> None:
    with suppress(OSError):
        while piece := source.recv(PIECE):
            sink.sendall(_spoil(piece) if spoiled else piece)
            spoiled = False
            if bytes_per_second is not None:
                time.sleep(len(piece) / bytes_per_second)


def _spoil(piece: bytes) -> bytes:
    return bytes([piece[0] ^ 1]) + piece[1:]


Act = Callable[[Proxy, socket.socket, bytes], None]
Fault = Callable[[str], Act | None]


def refuse(_proxy: Proxy, client: socket.socket, _first: bytes) -> None:
    """503, whatever was asked."""
    _answer(client, UNAVAILABLE)


def deny(_proxy: Proxy, client: socket.socket, _first: bytes) -> None:
    """403 AccessDenied, as a bucket's policy would."""
    _answer(client, DENIED % (len(DENIAL), DENIAL))


def spoil(proxy: Proxy, client: socket.socket, first: bytes) -> None:
    """The request with one bit of its body changed."""
    proxy.forward(client, first, spoiled=True)


def _answer(client: socket.socket, answer: bytes) -> None:
    client.sendall(answer)
    with suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        while client.recv(PIECE):
            pass


def reset(_proxy: Proxy, client: socket.socket, _first: bytes) -> None:
    """RST in the middle of the request's body."""
    with suppress(OSError):
        client.settimeout(0.1)  # a short body has come with the head
        client.recv(PIECE)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def stall(proxy: Proxy, _client: socket.socket, _first: bytes) -> None:
    """Nothing, ever: a black hole."""
    proxy.wait()


def throttle(bytes_per_second: int) -> Act:
    """The request goes through, no faster than that."""

    def act(proxy: Proxy, client: socket.socket, first: bytes) -> None:
        proxy.forward(client, first, bytes_per_second=bytes_per_second)

    return act


def truncate(size: int) -> Act:
    """The first ``size`` bytes of the answer, then the end."""

    def act(proxy: Proxy, client: socket.socket, first: bytes) -> None:
        proxy.forward(client, first, upto=size)

    return act


def times(count: int | None, wanted: Callable[[str], bool], act: Act) -> Fault:
    """``act`` for the first ``count`` requests that are ``wanted``, or for all of them."""
    left = [count]

    def fault(request: str) -> Act | None:
        if not wanted(request) or left[0] == 0:
            return None
        if left[0] is not None:
            left[0] -= 1
        return act

    return fault
