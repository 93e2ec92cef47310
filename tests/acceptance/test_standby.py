"""A real standby, made by pg_basebackup: it keeps up, is paused, loses its primary."""

import os
import subprocess
import time
from contextlib import contextmanager

import psycopg  # noqa: TID253  # a test may load what it likes
import pytest
from servers import throwaway_server

pytestmark = [pytest.mark.acceptance, pytest.mark.end_to_end]


def until(true):
    """Wait for what the servers do by themselves."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def value(url, query):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchone()[0]


@contextmanager
def standby_of(primary, binaries):
    """A standby with a slot of its own; the URL it answers at."""
    data = primary.folder / "standby"
    programs = {name: str(binaries.folder / name) for name in ("pg_basebackup", "postgres")}
    account = primary._as_account()
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(data, account["user"], account["group"])
    source = f"host={primary.socket_folder} port={primary.port} user={primary.user} application_name=mirror"
    command = [programs["pg_basebackup"], "-d", source, "-D", data, "-R", "-C", "-S", "mirror", "-c", "fast", "-N"]
    subprocess.run(command, check=True, capture_output=True, **account)
    port = primary.port + 1
    server = subprocess.Popen(
        [programs["postgres"], "-D", data, "-p", str(port), "-k", primary.socket_folder, "-c", "listen_addresses="],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **account,
    )
    try:
        url = f"host={primary.socket_folder} port={port} user={primary.user} dbname=postgres"
        until(lambda: (primary.socket_folder / f".s.PGSQL.{port}").exists() and _answers(url))
        yield f"postgresql:///postgres?host={primary.socket_folder}&port={port}&user={primary.user}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def _answers(url):
    try:
        return value(url, "select true")
    except psycopg.OperationalError:
        return False


def test_a_standby_is_seen_from_both_ends(run_opsctl, binaries):
    """Idle: no alarm at either end. Paused: named, and its remedy is a command. Without its primary: critical."""

    def look(url):
        results = run_opsctl("doctor", "db.replication", "db.slots", "--json", url=url).json["result"]["checks"]
        return {each["id"]: each for each in results}

    with (
        throwaway_server(binaries, settings={"wal_level": "replica", "max_wal_senders": "4"}) as primary,
        standby_of(primary, binaries) as standby,
    ):
        until(lambda: value(primary.url(), "select count(*) from pg_stat_replication where state = 'streaming'"))
        idle = look(primary.url()), look(standby)
        value(standby, "select pg_wal_replay_pause()::text")
        value(primary.url(), "select txid_current()::text")
        value(primary.url(), "select pg_logical_emit_message(false, 'x', repeat('x', 5000000))::text")
        paused = look(standby)["db.replication"]
        value(standby, "select pg_wal_replay_resume()::text")
        value(primary.url(), "select count(*) from pg_class")
        until(lambda: value(standby, "select pg_last_wal_replay_lsn() = pg_last_wal_receive_lsn()"))
        resumed = look(standby)["db.replication"]
        primary.stop()
        until(lambda: not value(standby, "select count(*) from pg_stat_wal_receiver"))
        alone = look(standby)["db.replication"]

    assert {each["status"] for found in idle for each in found.values()} == {"ok"}, idle
    assert "The standby mirror" in idle[0]["db.replication"]["message"]
    assert (paused["status"], paused["code"]) == ("warn", "paused")
    assert paused["remedy"]["command"].endswith('-c "select pg_wal_replay_resume()"')
    assert resumed["status"] == "ok"
    assert (alone["status"], alone["code"]) == ("crit", "disconnected")
