"""`opsctl restore`: everything comes back, nothing happens unasked, and a failure changes nothing."""

import shutil
import uuid
from contextlib import ExitStack
from dataclasses import replace

import psycopg  # noqa: TID253
import pytest

pytestmark = pytest.mark.end_to_end


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


# Everything comes back


@pytest.mark.parametrize("jobs", [1, 2])
def test_in_place_brings_everything_back(run_opsctl, back_up, rich, facts_of, schema_of, databases_like, jobs):
    """Schema, every row, large objects and sequences are what they were, after damage of every kind."""
    identifier = back_up(rich, facts="content")
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
def test_into_restores_beside_the_live_database(run_opsctl, back_up, rich, facts_of, schema_of, databases_like, jobs):
    """``--into`` makes a second database and asks nothing; the live one is not touched."""
    back_up(rich)
    copy = replace(rich, name=f"{rich.name}_copy")
    oid = rich.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
    run = run_opsctl("restore", "latest", "--into", copy.name, "--jobs", str(jobs), "--json")

    assert run.returncode == 0, run
    assert facts_of(copy).tables == facts_of(rich).tables
    assert facts_of(copy).large_objects_hash == facts_of(rich).large_objects_hash
    assert schema_of(copy) == schema_of(rich)
    assert run.json["result"]["database"] == copy.name
    assert run.json["result"]["evidence"] == "counted"
    assert (run.json["result"]["swapped"], run.json["result"]["previous_database"]) == (False, None)
    assert rich.execute("SELECT oid FROM pg_database WHERE datname = current_database()") == oid
    assert databases_like(rich) == [rich.name, copy.name]


def test_nothing_compared_is_only_restored(run_opsctl, back_up, rich):
    """A restore proves what it compared: without facts, that pg_restore took it all."""
    back_up(rich, facts="none")
    run = run_opsctl("restore", "latest", "--into", f"{rich.name}_copy", "--json")

    assert run.json["result"]["evidence"] == "restored"


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
def test_properties_of_the_database_are_carried_over(run_opsctl, back_up, database, owner, way):
    """Owner, grants, comment, connection limit and every setting follow; the manifest's when live is gone."""
    make_reader(database)
    set_properties(database, owner)
    expected = properties_of(database)
    back_up(database)
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


def test_changes_of_the_live_database_win_over_the_backup(run_opsctl, back_up, database):
    """In place, what hangs on the live database now is carried over: a limit set since the backup stays."""
    back_up(database)
    database.execute(f"ALTER DATABASE {database.name} CONNECTION LIMIT 9")
    run_opsctl("restore", "latest", "--yes", database.name)

    assert database.execute("SELECT datconnlimit FROM pg_database WHERE datname = current_database()") == [(9,)]


def test_missing_live_database_is_restored_from_the_manifest(run_opsctl, back_up, saas, facts_of, databases_like):
    """After ``DROP DATABASE`` there is nothing to confirm and nothing to keep: the backup takes its place."""
    back_up(saas, facts="content")
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


# The swap


def test_sessions_end_at_the_swap_and_clients_reconnect(run_opsctl, back_up, database):
    """Clients of the live database are ended, busy or idle, and find the restored one when they come back."""
    database.execute("CREATE TABLE t AS SELECT 1 AS version")
    back_up(database)
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


def test_replaced_database_takes_no_connections(run_opsctl, back_up, database):
    """What was put aside cannot be written to by a client with a stale name: undo finds it as it was."""
    back_up(database)
    previous = run_opsctl("restore", "latest", "--yes", database.name, "--json").json["result"]["previous_database"]

    with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
        psycopg.connect(replace(database, name=previous).url)


# Copies and traces


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


def test_leftovers_of_interrupted_restores_are_removed(run_opsctl, back_up, database, databases_like):
    """The next restore drops staging databases that were left, and says so; look-alikes stay."""
    back_up(database)
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


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_every_table_of_a_copy_has_statistics(run_opsctl, back_up, rich, jobs):
    """The planner knows the copy from its first query on: tables, partitions, their parents, materialized views."""
    back_up(rich)
    copy = replace(rich, name=f"{rich.name}_copy{jobs}")
    run = run_opsctl("restore", "latest", "--into", copy.name, "--jobs", jobs)

    assert run.returncode == 0, run
    analyzed = "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p', 'm') AND reltuples {} ORDER BY 1"
    assert copy.execute(analyzed.format("< 0")) == []
    assert copy.execute("SELECT count(*) FROM pg_class WHERE relkind = 'p'") != [(0,)]
    assert copy.execute("SELECT count(*) FROM pg_stats WHERE schemaname NOT LIKE 'pg_%' AND inherited") != [(0,)]


def test_temporary_files_of_jobs_are_gone(run_opsctl, back_up, rich):
    """``--jobs`` spools the archive below the state folder, in a file without a name: nothing is left."""
    back_up(rich)
    run_opsctl("restore", "latest", "--into", f"{rich.name}_copy", "--jobs", "2")

    assert list((run_opsctl.state / "spool").iterdir()) == []


def test_backups_outlive_the_repository_they_were_made_in(run_opsctl, back_up, saas, facts_of):
    """A repository is a folder: moved elsewhere, it restores as before."""
    back_up(saas)
    shutil.move(run_opsctl.work / "backups", run_opsctl.work / "moved")
    with (run_opsctl.work / "opsctl.toml").open("a") as file:
        file.write('[repositories.moved]\nurl = "moved"\n')
    run = run_opsctl("restore", "latest", "--into", f"{saas.name}_copy", "--json")

    assert run.returncode == 0, run
    assert facts_of(replace(saas, name=f"{saas.name}_copy")).tables == facts_of(saas).tables
