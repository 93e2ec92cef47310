"""The checks of a database on a real server: healthy, and really broken."""

import os
import signal
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import psycopg  # noqa: TID253  # a test may load what it likes
import pytest
from servers import throwaway_server

from opsctl.checks import ALL_CHECKS, choose_units
from opsctl.checks.check import Thresholds
from opsctl.checks.run import list_units, run_checks
from opsctl.checks.scope import Scope
from opsctl.config import load_config
from opsctl.postgres.activity import without_literals
from opsctl.postgres.server import Server
from opsctl.postgres.tools import Tools


@pytest.fixture
def doctor():
    """``doctor(url, "db.blocked", **thresholds)``: the results by id."""

    def examine(url, *words, thresholds=None):
        scope = Scope(
            config=load_config(working_folder=Path("/")),
            databases=["saasdb"],
            clock=lambda: datetime.now(UTC),
            open_server=lambda _name: Server(url),
            open_repositories=dict,
            open_tools=lambda _name: Tools(search_path=os.get_exec_path(), environment={}),
        )
        units = choose_units(list_units(ALL_CHECKS, scope, thresholds or {}), words)
        return {each.id: each for each in run_checks(units, scope)}

    return examine


@contextmanager
def waiting(database, sql):
    """A session that runs ``sql`` and has to wait for it."""

    def run():
        with database.connect(application_name="waiting") as connection:
            connection.execute(sql)

    thread = Thread(target=run)
    thread.start()
    found = "select count(*) from pg_stat_activity where application_name = 'waiting' and wait_event_type = 'Lock'"
    while not database.execute(found)[0][0]:
        time.sleep(0.01)
    yield
    thread.join()


def test_an_idle_healthy_database_raises_no_alarm(doctor, saas):
    """0 false alarms."""
    results = doctor(saas.url, "db")

    assert {each.status for each in results.values()} <= {"ok", "skip"}, results
    assert len(results) == len([each for each in ALL_CHECKS if each.id.startswith("db.") and not each.opt_in])


def test_all_checks_take_one_connection(doctor, saas):
    """They share one session; a database that is short of connections can still be looked at."""
    before = saas.execute("select coalesce(sum(sessions), 0) from pg_stat_database where datname = %s", saas.name)
    doctor(saas.url, "db")
    query = "select coalesce(sum(sessions), 0) from pg_stat_database where datname = %s"
    after = saas.execute(query, saas.name)

    assert after[0][0] - before[0][0] <= 3


def test_the_root_blocker_is_named(doctor, saas):
    """Of a chain of waiting sessions the one at its end is named, with its age and without the strings it sent."""
    with saas.connect(autocommit=False, application_name="billing") as root:
        root.execute("update public.companies set name = 'hunter2' where id = 1")
        (pid,) = root.execute("select pg_backend_pid() -- 'hunter2'").fetchone()
        with waiting(saas, "update public.companies set name = name where id = 1"):
            try:
                calm = doctor(saas.url, "db.blocked")["db.blocked"]
                found = doctor(saas.url, thresholds={"db.blocked": Thresholds(0, 0)})["db.blocked"]
            finally:
                root.rollback()

    assert calm.status == "ok"  # nobody has waited for 30 s yet
    assert (found.status, found.code) == ("crit", "blocked")
    assert f"pid {pid} (billing, idle in transaction" in found.message
    assert found.remedy.command.endswith(f'\' -c "select pg_terminate_backend({pid})"')
    assert "host=" in found.remedy.command
    assert found.details["waiting"] == 1
    assert "hunter2" not in str(found)


def test_connections_that_are_used_up(doctor, binaries):
    """The share in use is counted; when nothing is left, db.connect says so, and why everything else is skipped."""
    with throwaway_server(binaries, settings={"max_connections": "8", "superuser_reserved_connections": "1"}) as few:
        with psycopg.connect(few.url(), autocommit=True) as admin:
            admin.execute("create role app login; grant pg_monitor to app")
            url = few.url().replace(f"user={few.user}", "user=app")
            sessions = [psycopg.connect(url) for _ in range(5)]
            filling = doctor(url, "db.connections")["db.connections"]
            while admin.execute("select count(*) from pg_stat_activity where usename = 'app'").fetchone() != (5,):
                time.sleep(0.01)  # until the server has ended doctor's own session
            sessions.append(psycopg.connect(url))
            full = doctor(url, "db")
        for session in sessions:
            session.close()

    assert (filling.status, filling.value) == ("warn", 85.7)
    assert (full["db.connect"].status, full["db.connect"].code) == ("crit", "too_many_clients")
    assert full["db.connections"].because == "db.connect"
    assert "pg_use_reserved_connections" in full["db.connect"].remedy.text


def test_a_login_without_pg_monitor_is_told_what_it_needs(doctor, saas):
    """What a login may not see is unknown, never fine; a bare pg_monitor is enough for everything."""
    role = f"watcher_{os.getpid()}"
    saas.execute(f"create role {role} login")
    url = saas.url.replace(f"user={saas.cluster.user}", f"user={role}")
    try:
        before = doctor(url, "db")
        saas.execute(f"grant pg_monitor to {role}")
        after = doctor(url, "db")
    finally:
        saas.execute(f"drop role {role}")

    assert before["db.blocked"].status == "unknown"
    assert "pg_monitor" in before["db.blocked"].remedy.text
    values = after.pop("db.sequences")  # of all things only these are their owners' own
    assert {each.status for each in after.values()} <= {"ok", "skip"}, after
    assert (values.status, values.code) == ("unknown", "not_permitted")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("postgresql://u@127.0.0.1:1/x", "refused"),
        ("postgresql://u@name.invalid/x", "dns"),
        ("postgresql:///x?host=/nowhere", "refused"),
    ],
)
def test_each_rung_of_the_way_to_the_server_has_its_word(doctor, url, code):
    """The first rung that breaks is the finding; what needs the database is skipped because of it."""
    results = doctor(url, "db")

    assert (results["db.connect"].status, results["db.connect"].code) == ("crit", code)
    assert {each.because for each in results.values() if each.id != "db.connect"} == {"db.connect"}


def test_wrong_passwords_names_and_closed_databases(doctor, binaries, new_database):
    """The login's rungs: password, database, a database closed to everybody, no password at all."""
    with throwaway_server(binaries, listen=True) as cluster:
        with psycopg.connect(cluster.url(), autocommit=True) as admin:
            admin.execute("create database closed allow_connections false")
        url = cluster.tcp_url()
        codes = {
            "wrong": doctor(url.replace(cluster.password, "wrong"), "db.connect")["db.connect"].code,
            "none": doctor(url.replace(f":{cluster.password}@", "@"), "db.connect")["db.connect"].code,
            "missing": doctor(cluster.tcp_url("missing"), "db.connect")["db.connect"].code,
            "closed": doctor(cluster.tcp_url("closed"), "db.connect")["db.connect"].code,
        }

    assert codes == {
        "wrong": "authentication",
        "none": "authentication",
        "missing": "not_found",
        "closed": "not_accepting",
    }


def test_a_hung_server_is_db_connect(run_opsctl, binaries):
    """SIGSTOP to the server: it still listens and never answers. Doctor ends in time, with one cause."""
    with throwaway_server(binaries) as cluster:
        os.kill(cluster.pid, signal.SIGSTOP)
        try:
            run = run_opsctl("doctor", "db", "--json", url=cluster.url(), timeout=15)
        finally:
            os.kill(cluster.pid, signal.SIGCONT)

    assert run.returncode == 2, run
    result = run.json["result"]
    assert (result["verdict"]["cause"], result["verdict"]["code"]) == ("db.connect", "hung")
    assert result["counts"]["crit"] == 1
    assert result["counts"]["warn"] + result["counts"]["unknown"] == 0


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("alter role a password 'x''y'", "alter role a password '…'"),
        ("select $$secret$$,\n  $tag$ it's $tag$ from t", "select '…', '…' from t"),
        ("insert into t values ('cut off", "insert into t values ('…'"),
        ("select 1", "select 1"),
    ],
)
def test_queries_are_shown_without_their_strings(query, shown):
    """Whatever an application puts into a query's strings, nobody reads it in an alarm."""
    assert without_literals(query) == shown
