"""Backups of a database that is written to, truncated and altered meanwhile: each is exactly one moment of it."""

import json
import threading
import time
from dataclasses import replace

import psycopg  # noqa: TID253
import pytest

pytestmark = pytest.mark.end_to_end

SMALL, SEVERAL, MANY = 4, 10, 50
BACKUP_SECONDS = 120
PAUSES = {"_write": 0.005, "_truncate": 0.7, "_define": 1}
"""Seconds between two transactions; between two that lock a table whole, pg_dump needs a moment to come in."""


class Application:
    """Sessions that change the database until they are told to stop; an error of theirs is the test's error."""

    def __init__(self, database):
        self._database = database
        self._done = threading.Event()
        self._turns = {}
        self._errors = []
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=work.__name__)
            for work in (self._write, self._truncate, self._define)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in self._threads)

    @property
    def turns(self):
        assert self._errors == []
        return dict(self._turns)

    def _run(self, work):
        try:
            with self._database.connect(autocommit=False) as connection:
                number = 0
                while not self._done.wait(PAUSES[work.__name__]):
                    with connection.transaction():
                        work(connection, number)
                    number += 1
                    self._turns[work.__name__.strip("_")] = number
        except psycopg.Error as error:
            self._errors.append(error)

    def _write(self, connection, number):
        """The sum of all accounts is always 0, and every booking has its two halves."""
        connection.execute(
            "INSERT INTO bookings SELECT %s, side, side * (1 + %s %% 9) FROM (VALUES (1), (-1)) AS v (side)",
            [number, number],
        )
        connection.execute(
            "UPDATE accounts SET balance = balance + CASE WHEN id = 1 THEN 1 ELSE -1 END WHERE id IN (1, 2)"
        )
        connection.execute("DELETE FROM bookings WHERE number < %s", [number - 200])

    def _truncate(self, connection, number):
        """In every moment there are 100 rows, all of one number."""
        connection.execute("TRUNCATE batch RESTART IDENTITY")
        connection.execute("INSERT INTO batch (number) SELECT %s FROM generate_series(1, 100)", [number])

    def _define(self, connection, number):
        """Tables come, change, are renamed and go; each has one row per column."""
        connection.execute(f"CREATE TABLE comes_{number} AS SELECT 1 AS a")
        if number >= 2:
            connection.execute(f"ALTER TABLE comes_{number - 1} ADD COLUMN b text DEFAULT md5('x')")
            connection.execute(f"ALTER TABLE comes_{number - 1} RENAME TO stays_{number - 1}")
        if number >= 4:
            connection.execute(f"DROP TABLE stays_{number - 3}")
        connection.execute("ALTER TABLE accounts ALTER note TYPE varchar(40) USING md5(note)")


def back_up_under_load(run_opsctl, database, facts_of, count, jobs=1):
    """``count`` backups of a database that does not rest; each is restored, compared and looked at."""
    database.execute(
        """CREATE TABLE bookings (number int, side int, amount int);
           CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL, note varchar(40));
           INSERT INTO accounts SELECT n, 0, 'account ' || n FROM generate_series(1, 50) n;
           CREATE TABLE batch (id serial PRIMARY KEY, number int)"""
    )
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases.busy]\nurl = "{database.url}"\nfacts = "content"\nlock_timeout_seconds = {BACKUP_SECONDS}\n'
        f"jobs = {jobs}\n"
    )
    copy = replace(database, name=f"{database.name}_copy")
    taken = []
    with Application(database) as application:
        for _ in range(count):
            run = run_opsctl("backup", "--json", timeout=2 * BACKUP_SECONDS)
            assert run.returncode == 0, run.json["error"]
            taken += run.json["result"]["backups"]
    assert min(application.turns.values()) >= count / 2

    for backup in taken:
        restore = run_opsctl("restore", backup["id"], "--into", copy.name, "--json")
        assert restore.returncode == 0, restore.json["error"]
        assert restore.json["result"]["evidence"] == "content"
        assert sum(table.rows for table in facts_of(copy).tables) == backup["rows"]
        assert copy.execute("SELECT count(*) FROM batch") in ([(0,)], [(100,)])
        assert copy.execute("SELECT count(DISTINCT number) <= 1 FROM batch") == [(True,)]
        assert copy.execute("SELECT coalesce(sum(amount), 0), count(*) % 2 FROM bookings") == [(0, 0)]
        assert copy.execute("SELECT sum(balance), count(*) FROM accounts") == [(0, 50)]
        replace(database, name="postgres").execute(f'DROP DATABASE "{copy.name}"')
    verified = run_opsctl("verify", "--all", "--json")
    assert verified.returncode == 0, verified
    assert len(verified.json["result"]["backups"]) == count


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_backups_of_a_busy_database(run_opsctl, database, facts_of):
    """Under writes, TRUNCATE and DDL every backup succeeds, is one moment, and restores to just its facts."""
    back_up_under_load(run_opsctl, database, facts_of, SMALL)


def test_backup_is_in_no_deadlock_with_the_application(run_opsctl, database):
    """Who holds one table and wants the next is not ended for the backup's sake: the backup lets go and tries again."""
    database.execute("CREATE TABLE first AS SELECT 1 AS id; CREATE TABLE second AS SELECT 1 AS id")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'opsctl snapshot' AND datname = %s"
    waiting += " AND wait_event_type = 'Lock'"
    with database.connect(autocommit=False) as application:
        application.execute("LOCK TABLE second IN ACCESS EXCLUSIVE MODE")
        process = run_opsctl.start("backup", "--json", url=database.url)
        deadline = time.monotonic() + 30
        while database.execute(waiting, database.name) != [(1,)]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "the backup did not wait"
            time.sleep(0.01)
        application.execute("ALTER TABLE first ADD COLUMN more text")
        application.commit()
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 0, stderr
    assert json.loads(stdout)["result"]["backups"][0]["rows"] == 2


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
def test_fifty_backups_of_a_busy_database(run_opsctl, database, facts_of):
    """The same, fifty times: what happens once in a while happens here."""
    back_up_under_load(run_opsctl, database, facts_of, MANY)


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_several_sessions_dump_a_busy_database(run_opsctl, database, facts_of):
    """The sessions of one dump see one moment; one that meets somebody's wish for a lock stops no backup."""
    back_up_under_load(run_opsctl, database, facts_of, SEVERAL, jobs=3)
