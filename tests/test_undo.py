"""`opsctl restore --undo` and `--forget-previous`: a restore can be taken back, and what it replaced can go."""

from dataclasses import replace

import pytest

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def restored(run_opsctl, database):
    """Version 1 was backed up and restored over version 2, which is kept aside."""
    database.execute("CREATE TABLE t AS SELECT 1 AS version")
    assert run_opsctl("backup", url=database.url).returncode == 0
    database.execute("UPDATE t SET version = 2")
    run = restore(run_opsctl, database)
    assert version(database) == 1
    return run["previous_database"]


def version(database):
    return database.execute("SELECT version FROM t")[0][0]


def restore(run_opsctl, database):
    run = run_opsctl("restore", "latest", "--yes", database.name, "--json", url=database.url)
    assert run.returncode == 0, run
    return run.json["result"]


def undo(run_opsctl, database, *arguments):
    return run_opsctl("restore", "--undo", "--yes", database.name, "--json", *arguments, url=database.url)


def test_undo_puts_the_replaced_database_back(run_opsctl, database, restored, databases_like):
    """What was live before the restore is live again, under its own oid; the restored one is kept aside in turn."""
    ((oid_aside,),) = database.execute("SELECT oid FROM pg_database WHERE datname = %s", restored)
    run = undo(run_opsctl, database)

    assert run.returncode == 0, run
    assert version(database) == 2
    assert database.execute("SELECT oid FROM pg_database WHERE datname = current_database()") == [(oid_aside,)]
    result = run.json["result"]
    assert (result["database"], result["swapped"], result["backup_id"]) == (database.name, True, None)
    assert result["outage_seconds"] >= 0
    assert databases_like(database) == [database.name, result["previous_database"]]


def test_undo_twice_is_redo(run_opsctl, database, restored):
    """Undoing the undo brings the restored database back, however quickly it follows; and so on."""
    seen = []
    for _ in range(4):
        assert undo(run_opsctl, database).returncode == 0
        seen.append(version(database))

    assert seen == [2, 1, 2, 1]


def test_writes_since_the_restore_are_not_lost(run_opsctl, database, restored):
    """Undo keeps what it takes away: a redo finds what was written after the restore."""
    database.execute("UPDATE t SET version = 100")
    undo(run_opsctl, database)
    assert version(database) == 2
    undo(run_opsctl, database)

    assert version(database) == 100


def test_undo_takes_the_newest_of_several(run_opsctl, database, restored, databases_like):
    """After several restores undo goes back one step; the older ones stay."""
    database.execute("UPDATE t SET version = 3")
    second = restore(run_opsctl, database)["previous_database"]
    assert second > restored
    undo(run_opsctl, database)

    assert version(database) == 3
    left = databases_like(database)
    assert restored in left
    assert second not in left
    assert len(left) == 3


def test_properties_survive_restore_and_undo(run_opsctl, database, restored):
    """The undone database takes connections again and kept its own limit and settings."""
    replace(database, name="postgres").execute(f"ALTER DATABASE \"{restored}\" SET work_mem = '3MB'")
    undo(run_opsctl, database)

    assert database.execute("SHOW work_mem") == [("3MB",)]


def test_undo_after_the_live_database_was_dropped(run_opsctl, database, restored, databases_like):
    """With no live database left, undo still puts the one kept aside in its place."""
    replace(database, name="postgres").execute(f"DROP DATABASE {database.name}")
    run = undo(run_opsctl, database)

    assert run.returncode == 0, run
    assert version(database) == 2
    assert run.json["result"]["previous_database"] is None
    assert databases_like(database) == [database.name]


@pytest.mark.parametrize("flag", ["--undo", "--forget-previous"])
@pytest.mark.parametrize("yes", [[], ["--yes", "other"], ["--yes", ""]])
def test_unconfirmed_is_refused(run_opsctl, database, restored, databases_like, flag, yes):
    """Both need the database's name, else 16 and nothing changed."""
    run = run_opsctl("restore", flag, *yes, "--json", url=database.url)

    assert run.returncode == 16, run
    assert f"--yes {database.name}" in run.json["error"]["hint"]
    assert version(database) == 1
    assert databases_like(database) == [database.name, restored]


@pytest.mark.parametrize("flag", ["--undo", "--forget-previous"])
def test_nothing_to_undo_or_forget_is_16(run_opsctl, database, flag):
    """Where no restore has replaced anything, both are refused and say so."""
    run = run_opsctl("restore", flag, "--yes", database.name, "--json", url=database.url)

    assert run.returncode == 16, run
    assert "no previous database" in run.json["error"]["message"]


def test_forget_drops_everything_put_aside_and_nothing_else(run_opsctl, database, restored, databases_like):
    """All previous databases of this one go; a look-alike, and those of another database, stay."""
    second = restore(run_opsctl, database)["previous_database"]
    look_alike = f"{database.name}__before_lunch"
    other = f"{database.name}2__before_20260101T000000Z"
    admin = replace(database, name="postgres")
    for name in (look_alike, other):
        admin.execute(f'CREATE DATABASE "{name}"')
    run = run_opsctl("restore", "--forget-previous", "--yes", database.name, "--json", url=database.url)

    assert run.returncode == 0, run
    assert set(run.json["result"]["forgotten"]) == {restored, second}
    assert databases_like(database) == sorted([database.name, look_alike, other])
    assert version(database) == 1
    assert undo(run_opsctl, database).returncode == 16


@pytest.mark.parametrize(
    "arguments",
    [
        ("--undo", "--forget-previous"),
        ("--undo", "--into", "x"),
        ("--undo", "--plan"),
        ("--forget-previous", "--before", "2026-01-01"),
    ],
)
def test_what_excludes_each_other(run_opsctl, arguments):
    """Options that contradict each other are a usage error before anything is looked at."""
    assert run_opsctl("restore", *arguments, url="postgresql://127.0.0.1:1/x").returncode == 2


def test_with_several_databases_one_has_to_be_named(run_opsctl, database, restored):
    """``--undo`` concerns the only database configured, or the one that is named."""
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases.main]\nurl = "{database.url}"\n[databases.other]\nurl = "postgresql://127.0.0.1:1/x"\n'
    )
    unnamed = run_opsctl("restore", "--undo", "--yes", "main", "--json")
    named = run_opsctl("restore", "main", "--undo", "--yes", "main")

    assert unnamed.returncode == 2
    assert "main, other" in unnamed.json["error"]["hint"]
    assert named.returncode == 0, named
    assert version(database) == 2
