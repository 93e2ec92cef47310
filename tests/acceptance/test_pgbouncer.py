"""PgBouncer in transaction mode in front of the server: opsctl goes past it, and the application does not notice."""

import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg  # noqa: TID253
import pytest
from servers import throwaway_server
from waiting import wait_for

from opsctl.postgres.processes import die_with_parent

pytestmark = [pytest.mark.acceptance, pytest.mark.end_to_end]

CLIENTS = 8


@pytest.fixture(scope="module")
def cluster(binaries):
    """The server behind the pooler."""
    with throwaway_server(binaries) as running:
        yield running


@dataclass(frozen=True)
class Pooler:
    port: int

    def url(self, database):
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def answers(self):
        try:
            with closing(psycopg.connect(self.url("pgbouncer"), autocommit=True, connect_timeout=2)) as console:
                return bool(console.execute("SHOW VERSION").fetchall())
        except psycopg.OperationalError:
            return False


@pytest.fixture(scope="module")
def pooler(cluster, need):
    """A running PgBouncer, as the server's own user: PgBouncer refuses root, as PostgreSQL does."""
    import signal

    program = need("pgbouncer")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="opsctl-bouncer-", dir="/tmp"))
    (folder / "users").write_text('"postgres" ""\n')
    (folder / "ini").write_text(
        f"""[databases]
* = host={cluster.socket_folder} port={cluster.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
admin_users = postgres
pool_mode = transaction
default_pool_size = 5
server_login_retry = 1
"""
    )
    account = {}
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    if cluster._account is not None:
        account = {"user": cluster._account.pw_uid, "group": cluster._account.pw_gid, "extra_groups": []}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, folder / "ini"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509
            **account,
        )
    try:
        running = Pooler(port)
        wait_for(lambda: process.poll() is not None or running.answers(), "PgBouncer answers")
        assert process.poll() is None, (folder / "log").read_text()
        yield running
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture
def shop(database):
    """Version 2 is live; two tables of the same version at any moment."""
    for table in ("a", "b"):
        database.execute(f"CREATE TABLE {table} AS SELECT n AS id, 1 AS version FROM generate_series(1, 2000) n")
    return database


@dataclass
class Application:
    """Clients that keep their connection to the pooler and work on the database in transactions."""

    url: str
    errors: list = field(default_factory=list)
    seen: set = field(default_factory=set)
    rounds: int = 0
    longest: float = 0.0

    def __post_init__(self):
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(CLIENTS)]

    @contextmanager
    def working(self):
        for thread in self._threads:
            thread.start()
        try:
            wait_for(lambda: self.rounds > 5 * CLIENTS or self.errors, "the application works")
            yield self
            enough = self.rounds + 5 * CLIENTS
            wait_for(lambda: self.rounds > enough or self.errors, "the application works on")
        finally:
            self._done.set()
            for thread in self._threads:
                thread.join(timeout=30)

    def _work(self):
        while not self._done.is_set():
            try:
                with closing(psycopg.connect(self.url, prepare_threshold=None)) as connection:
                    while not self._done.is_set():
                        self._transaction(connection)
            except psycopg.Error as error:
                with self._lock:
                    self.errors.append(f"{type(error).__name__}: {error}")
                time.sleep(0.05)

    def _transaction(self, connection):
        started = time.monotonic()
        # Unqualified names: a search_path that leaked from somebody else's session would fail here.
        query = (
            "SELECT 'a', version, count(*) FROM a GROUP BY 2 UNION ALL SELECT 'b', version, count(*) FROM b GROUP BY 2"
        )
        with connection.transaction():
            found = frozenset(connection.execute(query).fetchall())
        with self._lock:
            self.rounds += 1
            self.seen.add(found)
            self.longest = max(self.longest, time.monotonic() - started)


def whole(version):
    return frozenset({("a", version, 2000), ("b", version, 2000)})


def to_version_2(database):
    with database.connect(autocommit=False) as connection:
        connection.execute("UPDATE a SET version = 2; UPDATE b SET version = 2")


def configure(run_opsctl, database, pooler, **settings):
    values = {"url": pooler.url(database.name), **settings}
    lines = [f"{key} = '''{value}'''" for key, value in values.items()]
    (run_opsctl.work / "opsctl.toml").write_text("\n".join(["[databases.shop]", *lines, ""]))


def admin_console(pooler, binaries, command):
    """A hook's command line: psql on PgBouncer's own console."""
    psql = [binaries.path("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", "-c", command, pooler.url("pgbouncer")]
    return shlex.join(str(each) for each in psql)


def test_refused_before_anything_starts(run_opsctl, shop, pooler, databases_like):
    """Backup and restore through the pooler: 16, ``direct_url`` is named, and the application sees no error."""
    configure(run_opsctl, shop, pooler, direct_url=shop.url)
    assert run_opsctl("backup").returncode == 0
    stored = sorted(run_opsctl.work.rglob("*"))
    configure(run_opsctl, shop, pooler)
    with Application(pooler.url(shop.name)).working() as application:
        runs = [
            run_opsctl("backup", "--json"),
            run_opsctl("restore", "latest", "--plan", "--json"),
            run_opsctl("restore", "latest", "--yes", "shop", "--json"),
            run_opsctl("restore", "--undo", "--yes", "shop", "--json"),
        ]
    for run in runs:
        assert run.returncode == 16, run
        assert "pooler" in run.json["error"]["message"]
        assert "direct_url" in run.json["error"]["hint"]
    assert application.errors == []
    assert application.seen == {whole(1)}
    assert sorted(run_opsctl.work.rglob("*")) == stored
    assert databases_like(shop) == [shop.name]


def test_doctor_tells_of_the_pooler(run_opsctl, shop, pooler):
    """Through the pooler nothing is known of the server, and the one cause says so; ``direct_url`` goes past it."""
    configure(run_opsctl, shop, pooler)
    with Application(pooler.url(shop.name)).working() as application:
        through = run_opsctl("doctor", "db", "--json")
        configure(run_opsctl, shop, pooler, direct_url=shop.url)
        past = run_opsctl("doctor", "db", "--json")

    result = through.json["result"]
    assert (through.returncode, result["verdict"]["cause"], result["verdict"]["code"]) == (3, "db.connect", "pooler")
    assert {each["because"] for each in result["checks"] if each["id"] != "db.connect"} == {"db.connect"}
    assert "direct_url" in result["checks"][0]["remedy"]["text"]
    assert (past.returncode, past.json["result"]["status"]) == (0, "ok"), past
    assert application.errors == []
    assert application.seen == {whole(1)}


def test_backup_past_the_pooler(run_opsctl, shop, pooler):
    """With ``direct_url`` a backup works, and leaves no setting behind in anybody's session."""
    configure(run_opsctl, shop, pooler, direct_url=shop.url)
    with Application(pooler.url(shop.name)).working() as application:
        runs = [run_opsctl("backup") for _ in range(3)]

    assert [run.returncode for run in runs] == [0, 0, 0], runs
    assert application.errors == []
    assert application.seen == {whole(1)}


def test_restore_past_the_pooler(run_opsctl, shop, pooler):
    """With ``direct_url`` a restore works; without hooks clients see their connection end, and come back."""
    configure(run_opsctl, shop, pooler, direct_url=shop.url)
    assert run_opsctl("backup").returncode == 0
    to_version_2(shop)
    with Application(pooler.url(shop.name)).working() as application:
        run = run_opsctl("restore", "latest", "--yes", "shop", "--json")
        seen = len(application.errors)
        wait_for(lambda: whole(1) in application.seen, "the application is back")

    assert run.returncode == 0, run
    assert application.seen == {whole(1), whole(2)}
    print(f"without hooks: {seen} errors, longest transaction {application.longest:.3f} s")  # noqa: T201


def test_hooks_hold_the_clients_back(run_opsctl, shop, pooler, binaries, record_property):
    """PAUSE before and RESUME after the swap: clients wait a moment, and not one of them sees an error."""
    hooks = {
        "before_swap": admin_console(pooler, binaries, f"PAUSE {shop.name}"),
        "after_swap": admin_console(pooler, binaries, f"RESUME {shop.name}"),
    }
    configure(run_opsctl, shop, pooler, direct_url=shop.url, **hooks)
    assert run_opsctl("backup").returncode == 0
    to_version_2(shop)
    with Application(pooler.url(shop.name)).working() as application:
        restored = run_opsctl("restore", "latest", "--yes", "shop", "--json")
        wait_for(lambda: whole(1) in application.seen or application.errors, "the restored database is seen")
        undone = run_opsctl("restore", "--undo", "--yes", "shop", "--json")
    record_property("longest_transaction_seconds", round(application.longest, 3))
    outages = [run.json["result"]["outage_seconds"] for run in (restored, undone)]
    print(f"with hooks: longest transaction {application.longest:.3f} s, outages {outages}")  # noqa: T201

    assert (restored.returncode, undone.returncode) == (0, 0), (restored, undone)
    assert application.errors == []
    assert application.seen == {whole(1), whole(2)}


def test_failing_swap_resumes_the_clients(run_opsctl, shop, pooler, binaries, databases_like):
    """When the swap cannot happen after PAUSE, RESUME runs all the same: nobody waits for ever."""
    pause = admin_console(pooler, binaries, f"PAUSE {shop.name}")
    failing = f"/bin/sh -c {shlex.quote(f'{pause}; exit 1')}"
    hooks = {"before_swap": failing, "after_swap": admin_console(pooler, binaries, f"RESUME {shop.name}")}
    configure(run_opsctl, shop, pooler, direct_url=shop.url, **hooks)
    assert run_opsctl("backup").returncode == 0
    with Application(pooler.url(shop.name)).working() as application:
        run = run_opsctl("restore", "latest", "--yes", "shop", "--json")

    assert run.returncode == 1, run
    assert application.errors == []
    assert databases_like(replace(shop)) == [shop.name]
