"""One run at a time per database, and a server that goes on working meanwhile."""

import json
import os
import shlex
import socket
import threading
import time

import pytest
from waiting import wait_for

CONTENT = "select count(*), sum(hashtextextended(t::text, 0)::numeric) from only {} t"


@pytest.fixture
def slow_backup(run_opsctl, saas, binaries, tmp_path):
    """A backup that holds its lock until its process is ended."""
    folder, marker = tmp_path / "bin", tmp_path / "dumping"
    folder.mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        real = shlex.quote(str(binaries.path(name)))
        wait = f'[ "$1" = --version ] || {{ touch {marker}; exec sleep 600; }}\n' if name == "pg_dump" else ""
        (folder / name).write_text(f'#!/bin/sh\n{wait}exec {real} "$@"\n')
        (folder / name).chmod(0o755)
    process = run_opsctl.start("backup", url=saas.url, env={"PATH": f"{folder}:{os.environ['PATH']}"})
    wait_for(marker.exists, "the first backup dumps")
    return process


def assert_locked(run, *words):
    assert run.returncode == 11, run
    error = run.json["error"]
    assert error["code"] == "locked"
    assert error["hint"]
    assert "\n" not in error["message"]
    for word in words:
        assert word in error["message"]


def test_second_backup_names_the_holder(run_opsctl, saas, slow_backup):
    """The second run of a database ends with 11 and says which process on which host it would have to wait for."""
    run = run_opsctl("backup", "--json", url=saas.url)
    assert_locked(run, "backup", f"pid {slow_backup.pid}", socket.gethostname(), "since")
    assert len(list(run_opsctl.work.rglob("*.partial"))) == 1, "that of the first"


def test_lock_works_across_hosts(run_opsctl, saas, slow_backup, tmp_path):
    """Without a common state folder, as from another host, the server itself names the holder."""
    run = run_opsctl("backup", "--json", url=saas.url, env={"OPSCTL_STATE_DIR": str(tmp_path / "elsewhere")})
    assert_locked(run, "backup", f"{socket.gethostname()}:{slow_backup.pid}", "since")


def test_undo_takes_the_same_lock(run_opsctl, saas, slow_backup):
    """While a backup runs nobody replaces its database."""
    saas.execute(f"create database {saas.name}__before_20260101t000000z")
    saas.execute(
        f'alter database {saas.name}__before_20260101t000000z rename to "{saas.name}__before_20260101T000000Z"'
    )
    run = run_opsctl("restore", "--undo", "--yes", saas.name, "--json", url=saas.url)
    assert_locked(run, f"pid {slow_backup.pid}")


def test_lock_is_free_right_after_a_kill(run_opsctl, saas, slow_backup, tmp_path):
    """A lock goes with its holder, on this host and on the server: the next run need not wait, or be helped."""
    slow_backup.kill()
    slow_backup.wait()
    assert run_opsctl("backup", url=saas.url).returncode == 0
    run = run_opsctl("backup", url=saas.url, env={"OPSCTL_STATE_DIR": str(tmp_path / "elsewhere")})
    assert run.returncode == 0, run


def test_other_databases_are_not_locked(run_opsctl, rich, slow_backup):
    """The lock is one database's: the others of the same server are backed up meanwhile."""
    assert run_opsctl("backup", url=rich.url).returncode in {0, 3}


def test_lock_of_a_table_names_its_holder(run_opsctl, saas):
    """A table that cannot be had in time ends the backup with 11; the session that holds it is named with its query."""
    (run_opsctl.work / "opsctl.toml").write_text(
        '[databases.app]\nurl_env = "DATABASE_URL"\nlock_timeout_seconds = 1\n'
    )
    with saas.connect(autocommit=False, application_name="migration") as holder:
        holder.execute("lock table messages in access exclusive mode")
        holder.execute("select 'the long migration'")
        pid = holder.info.backend_pid
        run = run_opsctl("backup", "--json", url=saas.url)
    assert_locked(run, f"pid {pid}", "migration", "public.messages", "the long migration")
    assert "lock_timeout_seconds" in run.json["error"]["hint"]
    assert not list(run_opsctl.work.rglob("*.partial"))
    assert run_opsctl("backup", url=saas.url).returncode == 0


def test_backup_stops_no_writer(run_opsctl, saas, slow_backup):
    """While a backup runs the application reads and writes; only DDL waits."""
    saas.execute("insert into messages (user_id, direction, body) values (1, 'incoming', 'still here')")
    saas.execute("update users set is_active = false where id = 1")
    saas.execute("delete from messages where body = 'still here'")


def test_backups_at_once_of_the_same_database(run_opsctl, saas):
    """Of several runs started together exactly one takes a backup; the others end with 11 and disturb nothing."""
    processes = [run_opsctl.start("backup", "--json", url=saas.url) for _ in range(4)]
    answers = [process.communicate(timeout=60) for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert set(codes) <= {0, 11}, answers
    stored = codes.count(0)
    assert stored >= 1
    listed = run_opsctl("list", "--json", url=saas.url).json["result"]
    assert len({each["id"] for each in listed["backups"]}) == stored
    assert listed["incomplete"] == []


class Restless:
    """An application that inserts, deletes, truncates and changes tables as fast as it can."""

    def __init__(self, database):
        self.database = database
        self.errors = []
        self.turns = 0
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in (self.write, self.change)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _run(self, work):
        from psycopg import Error

        try:
            with self.database.connect() as connection:
                while not self._done.is_set():
                    work(connection)
                    self.turns += 1
        except Error as error:
            self.errors.append(error)

    def write(self, connection):
        connection.execute("insert into log select n, md5(random()::text) from generate_series(1, 50) n")
        connection.execute("delete from log where ctid in (select ctid from log limit 20)")
        time.sleep(0.002)

    def change(self, connection):
        with connection.transaction():
            connection.execute("truncate volatile")
            connection.execute("insert into volatile select n, md5(random()::text) from generate_series(1, 200) n")
        with connection.transaction():
            connection.execute("alter table rewritten alter column x type text using md5(x)")
        connection.execute("create table if not exists comes_and_goes as select 1 as one")
        connection.execute("drop table comes_and_goes")
        time.sleep(1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_truncate_that_waits_does_not_stop_the_backup(run_opsctl, saas, binaries, tmp_path, when):
    """A TRUNCATE queues behind our lock and readers behind it, before or after pg_dump has its own: all get on."""
    folder, marker, done = tmp_path / "bin", tmp_path / "dumping", tmp_path / "done"
    folder.mkdir()
    wait = f"touch {marker}; while [ ! -e {done} ]; do sleep 0.05; done"
    dump = {"before": f'{wait}; exec "$real" "$@"', "after": f'"$real" "$@" | {{ head -c 9; {wait}; cat; }}'}
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        script = (
            f'#!/bin/bash\nreal={shlex.quote(str(binaries.path(name)))}\n[ "$1" = --version ] && exec "$real" "$1"\n'
        )
        body = dump[when] if name == "pg_dump" else 'exec "$real" "$@"'
        (folder / name).write_text(f"{script}{body}\n")
        (folder / name).chmod(0o755)
    process = run_opsctl.start("backup", "--json", url=saas.url, env={"PATH": f"{folder}:{os.environ['PATH']}"})
    wait_for(lambda: marker.exists() or process.poll() is not None, "the tables are locked")
    assert marker.exists(), process.communicate()
    with saas.connect() as application:
        thread = threading.Thread(target=application.execute, args=("truncate messages",))
        thread.start()
        waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = %s"
        wait_for(lambda: saas.execute(waiting, saas.name) == [(1,)], "TRUNCATE waits")
        done.touch()
        stdout, stderr = process.communicate(timeout=60)
        thread.join(timeout=60)
    assert process.returncode == 0, stderr
    assert saas.execute("select count(*) from messages") == [(0,)]
    assert json.loads(stdout)["result"]["backups"][0]["rows"] == (62040 if when == "before" else 82040)
    assert run_opsctl("verify", url=saas.url).returncode == 0


@pytest.mark.acceptance
def test_backups_of_a_restless_database_are_exact(run_opsctl, database):
    """Under writes, TRUNCATE and DDL the facts are those of the dump itself, hash for hash, every time."""
    (run_opsctl.work / "opsctl.toml").write_text(
        '[databases.app]\nurl_env = "DATABASE_URL"\nfacts = "content"\nlock_timeout_seconds = 20\n'
    )
    database.execute("create table log (n int, x text)")
    database.execute("create table volatile (n int, x text)")
    database.execute("create table rewritten as select n, md5(n::text) as x from generate_series(1, 5000) n")
    taken = []
    with Restless(database) as application:
        for _ in range(5):
            run = run_opsctl("backup", "--json", url=database.url)
            assert run.returncode == 0, run.json["error"]
            taken.append(run.json["result"]["backups"][0]["id"])
    assert application.errors == []
    assert application.turns > 20
    for number, identifier in enumerate(taken):
        (manifest,) = [path for path in run_opsctl.work.rglob("manifest.json") if path.parent.name == identifier]
        facts = json.loads(manifest.read_text())["facts"]
        rows = {table["name"]: table["rows"] for table in facts["tables"]}
        assert rows["volatile"] in {0, 200}
        assert rows["rewritten"] == 5000
        copy = f"{database.name}_copy{number}"
        run = run_opsctl("restore", identifier, "--into", copy, "--json", url=database.url)
        assert run.returncode == 0, run
        assert run.json["result"]["evidence"] == "content"
