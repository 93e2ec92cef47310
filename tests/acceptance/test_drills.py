"""Drills of what needs an installed PostgreSQL, and of damage at hundreds of places."""

import json
import os
import random
import signal
import subprocess
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from servers import throwaway_server

from opsctl.drill import Drills
from opsctl.drill_records import DrillRecords
from opsctl.drill_servers import DrillServer, Scratch, Throwaway
from opsctl.keys import Keys
from opsctl.manifest import parse_manifest
from opsctl.postgres.cluster_files import children
from opsctl.postgres.server import Server
from opsctl.postgres.tools import Tools
from opsctl.repository import Repository
from opsctl.storage.local import LocalStorage
from opsctl.verify import check_files, verify_backup

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1800)]

RICH_SQL = Path(__file__).parents[1] / "rich_schema.sql"
FLIPS, CUTS = 500, 200
PARTS = 4
"""The hidden flips take minutes: several workers share them."""


def no_progress(*_):
    return lambda _: None


def now():
    return datetime.now(UTC)


@pytest.fixture
def tools():
    return Tools(search_path=[], environment={"PATH": "/usr/bin:/bin", "LC_MESSAGES": "C"})


@pytest.fixture
def drill_on(tmp_path, tools):
    """``drill_on(copy, binaries, …)``: the verification of one copy, on the first of these that can."""

    def drill(copy, *binaries):
        places = [Throwaway(each, DrillRecords(tmp_path), allow_superuser=True) for each in binaries]
        (found,) = Drills(lambda _: places, tools, Keys(), now, no_progress).verify([copy])
        return found

    return drill


class Here:
    """A drill on the server the tests run on: no server has to be started."""

    description = "the tests' own server"

    def __init__(self, cluster, work_path):
        self._cluster = cluster
        self._work_path = work_path

    @contextmanager
    def open(self, manifest):
        server = Server(self._cluster.url("drill_here"))
        yield DrillServer(server, None, True, self._work_path, lambda: None)
        with server.connect("postgres") as connection:
            connection.execute("DROP DATABASE IF EXISTS drill_here")


def copy_of(stored):
    data = (stored.folder / "manifest.json").read_bytes()
    return Repository("local", LocalStorage(stored.folder.parents[1])), parse_manifest(data, where="")


def test_extensions_of_a_distribution(run_opsctl, cluster_of, new_database, back_up, only_backup, drill_on):
    """pgcrypto, pg_trgm and hstore with data in them: proven where they are, and named where they are not."""
    database = new_database(cluster_of(15))
    database.execute(
        f"""CREATE EXTENSION pgcrypto; CREATE EXTENSION pg_trgm; CREATE EXTENSION hstore;
           DO $$ BEGIN CREATE ROLE app; EXCEPTION WHEN duplicate_object THEN END $$;
           ALTER DATABASE {database.name} OWNER TO app;
           CREATE TABLE t (id int PRIMARY KEY, secret bytea, name text, bag hstore);
           INSERT INTO t SELECT n, digest(n::text, 'sha256'), 'name ' || n, hstore('n', n::text)
           FROM generate_series(1, 2000) n;
           CREATE INDEX ON t USING gin (name gin_trgm_ops); ALTER TABLE t OWNER TO app"""
    )
    back_up(database, "content")
    copy = copy_of(only_backup(run_opsctl.work / "backups"))
    ours, newer, newest = (cluster_of(major).binaries for major in (15, 16, 18))

    elsewhere = drill_on(copy, newer, newest)
    assert (elsewhere.outcome, len(elsewhere.problems)) == ("unknown", 2)
    for name in ("hstore", "pg_trgm", "pgcrypto"):
        assert f"extension {name}" in elsewhere.problems[0]
    found = drill_on(copy, newest, ours)
    assert (found.outcome, found.evidence, found.notes) == ("pass", "content", ())  # no superuser was needed


def test_from_15_to_16_and_18(run_opsctl, cluster_of, new_database, back_up, only_backup, drill_on):
    """Everything an ordinary database holds is the same in newer major versions."""
    database = new_database(cluster_of(15), "rich")
    database.execute(RICH_SQL.read_text())
    back_up(database, "content")
    copy = copy_of(only_backup(run_opsctl.work / "backups"))
    for major in (16, 18):
        found = drill_on(copy, cluster_of(major).binaries)
        assert (found.outcome, found.evidence) == ("pass", "content"), found


def test_kinds_of_values_and_locales(run_opsctl, cluster_of, new_database, back_up, only_backup, drill_on):
    """XML, ICU and lz4 come with the build: the embedded programs say that they lack them, the distribution's prove."""
    database = new_database(cluster_of(15))
    database.execute("""CREATE TABLE t (a xml, b text COLLATE "de-x-icu", c text COMPRESSION lz4)""")
    database.execute("INSERT INTO t VALUES ('<a>1</a>', 'ä', repeat('long ', 10000))")
    back_up(database, "content")
    copy = copy_of(only_backup(run_opsctl.work / "backups"))
    found = drill_on(copy, cluster_of(16).binaries)
    assert found.outcome == "unknown"
    assert all(lacking in found.problems[0] for lacking in ("type xml", "collation de-x-icu", "compression lz4"))
    assert drill_on(copy, cluster_of(15).binaries).outcome == "pass"


@pytest.mark.parametrize("jobs", [1, 2], ids=["custom", "directory"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_every_flip_and_cut_of_stored_files(run_opsctl, saas, only_backup, encrypted, jobs):
    """500 single bits and 200 truncations, anywhere in any file: the digest of the file tells of each."""
    text = f'[databases.saas]\nurl = "{saas.url}"\njobs = {jobs}\n'
    if encrypted:
        run = run_opsctl("keygen", "-o", run_opsctl.work / "key", "--json")
        assert run.returncode == 0, run
        text += f'[encryption]\nrecipients = ["{run.json["result"]["public_key"]}"]\n'
    (run_opsctl.work / "opsctl.toml").write_text(text)
    assert run_opsctl("backup").returncode == 0
    stored = only_backup(run_opsctl.work / "backups")
    repository, manifest = copy_of(stored)
    files = [stored.folder / each.name for each in manifest.files]
    for count, damage in ((FLIPS, flipped), (CUTS, lambda data, place: data[:place])):
        for number in range(count):
            path = files[number % 10 == 0]  # one in ten goes into the small file
            data = path.read_bytes()
            path.write_bytes(damage(data, number * len(data) // count))
            problems = check_files(manifest, repository, no_progress)
            path.write_bytes(data)
            assert len(problems) == 1, (path, number)
    assert check_files(manifest, repository, no_progress) == []


def flipped(data, place):
    changed = bytearray(data)
    changed[place] ^= 1 << place % 8
    return bytes(changed)


def signal_all(pid, number):
    """To a server and every process of it."""
    for each in (pid, *children(pid)):
        os.kill(each, number)


def stopping(pid):
    """A drill's ``start_progress`` that stops the server, as a full machine would, when the load begins."""

    def start(label, _):
        if label == "restoring":
            signal_all(pid(), signal.SIGSTOP)
        return lambda _: None

    return start


def test_a_drill_that_hangs_is_given_up(stored, tools, tmp_path, cluster):
    """A server that stands still: unknown, with the limit named, no evidence, and nothing of it is left."""

    def pid():
        (record,) = (tmp_path / "drills").glob("*.json")
        (file,) = Path(json.loads(record.read_text())["folder"]).glob("*/data/postmaster.pid")
        return int(file.read_text().splitlines()[0])

    place = Throwaway(cluster.binaries, DrillRecords(tmp_path), allow_superuser=True, timeout_seconds=4)
    (found,) = Drills(lambda _: [place], tools, Keys(), now, stopping(pid)).verify([copy_of(stored)])

    assert found.outcome == "unknown"
    assert "longer than 4 seconds, the timeout_seconds of [drill]" in found.problems[0]
    assert stored.evidence == []
    assert list((tmp_path / "drills").iterdir()) == []


def test_a_lent_server_that_hangs_is_let_go(run_opsctl, saas, only_backup, binaries, tools, tmp_path):
    """It cannot be ended, so it is given up; when it goes on, the next drill takes away what was left there."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    copy = copy_of(only_backup(run_opsctl.work / "backups"))
    with throwaway_server(binaries) as lent:
        records = DrillRecords(tmp_path)
        scratch = Scratch(lambda name: Server(lent.url(name)), records, tmp_path, timeout_seconds=4)
        drills = Drills(lambda _: [scratch], tools, Keys(), now, stopping(lambda: lent.pid))
        try:
            (found,) = drills.verify([copy])
        finally:
            signal_all(lent.pid, signal.SIGCONT)
        assert found.outcome == "unknown"
        assert "longer than 4 seconds" in found.problems[0]
        (record,) = (tmp_path / "drills").iterdir()

        assert records.remove_leftovers(scratch.open_server) == [record.stem]
        with Server(lent.url()).connect() as connection:
            assert connection.execute("select datname from pg_database where datname ~ 'opsctl'").fetchall() == []


@pytest.fixture
def hidden(jobs, run_opsctl, rich, back_up, only_backup, cluster, tools, tmp_path):
    """``hidden.plain``, a dump, and ``hidden.found(changed)``: what tells of other bytes in its place.

    Every digest is made to fit. What matters is what pg_restore makes of the archive, remarks apart.
    """
    back_up(rich, "content", jobs=jobs)
    stored = only_backup(run_opsctl.work / "backups")
    plain = stored.plain_dump()
    before = as_text(cluster.binaries, plain)
    drills = Drills(lambda _: [Here(cluster, tmp_path)], tools, Keys(), now, no_progress)

    def found(changed):
        stored.replace_dump(changed)
        repository, manifest = copy_of(stored)
        decoded = verify_backup(manifest, repository, tools, Keys(), clock=now, start_progress=no_progress)
        if decoded.outcome == "fail":
            return "decoded"
        if as_text(cluster.binaries, changed) == before:
            return "harmless"
        (drilled,) = drills.verify([(repository, manifest)])
        # Some values can be written in two ways: " .5" is 0.5.
        same = drilled.outcome == "pass" and as_restored(cluster, changed) == as_restored(cluster, plain)
        assert same or drilled.outcome == "fail", drilled
        return "harmless" if same else "restored"

    return SimpleNamespace(plain=plain, found=found)


@pytest.mark.parametrize(
    ("jobs", "part"),
    [pytest.param(1, part, id=f"custom-{part}") for part in range(PARTS)]
    + [pytest.param(2, 0, id="directory-0")]
    + [pytest.param(2, part, id=f"directory-{part}", marks=pytest.mark.soak) for part in range(1, PARTS)],
)
def test_every_hidden_flip_that_changes_something(hidden, part):
    """500 single bits of the dump: decoding or restoring tells of each that matters.

    Half of them go into definitions and small rows, half anywhere.
    """
    small = hidden.plain.index(b"long long")
    places = [(number // 2) * 2 * (len(hidden.plain), small)[number % 2] // FLIPS for number in range(FLIPS)]
    random.Random(FLIPS).shuffle(places)  # noqa: S311 - each part has some of every kind
    caught = Counter(hidden.found(flipped(hidden.plain, place)) for place in places[part::PARTS])
    print(f"{FLIPS // PARTS} hidden flips: {dict(caught)}")  # noqa: T201
    assert caught["restored"] > FLIPS / PARTS / 4, caught


@pytest.mark.parametrize("jobs", [pytest.param(1, id="custom"), pytest.param(2, id="directory")])
def test_every_hidden_cut(hidden):
    """200 truncations of the dump: decoding tells of each that loses anything."""
    end = len(hidden.plain)
    caught = Counter(hidden.found(hidden.plain[: number * end // CUTS]) for number in range(CUTS))
    print(f"{CUTS} hidden cuts: {dict(caught)}")  # noqa: T201
    assert caught["decoded"] >= CUTS - 2, caught


def as_restored(cluster, archive):
    """What pg_dump writes of a database into which pg_restore has loaded the archive: it asks the server, not us."""
    url = cluster.url("independent")
    with Server(url).connect("postgres") as connection:
        connection.execute("CREATE DATABASE independent TEMPLATE template0")
        try:
            load = [cluster.binaries.path("pg_restore"), "--exit-on-error", "-d", url]
            subprocess.run(load, input=archive, check=True, capture_output=True)
            dump = [cluster.binaries.path("pg_dump"), "-Fc", "-Z0", "-d", url]
            written = subprocess.run(dump, check=True, capture_output=True).stdout
        finally:
            connection.execute("DROP DATABASE independent WITH (FORCE)")
    return as_text(cluster.binaries, written)


def as_text(binaries, archive):
    """What pg_restore writes of an archive, without what is random, remarks and the values of sequences.

    A sequence may stand further on than it did: that is no damage. None when pg_restore cannot read the archive.
    """
    done = subprocess.run([binaries.path("pg_restore"), "-f", "-"], check=False, input=archive, capture_output=True)
    apart = (b"\\restrict", b"\\unrestrict", b"-- ", b"SELECT pg_catalog.setval(")
    return None if done.returncode else [line for line in done.stdout.splitlines() if not line.startswith(apart)]
