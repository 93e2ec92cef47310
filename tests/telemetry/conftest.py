"""Servers on this machine that write down what they are sent."""

import json
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def items(self):
        """A Sentry envelope's items with their types: after its own header, headers and items in turn."""
        lines = self.body.split(b"\n")
        return [
            (json.loads(header)["type"], json.loads(item))
            for header, item in zip(lines[1::2], lines[2::2], strict=False)
        ]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.received.append(Received(self.path, dict(self.headers), body))
        status = self.server.statuses.pop(0) if self.server.statuses else self.server.status
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_):
        """Quiet."""


class Recorder(ThreadingHTTPServer):
    """``statuses`` are the next answers, ``status`` all others."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.received = []
        self.statuses = []
        self.status = 200
        self.location = ""

    @property
    def address(self):
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def dsn(self):
        return f"http://0123canary4567@{self.address}/7"

    @property
    def paths(self):
        return [each.path for each in self.received]

    def items(self, kind):
        """What Sentry was sent of a kind: event, check_in, transaction."""
        return [item for each in self.received for name, item in each.items if name == kind]


@pytest.fixture
def new_recorder():
    """``new_recorder()``: a server that is there until the end of the test."""
    running = []

    def start():
        server = Recorder()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def recorder(new_recorder):
    return new_recorder()


@pytest.fixture
def hole():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
