"""What holds WAL, what is damaged and what runs out: judged from records, and seen on a real server."""

import os
import shlex
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg  # noqa: TID253  # a test may load what it likes
import pytest
from servers import throwaway_server

from opsctl.checks import ALL_CHECKS, choose_units
from opsctl.checks.capacity import judge_bloat, judge_sequences
from opsctl.checks.check import Thresholds
from opsctl.checks.databases import psql
from opsctl.checks.integrity import judge_checksums, judge_collation, judge_invalid_indexes
from opsctl.checks.run import list_units, run_checks
from opsctl.checks.samples import Samples
from opsctl.checks.scope import Scope
from opsctl.checks.wal import judge_archiver, judge_replication, judge_slots
from opsctl.config import load_config
from opsctl.postgres.capacity import Bloat, Bloats, Sequence, Sequences
from opsctl.postgres.integrity import ChecksumFailures, Checksums, CollationVersions, InvalidIndex, Version
from opsctl.postgres.server import Server
from opsctl.postgres.wal import Archiver, Replay, Replication, Slot, Standby

MIB, GIB = 1024**2, 1024**3
LIMITS = {check.id: check.thresholds for check in ALL_CHECKS}
HEALTH = ("db.replication", "db.slots", "db.archiver", "db.checksums", "db.collation", "db.invalid_indexes")
SETTINGS = {"wal_level": "logical", "archive_mode": "on", "archive_command": "true", "max_slot_wal_keep_size": "-1"}


# Judged


@pytest.mark.parametrize(
    ("replication", "status", "code", "said"),
    [
        (Replication(()), "ok", None, "No standby"),
        (Replication((Standby("s1", "10.0.0.2", "streaming", "async", 0, None),)), "ok", None, "s1 (10.0.0.2"),
        (Replication((Standby("s1", "local", "streaming", "sync", 500, 301.0),)), "warn", "lag", "5 min behind"),
        (Replication((Standby("s1", "local", "streaming", "sync", 500, 9000.0),)), "crit", "lag", "2 h behind"),
        (Replication((Standby("s1", "local", "catchup", "async", 3 * GIB, None),)), "warn", "lag", "3.0 GiB"),
        (
            Replication(
                (
                    Standby("late", "local", "streaming", "async", 9, 400.0),
                    Standby("fine", "local", "streaming", "async", 9 * MIB, 0.1),
                )
            ),
            "warn",
            "lag",
            "The standby late",
        ),
        (Replication((), Replay(0, 0.0, False, False)), "ok", None, "0 B and 0 s behind"),
        (Replication((), Replay(5, None, False, False)), "ok", None, "5 B behind"),
        (Replication((), Replay(5, 4000.0, False, False)), "crit", "lag", "67 min"),
        (Replication((), Replay(0, 0.0, True, False)), "warn", "paused", "its replay is paused"),
        (Replication((), Replay(0, 0.0, False, True)), "crit", "disconnected", "no connection"),
    ],
)
def test_the_standby_furthest_behind_is_the_finding(replication, status, code, said):
    """Seconds by the thresholds, 1 GiB as a warning, on a standby its own replay; the worst one is named."""
    found = judge_replication(replication, LIMITS["db.replication"])

    assert (found.status, found.code) == (status, code)
    assert said in found.message
    assert (found.remedy is None) == (status == "ok")


def slot(kept=0, *, active=True, wal_status="reserved", name="s"):
    return Slot(name, "physical", None, active, wal_status, kept, None)


@pytest.mark.parametrize(
    ("slots", "ages", "free", "status", "code", "said"),
    [
        ((), {}, None, "ok", None, "no replication slot"),
        ((slot(16 * MIB),), {}, None, "ok", None, "at most 16.0 MiB"),
        ((slot(2 * GIB),), {}, None, "warn", "retained", "2.0 GiB of WAL"),
        ((slot(2 * GIB, active=False),), {"s": 7200.0}, 100 * GIB, "warn", "retained", "nothing has read it for 2 h"),
        ((slot(100 * MIB),), {}, 400 * MIB, "warn", "retained", "with 400.0 MiB of disk left"),
        ((slot(300 * MIB),), {}, 400 * MIB, "crit", "retained", "with 400.0 MiB of disk left"),
        ((slot(5, active=False),), {"s": 60.0}, None, "ok", None, "1 replication slot"),
        ((slot(5, active=False),), {"s": 1801.0}, None, "warn", "inactive", "30 min"),
        ((slot(None, active=False),), {"s": 1e6}, None, "ok", None, "1 replication slot"),  # never used, keeps nothing
        ((slot(5, wal_status="unreserved"),), {}, None, "warn", "unreserved", "next checkpoint"),
        ((slot(None, wal_status="lost"), slot(2 * GIB, name="t")), {}, None, "crit", "lost", "t (retained)"),
    ],
)
def test_a_slot_is_judged_by_what_it_keeps_and_whether_anybody_reads_it(slots, ages, free, status, code, said):
    """Bytes, the share of the free disk, how long nothing has read it, and what the server says of its WAL."""
    found = judge_slots(slots, LIMITS["db.slots"], inactive_seconds=ages, free_bytes=free)

    assert (found.status, found.code) == (status, code)
    assert said in found.message


def archiver(*, failed=None, archived=None, waiting=(0, 0.0), is_on=True, has_no_command=False):
    return Archiver(is_on, has_no_command, 3, "0001", failed, archived, *waiting)


@pytest.mark.parametrize(
    ("found", "status", "said"),
    [
        (archiver(is_on=False, failed=1.0), "ok", "archives no WAL"),
        (archiver(), "ok", "nothing has had to be archived yet"),
        (archiver(failed=600.0, archived=5.0), "ok", "the last success 5 s ago"),  # it has recovered
        (archiver(failed=5.0, archived=600.0, waiting=(4, 500.0)), "crit", "4 WAL files waiting"),
        (archiver(failed=5.0), "crit", "nothing has been archived"),
        (archiver(archived=2000.0, waiting=(9, 1900.0)), "warn", "the oldest for 32 min"),
        (archiver(has_no_command=True, waiting=(1, 3.0)), "warn", "archive_command is empty"),
        (archiver(waiting=(None, None), failed=1.0), "crit", "fails for 0001"),
    ],
)
def test_archiving_is_judged_by_its_last_word(found, status, said):
    """A failure newer than the last success is critical; an old one that a success came after is not."""
    judged = judge_archiver(found, LIMITS["db.archiver"])

    assert judged.status == status
    assert said in judged.message


def test_one_damaged_page_is_critical_and_checksums_that_are_off_are_said():
    """The database with the most is named; what all share has no name."""
    limits = LIMITS["db.checksums"]
    damaged = Checksums(True, (ChecksumFailures("shop", 2, 90.0), ChecksumFailures("", 1, None)))
    found = judge_checksums(damaged, limits)

    assert judge_checksums(Checksums(True, ()), limits).status == "ok"
    assert "off" in judge_checksums(Checksums(False, ()), limits).message
    assert (found.status, found.value) == ("crit", 3)
    assert "2 pages of database shop failed the checksum, the last 90 s ago" in found.message
    assert str(found.remedy.command).startswith("pg_dump -d shop ")


def test_the_remedy_of_an_invalid_index_is_that_of_its_kind():
    """Left over: dropped. Of a partitioned table: its partitions. Else built again."""

    def command(**changes):
        kind = {"is_unique": False, "is_partitioned": False, "is_leftover": False, **changes}
        return judge_invalid_indexes([InvalidIndex("a.i", "a.t", **kind)], database="shop").remedy.command.at("shop")

    assert command() == 'psql -d shop -c "reindex index concurrently a.i"'
    assert command(is_leftover=True) == 'psql -d shop -c "drop index a.i"'
    assert command(is_partitioned=True) == r"psql -d shop -c '\d+ a.i'"


@pytest.mark.parametrize(
    ("versions", "status", "said"),
    [
        (CollationVersions(Version("shop", "2.36", "2.36"), ()), "ok", "version 2.36"),
        (CollationVersions(Version("shop", None, "2.36"), ()), "ok", "no version"),
        (CollationVersions(None, ()), "ok", "before 15"),
        (CollationVersions(Version("shop", "2.36", "2.41"), ()), "crit", "sorted by version 2.36"),
        (CollationVersions(Version("shop", "2.36", None), ()), "crit", "now has none"),
        (CollationVersions(None, (Version('public."de"', "1", "2"),)), "crit", 'collation public."de"'),
    ],
)
def test_text_sorted_by_another_version_is_critical(versions, status, said):
    """The database's own collation from 15 on, and those that columns use."""
    found = judge_collation(versions, database="shop")

    assert found.status == status
    assert said in found.message


def test_sequences_and_bloat_are_judged_by_the_worst_one():
    """The most used sequence; the table with the most to gain, unless that is a small part of it."""
    used = [Sequence("public.a", "public.t", "id", "integer", "integer", 2e9, 0.96, 2147483647.0)]
    near = judge_sequences(Sequences(tuple(used), 0), LIMITS["db.sequences"], database="shop")
    large = Bloats((Bloat("public.t", 100 * GIB, 2 * GIB), Bloat("public.u", 3 * GIB, 2 * GIB)), 0)
    bloated = judge_bloat(large, LIMITS["db.bloat"], database="shop")

    assert (near.status, near.value) == ("crit", 96)
    assert "public.a (public.t.id, integer) has used 96 % of its numbers: 2000000000 of 2147483647" in near.message
    assert (bloated.status, bloated.value) == ("warn", 2 * GIB)
    assert "public.u" in bloated.message


def test_commands_can_be_copied_whatever_is_in_the_names():
    """A shell hands psql exactly the statement."""
    statement = 'drop index public."a\'b$c`d"'

    assert shlex.split(str(psql(statement, database="my db"))) == ["psql", "-d", "my db", "-c", statement]


# Seen


@pytest.fixture(scope="module")
def broken(binaries):
    """A server with nothing wrong but what the tests break, and its checksums on."""
    with throwaway_server(binaries, settings=SETTINGS) as cluster:
        with psycopg.connect(cluster.url()) as connection:
            (checksums,) = connection.execute("show data_checksums").fetchone()
        if checksums == "off":  # before PostgreSQL 18, unless somebody asks for them
            cluster.stop()
            command = [binaries.folder / "pg_checksums", "--enable", "--no-sync", "-D", _data_folder(cluster)]
            subprocess.run(command, check=True, capture_output=True, **cluster._as_account())
            cluster.start()
        yield cluster


def _data_folder(cluster):
    return next(path.parent for path in cluster.folder.rglob("PG_VERSION") if (path.parent / "global").is_dir())


@pytest.fixture
def admin(broken):
    with psycopg.connect(broken.url(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def doctor(broken, tmp_path):
    """``doctor("db.slots", user=…, thresholds=…, now=…)``: the results by id."""

    def examine(*words, user=None, thresholds=None, now=None, url=None):
        wanted = url or broken.url()
        if user:
            wanted = wanted.replace(f"user={broken.user}", f"user={user}")
        scope = Scope(
            config=load_config(working_folder=Path("/")),
            databases=["saasdb"],
            clock=lambda: now or datetime.now(UTC),
            open_server=lambda _name: Server(wanted),
            open_repositories=dict,
            open_tools=dict,
            samples=Samples(tmp_path / "samples.json"),
        )
        units = choose_units(list_units(ALL_CHECKS, scope, thresholds or LIMITS), words)
        return {each.id: each for each in run_checks(units, scope)}

    return examine


@pytest.fixture
def follow(broken, binaries):
    """``follow(result)``: its remedy's command in a shell, as somebody with the rights for it would run it."""

    def run(result, *, fails=False):
        command = result.remedy.command.replace("user=watcher", f"user={broken.user}")
        environment = {"PATH": f"{binaries.folder}:{os.environ['PATH']}", "PGHOST": "127.0.0.1", "PGPORT": "1"}
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
        assert bool(done.returncode) == fails, done
        return done.stderr

    return run


def until(true):
    """Wait for what the server does by itself."""
    while not true():
        time.sleep(0.02)


def test_slots_that_keep_wal_are_named_and_dropping_them_helps(doctor, admin, follow):
    """A slot of either kind that nobody reads, by bytes and by age; following the remedy frees the WAL."""
    admin.execute("select pg_create_physical_replication_slot('gone', true)")
    admin.execute("select pg_create_logical_replication_slot('etl', 'pgoutput')")
    admin.execute("create table filler as select repeat('x', 200) from generate_series(1, 20000); drop table filler")

    first = doctor("db.slots")["db.slots"]
    later = doctor("db.slots", now=datetime.fromtimestamp(time.time() + 1900, UTC))["db.slots"]
    kept = doctor("db.slots", thresholds={"db.slots": Thresholds(MIB)})["db.slots"]
    follow(kept)
    left = doctor("db.slots", thresholds={"db.slots": Thresholds(MIB)})["db.slots"]
    follow(left)
    after = doctor("db.slots", thresholds={"db.slots": Thresholds(MIB)})["db.slots"]

    assert first.status == "ok"  # a standby may restart
    if admin.info.server_version < 170000:  # from then on the server itself says since when, whatever our clock says
        assert (later.status, later.code) == ("warn", "inactive")
    else:
        assert 0 <= later.details["slots"][0]["inactive_seconds"] < 1000
    assert (kept.status, kept.code) == ("warn", "retained")
    assert "slot gone" in kept.message
    assert kept.value > 4 * MIB
    assert "logical slot etl of database postgres" in left.message
    assert after.message == "There is no replication slot."


def test_a_failing_archive_command_is_critical_until_it_succeeds(doctor, admin, broken):
    """The failed file is named; after the repair the next try makes it well."""
    admin.execute("alter system set archive_command = 'exit 1'")
    admin.execute("select pg_reload_conf()")
    admin.execute("create table if not exists one (); select pg_switch_wal()")
    until(lambda: admin.execute("select failed_count > 0 from pg_stat_archiver").fetchone()[0])
    failing = doctor("db.archiver")["db.archiver"]
    admin.execute("alter system set archive_command = 'true'")
    admin.execute("select pg_reload_conf()")
    admin.execute("create table two (); select pg_switch_wal()")
    until(lambda: admin.execute("select last_archived_time > last_failed_time from pg_stat_archiver").fetchone()[0])
    repaired = doctor("db.archiver")["db.archiver"]

    assert (failing.status, failing.code) == ("crit", "failing")
    assert "archive_command fails for 0000" in failing.message
    assert failing.details["waiting"] >= 1
    assert repaired.status == "ok"


def test_an_invalid_index_is_named_and_building_it_again_helps(doctor, admin, follow):
    """One that a failed CREATE UNIQUE INDEX CONCURRENTLY left; one that is being built is no alarm."""
    admin.execute('create table "Orders" (id int, note text); insert into "Orders" values (1), (1)')
    with pytest.raises(psycopg.errors.UniqueViolation):
        admin.execute('create unique index concurrently orders_id on "Orders" (id)')
    found = doctor("db.invalid_indexes")["db.invalid_indexes"]
    admin.execute("delete from \"Orders\" where ctid = '(0,1)'")
    follow(found)
    after = doctor("db.invalid_indexes")["db.invalid_indexes"]
    building = _while_building_an_index(admin, lambda: doctor("db.invalid_indexes")["db.invalid_indexes"])

    assert found.status == "warn"
    assert 'public.orders_id of public."Orders"' in found.message
    assert after.status == building.status == "ok"


def _while_building_an_index(admin, look):
    url = admin.info.dsn
    with psycopg.connect(url) as writer, psycopg.connect(url, autocommit=True) as builder:
        writer.execute('insert into "Orders" values (7)')  # CREATE INDEX CONCURRENTLY waits for its end
        cursor = builder.cursor()
        builder.pgconn.send_query(b'create index concurrently orders_note on "Orders" (note)')
        query = "select count(*) from pg_index where indexrelid = to_regclass('orders_note') and not indisvalid"
        until(lambda: admin.execute(query).fetchone()[0])
        result = look()
        writer.rollback()
        cursor.close()
        while builder.pgconn.get_result() is not None:
            pass
    return result


def test_a_sequence_near_its_end_is_named_and_enlarging_it_helps(doctor, admin, follow):
    """A smallint; and a bigint's sequence that belongs to an integer column, which ends before it does."""
    admin.execute("create table small (id smallserial); select setval('small_id_seq', 30000)")
    admin.execute(
        "create table cramped (id int); create sequence s owned by cramped.id; select setval('s', 2147483000)"
    )
    admin.execute("create sequence down increment -1 minvalue -10 maxvalue -1; select setval('down', -10)")
    admin.execute("create sequence again maxvalue 10 cycle; select setval('again', 10)")

    seen = []
    while (found := doctor("db.sequences")["db.sequences"]).status != "ok":
        seen.append((found.status, found.message))
        assert len(seen) <= 3, seen
        follow(found)

    assert [status for status, _ in seen] == ["crit", "crit", "warn"]
    assert "public.down (bigint) has used 100 % of its numbers: -10 of -10" in seen[0][1]
    assert "public.s (public.cramped.id, integer) has used 100 % of its numbers: 2147483000 of" in seen[1][1]
    assert "public.small_id_seq (public.small.id, smallint) has used 92 %" in seen[2][1]


def test_another_version_of_the_collation_is_critical_and_the_remedy_records_the_new_one(doctor, admin, follow):
    """The database's own, and one that a column uses."""
    if admin.info.server_version < 150000:
        pytest.skip("PostgreSQL before 15 does not record the version of a database's collation")
    provider, locale, name = ("builtin", "builtin_locale 'C.UTF-8'", "pg_c_utf8")
    if admin.info.server_version < 170000:
        provider, locale, name = ("icu", "icu_locale 'en'", "en-x-icu")
        if not admin.execute("select count(*) from pg_collation where collname = %s", (name,)).fetchone()[0]:
            pytest.skip("this server has no ICU, and no other collation with a version")
    admin.execute(f"create database sorted template template0 locale_provider {provider} {locale}")
    url = admin.info.dsn.replace("dbname=postgres", "dbname=sorted")
    with psycopg.connect(url, autocommit=True) as inside:
        inside.execute(f'create table t (a text collate "{name}"); create index on t (a)')
        before = doctor("db.collation", url=url)["db.collation"]
        inside.execute("update pg_database set datcollversion = '0.1' where datname = 'sorted'")
        inside.execute("update pg_collation set collversion = '0.1' where collname = %s", (name,))
    found = doctor("db.collation", url=url)["db.collation"]
    follow(found)
    after = doctor("db.collation", url=url)["db.collation"]

    assert before.status == "ok"
    assert (found.status, found.code, found.value) == ("crit", "mismatch", 2)
    assert "database sorted was sorted by version 0.1 of its library, the server now has" in found.message
    assert after.status == "ok"


def test_a_page_that_was_damaged_on_disk_is_critical(doctor, admin, broken, follow):
    """Bytes flipped under a running server; the remedy's dump finds the table."""
    admin.execute("create database damaged")
    url = admin.info.dsn.replace("dbname=postgres", "dbname=damaged")
    with psycopg.connect(url, autocommit=True) as inside:
        inside.execute("create table pages as select generate_series(1, 5000)")
        (path,) = inside.execute("select pg_relation_filepath('pages')").fetchone()
    before = doctor("db.checksums")["db.checksums"]
    admin.execute("checkpoint")
    broken.stop()
    with (_data_folder(broken) / path).open("r+b") as file:
        file.seek(8192 + 4000)
        file.write(b"damaged")
    broken.start()
    with psycopg.connect(url) as inside, pytest.raises(psycopg.errors.DataCorrupted):
        inside.execute("select count(*) from pages")
    with psycopg.connect(broken.url(), autocommit=True) as again:
        count = "select checksum_failures from pg_stat_database where datname = 'damaged'"
        until(lambda: again.execute(count).fetchone()[0])
        found = doctor("db.checksums")["db.checksums"]
        where = follow(found, fails=True)
        again.execute("drop database damaged")

    assert before.status == "ok"
    assert (found.status, found.code) == ("crit", "damaged")
    assert "of database damaged failed the checksum" in found.message
    assert "invalid page in block 1" in where
    assert "COPY public.pages" in where


def test_bloat_is_estimated_and_vacuum_full_removes_it(doctor, admin, follow):
    """Nine of ten rows deleted: about that share of the table is empty. It runs only when it is asked for."""
    admin.execute("create table fat with (autovacuum_enabled = off) as select n, repeat('x', 150) as pad"
                  " from generate_series(1, 90000) n")  # fmt: skip
    admin.execute("vacuum analyze fat")
    limits = {"db.bloat": Thresholds(MIB)}
    dense = doctor("db.bloat", thresholds=limits)["db.bloat"]
    admin.execute("delete from fat where n % 10 > 0")
    admin.execute("vacuum analyze fat")
    found = doctor("db.bloat", thresholds=limits)["db.bloat"]
    follow(found)
    after = doctor("db.bloat", thresholds=limits)["db.bloat"]

    assert dense.status == after.status == "ok"
    assert (found.status, found.code) == ("warn", "bloat")
    assert 0.8 < found.details["tables"][0]["wasted_bytes"] / found.details["tables"][0]["total_bytes"] < 0.95
    assert "db.bloat" not in doctor("db")


def test_what_pg_monitor_may_not_read_is_unknown_with_the_grant(doctor, admin):
    """Values of sequences and statistics of tables belong to their owners; everything else is there."""
    admin.execute("create table theirs (id serial); create role monitor login; grant pg_monitor to monitor")
    admin.execute("create role nobody_yet login")
    results = doctor(*HEALTH, "db.sequences", user="monitor")
    plain = doctor(*HEALTH, user="nobody_yet")
    admin.execute("grant select on all sequences in schema public to monitor")
    granted = doctor("db.sequences", user="monitor")["db.sequences"]

    assert {each.id for each in results.values() if each.status == "unknown"} == {"db.sequences"}
    assert "GRANT SELECT ON ALL SEQUENCES" in results["db.sequences"].remedy.text
    assert granted.status == "ok"
    assert {each.id for each in plain.values() if each.status == "unknown"} == {
        "db.replication",
        "db.archiver",
        "db.invalid_indexes",
    }
    assert all("pg_monitor" in each.remedy.text for each in plain.values() if each.status == "unknown")


def test_an_idle_server_raises_no_alarm_in_two_runs(doctor, admin):
    """What earlier tests broke they repaired: nothing is left to find, now or the second time."""
    for _ in range(2):
        results = doctor(*HEALTH, "db.sequences")
        assert {each.status for each in results.values()} == {"ok"}, results
