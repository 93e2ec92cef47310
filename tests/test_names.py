"""Names of databases: any that PostgreSQL takes, and the configured one beside the server's."""

from dataclasses import replace

import pytest

pytestmark = pytest.mark.end_to_end


MORE_NAMES = [pytest.param(name, marks=pytest.mark.acceptance) for name in ("UPPER/lower.x", ".hidden", "ü" * 31)]
NAMES = ['My "Shop"\'s ✓', "-dash %41 back\\slash", "..", "n" * 63, *MORE_NAMES]


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
        forget = run_opsctl("restore", "--forget-previous", f"--yes={given}", "--json", url=awkward.url)
        assert forget.json["result"]["forgotten"] == [undo.json["result"]["previous_database"]], forget
    finally:
        admin.execute(f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)")


def test_configured_name_is_what_is_confirmed(run_opsctl, database):
    """``--yes`` names the database as the configuration does, not as the server does; so does the history."""
    (run_opsctl.work / "opsctl.toml").write_text(f'[databases.main]\nurl = "{database.url}"\n')
    run_opsctl("backup")

    assert run_opsctl("restore", "latest", "--yes", database.name).returncode == 16
    run = run_opsctl("restore", "latest", "--yes", "main", "--json")
    assert run.returncode == 0, run
    assert run.json["result"]["database"] == database.name
    runs = run_opsctl("history", "main", "--command", "restore", "--json").json["result"]["runs"]
    assert [each["outcome"] for each in runs] == ["done", "refused"]
