"""The swap: one transaction, as short as it can be, and nobody ever sees half of it."""

import os
import shlex
import signal
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace

import psycopg  # noqa: TID253
import pytest
from servers import throwaway_server
from waiting import wait_for

pytestmark = pytest.mark.end_to_end

CLIENTS = 12
TABLES = 6


@pytest.fixture(scope="module")
def cluster(binaries):
    """A server of this file's own, which knows prepared transactions."""
    with throwaway_server(binaries, settings={"max_prepared_transactions": "4"}) as running:
        yield running


def configure(run_opsctl, database, user="postgres", **settings):
    """``[databases.db]`` with hooks and the like; ``user`` is the login."""
    url = database.url.replace("user=postgres", f"user={user}")
    lines = [f"{key} = '{value}'" for key, value in {"url": url, **settings}.items()]
    (run_opsctl.work / "opsctl.toml").write_text("\n".join(["[databases.db]", *lines, ""]))


def script(folder, name, body):
    """A hook: a Python program with ``psycopg``, since a hook is started without a shell."""
    path = folder / f"{name}.py"
    path.write_text(f"import os, sys, time\nimport psycopg\n{body}\n")
    return shlex.join([sys.executable, str(path)])


@pytest.fixture
def versioned(run_opsctl, database):
    """Version 1 is backed up, version 2 is live: every table says which it is."""
    for n in range(TABLES):
        database.execute(f"CREATE TABLE t{n} AS SELECT 1 AS version FROM generate_series(1, 50)")
    configure(run_opsctl, database)
    assert run_opsctl("backup").returncode == 0
    for n in range(TABLES):
        database.execute(f"UPDATE t{n} SET version = 2")
    return database


CONTENT = " UNION ALL ".join(f"SELECT version, count(*) FROM t{n} GROUP BY 1" for n in range(TABLES))


def content(database):
    """The version of each table; a whole database has one everywhere."""
    return database.execute(CONTENT)


def whole(version):
    return [(version, 50)] * TABLES


@dataclass
class Clients:
    """Clients that connect, look and leave, again and again, as a web application without a pool does."""

    url: str
    seen: set = field(default_factory=set)
    halves: list = field(default_factory=list)
    refusals: set = field(default_factory=set)
    gaps: list = field(default_factory=list)
    rounds: int = 0

    def __post_init__(self):
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(CLIENTS)]

    @contextmanager
    def working(self):
        for thread in self._threads:
            thread.start()
        try:
            wait_for(lambda: self.rounds > 5 * CLIENTS, "the clients work")
            yield self
            enough = self.rounds + 5 * CLIENTS
            wait_for(lambda: self.rounds > enough, "the clients work on")
        finally:
            self._done.set()
            for thread in self._threads:
                thread.join(timeout=30)

    def _work(self):
        last, longest = time.monotonic(), 0.0
        while not self._done.is_set():
            try:
                with closing(psycopg.connect(self.url, autocommit=True, connect_timeout=30)) as connection:
                    for _ in range(3):
                        found = tuple(connection.execute(CONTENT).fetchall())
                        self._note(found)
                        now = time.monotonic()
                        longest, last = max(longest, now - last), now
            except psycopg.OperationalError as error:
                with self._lock:
                    self.refusals.add(str(error).strip().splitlines()[-1])
        with self._lock:
            self.gaps.append(longest)

    def _note(self, found):
        with self._lock:
            self.rounds += 1
            if len(set(found)) == 1 and len(found) == TABLES:
                self.seen.add(found[0][0])
            else:
                self.halves.append(found)


def test_reconnecting_clients_see_old_or_new(run_opsctl, versioned, databases_like, record_property):
    """Twelve clients reconnecting all the time: each look shows one whole version; the outage is measured."""
    with Clients(versioned.url).working() as clients:
        restored = run_opsctl("restore", "latest", "--yes", "db", "--json")
        undone = run_opsctl("restore", "--undo", "--yes", "db", "--json")
    assert (restored.returncode, undone.returncode) == (0, 0), (restored, undone)
    outages = [round(run.json["result"]["outage_seconds"], 3) for run in (restored, undone)]
    record_property("largest_gap_seconds", round(max(clients.gaps), 3))
    record_property("outage_seconds", outages)
    print(  # noqa: T201 - for `pytest -rP`
        f"{CLIENTS} clients, {clients.rounds} looks: largest gap {max(clients.gaps):.3f} s,"
        f" outage of the restore {outages[0]} s, of the undo {outages[1]} s"
    )

    assert clients.halves == []
    assert clients.seen == {1, 2}
    assert len(clients.gaps) == CLIENTS, "a client hangs"
    assert content(versioned) == whole(2)
    assert databases_like(versioned) == [versioned.name, undone.json["result"]["previous_database"]]


@pytest.mark.acceptance
def test_names_near_the_limit_stay_apart(run_opsctl, database):
    """Two databases whose names are the same for 60 bytes: each gets its own staging, previous and undo."""
    admin = replace(database, name="postgres")
    twins = [replace(database, name=f"{database.name}_{'x' * 60}"[:61] + end) for end in ("_1", "_2")]
    for twin in twins:
        assert len(twin.name) == 63
        admin.execute(f'CREATE DATABASE "{twin.name}"')
        twin.execute(f"CREATE TABLE whose AS SELECT '{twin.name}' AS name, 1 AS version")
        assert run_opsctl("backup", url=twin.url).returncode == 0
        twin.execute("UPDATE whose SET version = 2")
    for twin in twins:
        run = run_opsctl("restore", f"latest:{twin.name}", "--yes", twin.name, "--json", url=twin.url)
        assert run.returncode == 0, run
        assert len(run.json["result"]["previous_database"].encode()) <= 63
    assert [twin.execute("SELECT * FROM whose") for twin in twins] == [[(twin.name, 1)] for twin in twins]
    assert run_opsctl("restore", "--undo", "--yes", twins[0].name, url=twins[0].url).returncode == 0
    assert [twin.execute("SELECT * FROM whose") for twin in twins] == [[(twins[0].name, 2)], [(twins[1].name, 1)]]
    assert run_opsctl("restore", "--forget-previous", "--yes", twins[0].name, url=twins[0].url).returncode == 0
    assert run_opsctl("restore", "--undo", "--yes", twins[1].name, url=twins[1].url).returncode == 0
    assert twins[1].execute("SELECT version FROM whose") == [(2,)]


# What can come between the plan and the swap


@pytest.mark.acceptance
def test_prepared_transaction_after_the_plan(run_opsctl, versioned, databases_like, tmp_path):
    """The rename cannot wait for a prepared transaction: the swap gives up, says why, and nothing has changed."""
    prepare = f"""
with psycopg.connect({versioned.url!r}, autocommit=True) as connection:
    connection.execute("BEGIN")
    connection.execute("UPDATE t0 SET version = 3")
    connection.execute("PREPARE TRANSACTION 'in between'")
"""
    configure(run_opsctl, versioned, before_swap=script(tmp_path, "prepare", prepare))
    run = run_opsctl("restore", "latest", "--yes", "db", "--json")
    versioned.execute("ROLLBACK PREPARED 'in between'")

    assert run.returncode == 1, run
    error = run.json["error"]
    assert error["code"] == "restore_failed"
    assert "prepared transaction" in error["message"]
    assert error["message"].count("did not happen") == 1
    assert "as it was" in error["hint"]
    assert content(versioned) == whole(2)
    assert databases_like(versioned) == [versioned.name]


@pytest.fixture
def plain_login(versioned):
    """The database belongs to a login that is no superuser."""
    role = f"{versioned.name}_owner"
    versioned.execute(f"CREATE ROLE {role} LOGIN CREATEDB; ALTER DATABASE {versioned.name} OWNER TO {role}")
    for n in range(TABLES):
        versioned.execute(f"ALTER TABLE t{n} OWNER TO {role}")
    return role


@pytest.mark.acceptance
def test_session_that_cannot_be_ended(run_opsctl, versioned, plain_login, databases_like, tmp_path):
    """A superuser's session that comes after the plan holds the rename: as before, staging gone, 1, said why."""
    configure(run_opsctl, versioned, plain_login)
    assert run_opsctl("backup").returncode == 0
    before, here, go = content(versioned), tmp_path / "here", tmp_path / "go"
    hold = f"open({str(here)!r}, 'w')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)"
    configure(run_opsctl, versioned, plain_login, before_swap=script(tmp_path, "hold", hold))
    process = run_opsctl.start("restore", "latest", "--yes", "db", "--json")
    wait_for(here.exists, "the hook runs")
    with versioned.connect(application_name="superuser") as client:
        go.touch()
        stdout, stderr = process.communicate(timeout=60)
        assert client.execute("SELECT 1").fetchone() == (1,), "it was not ours to end"

    assert process.returncode == 1, (stdout, stderr)
    assert "1 other session" in stdout
    assert "as it was" in stdout
    assert content(versioned) == before
    assert databases_like(versioned) == [versioned.name]


SWAPPING = "SELECT pid FROM pg_stat_activity WHERE application_name = 'opsctl swap' AND query ILIKE 'alter database%%'"


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.acceptance)],
    ids=lambda number: number.name,
)
def test_signal_in_the_swap_waits_for_its_end(run_opsctl, versioned, plain_login, databases_like, tmp_path, number):
    """A signal that arrives while the swap waits for a session takes effect after it: the swap is whole."""
    configure(run_opsctl, versioned, plain_login)
    assert run_opsctl("backup").returncode == 0
    versioned.execute("DELETE FROM t0")
    here, go = tmp_path / "here", tmp_path / "go"
    hold = f"open({str(here)!r}, 'w')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)"
    configure(run_opsctl, versioned, plain_login, before_swap=script(tmp_path, "hold", hold))
    process = run_opsctl.start("restore", "latest", "--yes", "db", "--json")
    wait_for(here.exists, "the hook runs")
    admin = replace(versioned, name="postgres")
    with ExitStack() as stack:
        stack.enter_context(versioned.connect()).execute("SELECT 1")
        watch = stack.enter_context(admin.connect())
        go.touch()
        wait_for(lambda: watch.execute(SWAPPING).fetchall(), "the rename waits for that session")
        os.kill(process.pid, number)
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == (130 if number == signal.SIGINT else 143), (stdout, stderr)
    assert content(versioned) == whole(2), "swapped as a whole"
    (live, previous) = databases_like(versioned)
    assert (live, previous.startswith(f"{versioned.name}__before_")) == (versioned.name, True)
    assert run_opsctl("restore", "--undo", "--yes", "db").returncode == 0
    assert versioned.execute("SELECT count(*) FROM t0") == [(0,)]


def test_live_database_that_is_gone_by_then(run_opsctl, versioned, databases_like, tmp_path):
    """Somebody drops the live database between plan and swap: an error, and the staging database is not left."""
    drop = f"""
with psycopg.connect({replace(versioned, name="postgres").url!r}, autocommit=True) as connection:
    connection.execute('DROP DATABASE "{versioned.name}" WITH (FORCE)')
"""
    configure(run_opsctl, versioned, before_swap=script(tmp_path, "drop", drop))
    run = run_opsctl("restore", "latest", "--yes", "db", "--json")

    assert run.returncode == 1, run
    assert "does not exist" in run.json["error"]["message"]
    assert databases_like(versioned) == []
    configure(run_opsctl, versioned)
    assert run_opsctl("restore", "latest").returncode == 0
    assert content(versioned) == whole(1)
