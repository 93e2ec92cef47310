"""What stays open or runs out in a server: made for real, found, and put right by what the remedy says."""

import os
import shlex
import subprocess
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psycopg  # noqa: TID253  # a test may load what it likes
import pytest
from servers import throwaway_server

from opsctl.checks.check import Thresholds
from opsctl.checks.counters import NO_SAMPLE, RESET, judge_cache_hit, judge_deadlocks
from opsctl.checks.databases import judge_latency, psql, rollback_prepared
from opsctl.checks.horizons import judge_wraparound, judge_xmin
from opsctl.checks.scope import Scope
from opsctl.checks.transactions import (
    judge_idle_in_transaction,
    judge_long_transactions,
    judge_prepared,
    judge_timeouts,
)
from opsctl.checks.versions import check_version_skew
from opsctl.config import load_config
from opsctl.errors import DatabaseUnreachable
from opsctl.postgres.activity import read_blocked, read_connections
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.counters import Counters, read_counters
from opsctl.postgres.horizons import DatabaseAge, Holder, read_ages, read_holders
from opsctl.postgres.programs import INSTALL_HINT
from opsctl.postgres.server import Server
from opsctl.postgres.session import examining
from opsctl.postgres.tools import Tools
from opsctl.postgres.transactions import (
    Limits,
    OpenTransaction,
    PreparedTransaction,
    read_limits,
    read_open_transactions,
    read_prepared_transactions,
)

SETTINGS = {"max_prepared_transactions": "4", "deadlock_timeout": "20ms"}
READERS = (
    read_connections,
    read_blocked,
    read_open_transactions,
    read_prepared_transactions,
    read_limits,
    read_holders,
    read_ages,
    read_counters,
)


@pytest.fixture(scope="module")
def server(binaries):
    """A server of this module's own, which takes prepared transactions; two databases of it are configured."""
    with throwaway_server(binaries, settings=SETTINGS) as own:
        with psycopg.connect(own.url(), autocommit=True) as admin:
            for name in ("billing", "it's odd"):
                admin.execute(f'create database "{name}"')
            admin.execute("create role watcher login; grant pg_monitor to watcher")
        yield own


@pytest.fixture
def doctor(look, server):
    """``doctor("db.xmin", **thresholds)``: the results by id at the first database; ``watcher`` has but pg_monitor."""

    def examine(*words, thresholds="", login="watcher", all_targets=False):
        url = server.url("billing").replace(f"user={server.user}", f"user={login}")
        other = server.url("it's odd").replace(f"user={server.user}", f"user={login}")
        toml = (
            f'[databases.billing]\nurl = "{url}"\n[databases.other]\nurl = "{other}"\n[doctor.thresholds]\n{thresholds}'
        )
        found = look(toml, *words)
        return found if all_targets else {each.id: each for each in found.values() if each.target == "billing"}

    return examine


def run_remedy(server, result):
    """What somebody does who copies the command, as a superuser; which server it is stands in the command."""
    command = result.remedy.command.replace("user=watcher", f"user={server.user}")
    environment = {"PGHOST": "127.0.0.1", "PGPORT": "1"}
    path = f"{server.binaries.folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, (result.remedy.command, done.stderr)


def connect(server, name="billing", **options):
    return psycopg.connect(server.url(name), **options)


# An idle server


def test_two_looks_at_an_idle_server_raise_no_alarm(doctor):
    """0 false alarms, with two samples as without; a bare pg_monitor login is enough for everything."""
    for _ in range(2):
        results = doctor("db", "db.cache_hit", all_targets=True)
        assert {each.status for each in results.values()} <= {"ok", "skip"}, results

    assert "in the last" in results["db.deadlocks (billing)"].message
    assert results["db.timeouts (billing)"].message.startswith("No timeout limits this login")
    assert "pg_dump" in results["db.version_skew (billing)"].message


def test_what_is_true_of_a_server_is_told_once(doctor):
    """Two databases on one server: the server is looked at in the first of them, each database by itself."""
    targets = {}
    for each in doctor("db", "db.cache_hit", all_targets=True).values():
        targets.setdefault(each.id, []).append(each.target)

    once = {id for id, found in targets.items() if found == ["billing"]}  # noqa: A001 - a check's id
    assert once >= {
        *("db.blocked", "db.connections", "db.idle_in_txn", "db.long_txn", "db.prepared", "db.timeouts"),
        *("db.xmin", "db.wraparound", "db.version_skew"),
    }
    for id in ("db.connect", "db.latency", "db.deadlocks", "db.cache_hit"):  # noqa: A001 - a check's id
        assert targets[id] == ["billing", "other"]


# Really broken


def test_a_session_idle_in_its_transaction_is_named_and_ended(doctor, server):
    """Found with pid, application, user and database, without the strings it sent; the remedy ends it."""
    with suppress(psycopg.OperationalError), connect(server, application_name="billing-worker") as forgotten:
        forgotten.execute("select 'hunter2'")
        calm = doctor("db.idle_in_txn", "db.long_txn")
        found = doctor("db.idle_in_txn", thresholds='"db.idle_in_txn" = { warn = 0, crit = 0 }')["db.idle_in_txn"]
        pid = forgotten.info.backend_pid
        run_remedy(server, found)
        after = doctor("db.idle_in_txn", thresholds='"db.idle_in_txn" = { warn = 0, crit = 0 }')["db.idle_in_txn"]

    assert {each.status for each in calm.values()} == {"ok"}
    assert (found.status, found.code) == ("crit", "idle_in_transaction")
    assert f"pid {pid} (billing-worker, user {server.user}, database billing)" in found.message
    assert (found.details["sessions"][0]["query"], "hunter2" in str(found)) == ("select '…'", False)
    assert (after.status, after.value) == ("ok", 0)


def test_a_long_transaction_is_named_but_not_a_dump(doctor, server):
    """Judged by its own age; pg_dump and opsctl take as long as the database is large."""
    limits = '"db.long_txn" = { warn = 0, crit = 0 }'
    with (
        connect(server, application_name="pg_dump") as dump,
        connect(server, application_name="opsctl snapshot") as own,
    ):
        dump.execute("select 1")
        own.execute("select 1")
        calm = doctor("db.long_txn", "db.idle_in_txn", thresholds=limits)
        with connect(server, application_name="report") as report:
            report.execute("select 1")
            found = doctor("db.long_txn", thresholds=limits)["db.long_txn"]
            pid = report.info.backend_pid

    assert {(each.status, each.value) for each in calm.values() if each.id != "db.connect"} == {("ok", 0)}
    assert (found.status, found.code) == ("crit", "long_transaction")
    assert f"pid {pid} (report, user {server.user}, database billing)" in found.message


def test_a_prepared_transaction_is_found_and_rolled_back(doctor, server):
    """In a database with an awkward name, with an awkward gid: the command works as it stands."""
    limits = '"db.prepared" = { warn = 0, crit = 0 }\n"db.xmin" = { warn = 1, crit = 2 }'
    with connect(server, "it's odd", autocommit=True) as session:
        session.execute("begin; create table t (id int); prepare transaction 'o''brien \"$HOME\"'")
        for _ in range(3):
            session.execute("select txid_current()")
    quiet = doctor("db.prepared")["db.prepared"]
    found = doctor("db.prepared", "db.xmin", thresholds=limits)
    run_remedy(server, found["db.prepared"])
    after = doctor("db.prepared", "db.xmin", thresholds=limits)

    assert quiet.status == "ok"  # not yet 60 s old
    assert (found["db.prepared"].status, found["db.prepared"].code) == ("crit", "prepared")
    assert "brien" in found["db.prepared"].message
    assert "database it's odd" in found["db.prepared"].message
    assert (found["db.xmin"].status, found["db.xmin"].code) == ("crit", "xmin_prepared")
    assert found["db.xmin"].remedy.command == found["db.prepared"].remedy.command
    assert {each.status for each in after.values()} == {"ok"}, after


@pytest.mark.parametrize(
    ("prepare", "wait"),
    [
        ("update held set id = 2", "update held set id = 3"),  # a row: the waiting one waits for the transaction
        ("lock table held", "select * from held"),
        ("select pg_advisory_xact_lock(5)", "select pg_advisory_lock(5)"),
    ],
)
def test_a_prepared_transaction_others_wait_for_is_the_blocker(doctor, server, prepare, wait):
    """No process holds its locks: the one of several transactions is named, and the remedy ends the wait."""
    limits = '"db.blocked" = { warn = 0, crit = 0 }'
    with (
        connect(server, autocommit=True) as session,
        connect(server, autocommit=True, application_name="waiting") as waiting,
    ):
        session.execute("drop table if exists held; create table held as select 1 as id")
        session.execute("begin; create table other (id int); prepare transaction 'innocent'")
        session.execute(f"begin; {prepare}; prepare transaction 'guilty'")
        thread = threading.Thread(target=waiting.execute, args=(wait,))
        thread.start()
        query = "select count(*) from pg_stat_activity where application_name = 'waiting' and wait_event_type = 'Lock'"
        while session.execute(query).fetchone() != (1,):
            time.sleep(0.01)
        found = doctor("db.blocked", thresholds=limits)["db.blocked"]
        run_remedy(server, found)
        thread.join()
        session.execute("rollback prepared 'innocent'")
        after = doctor("db.blocked", thresholds=limits)["db.blocked"]

    assert (found.status, found.code) == ("crit", "blocked")
    assert "the prepared transaction 'guilty'" in found.message
    assert [each["gid"] for each in found.details["roots"]] == ["guilty"]
    assert after.status == "ok"


def test_who_holds_the_horizon_back_is_named(doctor, server):
    """An old snapshot of an idle transaction; ended by the remedy."""
    limits = '"db.xmin" = { warn = 1, crit = 2 }'
    with suppress(psycopg.OperationalError), connect(server, application_name="old") as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select 1")
        with connect(server, autocommit=True) as session:
            for _ in range(3):
                session.execute("select txid_current()")
        found = doctor("db.xmin", thresholds=limits)["db.xmin"]
        pid = old.info.backend_pid
        run_remedy(server, found)
        after = doctor("db.xmin", thresholds=limits)["db.xmin"]

    assert (found.status, found.code, found.details["pid"]) == ("crit", "xmin_idle", pid)
    assert f"pid {pid} (old, database billing), idle in its transaction" in found.message
    assert after.status == "ok"


def test_the_oldest_database_is_named(doctor):
    """Every database has an age; with limits below it the one that is nearest to the wraparound is named."""
    found = doctor("db.wraparound", thresholds='"db.wraparound" = { warn = 1, crit = 1 }')["db.wraparound"]

    assert (found.status, found.code) == ("crit", "wraparound")
    oldest = found.details["oldest"][0]
    assert f"The oldest database is {oldest['database']}: " in found.message
    assert found.value == max(oldest["xids"], oldest["mxids"])


def test_deadlocks_since_the_last_look_are_counted(doctor, server):
    """The first look takes the sample; a real deadlock is counted by the next one, in its own database only."""
    first = doctor("db.deadlocks")["db.deadlocks"]
    with connect(server) as one, connect(server) as two:
        one.execute("create table locked (id int primary key, n int); insert into locked values (1, 0), (2, 0)")
        one.commit()
        one.execute("update locked set n = 1 where id = 1")
        two.execute("update locked set n = 1 where id = 2")
        thread = threading.Thread(target=_update_and_fail_at_most, args=(two,))
        thread.start()
        _update_and_fail_at_most(one, 2)
        one.rollback()
        thread.join()
    with connect(server, autocommit=True) as session:
        count = "select deadlocks from pg_stat_database where datname = 'billing'"
        while session.execute(count).fetchone() == (0,):
            time.sleep(0.01)  # until the sessions that ended have handed in what they counted
    found = doctor("db.deadlocks", thresholds='"db.deadlocks" = { warn = 0.5 }', all_targets=True)

    assert (first.status, first.message) == ("ok", NO_SAMPLE)
    assert (found["db.deadlocks (billing)"].status, found["db.deadlocks (billing)"].value) == ("warn", 1)
    assert found["db.deadlocks (other)"].status != "warn"


def _update_and_fail_at_most(session, row=1):
    with suppress(psycopg.errors.DeadlockDetected):
        session.execute("update locked set n = 2 where id = %s", [row])


def test_blocks_used_since_the_last_look_are_judged(doctor, server):
    """Opt-in. A table that is read often enough is in memory: with limits above 100 % that is an alarm."""
    doctor("db.cache_hit")
    with connect(server, autocommit=True) as session:
        session.execute("create table hot as select n, repeat('x', 500) as text from generate_series(1, 4000) n")
        for _ in range(50):
            session.execute("select sum(length(text)) from hot")
    calm = doctor("db.cache_hit")["db.cache_hit"]
    with connect(server, autocommit=True) as session:
        for _ in range(50):
            session.execute("select sum(length(text)) from hot")
    found = doctor("db.cache_hit", thresholds='"db.cache_hit" = { warn = 101 }')["db.cache_hit"]

    assert (calm.status, calm.value > 98) == ("ok", True)
    assert (found.status, found.code) == ("warn", "cache_hit")
    assert "db.cache_hit" not in doctor("db")


def test_timeouts_of_roles_and_databases_are_told(doctor, server):
    """What others have, and what this login has though its session has lifted it; never an alarm."""
    with connect(server, autocommit=True) as admin:
        admin.execute("create role app; alter role app set statement_timeout = '30s'")
        admin.execute("alter database billing set idle_in_transaction_session_timeout = '5min'")
        try:
            found = doctor("db.timeouts")["db.timeouts"]
        finally:
            admin.execute("alter database billing reset idle_in_transaction_session_timeout; drop role app")

    assert found.status == "ok"
    assert "limited by idle_in_transaction_session_timeout 5 min." in found.message
    assert "role app: statement_timeout=30s" in found.message


class OldClients:
    """A place with nothing but an old pg_dump."""

    hint, reads_files = INSTALL_HINT, True

    def find(self, _program):
        return [Binaries(Path("/usr/lib/postgresql/9.6/bin"), 9, "9.6.24", embedded=False)]


def test_a_server_newer_than_every_pg_dump_is_critical(server):
    """The next backup would fail: known before it does, with what to install."""
    scope = Scope(
        config=load_config(working_folder=Path("/")),
        databases=["billing"],
        clock=lambda: datetime.now(UTC),
        open_server=lambda _name: Server(server.url("billing")),
        open_repositories=dict,
        open_tools=lambda _name: Tools(search_path=[], environment={}, place=OldClients()),
    )
    try:
        found = check_version_skew(scope, "billing", Thresholds())
    finally:
        scope.close()

    assert (found.status, found.code) == ("crit", "version_skew")
    major = server.binaries.major
    assert f"The server is PostgreSQL {major}, and the newest pg_dump here is 9.6.24" in found.message
    assert found.remedy.text == INSTALL_HINT


def test_a_session_lost_in_mid_check_is_no_bug(server):
    """Whoever ends doctor's session: every question says that the connection is lost, none that opsctl is broken."""
    with examining(Server(server.url("billing")), connect_seconds=4) as session:
        with connect(server, autocommit=True) as admin:
            admin.execute("select pg_terminate_backend(%s, 5000)", [session.info.backend_pid])
        for read in READERS:
            with pytest.raises(DatabaseUnreachable):
                read(session)


def test_a_login_that_sees_no_sessions_is_told_the_grant(doctor, server):
    """Without pg_monitor the sessions of others look idle: that is unknown, never fine."""
    with connect(server, autocommit=True) as admin:
        admin.execute("create role blind login")
        try:
            results = doctor("db", login="blind")
        finally:
            while admin.execute("select 1 from pg_stat_activity where usename = 'blind'").fetchone():
                time.sleep(0.01)
            admin.execute("drop role blind")

    unknown = {each.id for each in results.values() if each.status == "unknown"}
    assert unknown >= {"db.idle_in_txn", "db.long_txn", "db.xmin"}
    assert {"pg_monitor" in results[id].remedy.text for id in unknown} == {True}  # noqa: A001 - a check's id
    assert {each.code for each in results.values() if each.status not in {"ok", "skip"}} == {"not_permitted"}


# Judged


def transaction(state="active", seconds=0.0, state_seconds=0.0, pid=7):
    return OpenTransaction(pid, "app", "u", "d", state, seconds, state_seconds, "select 1")


IDLE, ABORTED = "idle in transaction", "idle in transaction (aborted)"


@pytest.mark.parametrize(
    ("found", "idle", "long"),
    [
        ([], "ok", "ok"),
        ([transaction(IDLE, 290, 290)], "ok", "ok"),
        ([transaction(IDLE, 9000, 300)], "warn", "ok"),  # one alarm for one session
        ([transaction(ABORTED, 9000, 1800)], "crit", "ok"),
        ([transaction(IDLE, 9000, 1)], "ok", "crit"),  # between two of many statements
        ([transaction(ABORTED, 9000, 1)], "ok", "ok"),  # holds nothing any more
        ([transaction("active", 900, 900)], "ok", "warn"),
        ([transaction("active", 10, 10), transaction("active", 7200, 1, pid=8)], "ok", "crit"),
    ],
)
def test_open_transactions_are_judged_by_what_they_do(found, idle, long):
    assert judge_idle_in_transaction(found, Thresholds(300, 1800)).status == idle
    assert judge_long_transactions(found, Thresholds(900, 7200)).status == long


def test_the_oldest_of_several_is_told_with_how_many_more_there_are():
    found = [transaction(IDLE, 700, 310, pid=1), transaction(IDLE, 600, 600, pid=2)]
    told = judge_idle_in_transaction(found, Thresholds(300, 1800))
    assert told.message == "pid 2 (app, user u, database d) has been idle in its transaction for 10 min; 1 more."
    prepared = [PreparedTransaction("a", "u", "d", 900), PreparedTransaction("b", "u", "d", 1)]
    assert "'a' (user u, database d) was prepared 15 min ago" in judge_prepared(prepared, Thresholds(60, 600)).message


@pytest.mark.parametrize(
    ("holder", "code", "command"),
    [
        (Holder("query", "app", "d", 7, 100), "xmin_query", 'psql -c "select pg_terminate_backend(7)"'),
        (Holder("idle", "app", "d", 7, 100), "xmin_idle", 'psql -c "select pg_terminate_backend(7)"'),
        (Holder("prepared", "x", "d", None, 100), "xmin_prepared", "psql -d d -c \"rollback prepared 'x'\""),
        (Holder("slot", "s", "", None, 100), "xmin_slot", "psql -c \"select pg_drop_replication_slot('s')\""),
        (Holder("slot", "s", "", 7, 100), "xmin_slot", None),
        (Holder("walsender", "standby", "", 7, 100), "xmin_walsender", None),
    ],
)
def test_each_cause_of_an_old_horizon_has_its_remedy(holder, code, command):
    found = judge_xmin([Holder("query", "young", "d", 9, 3), holder], Thresholds(10, 50))
    assert (found.status, found.code, found.value) == ("crit", code, 100)
    assert found.remedy.command is command or str(found.remedy.command) == command
    assert judge_xmin([holder], Thresholds(101, 200)).status == "ok"


@pytest.mark.parametrize(
    ("age", "status", "words"),
    [
        (DatabaseAge("d", 499_999_999, 5, True), "ok", "499,999,999 transactions"),
        (DatabaseAge("d", 500_000_000, 5, True), "warn", "23 %"),
        (DatabaseAge("d", 5, 1_200_000_000, True), "crit", "1,200,000,000 multixacts"),
        (DatabaseAge("template0", 5, 1_200_000_000, False), "crit", "template0"),
    ],
)
def test_either_counter_may_be_nearer_to_its_end(age, status, words):
    found = judge_wraparound([DatabaseAge("young", 3, 3, True), age], Thresholds(500_000_000, 1_200_000_000))
    assert (found.status, words in found.message) == (status, True)
    if status != "ok":
        assert str(found.remedy.command).startswith("vacuumdb -d d --freeze" if age.allows_connections else "psql -c")


@pytest.mark.parametrize(
    ("earlier", "status", "words"),
    [
        (None, "ok", NO_SAMPLE),
        ((300.0, {"deadlocks": 11, "blocks_hit": 0, "blocks_read": 0}), "ok", RESET),
        ((300.0, {"deadlocks": 10, "blocks_hit": 0, "blocks_read": 0}), "ok", "No deadlock in the last 5 min."),
        ((10.0, {"deadlocks": 6, "blocks_hit": 0, "blocks_read": 0}), "ok", "4 deadlocks"),  # not 24 a minute
        ((60.0, {"deadlocks": 5, "blocks_hit": 0, "blocks_read": 0}), "warn", "5.0 a minute"),
    ],
)
def test_deadlocks_are_a_rate(earlier, status, words):
    found = judge_deadlocks(Counters(10, 100, 100), earlier, Thresholds(5))
    assert (found.status, words in found.message) == (status, True), found


@pytest.mark.parametrize(
    ("hit", "read", "status", "value"),
    [(9_800, 200, "ok", 98), (9_799, 201, "warn", 97.99), (0, 9_999, "ok", None), (0, 10_000, "warn", 0)],
)
def test_a_share_of_few_blocks_is_not_judged(hit, read, status, value):
    earlier = (300.0, {"deadlocks": 0, "blocks_hit": 50, "blocks_read": 50})
    found = judge_cache_hit(Counters(0, 50 + hit, 50 + read), earlier, Thresholds(98, falling=True))
    assert (found.status, found.value) == (status, value)


def test_one_late_answer_is_no_latency():
    assert judge_latency([0.001, 0.001, 2.0, 0.001, 0.002], Thresholds(0.1, 1)).status == "ok"
    assert judge_latency([0.2, 0.3, 0.2], Thresholds(0.1, 1)).status == "warn"


def test_timeouts_are_never_an_alarm():
    found = judge_timeouts(Limits({"statement_timeout": 250, "lock_timeout": 0}, {}))
    assert (found.status, found.message) == (
        "ok",
        "Transactions of this login are limited by statement_timeout 250 ms, and none is set for another.",
    )


@pytest.mark.parametrize("sql", ["select 1", "select 'a$b`c'", "select 'o''brien'", 'select "x"', "select '\\'"])
def test_a_remedys_statement_reaches_psql_as_it_is(sql):
    assert shlex.split(str(psql(sql, database="it's"))) == ["psql", "-d", "it's", "-c", sql]
    assert shlex.split(str(rollback_prepared("a'b", "d")))[-1] == "rollback prepared 'a''b'"
