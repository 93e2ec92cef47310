"""All checks of a server at once: how many connections that takes, and a server that is not up yet."""

import re
from contextlib import contextmanager
from threading import Thread

import psycopg  # noqa: TID253  # a test may load what it likes
import pytest
from servers import throwaway_server

pytestmark = pytest.mark.end_to_end

DATABASES = 12
CONNECTED = re.compile(r"connection authorized: .*application_name=(\S+.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def logged(binaries):
    """A server of twelve databases that logs who connects; ``watcher`` has pg_monitor, and few sessions."""
    settings = {"log_connections": "on" if binaries.major < 18 else "authorization"}
    with throwaway_server(binaries, settings=settings) as cluster:
        with psycopg.connect(cluster.url(), autocommit=True) as admin:
            admin.execute("create role watcher login connection limit 9; grant pg_monitor to watcher")
            for number in range(DATABASES):
                admin.execute(f"create database app{number} strategy file_copy")
        yield cluster


def connections(cluster, work):
    """What the server logged about those who connected while ``work`` was done, and what that returned."""
    begins = cluster.log.stat().st_size
    result = work()
    return result, CONNECTED.findall(cluster.log.read_text()[begins:])


def as_watcher(cluster, database):
    return cluster.url(database).replace(f"user={cluster.user}", "user=watcher")


def test_one_database_takes_three_connections_at_most(run_opsctl, logged):
    """All checks of a healthy database that was never looked at before, twice: no alarm, and 3 connections at most."""
    for _ in range(2):
        run, connected = connections(logged, lambda: run_opsctl("doctor", "--json", url=as_watcher(logged, "app0")))
        found = [each for each in run.json["result"]["checks"] if each["id"].startswith("db.")]
        alarms = [each for each in found if each["status"] in {"warn", "crit"}]

        assert not alarms
        assert 1 <= len(connected) <= 3, connected


def test_many_databases_never_take_more_than_three_at_once(run_opsctl, logged):
    """Twelve databases, a login that may have nine sessions: each answers.

    Nine, because of each of the three the server may still be ending the two before.
    """
    toml = f'[databases.all]\nurl = "{as_watcher(logged, "postgres")}"\nall = true\n'
    (run_opsctl.work / "opsctl.toml").write_text(toml)
    found = run_opsctl("doctor", "db", "--json").json["result"]["checks"]
    answers = {each["target"]: each["status"] for each in found if each["id"] == "db.connect"}

    assert answers == dict.fromkeys(["postgres", *(f"app{number}" for number in range(DATABASES))], "ok")


@contextmanager
def held_in_recovery(cluster):
    """The cluster while it starts and waits for WAL that does not come; afterwards it is up."""
    wait, signal = cluster.data / "wait", cluster.data / "recovery.signal"
    with (cluster.data / "postgresql.conf").open("a") as file:
        file.write(f"restore_command = 'while test -e {wait}; do sleep 0.05; done; false'\n")
    for each in (wait, signal):
        each.touch()
        cluster._give_away(each)
    cluster.stop()
    starting = Thread(target=cluster.start)  # comes back once the server is up
    starting.start()
    try:
        yield
    finally:
        wait.unlink()
        starting.join()


def test_a_server_that_starts_up(run_opsctl, binaries):
    """A server that recovers is not down but on its way: the cause says so, and once it is up all is well."""
    # Up to the end of the thread that started it, which is why the server is not used after that.
    with throwaway_server(binaries, settings={"wal_level": "replica"}) as cluster:
        with held_in_recovery(cluster):
            codes = [run_opsctl("doctor", "db", "--json", url=cluster.url()).json["result"]["verdict"]["code"]]
            while codes[-1] == "refused":  # not even its socket is there yet
                codes.append(run_opsctl("doctor", "db", "--json", url=cluster.url()).json["result"]["verdict"]["code"])
            down = run_opsctl("doctor", "db", "--json", url=cluster.url())
        cluster.restart()
        up = run_opsctl("doctor", "db.connect", "--json", url=cluster.url())

    assert (down.returncode, codes[-1]) == (2, "starting_up"), down
    assert (
        "try again in a moment"
        in next(each for each in down.json["result"]["checks"] if each["id"] == "db.connect")["remedy"]["text"]
    )
    assert (up.returncode, up.json["result"]["status"]) == (0, "ok")
