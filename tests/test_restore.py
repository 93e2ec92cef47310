"""`opsctl restore`: everything comes back, nothing happens unasked, and a failure changes nothing."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import psycopg  # noqa: TID253
import pytest

from opsctl.postgres.cluster import throwaway_cluster

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def schema_of(binaries):
    """What ``pg_dump --schema-only`` writes of a database, without the key of this very run."""

    def lines(database):
        command = [binaries.path("pg_dump"), "--schema-only", f"--dbname={database.url}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return [line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]

    return lines


def properties_of(database, name=None):
    """What hangs on the database itself: grants and settings as sets, everything else as it is."""
    (row,) = database.execute(
        """SELECT oid, datdba::regrole::text, datconnlimit, pg_encoding_to_char(encoding), datcollate, datctype,
                  shobj_description(oid, 'pg_database'), datallowconn,
                  array(SELECT format('%%s %%s %%s', grantee::regrole, privilege_type, is_grantable)
                        FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) ORDER BY 1),
                  array(SELECT format('%%s %%s', setrole::regrole, unnest(setconfig))
                        FROM pg_db_role_setting WHERE setdatabase = oid ORDER BY 1)
           FROM pg_database WHERE datname = %s""",
        name or database.name,
    )
    return row[1:]


def back_up(run_opsctl, database, facts="counts"):
    """A backup of ``database``, configured under its own name."""
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases."{database.name}"]\nurl = "{database.url}"\nfacts = "{facts}"\n'
    )
    run = run_opsctl("backup", "--json")
    assert run.returncode == 0, run
    return run.json["result"]["backups"][0]["id"]


# Everything comes back


@pytest.mark.parametrize("jobs", [1, 2])
def test_in_place_brings_everything_back(run_opsctl, rich, facts_of, schema_of, databases_like, jobs):
    """Schema, every row, large objects and sequences are what they were, after damage of every kind."""
    identifier = back_up(run_opsctl, rich, facts="content")
    facts, schema = facts_of(rich), schema_of(rich)
    rich.execute("DROP SCHEMA billing CASCADE; TRUNCATE measurements; CREATE TABLE new_one (id int)")
    rich.execute("UPDATE awkward_text SET body = 'lost'; SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    run = run_opsctl("restore", identifier, "--yes", rich.name, "--jobs", str(jobs), "--json")

    assert run.returncode == 0, run
    restored = facts_of(rich)
    assert restored.tables == facts.tables
    assert restored.large_objects_hash == facts.large_objects_hash
    assert schema_of(rich) == schema
    for before, after in zip(facts.sequences, restored.sequences, strict=True):
        assert (before.schema, before.name, before.increment) == (after.schema, after.name, after.increment)
        assert (after.last_value - before.last_value) * before.increment >= 0
    result = run.json["result"]
    assert {key: result[key] for key in ("backup_id", "database", "swapped", "evidence")} == {
        "backup_id": identifier,
        "database": rich.name,
        "swapped": True,
        "evidence": "content",
    }
    assert result["outage_seconds"] >= 0
    assert databases_like(rich) == [rich.name, result["previous_database"]]


@pytest.mark.parametrize("jobs", [1, 2])
def test_into_restores_beside_the_live_database(run_opsctl, rich, facts_of, schema_of, databases_like, jobs):
    """``--into`` makes a second database and asks nothing; the live one is not touched."""
    back_up(run_opsctl, rich)
    copy = replace(rich, name=f"{rich.name}_copy")
    oid = rich.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
    run = run_opsctl("restore", "latest", "--into", copy.name, "--jobs", str(jobs), "--json")

    assert run.returncode == 0, run
    assert facts_of(copy).tables == facts_of(rich).tables
    assert facts_of(copy).large_objects_hash == facts_of(rich).large_objects_hash
    assert schema_of(copy) == schema_of(rich)
    assert run.json["result"]["database"] == copy.name
    assert (run.json["result"]["swapped"], run.json["result"]["previous_database"]) == (False, None)
    assert rich.execute("SELECT oid FROM pg_database WHERE datname = current_database()") == oid
    assert databases_like(rich) == [rich.name, copy.name]


@pytest.mark.parametrize(("facts", "evidence"), [("none", "restored"), ("counts", "counted"), ("content", "content")])
def test_evidence_is_what_was_compared(run_opsctl, rich, facts, evidence):
    """A restore proves what it compared: nothing, the rows, or the content."""
    back_up(run_opsctl, rich, facts=facts)
    run = run_opsctl("restore", "latest", "--into", f"{rich.name}_copy", "--json")

    assert run.json["result"]["evidence"] == evidence


@pytest.fixture
def owner(cluster, database):
    """A role of its own, gone at the end with everything it has."""
    name = f"owner_{uuid.uuid4().hex[:8]}"
    database.execute(f"CREATE ROLE {name} LOGIN CREATEDB")
    yield name
    admin = replace(database, name="postgres")
    left = admin.execute("SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = %s", name)
    for (each,) in left:
        admin.execute(f'DROP DATABASE "{each}" WITH (FORCE)')
    for (each,) in admin.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", database.name):
        replace(database, name=each).execute(f"REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}")
    admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def set_properties(database, owner):
    database.execute(
        f"""ALTER DATABASE {database.name} OWNER TO {owner};
            COMMENT ON DATABASE {database.name} IS 'It''s the "shop"';
            ALTER DATABASE {database.name} CONNECTION LIMIT 17;
            REVOKE TEMPORARY ON DATABASE {database.name} FROM PUBLIC;
            GRANT CREATE ON DATABASE {database.name} TO rich_reader WITH GRANT OPTION;
            ALTER DATABASE {database.name} SET work_mem = '5MB';
            ALTER DATABASE {database.name} SET search_path = "$user", 'a, "b"', public;
            ALTER DATABASE {database.name} SET my.own = 'it''s, free';
            ALTER ROLE {owner} IN DATABASE {database.name} SET statement_timeout = '7s';
            ALTER DATABASE {database.name} SET default_transaction_read_only = on"""
    )


def make_reader(database):
    database.execute(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'rich_reader') THEN"
        " CREATE ROLE rich_reader NOLOGIN; END IF; END $$"
    )


@pytest.mark.parametrize("way", ["in place", "into", "live gone"])
def test_properties_of_the_database_are_carried_over(run_opsctl, database, owner, way):
    """Owner, grants, comment, connection limit and every setting follow; the manifest's when live is gone."""
    make_reader(database)
    set_properties(database, owner)
    expected = properties_of(database)
    back_up(run_opsctl, database)
    admin, target = replace(database, name="postgres"), database.name
    if way == "in place":
        arguments = ["--yes", target]
    elif way == "into":
        target = f"{database.name}_copy"
        arguments = ["--into", target]
    else:
        admin.execute(f"DROP DATABASE {database.name}")
        arguments = []
    run = run_opsctl("restore", "latest", *arguments, "--json")

    assert run.returncode == 0, run
    assert run.json["result"]["warnings"] == []
    assert properties_of(admin, target) == expected


def test_changes_of_the_live_database_win_over_the_backup(run_opsctl, database):
    """In place, what hangs on the live database now is carried over: a limit set since the backup stays."""
    back_up(run_opsctl, database)
    database.execute(f"ALTER DATABASE {database.name} CONNECTION LIMIT 9")
    run_opsctl("restore", "latest", "--yes", database.name)

    assert database.execute("SELECT datconnlimit FROM pg_database WHERE datname = current_database()") == [(9,)]


def test_missing_live_database_is_restored_from_the_manifest(run_opsctl, saas, facts_of, databases_like):
    """After ``DROP DATABASE`` there is nothing to confirm and nothing to keep: the backup takes its place."""
    back_up(run_opsctl, saas, facts="content")
    tables = facts_of(saas).tables
    replace(saas, name="postgres").execute(f"DROP DATABASE {saas.name}")
    run = run_opsctl("restore", "latest", "--json")

    assert run.returncode == 0, run
    assert (run.json["result"]["swapped"], run.json["result"]["previous_database"]) == (False, None)
    assert facts_of(saas).tables == tables
    assert databases_like(saas) == [saas.name]


def test_plain_login_restores_its_own_database(run_opsctl, database, owner):
    """No superuser is needed: the owner, with CREATEDB, backs up, restores and undoes."""
    database.execute(f"ALTER DATABASE {database.name} OWNER TO {owner}; ALTER SCHEMA public OWNER TO {owner}")
    url = database.url.replace("user=postgres", f"user={owner}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 10) AS id")
    assert run_opsctl("backup", url=url).returncode == 0
    database.execute("DROP TABLE t")
    restored = run_opsctl("restore", "latest", "--yes", database.name, "--json", url=url)
    rows = database.execute("SELECT count(*) FROM t")
    undone = run_opsctl("restore", "--undo", "--yes", database.name, "--json", url=url)

    assert (restored.returncode, undone.returncode) == (0, 0), (restored, undone)
    assert rows == [(10,)]
    assert database.execute("SELECT to_regclass('t')") == [(None,)]


NAMES = [
    "My Shop",
    'quote"d',
    "it's",
    "Москва ✓",
    "UPPER",
    ".hidden",
    "a/b",
    "per%cent",
    "back\\slash",
    "-dash",
    "..",
    "ü" * 31,
    "n" * 63,
]


@pytest.mark.parametrize("given", NAMES)
def test_any_name_a_database_may_have(run_opsctl, cluster, database, given):
    """Spaces, quotes, other scripts, slashes, dots and all 63 bytes: backed up, listed, restored, undone."""
    awkward = replace(database, name=given)
    database.execute("CREATE TABLE t AS SELECT 1 AS id")
    admin = replace(database, name="postgres")
    quoted = '"' + given.replace('"', '""') + '"'
    admin.execute(f"CREATE DATABASE {quoted} TEMPLATE {database.name}")
    try:
        backup = run_opsctl("backup", "--json", url=awkward.url)
        assert backup.returncode == 0, backup
        awkward.execute("DROP TABLE t")
        restore = run_opsctl("restore", "latest", f"--yes={given}", "--json", url=awkward.url)
        assert restore.returncode == 0, restore
        assert awkward.execute("SELECT id FROM t") == [(1,)]
        previous = restore.json["result"]["previous_database"]
        assert len(previous.encode()) <= 63
        undo = run_opsctl("restore", "--undo", f"--yes={given}", "--json", url=awkward.url)
        assert undo.returncode == 0, undo
        assert awkward.execute("SELECT to_regclass('t')") == [(None,)]
        (listed,) = run_opsctl("list", "--json", "--", given).json["result"]["backups"]
        assert listed["database"] == given
        forget = run_opsctl("restore", "--forget-previous", f"--yes={given}", url=awkward.url)
        assert forget.returncode == 0, forget
    finally:
        admin.execute(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)")
    left = admin.execute("SELECT datname FROM pg_database WHERE datname LIKE '%%\\_\\_before\\_%%'")
    assert [name for (name,) in left if name.startswith(given[:10])] == []


def test_configured_name_is_what_is_confirmed(run_opsctl, database):
    """``--yes`` names the database as the configuration does, not as the server does."""
    (run_opsctl.work / "opsctl.toml").write_text(f'[databases.main]\nurl = "{database.url}"\n')
    run_opsctl("backup")

    assert run_opsctl("restore", "latest", "--yes", database.name).returncode == 16
    run = run_opsctl("restore", "latest", "--yes", "main", "--json")
    assert run.returncode == 0, run
    assert run.json["result"]["database"] == database.name


# The plan


def test_plan_says_what_would_happen_and_changes_nothing(run_opsctl, saas, databases_like):
    """``--plan`` exits 0 when it would work; rows the live database has more than the backup are shown."""
    identifier = back_up(run_opsctl, saas)
    saas.execute("INSERT INTO companies (name) SELECT 'new ' || n FROM generate_series(1, 1234) n")
    with saas.connect():
        run = run_opsctl("restore", "latest", "--plan", "--json")
        text = run_opsctl("restore", "latest", "--plan")

    assert (run.returncode, text.returncode) == (0, 0), run
    plan = run.json["result"]["plan"]
    assert (plan["backup_id"], plan["swaps"], plan["would_work"], plan["blockers"]) == (identifier, True, True, [])
    assert plan["sessions"] == 1
    assert plan["losses"] == [{"schema": "public", "name": "companies", "live_rows": 1274, "backup_rows": 40}]
    assert "1,234 rows of public.companies (1,274 now, 40 in the backup)" in text.stdout
    assert plan["previous_database"] in text.stdout or "__before_" in text.stdout
    assert databases_like(saas) == [saas.name]
    assert saas.execute("SELECT count(*) FROM companies") == [(1274,)]


def test_rows_that_would_be_lost_are_shown_before_the_swap(run_opsctl, saas):
    """A restore that goes ahead has shown its plan too, on stderr."""
    back_up(run_opsctl, saas)
    saas.execute("INSERT INTO companies (name) VALUES ('one more')")
    run = run_opsctl("restore", "latest", "--yes", saas.name)

    assert "1 rows of public.companies" in run.stderr
    assert "1 rows of public.companies" not in run.stdout


def test_time_travel(run_opsctl, stored, database):
    """``--before`` takes the newest backup before a time, ``latest:NAME`` the newest of a database."""
    noon = stored.copy(datetime(2026, 5, 1, 12, tzinfo=UTC))
    morning = stored.copy(datetime(2026, 5, 1, 8, tzinfo=UTC))
    name = stored.manifest["database"]
    url = replace(database, name=name).url

    def chosen(*arguments):
        run = run_opsctl("restore", *arguments, "--plan", "--json", url=url)
        return run.json["result"]["plan"]["backup_id"] if run.returncode == 0 else run.returncode

    assert chosen("latest", "--before", "2026-05-01T13:00Z") == noon.id
    assert chosen(f"latest:{name}", "--before", "2026-05-01T12:00:00Z") == noon.id
    assert chosen("--before", "2026-05-01T11:59:59Z") == morning.id
    assert chosen("--before", "2026-05-01T07:00Z") == 14
    assert chosen("--before", "yesterday-ish") == 2
    assert chosen("latest") == stored.id


# Refusals: 16, and nothing changed


@pytest.mark.parametrize("yes", [[], ["--yes", "postgres"], ["--yes", ""], ["--yes", "Y"]])
def test_unconfirmed_is_refused(run_opsctl, database, databases_like, yes):
    """Without a terminal only the database's own name confirms; there is no blanket yes."""
    back_up(run_opsctl, database)
    database.execute("CREATE TABLE since (id int)")
    run = run_opsctl("restore", "latest", *yes, "--json")

    assert run.returncode == 16, run
    assert run.json["error"]["code"] == "refused"
    assert f"--yes {database.name}" in run.json["error"]["hint"]
    assert databases_like(database) == [database.name]
    assert database.execute("SELECT count(*) FROM since") == [(0,)]


def test_into_a_database_that_exists_is_refused(run_opsctl, database, databases_like):
    """``--into`` never replaces anything; the live database itself is a usage error."""
    back_up(run_opsctl, database)
    existing = f"{database.name}_copy"
    replace(database, name="postgres").execute(f"CREATE DATABASE {existing}")
    for arguments in (["--plan"], [], ["--yes", existing]):
        run = run_opsctl("restore", "latest", "--into", existing, *arguments, "--json")
        assert run.returncode == 16, run
        assert "exists" in run.json["error"]["message"]
    assert run_opsctl("restore", "latest", "--into", database.name).returncode == 2
    assert databases_like(database) == [database.name, existing]


def test_into_a_name_that_the_server_would_cut_is_refused(run_opsctl, database, databases_like):
    """PostgreSQL cuts names at 63 bytes without a word: a longer one is refused, not restored elsewhere."""
    back_up(run_opsctl, database)
    run = run_opsctl("restore", "latest", "--into", database.name + "é" * 32, "--json")

    assert run.returncode == 2, run
    assert "63" in run.json["error"]["message"]
    assert databases_like(database) == [database.name]


def test_missing_role_is_refused_by_name(run_opsctl, database, databases_like):
    """Roles that own objects must exist first: the plan names them and exits 16, the restore changes nothing."""
    role = f"role_{uuid.uuid4().hex[:8]}"
    database.execute(f"CREATE ROLE {role}; CREATE TABLE t (id int); ALTER TABLE t OWNER TO {role}")
    back_up(run_opsctl, database)
    database.execute(f"REASSIGN OWNED BY {role} TO postgres; DROP ROLE {role}")
    plan = run_opsctl("restore", "latest", "--plan", "--json")
    run = run_opsctl("restore", "latest", "--yes", database.name, "--json")

    assert (plan.returncode, run.returncode) == (16, 16), (plan, run)
    assert role in plan.json["result"]["plan"]["blockers"][0]
    assert plan.json["result"]["plan"]["would_work"] is False
    assert role in run.json["error"]["message"]
    assert databases_like(database) == [database.name]


@pytest.fixture(scope="module")
def with_prepared_transactions(binaries):
    with throwaway_cluster(binaries, settings={"max_prepared_transactions": "2"}) as running:
        yield running


def test_prepared_transaction_is_refused(run_opsctl, with_prepared_transactions, database):
    """A prepared transaction would block the rename for ever: it is named before anything is loaded."""
    held = replace(database, cluster=with_prepared_transactions, name="postgres")
    held.execute("CREATE DATABASE shop")
    shop = replace(held, name="shop")
    back_up(run_opsctl, shop)
    with shop.connect() as connection:
        connection.execute("BEGIN; CREATE TABLE t (id int); PREPARE TRANSACTION 'left behind'")
    run = run_opsctl("restore", "latest", "--yes", "shop", "--json")
    beside = run_opsctl("restore", "latest", "--into", "shop_copy", "--json")

    assert run.returncode == 16, run
    assert "left behind" in run.json["error"]["message"]
    assert beside.returncode == 0, beside
    assert held.execute("SELECT count(*) FROM pg_database WHERE datname LIKE 'shop\\_\\_%%'") == [(0,)]


def test_backup_of_a_database_that_is_not_configured(run_opsctl, stored):
    """A backup says nothing about how to reach its server: without a configuration it is 10."""
    assert run_opsctl("restore", "latest", "--plan").returncode == 10


# The swap


def test_sessions_end_at_the_swap_and_clients_reconnect(run_opsctl, database):
    """Clients of the live database are ended, busy or idle, and find the restored one when they come back."""
    database.execute("CREATE TABLE t AS SELECT 1 AS version")
    back_up(run_opsctl, database)
    database.execute("UPDATE t SET version = 2")
    with ExitStack() as stack:
        idle = stack.enter_context(database.connect())
        busy = stack.enter_context(database.connect(autocommit=False))
        busy.execute("UPDATE t SET version = 3")
        run = run_opsctl("restore", "latest", "--yes", database.name, "--json")

        assert run.returncode == 0, run
        assert run.json["result"]["plan"]["sessions"] == 2
        for client in (idle, busy):
            with pytest.raises(psycopg.OperationalError):
                client.execute("SELECT 1")
    assert database.execute("SELECT version FROM t") == [(1,)]


def test_replaced_database_takes_no_connections(run_opsctl, database):
    """What was put aside cannot be written to by a client with a stale name: undo finds it as it was."""
    back_up(run_opsctl, database)
    previous = run_opsctl("restore", "latest", "--yes", database.name, "--json").json["result"]["previous_database"]

    with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
        psycopg.connect(replace(database, name=previous).url)


# Failures leave nothing


def restored_nothing(database, databases_like, oid):
    assert databases_like(database) == [database.name]
    assert database.execute("SELECT oid FROM pg_database WHERE datname = current_database()") == oid


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "archive"])
def test_damaged_backup_changes_nothing(run_opsctl, database, databases_like, only_backup, damage, jobs):
    """A damaged backup ends the restore; the live database stays, and no other one is left behind."""
    database.execute("CREATE TABLE t AS SELECT md5(n::text) FROM generate_series(1, 20000) n")
    back_up(run_opsctl, database)
    oid = database.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
    stored = only_backup(run_opsctl.work / "backups")
    data = bytearray(stored.dump.read_bytes())
    if damage == "bit":
        data[len(data) // 2] ^= 1
        stored.dump.write_bytes(data)
    elif damage == "cut":
        stored.dump.write_bytes(data[:-100])
    elif damage == "gone":
        stored.dump.unlink()
    else:
        stored.replace_dump(stored.plain_dump()[:200_000])
    run = run_opsctl("restore", "latest", "--yes", database.name, "--jobs", str(jobs), "--json")

    assert run.returncode == (1 if damage == "archive" else 15), run
    assert run.json["error"]["code"] == ("restore_failed" if damage == "archive" else "backup_damaged")
    restored_nothing(database, databases_like, oid)


@pytest.mark.parametrize("level", ["counts", "content"])
def test_copy_that_differs_from_the_facts_is_not_swapped_in(run_opsctl, database, databases_like, only_backup, level):
    """Digests made to fit hide nothing: the copy is compared with the facts before it may replace anything."""
    database.execute("CREATE TABLE t AS SELECT 'row ' || n AS body FROM generate_series(1, 100) n")
    back_up(run_opsctl, database, facts=level)
    oid = database.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
    stored = only_backup(run_opsctl.work / "backups")
    old, new = (b"row 77\n", b"row 7\\n") if level == "counts" else (b"row 77\n", b"row 78\n")
    stored.replace_dump(stored.plain_dump().replace(old, new))
    run = run_opsctl("restore", "latest", "--yes", database.name, "--json")

    assert run.returncode != 0, run
    assert "public.t" in run.json["error"]["message"]
    restored_nothing(database, databases_like, oid)


def test_intact_copy_of_another_repository_is_used(run_opsctl, database):
    """A copy known to be damaged is passed over for an intact one."""
    database.execute("CREATE TABLE t AS SELECT 1 AS id")
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases.db]\nurl = "{database.url}"\n[repositories.a]\nurl = "a"\n[repositories.b]\nurl = "b"\n'
    )
    run_opsctl("backup")
    (dump,) = (run_opsctl.work / "a").glob("*/*/dump.zst")
    dump.write_bytes(b"")
    assert run_opsctl("verify").returncode == 15
    run = run_opsctl("restore", "latest", "--yes", "db")

    assert run.returncode == 0, run


def test_leftovers_of_interrupted_restores_are_removed(run_opsctl, database, databases_like):
    """The next restore drops staging databases that were left, and says so; look-alikes stay."""
    back_up(run_opsctl, database)
    admin = replace(database, name="postgres")
    leftover, look_alike = f"{database.name}__opsctl_0123abcd", f"{database.name}__opsctl_mine"
    admin.execute(f"CREATE DATABASE {leftover}")
    admin.execute(f"CREATE DATABASE {look_alike}")
    run = run_opsctl("restore", "latest", "--yes", database.name)

    assert run.returncode == 0, run
    assert leftover in run.stdout
    left = databases_like(database)
    assert leftover not in left
    assert look_alike in left


def test_temporary_files_of_jobs_are_gone(run_opsctl, rich):
    """``--jobs`` spools the archive below the state folder, in a file without a name: nothing is left."""
    back_up(run_opsctl, rich)
    run_opsctl("restore", "latest", "--into", f"{rich.name}_copy", "--jobs", "2")

    assert list((run_opsctl.state / "spool").iterdir()) == []


# A person at a terminal


class Terminal:
    """A run whose stdin and stderr are a terminal."""

    def __init__(self, run_opsctl, arguments, url):
        self._master, slave = pty.openpty()
        try:
            self.process = run_opsctl.start(*arguments, url=url, stdin=slave, stderr=slave)
        finally:
            os.close(slave)
        self.shown = ""

    def wait_for(self, text, seconds=30):
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not appear: {self.shown!r}"
            if select.select([self._master], [], [], left)[0]:
                assert self._read(), f"it ended before {text!r}: {self.shown!r}"

    def type(self, line):
        os.write(self._master, line.encode() + b"\n")

    def finish(self, seconds=60):
        """The rest of what is shown, and the exit code."""
        deadline = time.monotonic() + seconds
        while select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0] and self._read():
            pass
        self.stdout = self.process.stdout.read()
        return self.process.wait(timeout=max(1, deadline - time.monotonic()))

    def close(self):
        os.close(self._master)

    def _read(self):
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode("utf-8", "replace")).replace("\r\n", "\n")
        return bool(data)


@contextmanager
def at_terminal(run_opsctl, *arguments, url=None):
    terminal = Terminal(run_opsctl, arguments, url)
    try:
        yield terminal
    finally:
        terminal.close()


def test_person_is_asked_for_the_name(run_opsctl, database):
    """At a terminal the plan is shown and the database's name has to be typed; then it happens."""
    identifier = back_up(run_opsctl, database)
    with at_terminal(run_opsctl, "restore", "latest") as terminal:
        terminal.wait_for(f"Type {database.name} to go on")
        assert identifier in terminal.shown
        terminal.type(database.name)
        assert terminal.finish() == 0, terminal.shown
    assert f"Restored {identifier} as {database.name}" in terminal.stdout


@pytest.mark.parametrize("answer", ["y", "yes", "", "postgres"])
def test_anything_else_changes_nothing(run_opsctl, database, databases_like, answer):
    """Only the exact name goes on: everything else is 16, said as an error with a hint, no traceback."""
    back_up(run_opsctl, database)
    with at_terminal(run_opsctl, "restore", "latest") as terminal:
        terminal.wait_for("to go on")
        terminal.type(answer)
        assert terminal.finish() == 16
    assert "Error: Not confirmed; nothing was changed." in terminal.shown
    assert "Hint:" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert databases_like(database) == [database.name]


def test_without_a_name_a_person_chooses_from_a_list(run_opsctl, database, only_backup):
    """``opsctl restore`` alone lists what there is, newest first, takes a number, and still asks for the name."""
    newest = back_up(run_opsctl, database)
    older = only_backup(run_opsctl.work / "backups").copy(datetime(2026, 5, 1, 12, tzinfo=UTC))
    with at_terminal(run_opsctl, "restore") as terminal:
        terminal.wait_for("Which one? [1-2]")
        assert terminal.shown.index(newest) < terminal.shown.index(older.id)
        terminal.type("2")
        terminal.wait_for("to go on")
        terminal.type(database.name)
        assert terminal.finish() == 0, terminal.shown
    assert f"Restored {older.id}" in terminal.stdout


@pytest.mark.parametrize("answer", ["0", "3", "two", ""])
def test_number_that_is_not_in_the_list(run_opsctl, stored, answer):
    """A wrong number chooses nothing."""
    with at_terminal(run_opsctl, "restore") as terminal:
        terminal.wait_for("Which one? [1-1]")
        terminal.type(answer)
        assert terminal.finish() == 16


def test_without_a_name_and_without_a_terminal(run_opsctl, stored):
    """Nobody is there to choose: a usage error, at once."""
    run = run_opsctl("restore", "--json")

    assert run.returncode == 2
    assert "latest" in run.json["error"]["hint"]


def test_json_never_asks(run_opsctl, database):
    """With ``--json`` a program is there, whatever stdin is: no prompt, 16."""
    back_up(run_opsctl, database)
    with at_terminal(run_opsctl, "restore", "latest", "--json") as terminal:
        assert terminal.finish() == 16
    assert "Type" not in terminal.shown


def test_backups_outlive_the_repository_they_were_made_in(run_opsctl, saas, facts_of):
    """A repository is a folder: moved elsewhere, it restores as before."""
    back_up(run_opsctl, saas)
    shutil.move(run_opsctl.work / "backups", run_opsctl.work / "moved")
    with (run_opsctl.work / "opsctl.toml").open("a") as file:
        file.write('[repositories.moved]\nurl = "moved"\n')
    run = run_opsctl("restore", "latest", "--into", f"{saas.name}_copy", "--json")

    assert run.returncode == 0, run
    assert facts_of(replace(saas, name=f"{saas.name}_copy")).tables == facts_of(saas).tables
