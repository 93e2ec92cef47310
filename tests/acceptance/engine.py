"""A Docker engine of the tests' own, and images made of this host's files: there is no registry. Needs root."""

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from opsctl.postgres.processes import die_with_parent

PROGRAMS = ("dockerd", "docker", "docker-compose", "busybox")
PACKAGES = "apt-get install --no-install-recommends docker.io docker-compose busybox-static"
POSTGRES = Path("/usr/lib/postgresql/15")
BUSYBOX, POSTGRES_IMAGE = "local/busybox:1", "local/postgres:15"
APPLETS = (
    "sh",
    "cat",
    "sleep",
    "kill",
    "ls",
    "mkdir",
    "rm",
    "date",
    "printf",
    "true",
    "false",
    "echo",
    "head",
    "ps",
    "seq",
    "wc",
    "test",
)
READY_SECONDS = 60
DATA_SIZE = "6g"
"""The images of all tests together take less than 3 GiB."""

ENTRYPOINT = """\
#!/bin/sh
set -e
cd /tmp
if [ ! -s /data/PG_VERSION ]; then
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
    initdb --no-sync --pgdata=/data --username=postgres --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8
    rm /tmp/password
    echo 'host all all all scram-sha-256' >> /data/pg_hba.conf
fi
exec postgres -D /data -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off
"""


def missing() -> str | None:
    """What keeps a Docker engine from running here, if anything."""
    if os.geteuid() != 0:
        return "an engine of the tests' own needs root"
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    if not (POSTGRES / "bin/postgres").exists():
        lacking.append(str(POSTGRES))
    return f"not installed: {', '.join(lacking)} ({PACKAGES} postgresql-15)" if lacking else None


@dataclass(frozen=True)
class Engine:
    """A running engine; ``host`` is what DOCKER_HOST has to say."""

    folder: Path
    pid: int

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    @property
    def environment(self) -> dict[str, str]:
        return {"DOCKER_HOST": self.host, "PATH": os.environ["PATH"], "HOME": str(self.folder)}

    def __call__(self, *words: str | Path, cwd: Path | None = None, check: bool = True, **env: str) -> str:
        """Run the docker CLI, or docker-compose; what it prints."""
        command = [str(word) for word in words]
        if command[0] != "docker-compose":
            command.insert(0, "docker")
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **env},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def inspect(self, container: str) -> dict:
        return json.loads(self("inspect", container))[0]

    def remove(self, *containers: str) -> None:
        self("rm", "--force", "--volumes", *containers, check=False)


PLUGIN = Path("usr/libexec/docker/cli-plugins/docker-compose")
PLUGIN_SUITE = "trixie"
"""The first Debian whose docker-compose is compose v2, a plugin of the docker CLI that runs anywhere."""


def compose_plugin(folder: Path) -> Path:
    """A ``DOCKER_CONFIG`` with compose v2 in it, from where this machine gets its packages. Nothing is installed."""
    plugin = folder / "config/cli-plugins/docker-compose"
    if not plugin.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _download("docker-compose", Path(work))
            (package,) = Path(work).glob("docker-compose_*.deb")
            subprocess.run(["dpkg", "--extract", package, work], check=True)
            plugin.parent.mkdir(parents=True, exist_ok=True)
            (Path(work) / PLUGIN).replace(plugin)
    return folder / "config"


def _download(package: str, folder: Path) -> None:
    """A package of the other Debian: apt with this machine's own sources, its suite's name replaced."""
    own = Path("/etc/apt")
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    sources = folder / "sources"
    for each in ("sources", "lists/partial", "archives/partial"):
        (folder / each).mkdir(parents=True)
    for file in [own / "sources.list", *(own / "sources.list.d").glob("*.list"), *own.glob("sources.list.d/*.sources")]:
        if file.exists():
            text = file.read_text().replace(release["VERSION_CODENAME"].strip('"'), PLUGIN_SUITE)
            (sources / file.name).write_text(text)
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": sources,
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder,
        "APT::Sandbox::User": "root",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", *words, "--quiet=2", "update"], check=False, cwd=folder)
    subprocess.run(["apt-get", *words, "--quiet=2", "download", package], check=True, cwd=folder)


@contextmanager
def running() -> Iterator[Engine]:
    """The engine, with a small image of busybox and one of PostgreSQL 15; everything is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="d", dir="/var/tmp"))  # short: sockets
    data = folder / "data"
    data.mkdir()
    # In memory: what images are made of is written and removed many times, and nobody needs it afterwards.
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DATA_SIZE},mode=0711", "tmpfs", data], check=True)
    with (folder / "log").open("wb") as log:
        folders = ["--data-root", data, "--exec-root", folder / "exec", "--pidfile", folder / "pid"]
        process = subprocess.Popen(
            ["dockerd", *folders, "--host", f"unix://{folder}/docker.sock", *_own_network(), "--shutdown-timeout=2"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509
        )
    engine = Engine(folder, process.pid)
    try:
        _wait_for(engine, process)
        _import(engine, BUSYBOX, _busybox(), 'CMD ["sleep", "1000"]')
        changes = ["USER 70", "EXPOSE 5432", "ENV PATH=/usr/lib/postgresql/15/bin:/bin", 'CMD ["/entrypoint"]']
        _import(engine, POSTGRES_IMAGE, _postgres(), *changes)
        yield engine
    finally:
        containers = engine("ps", "--all", "--quiet", check=False).split()
        if containers:
            engine.remove(*containers)
        engine("network", "prune", "--force", check=False)  # else their bridges stay on this host
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()
        process.wait()
        for mount in _mounts_below(folder):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _own_network() -> list[str]:
    """Only networks that a test makes, with addresses of this run; no firewall rule of this host is touched."""
    pool = f"base=10.{uuid.uuid4().int % 200 + 20}.0.0/16,size=24"
    return ["--bridge", "none", "--iptables=false", "--ip-forward=false", "--default-address-pool", pool]


def _wait_for(engine: Engine, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not engine("info", "--format", "{{.ServerVersion}}", check=False).strip():
        log = (engine.folder / "log").read_text(errors="replace")[-3000:]
        assert process.poll() is None, f"dockerd has ended: {log}"
        assert time.monotonic() < deadline, f"dockerd does not answer: {log}"
        time.sleep(0.1)


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [mount for mount in (line.split()[1] for line in lines) if mount.startswith(f"{folder}/")][::-1]


def _import(engine: Engine, name: str, archive: bytes, *changes: str) -> None:
    words = [word for change in changes for word in ("--change", change)]
    subprocess.run(
        ["docker", "import", *words, "-", name],
        env=engine.environment,
        input=archive,
        stdout=subprocess.DEVNULL,
        timeout=120,
        check=True,
    )


class _Root:
    """A root file system as a tar archive."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._file, mode="w", dereference=True)  # noqa: SIM115
        self._names: set[str] = set()

    def add(self, path: str | Path, source: str | Path | None = None) -> None:
        """A file or folder of this host, links followed."""
        name = str(path).lstrip("/")
        if name not in self._names:
            self._names.add(name)
            self._tar.add(source or path, arcname=name)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        member = tarfile.TarInfo(path)
        member.size, member.mode = len(text.encode()), mode
        self._tar.addfile(member, io.BytesIO(text.encode()))

    def folder(self, path: str, mode: int = 0o755, uid: int = 0) -> None:
        member = tarfile.TarInfo(path)
        member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, mode, uid, uid
        self._tar.addfile(member)

    def link(self, path: str, target: str) -> None:
        member = tarfile.TarInfo(path)
        member.type, member.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(member)

    def busybox(self) -> None:
        self.add("bin/busybox", shutil.which("busybox"))
        for applet in APPLETS:
            self.link(f"bin/{applet}", "busybox")
        self.write("etc/passwd", "root:x:0:0::/:/bin/sh\npostgres:x:70:70::/tmp:/bin/sh\n")
        self.write("etc/group", "root:x:0:\npostgres:x:70:\n")
        self.folder("tmp", 0o1777)

    def content(self) -> bytes:
        self._tar.close()
        return self._file.getvalue()


def _busybox() -> bytes:
    root = _Root()
    root.busybox()
    return root.content()


def _postgres() -> bytes:
    """PostgreSQL of this host, with the libraries it is linked with and no more."""
    root = _Root()
    root.busybox()
    programs = [
        POSTGRES / "bin" / name for name in ("postgres", "initdb", "psql", "pg_dump", "pg_dumpall", "pg_isready")
    ]
    programs.append(POSTGRES / "bin/pg_restore")
    modules = [POSTGRES / "lib" / f"{name}.so" for name in ("plpgsql", "dict_snowball")]
    for path in [*programs, *modules]:
        root.add(path)
    for library in sorted(_libraries([*programs, *modules])):
        root.add(library)
    root.add("/usr/share/postgresql/15")
    root.add("/usr/share/zoneinfo/Etc")
    root.add("/usr/share/zoneinfo/UTC")
    root.folder("data", 0o700, uid=70)
    root.write("entrypoint", ENTRYPOINT, 0o755)
    return root.content()


def _libraries(programs: list[Path]) -> set[str]:
    found = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    words = [word for line in found.splitlines() for word in line.split() if word.startswith("/")]
    return {word for word in words if not word.endswith(":")}
