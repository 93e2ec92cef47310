"""A real server, real databases and the real program for every test; nothing outside this machine, nothing in HOME."""

import hashlib
import importlib.util
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import opsctl
from opsctl.postgres.binaries import Binaries, choose_server, find_binaries
from opsctl.postgres.cluster import Cluster, throwaway_cluster

FOUND = pytest.StashKey[list[Binaries]]()
SERVER = pytest.StashKey[Binaries | None]()

SOURCE = Path(opsctl.__file__).parents[1]
DEMO_SQL = SOURCE / "opsctl" / "demo.sql"
RICH_SQL = Path(__file__).with_name("rich_schema.sql")

hypothesis.settings.register_profile("opsctl", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("opsctl")

INTERPRETERS = ("PYTHON", "LANG", "LC_", "LD_")
"""Prefixes of variables that an interpreter reads when it starts: such a run is a process of its own."""

CALLERS_VARIABLES = ("PG", "AWS_", "OPSCTL_", "SENTRY_", "DATABASE_URL", "DOCKER_", "COMPOSE_")
"""Prefixes of what a developer's shell may hold and no test may see."""


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "a service that a test needs and does not find fails the test instead of skipping it"
    parser.addoption("--require-services", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    found = find_binaries(search_path=os.environ.get("PATH", "").split(os.pathsep))
    config.stash[FOUND] = found
    config.stash[SERVER] = _chosen_server(found, os.environ.get("OPSCTL_TEST_PG"))
    # From Python 3.12 on, starting a child with a preexec_fn while threads run warns. Ours make one C call.
    config.addinivalue_line("filterwarnings", "ignore:.*multi-threaded, use of fork:DeprecationWarning")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what has one ``xdist_group``: xdist's own way of that is lost on pytest 9.2."""
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            text = (config.rootpath / nodeid.partition("::")[0]).read_text(encoding="utf-8")
            named = re.search(r'xdist_group\("(\w+)"\)', text)
            return named[1] if named else nodeid

    return ByGroup(config, log)


def pytest_report_header(config: pytest.Config) -> str:
    server = config.stash[SERVER]
    found = ", ".join(_described(binaries) for binaries in config.stash[FOUND])
    return f"PostgreSQL: tests run on {_described(server) if server else 'none'}; found {found or 'none'}"


def _chosen_server(found: list[Binaries], wanted: str | None) -> Binaries | None:
    """The newest embedded server, else the newest one; ``OPSCTL_TEST_PG`` names another major."""
    if wanted is None:
        return choose_server([b for b in found if b.embedded], 0) or choose_server(found, 0)
    server = choose_server([b for b in found if str(b.major) == wanted], 0)
    if server is None:
        there = ", ".join(_described(b) for b in found if b.has("postgres", "initdb")) or "none"
        raise pytest.UsageError(f"OPSCTL_TEST_PG={wanted}: no such PostgreSQL server here; found {there}")
    return server


def _described(binaries: Binaries) -> str:
    return f"{binaries.version} ({'embedded' if binaries.embedded else binaries.folder})"


# What no test may do


@pytest.fixture(autouse=True, scope="session")
def _isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No connection leaves this machine, HOME stays empty, the developer's variables are out of sight."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(CALLERS_VARIABLES)]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        sys.addaudithook(_only_this_machine)
        yield
    _assert_empty(home)


def _only_this_machine(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.sendto"}:
        address = arguments[-1]
        host = address[0] if isinstance(address, tuple) and address else None
        if isinstance(host, str) and not _is_here(host):
            # No subclass of Exception: the program under test may not mistake it for a network failure.
            pytest.fail(f"A test tried to reach {host}: tests stay on this machine.")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _assert_empty(home: Path) -> None:
    left = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
    assert not left, f"Something wrote to HOME: {', '.join(left)}"


# Servers and databases


@pytest.fixture(scope="session")
def binaries(pytestconfig: pytest.Config) -> Binaries:
    """The programs of the PostgreSQL the tests run on."""
    server = pytestconfig.stash[SERVER]
    if server is None:
        pytest.fail("These tests need a PostgreSQL server: `make setup` brings one.")
    return server


@pytest.fixture(scope="session")
def cluster(binaries: Binaries) -> Iterator[Cluster]:
    """A running server, one per test process."""
    with throwaway_cluster(binaries) as running:
        yield running


@pytest.fixture(scope="session")
def cluster_of(pytestconfig: pytest.Config) -> Iterator[Callable[[int], Cluster]]:
    """``cluster_of(15)``: a running server of that major, one per test process; skips the test where there is none."""
    running: dict[int, Cluster] = {}
    with ExitStack() as cleanup:

        def of_major(major: int) -> Cluster:
            if major not in running:
                found = choose_server([b for b in pytestconfig.stash[FOUND] if b.major == major], major)
                if found is None:
                    missing = pytest.fail if pytestconfig.getoption("--require-services") else pytest.skip
                    missing(f"no server of PostgreSQL {major} here (Debian: apt-get install postgresql-{major})")
                running[major] = cleanup.enter_context(throwaway_cluster(found))
            return running[major]

        yield of_major


@dataclass(frozen=True)
class Database:
    cluster: Cluster
    name: str

    @property
    def url(self) -> str:
        return self.cluster.url(self.name)

    @contextmanager
    def connect(self, **options: Any) -> Iterator[Any]:
        """A psycopg connection; it commits by itself unless told otherwise."""
        import psycopg

        with psycopg.connect(self.url, **{"autocommit": True, **options}) as connection:
            yield connection

    def execute(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run ``sql`` on a connection of its own; the rows, if it returns any."""
        with self.connect() as connection:
            cursor = connection.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def _new_database(cluster: Cluster, prefix: str, template: str = "template1") -> Iterator[Database]:
    """A database of its own; it and every database whose name begins like its name are dropped afterwards."""
    from psycopg.sql import SQL, Identifier

    admin = Database(cluster, "postgres")
    name = f"{prefix}_{uuid.uuid4().hex[:8]}"
    with admin.connect() as connection:
        # Copying files is the faster strategy here: nothing is flushed.
        create = SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        connection.execute(create.format(Identifier(name), Identifier(template)))
    try:
        yield Database(cluster, name)
    finally:
        with admin.connect() as connection:
            derived = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [name])
            for (left,) in derived.fetchall():
                connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(left)))


@contextmanager
def _template(cluster: Cluster, prefix: str, script: Path) -> Iterator[str]:
    with _new_database(cluster, prefix) as database:
        database.execute(script.read_text())
        yield database.name


@pytest.fixture(scope="session")
def _saas_template(cluster: Cluster) -> Iterator[str]:
    with _template(cluster, "template_saas", DEMO_SQL) as name:
        yield name


@pytest.fixture(scope="session")
def _rich_template(cluster: Cluster) -> Iterator[str]:
    with _template(cluster, "template_rich", RICH_SQL) as name:
        yield name


@pytest.fixture
def new_database() -> Iterator[Callable[..., Database]]:
    """``new_database(cluster)``: an empty database on any server; it goes with everything named after it."""
    with ExitStack() as cleanup:

        def make(cluster: Cluster, prefix: str = "empty", template: str = "template1") -> Database:
            return cleanup.enter_context(_new_database(cluster, prefix, template))

        yield make


@pytest.fixture
def database(cluster: Cluster) -> Iterator[Database]:
    """An empty database: ``.name``, ``.url``, ``.execute(sql, *parameters)``, ``.connect()``."""
    with _new_database(cluster, "empty") as fresh:
        yield fresh


@pytest.fixture
def saas(cluster: Cluster, _saas_template: str) -> Iterator[Database]:
    """A small SaaS with 82,040 rows, see opsctl/demo.sql."""
    with _new_database(cluster, "saas", _saas_template) as fresh:
        yield fresh


@pytest.fixture
def rich(cluster: Cluster, _rich_template: str) -> Iterator[Database]:
    """Everything an ordinary database may hold, see tests/rich_schema.sql."""
    with _new_database(cluster, "rich", _rich_template) as fresh:
        yield fresh


# The program


@dataclass(frozen=True)
class Run:
    """One finished run of the program."""

    arguments: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @cached_property
    def json(self) -> Any:
        """The one document on stdout."""
        try:
            return json.loads(self.stdout)
        except ValueError as error:
            pytest.fail(f"stdout is not one JSON document ({error}): {self}")


@dataclass
class Opsctl:
    """The program as a subprocess: it runs in ``work``, keeps its state in ``state`` and leaves ``home`` alone."""

    folder: Path
    source_variables: Mapping[str, str]
    forks: Any = None
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def __call__(
        self,
        *arguments: str | Path,
        url: str | None = None,
        env: Mapping[str, str | None] | None = None,
        input: str | None = None,  # noqa: A002  # as in subprocess.run
        timeout: float = 120,
        **options: Any,
    ) -> Run:
        """Run to the end. ``url`` is DATABASE_URL, ``env`` adds variables (None removes one)."""
        environment = self.environment(url=url, env=env)
        if self.forks is not None and not options and not any(name.startswith(INTERPRETERS) for name in env or ()):
            words = [str(argument) for argument in arguments]
            ended = self.forks.run(words, cwd=self.work, env=environment, given=input, timeout=timeout)
            return Run(tuple(words), *ended)
        process = self.start(
            *arguments, url=url, env=env, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE, **options
        )
        stdout, stderr = process.communicate(input, timeout=timeout)
        return Run(tuple(str(argument) for argument in arguments), process.returncode, stdout, stderr)

    def start(
        self,
        *arguments: str | Path,
        url: str | None = None,
        env: Mapping[str, str | None] | None = None,
        **options: Any,
    ) -> "subprocess.Popen[str]":
        """Begin a run, to be sent signals; it is killed at the end of the test if it still runs then."""
        process = subprocess.Popen(
            [sys.executable, "-m", "opsctl", *arguments],
            **{
                "cwd": self.work,
                "env": self.environment(url=url, env=env),
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "encoding": "utf-8",
                "errors": "surrogateescape",
                **options,
            },
        )
        self.processes.append(process)
        return process

    def environment(self, *, url: str | None = None, env: Mapping[str, str | None] | None = None) -> dict[str, str]:
        variables: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "OPSCTL_STATE_DIR": str(self.state),
            "LANG": "C.UTF-8",
            "COLUMNS": "100",
            "DATABASE_URL": url,
            **self.source_variables,
            **(env or {}),
        }
        return {name: value for name, value in variables.items() if value is not None}


@pytest.fixture(scope="session")
def _source_variables(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """PYTHONPATH, where the program would otherwise not be the one that the tests import."""
    installed = subprocess.run(
        [sys.executable, "-c", "import opsctl; print(opsctl.__file__)"],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    is_same = installed.stdout.strip() == opsctl.__file__
    return {} if is_same else {"PYTHONPATH": str(SOURCE)}


def _module(name: str) -> Any:
    """A module of the tests' own, beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def _forks(_source_variables: Mapping[str, str]) -> Iterator[Any]:
    """Where runs of the program come from that only have to run to their end, see forked.py."""
    module = _module("forked")
    forks = module.Forks({"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(SOURCE)})
    yield forks
    forks.end()


@pytest.fixture
def run_opsctl(tmp_path: Path, _source_variables: Mapping[str, str], _forks: Any) -> Iterator[Callable[..., Run]]:
    """``run_opsctl("backup", "--json", url=saas.url).json``; ``run_opsctl.start(…)`` for a run to be interrupted."""
    program = Opsctl(tmp_path, _source_variables, _forks)
    program.work.mkdir()
    program.home.mkdir()
    yield program
    for process in program.processes:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        process.wait()
    _assert_empty(program.home)


# What a test looks at


@pytest.fixture
def facts_of() -> Callable[[Database], Any]:
    """``facts_of(rich)``: rows and content hash of every table, as they are now."""
    from opsctl.postgres.facts import present_facts
    from opsctl.postgres.server import Server

    def present(database: Database) -> Any:
        with Server(database.url).connect() as connection:
            return present_facts(connection, database.name, "content")

    return present


@pytest.fixture
def databases_like(cluster: Cluster) -> Callable[[Database], list[str]]:
    """``databases_like(rich)``: every database of the server whose name begins with that database's."""

    def names(database: Database) -> list[str]:
        query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY 1"
        return [name for (name,) in Database(cluster, "postgres").execute(query, database.name)]

    return names


@dataclass(frozen=True)
class Stored:
    """A backup as it lies in a repository on this disk."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def dump(self) -> Path:
        return next(self.folder.glob("dump.*"), self.folder / "dump.zst")

    @property
    def manifest(self) -> Any:
        return json.loads((self.folder / "manifest.json").read_text())

    @property
    def evidence(self) -> list[Path]:
        return sorted(self.folder.glob("evidence/*"))

    def rewrite(self, **changes: Any) -> None:
        """Change the manifest behind opsctl's back."""
        (self.folder / "manifest.json").write_text(json.dumps({**self.manifest, **changes}))

    def copy(self, taken_at: datetime, *, repository: Path | None = None, **changes: Any) -> "Stored":
        """The same backup, as if it had been taken at another time (and in another repository)."""
        database = self.manifest["database"]
        identifier = f"{database}-{taken_at:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:4]}"
        root = repository or self.folder.parents[1]
        other = Stored(root / self.folder.parent.name / identifier)
        shutil.copytree(self.folder, other.folder, ignore=shutil.ignore_patterns("evidence", "pin"))
        at = taken_at.isoformat().replace("+00:00", "Z")
        other.rewrite(**{"id": identifier, "started_at": at, "finished_at": at, **changes})
        return other

    def replace_dump(self, plain: bytes) -> None:
        """Other bytes in place of the dump, with every digest in the manifest made to fit."""
        import zstandard

        data = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(plain)
        self.dump.write_bytes(data)
        digests = {"sha256": hashlib.sha256(data).hexdigest(), "plain_sha256": hashlib.sha256(plain).hexdigest()}
        name = self.dump.name
        dump = {"name": name, "bytes": len(plain), "stored_bytes": len(data), **digests}
        self.rewrite(files=[dump if each["name"] == name else each for each in self.manifest["files"]])

    def plain_dump(self) -> bytes:
        """What the dump decompresses to."""
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(self.dump.read_bytes())


def _only_backup(repository: Path) -> Stored:
    (manifest,) = repository.glob("*/*/manifest.json")
    return Stored(manifest.parent)


@pytest.fixture
def only_backup() -> Callable[[Path], Stored]:
    """``only_backup(folder)``: the one backup of a repository."""
    return _only_backup


@pytest.fixture(scope="session")
def _stored_template(
    cluster: Cluster,
    _rich_template: str,
    _source_variables: Mapping[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A repository with one backup of a rich database that is gone by now."""
    program = Opsctl(tmp_path_factory.mktemp("stored"), _source_variables)
    program.work.mkdir()
    with _new_database(cluster, "gone", _rich_template) as database:
        run = program("backup", "--json", url=database.url)
    assert run.returncode == 0, run
    return program.work / "backups"


@pytest.fixture
def stored(run_opsctl: Opsctl, _stored_template: Path) -> Stored:
    """One backup of everything rich_schema.sql holds, in ``./backups``; its database does not exist any more."""
    shutil.copytree(_stored_template, run_opsctl.work / "backups")
    return _only_backup(run_opsctl.work / "backups")


@pytest.fixture
def back_up(run_opsctl: Opsctl) -> Callable[..., str]:
    """``back_up(saas)``: a new backup of a database, configured under its own name; its id."""

    def take(database: Database, facts: str = "counts", jobs: int = 1) -> str:
        text = f'[databases."{database.name}"]\nurl = "{database.url}"\nfacts = "{facts}"\njobs = {jobs}\n'
        (run_opsctl.work / "opsctl.toml").write_text(text)
        run = run_opsctl("backup", "--json")
        assert run.returncode == 0, run
        return str(run.json["result"]["backups"][0]["id"])

    return take


@pytest.fixture
def canned_engine() -> Iterator[Any]:
    """What a Docker engine answers, with two services; ``.host`` is for DOCKER_HOST. See canned_engine.py."""
    module = _module("canned_engine")
    with (
        tempfile.TemporaryDirectory(prefix="engine", dir="/tmp") as folder,
        module.running(Path(folder, "s")) as engine,
    ):
        yield engine
