"""What a Docker engine answers, without one: containers of a small compose project, as engine 20.10 describes them.

For what the program makes of such answers. What an engine really does is tested in tests/acceptance, on a real one.
"""

import copy
import json
import re
import socketserver
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

VERSION = {"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10.24"}
CANARY = "sesame-open-up"


def described(service: str, **state: Any) -> dict[str, Any]:
    """A container as ``docker inspect`` shows it."""
    identifier = f"{service.encode().hex():0<64}"
    return {
        "Id": identifier,
        "Name": f"/saas_{service}_1",
        "Created": "2026-11-24T11:17:56.516098038Z",
        "RestartCount": 0,
        "Image": "sha256:75bec5",
        "Path": "serve",
        "Args": ["--token", CANARY],
        "State": {
            "Status": "running",
            "Running": True,
            "Restarting": False,
            "OOMKilled": False,
            "ExitCode": 0,
            "StartedAt": "2026-11-24T11:17:56.897627516Z",
            "FinishedAt": "0001-01-01T00:00:00Z",
            **state,
        },
        "Config": {
            "Image": "local/saas:1",
            "Tty": False,
            "Env": [
                "PATH=/bin",
                f"API_TOKEN={CANARY}",
                "DATABASE_URL=postgresql://app:pa%40ss-word@db/saas",
                "LEVEL=info",
            ],
            "Labels": {
                "com.docker.compose.project": "saas",
                "com.docker.compose.service": service,
                "com.docker.compose.oneoff": "False",
            },
        },
        "NetworkSettings": {"Networks": {"saas_default": {"IPAddress": "10.142.0.2"}}},
    }


IMAGE = {"Id": "sha256:75bec5", "Config": {"Env": ["PATH=/bin"]}}


@dataclass
class CannedEngine:
    """``containers`` by their names; ``logs`` are frames of (time, stream, text) for each of them."""

    host: str
    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: list[tuple[str, int, bytes]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def find(self, name: str) -> dict[str, Any] | None:
        found = [each for each in self.containers.values() if name in {each["Id"], each["Name"][1:]}]
        return found[0] if found else None

    def answer(self, method: str, path: str, query: dict[str, list[str]]) -> Any:
        """A JSON document, bytes, or None for what there is not."""
        self.requests.append(f"{method} {path}")
        if path == "/version":
            return VERSION
        if path == "/containers/json":
            labels = json.loads(query["filters"][0])["label"]
            return [
                {"Id": each["Id"], "Labels": each["Config"]["Labels"]}
                for each in self.containers.values()
                if all(_has(each["Config"]["Labels"], label) for label in labels)
            ]
        if path.startswith("/images/"):
            return IMAGE
        match = re.fullmatch(r"/containers/([^/]+)/(json|logs|restart)", path)
        container = self.find(match[1]) if match else None
        if match is None or container is None:
            return None
        return {"json": lambda: container, "logs": lambda: self._logs(query), "restart": lambda: b""}[match[2]]()

    def _logs(self, query: dict[str, list[str]]) -> bytes:
        wanted = {number for number, name in ((1, "stdout"), (2, "stderr")) if query[name] == ["1"]}
        tail = query["tail"][0]
        lines = self.logs if tail == "all" else self.logs[len(self.logs) - int(tail) :]
        frames = [(kind, f"{at} ".encode() + text) for at, kind, text in lines if kind in wanted]
        return b"".join(struct.pack(">BxxxL", kind, len(data)) + data for kind, data in frames)


def _has(labels: dict[str, str], wanted: str) -> bool:
    name, separator, value = wanted.partition("=")
    return labels.get(name) == value if separator else name in labels


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_words: object) -> None:
        pass

    def _handle(self) -> None:
        url = urlsplit(self.path)
        path = re.sub(r"^/v[\d.]+", "", url.path)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.engine.answer(self.command, path, parse_qs(url.query))  # type: ignore[attr-defined]
        document = {"message": "No such container"} if answer is None else answer
        body = answer if isinstance(answer, bytes) else json.dumps(document).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _handle  # noqa: N815


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@contextmanager
def running(socket: Path) -> Iterator[CannedEngine]:
    """An engine on a unix socket with the services ``bot`` and ``api``, each with five lines of log."""
    engine = CannedEngine(f"unix://{socket}")
    health = {"Status": "healthy", "Log": [{"Output": "ok\n"}]}
    engine.containers = {"bot": described("bot", Health=health), "api": described("api")}
    engine.containers["bot"]["Config"]["Healthcheck"] = {"Test": ["CMD", "true"], "Interval": 10**9}
    engine.containers = copy.deepcopy(engine.containers)
    engine.logs = [
        (f"2026-11-24T11:18:0{n}.00000000{n}Z", 1 + n % 2, f"line {n} {CANARY}\n".encode()) for n in range(5)
    ]
    with _Server(str(socket), _Handler) as server:
        server.engine = engine  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield engine
        server.shutdown()
        thread.join()


@pytest.fixture
def canned_engine() -> Iterator[CannedEngine]:
    """What a Docker engine answers, with two services; ``.host`` is for DOCKER_HOST."""
    with tempfile.TemporaryDirectory(prefix="engine", dir="/tmp") as folder, running(Path(folder, "s")) as engine:
        yield engine
