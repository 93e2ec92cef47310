"""A run of doctor in this process, on a configuration; servers and certificates for it to look at."""

import http.server
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509  # noqa: TID253  # a test may load what it likes
from cryptography.hazmat.primitives import hashes, serialization  # noqa: TID253
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: TID253
from cryptography.x509.oid import NameOID  # noqa: TID253

from opsctl.checks import all_checks, check_ids, choose_units, thresholds_of
from opsctl.checks.run import list_units, run_checks
from opsctl.checks.samples import Samples
from opsctl.checks.scope import Scope
from opsctl.config import load_config
from opsctl.postgres.server import Server
from opsctl.postgres.tools import Tools
from opsctl.repository import Repository
from opsctl.services.docker import Docker
from opsctl.services.names import Services
from opsctl.storage import open_storage


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``look(toml, "backup", now=…)``: the results by name (``backup.age (saasdb)``), as `opsctl doctor` has them."""
    monkeypatch.setenv("OPSCTL_STATE_DIR", str(tmp_path / "state"))
    folder = tmp_path / "look"
    folder.mkdir(exist_ok=True)

    def examine(toml: str, *words: str, now: datetime | None = None) -> dict[str, Any]:
        (folder / "opsctl.toml").write_text(toml)
        config = load_config(folder / "opsctl.toml", working_folder=folder)
        urls = {name: config.repository(name) for name in config.repositories}
        repositories = {name: Repository(name, open_storage(each.url, each)) for name, each in urls.items()}
        runtime = Docker(config.variables)
        services = Services(runtime, config.services, learn_secrets=list)
        scope = Scope(
            config=config,
            databases=list(config.databases),
            clock=lambda: now or datetime.now(UTC),
            open_server=lambda name: Server(config.database_url(name)),
            open_repositories=lambda: repositories,
            open_tools=lambda _name: Tools(search_path=config.search_path, environment=config.child_environment),
            samples=Samples(config.state_path / "samples.json"),
            open_services=lambda: services,
        )
        checks = all_checks(config)
        check_ids(config.doctor.disabled, where="doctor.disabled", checks=checks)
        changed = {name: (limits.warn, limits.crit) for name, limits in config.doctor.thresholds.items()}
        units = list_units(checks, scope, thresholds_of(changed, source="", checks=checks))
        chosen = choose_units(units, words, disabled=config.doctor.disabled, enabled=config.doctor.enabled)
        try:
            return {each.name: each for each in run_checks(chosen, scope)}
        finally:
            runtime.close()

    return examine


# Servers


class _Quiet(http.server.BaseHTTPRequestHandler):
    """What a path says: ``/204`` a status, ``/slow`` nothing, ``/drip`` a byte now and then, ``/moved`` elsewhere."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        stop: threading.Event = self.server.stop  # type: ignore[attr-defined]
        word = self.path.strip("/")
        if word == "slow":
            stop.wait(60)
            return
        if word == "drip":
            while not stop.wait(0.05):
                self.wfile.write(b"H")
            return
        self.send_response(int(word) if word.isdecimal() else 302 if word == "moved" else 200)
        if word == "moved":
            self.send_header("Location", "/200")
        body = f"status: up, asked by {self.headers['X-Who']}".encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Nothing: stderr is the tests'."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_arguments: Any) -> None:
        """A client that goes is what these tests are about."""


@contextmanager
def _serving(context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = _Server(("127.0.0.1", 0), _Quiet)
    server.stop = threading.Event()  # type: ignore[attr-defined]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.stop.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """``serve()``, ``serve(certificate)``: the port of a web server, with TLS if it has a certificate."""
    with ExitStack() as cleanup:

        def start(certificate: Path | None = None) -> int:
            context = None
            if certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate)
            return cleanup.enter_context(_serving(context))

        yield start


# Certificates

YEARS = timedelta(days=900)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """One that signs certificates for these tests; ``bundle`` is what its clients trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        signed = (
            self._builder(_name("opsctl tests"), self._key.public_key(), now - YEARS, now + YEARS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.bundle = folder / "authority.pem"
        self.bundle.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    @staticmethod
    def _builder(subject: x509.Name, key: Any, begins: datetime, ends: datetime) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(_name("opsctl tests"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
        )

    def certificate(self, begins: timedelta, ends: timedelta, *, host: str = "127.0.0.1") -> Path:
        """A certificate and its key, valid from ``begins`` to ``ends``, both counted from now."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        certificate = (
            self._builder(_name("server"), key.public_key(), now + begins, now + ends)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self._folder / f"{certificate.serial_number:x}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        return path


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """``authority.certificate(begins, ends, host=…)``; its clients need ``ca_bundle = authority.bundle``."""
    return Authority(tmp_path_factory.mktemp("authority"))
