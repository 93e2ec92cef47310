"""SIGKILL at any moment of a restore, to anything that takes part: the live database is whole, old or new."""

import os
import random
import signal
import subprocess
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg  # noqa: TID253
import pytest
from servers import throwaway_server
from waiting import wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.end_to_end]

KILLS = {"opsctl": 60, "pg_restore": 16, "server": 12}
SWAP_KILLS = 12
CLIENTS = 12
TABLES = 4
ROWS = 10_000
SEED = 20261123

CONTENT = " UNION ALL ".join(f"SELECT min(version), max(version), count(*) FROM t{n}" for n in range(TABLES))


@pytest.fixture(scope="module")
def cluster(binaries):
    """A server that may be killed."""
    with throwaway_server(binaries) as running:
        yield running


def version_of(rows):
    """The version of a whole database; half of one is a failure."""
    rows = list(rows)
    assert len(rows) == TABLES
    (row,) = set(rows)
    assert row in {(1, 1, ROWS), (2, 2, ROWS)}, row
    return row[0]


def to_version_2(database):
    with database.connect(autocommit=False) as connection:
        for n in range(TABLES):
            connection.execute(f"UPDATE t{n} SET version = 2 WHERE version <> 2")


@pytest.fixture
def versioned(run_opsctl, database):
    """Version 1 is backed up, version 2 is live."""
    for n in range(TABLES):
        database.execute(f"CREATE TABLE t{n} AS SELECT n AS id, 1 AS version FROM generate_series(1, {ROWS}) n")
        database.execute(f"ALTER TABLE t{n} ADD PRIMARY KEY (id)")
    (run_opsctl.work / "opsctl.toml").write_text(f'[databases.db]\nurl = "{database.url}"\nfacts = "content"\n')
    assert run_opsctl("backup").returncode == 0
    to_version_2(database)
    return database


def processes_of(run_opsctl, name=b""):
    """The program and its children, by the HOME of this test; ``name`` is part of the command line."""
    home = f"HOME={run_opsctl.home}\0".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                if home in (folder / "environ").read_bytes() + b"\0" and name in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return found


def loading(run_opsctl):
    return processes_of(run_opsctl, b"--exit-on-error")


def restore(run_opsctl):
    return run_opsctl.start("restore", "latest", "--yes", "db", "--json")


def drop_previous(database):
    with replace(database, name="postgres").connect() as admin:
        names = admin.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE %s", [f"{database.name}\\_\\_before\\_%"]
        ).fetchall()
        for (name,) in names:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def staging(databases_like, database):
    return [name for name in databases_like(database) if "__opsctl_" in name]


def hit(victim, process, run_opsctl, cluster):
    """Kill the program, one of its pg_restore children, or the server; the program has ended afterwards."""
    if victim == "server":
        cluster.kill()
    elif victim == "pg_restore":
        for pid in loading(run_opsctl)[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate(timeout=60)
    cluster.start()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", list(KILLS))
def test_killed_at_random_points(run_opsctl, versioned, cluster, databases_like, record_property, victim):
    """The program, its pg_restore or the whole server: live is old or new, and the next run cleans up."""
    chance = random.Random(SEED)  # noqa: S311
    started = time.monotonic()
    process = restore(run_opsctl)
    process.communicate(timeout=60)
    assert process.returncode == 0
    duration = time.monotonic() - started
    seen = {1: 0, 2: 0}
    leftovers = 0
    for _ in range(KILLS[victim]):
        drop_previous(versioned)
        to_version_2(versioned)
        process = restore(run_opsctl)
        begun = 0.2 * duration
        if victim == "pg_restore":
            wait_for(lambda: loading(run_opsctl) or process.poll() is not None, "the load begins", every=0.01)  # noqa: B023
            begun = 0
        with suppress(subprocess.TimeoutExpired):
            process.wait(begun + chance.uniform(0, 0.1 if victim == "pg_restore" else 0.8 * duration))
        hit(victim, process, run_opsctl, cluster)
        wait_for(lambda: not processes_of(run_opsctl), "every child has ended")
        assert versioned.name in databases_like(versioned)
        seen[version_of(versioned.execute(CONTENT))] += 1
        left = staging(databases_like, versioned)
        assert len(left) <= (0 if victim == "pg_restore" else 1), "whoever can clean up does"
        leftovers += len(left)
    run = run_opsctl("restore", "latest", "--yes", "db", "--json")
    record_property("old_or_new", f"{seen[2]} old, {seen[1]} new, {leftovers} staging databases left and removed")
    print(f"{victim} killed: {seen[2]} old, {seen[1]} new, {leftovers} staging left and removed")  # noqa: T201

    assert run.returncode == 0, run
    assert version_of(versioned.execute(CONTENT)) == 1
    assert staging(databases_like, versioned) == []
    assert leftovers > 0 or victim != "opsctl", "no kill hit the load: nothing was shown"
    assert seen[2] > 0


@dataclass
class Clients:
    """Clients that connect, look and leave, again and again."""

    url: str
    halves: list = field(default_factory=list)
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
            yield self
        finally:
            self._done.set()
            for thread in self._threads:
                thread.join(timeout=60)

    def _work(self):
        while not self._done.is_set():
            try:
                with closing(psycopg.connect(self.url, autocommit=True, connect_timeout=30)) as connection:
                    found = connection.execute(CONTENT).fetchall()
            except psycopg.OperationalError:
                time.sleep(0.02)
                continue
            with self._lock:
                self.rounds += 1
                try:
                    version_of(found)
                except (AssertionError, ValueError):
                    self.halves.append(found)
            time.sleep(0.005)


@pytest.mark.timeout(400)
def test_killed_in_the_swap_under_clients(run_opsctl, versioned, cluster, databases_like, tmp_path):
    """With twelve clients reconnecting: killed around the swap, each of them sees one whole version at any time."""
    chance = random.Random(SEED)  # noqa: S311
    marker = tmp_path / "swapping"
    with (run_opsctl.work / "opsctl.toml").open("a") as file:
        file.write(f"before_swap = 'touch {marker}'\n")
    seen = {1: 0, 2: 0}
    with Clients(versioned.url).working() as clients:
        for number in range(SWAP_KILLS):
            drop_previous(versioned)
            to_version_2(versioned)
            marker.unlink(missing_ok=True)
            process = restore(run_opsctl)
            wait_for(lambda: marker.exists() or process.poll() is not None, "the swap begins", every=0.01)  # noqa: B023
            time.sleep(chance.uniform(0, 0.7))
            hit("server" if number % 4 == 3 else "opsctl", process, run_opsctl, cluster)
            rounds = clients.rounds
            wait_for(lambda: clients.rounds > rounds + CLIENTS, "the clients go on")  # noqa: B023
            seen[version_of(versioned.execute(CONTENT))] += 1
    print(f"{SWAP_KILLS} kills in the swap: {seen[2]} old, {seen[1]} new, {clients.rounds} looks")  # noqa: T201
    run = run_opsctl("restore", "latest", "--yes", "db", "--json")

    assert clients.halves == []
    assert run.returncode == 0, run
    assert version_of(versioned.execute(CONTENT)) == 1
    assert staging(databases_like, versioned) == []
