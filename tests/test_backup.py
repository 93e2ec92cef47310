"""`opsctl backup`: what is stored, where, with which facts; and how one failure leaves the others alone."""

import hashlib
import json
import re
import stat
import subprocess
from dataclasses import replace

import pytest
import zstandard

pytestmark = pytest.mark.end_to_end


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def write_config(run_opsctl, text):
    (run_opsctl.work / "opsctl.toml").write_text(text)


def decompressed(path):
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())


def test_database_url_alone_writes_a_private_repository(run_opsctl, rich):
    """With DATABASE_URL and nothing else, a backup lies in ./backups, and nobody but its owner may read it."""
    run = run_opsctl("backup", "--json", url=rich.url)

    assert run.returncode == 0, run
    (backup,) = run.json["result"]["backups"]
    folder = run_opsctl.work / "backups" / rich.name / backup["id"]
    assert sorted(each.name for each in folder.iterdir()) == ["dump.zst", "globals.sql.zst", "manifest.json"]
    assert sorted(each.name for each in (run_opsctl.work / "backups").iterdir()) == ["RESTORE.txt", rich.name]
    repository = [run_opsctl.work / "backups", *(run_opsctl.work / "backups").rglob("*")]
    assert {0o700} == {mode(each) for each in repository if each.is_dir()}
    assert {0o600} == {mode(each) for each in repository if each.is_file()}


def test_result_and_manifest_describe_what_lies_on_the_disk(run_opsctl, rich, only_backup):
    """Sizes and SHA-256 in the manifest are those of the files and of what they decompress to; the result agrees."""
    (backup,) = run_opsctl("backup", "--json", url=rich.url).json["result"]["backups"]

    stored = only_backup(run_opsctl.work / "backups")
    manifest = stored.manifest
    assert {each.name for each in stored.folder.iterdir()} - {"manifest.json"} == {
        each["name"] for each in manifest["files"]
    }
    for file in manifest["files"]:
        raw, plain = (stored.folder / file["name"]).read_bytes(), decompressed(stored.folder / file["name"])
        assert file["stored_bytes"] == len(raw)
        assert file["bytes"] == len(plain)
        assert file["sha256"] == hashlib.sha256(raw).hexdigest()
        assert file["plain_sha256"] == hashlib.sha256(plain).hexdigest()
    assert backup["id"] == manifest["id"] == stored.id
    assert backup["bytes"] == manifest["files"][0]["bytes"]
    assert backup["stored_bytes"] == sum(file["stored_bytes"] for file in manifest["files"])
    assert backup["rows"] == sum(table["rows"] for table in manifest["facts"]["tables"])
    assert backup["repositories"] == [{"name": "local", "status": "stored", "error": None}]
    assert (backup["status"], backup["evidence"], backup["database"]) == ("stored", None, rich.name)
    assert re.fullmatch(rf"{rich.name}-\d{{8}}T\d{{6}}Z-[0-9a-f]{{4}}", backup["id"])


def test_manifest_names_the_server_and_the_database(run_opsctl, rich, only_backup, binaries):
    """Backups of different servers never mix: system identifier and database oid are recorded, and all versions."""
    run_opsctl("backup", url=rich.url)

    manifest = only_backup(run_opsctl.work / "backups").manifest
    ((identifier, oid),) = rich.execute(
        "SELECT system_identifier::text, d.oid::bigint FROM pg_control_system(), pg_database d"
        " WHERE datname = current_database()"
    )
    assert manifest["system_identifier"] == identifier
    assert manifest["database_oid"] == oid
    assert manifest["server_version"].startswith(str(binaries.major))
    assert int(manifest["pg_dump_version"].split(".")[0]) == binaries.major
    assert manifest["facts"]["roles"] == ["postgres", "rich_reader"]


def test_counts_are_the_default_facts(run_opsctl, rich, only_backup, facts_of):
    """Every table whose data is dumped is counted: partitions and unlogged tables, row security notwithstanding."""
    run_opsctl("backup", url=rich.url)

    tables = only_backup(run_opsctl.work / "backups").manifest["facts"]["tables"]
    assert {(each["schema"], each["name"], each["rows"]) for each in tables} == {
        (each.schema, each.name, each.rows) for each in facts_of(rich).tables
    }
    assert {each["content_hash"] for each in tables} == {None}


@pytest.mark.parametrize("level", ["none", "content"])
def test_facts_as_configured(run_opsctl, rich, only_backup, facts_of, level):
    """``facts = "content"`` adds a hash per table and for large objects; ``"none"`` counts nothing."""
    write_config(run_opsctl, f'[databases.{rich.name}]\nurl = "{rich.url}"\nfacts = "{level}"\n')
    (backup,) = run_opsctl("backup", "--json").json["result"]["backups"]

    facts = only_backup(run_opsctl.work / "backups").manifest["facts"]
    expected = facts_of(rich)
    assert facts["level"] == level
    assert {(each["schema"], each["name"], each["rows"], each["content_hash"]) for each in facts["tables"]} == {
        (each.schema, each.name, *((each.rows, each.content_hash) if level == "content" else (None, None)))
        for each in expected.tables
    }
    if level == "content":
        assert facts["large_objects_hash"] == expected.large_objects_hash
        assert facts["large_objects"] == 3
        assert backup["rows"] == expected.rows
    else:
        assert (facts["large_objects"], facts["large_objects_hash"], backup["rows"]) == (None, None, None)


def test_restore_txt_works_without_opsctl(run_opsctl, rich, only_backup, binaries, facts_of):
    """RESTORE.txt is a promise: digest, zstd and pg_restore alone bring everything back."""
    run_opsctl("backup", url=rich.url)

    recipe = (run_opsctl.work / "backups" / "RESTORE.txt").read_text()
    stored = only_backup(run_opsctl.work / "backups")
    dump = stored.manifest["files"][0]
    assert "zstd --decompress --stdout dump.zst | pg_restore --exit-on-error --dbname=restored" in recipe
    assert stored.manifest["restore_command"].startswith("zstd --decompress --stdout dump.zst | pg_restore")
    assert hashlib.sha256(stored.dump.read_bytes()).hexdigest() == dump["sha256"]
    by_hand = replace(rich, name=f"{rich.name}_restored")
    rich.execute(f'CREATE DATABASE "{by_hand.name}" TEMPLATE template0')
    command = [binaries.path("pg_restore"), "--exit-on-error", f"--dbname={by_hand.url}"]
    subprocess.run(command, input=decompressed(stored.dump), check=True, capture_output=True)
    assert facts_of(by_hand).tables == facts_of(rich).tables


def test_roles_are_saved_without_their_passwords(run_opsctl, rich, only_backup):
    """globals.sql.zst brings the roles a restore needs, and no password."""
    role = f"{rich.name}_login"
    rich.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'planted-canary-secret'")
    try:
        run_opsctl("backup", url=rich.url)
    finally:
        rich.execute(f"DROP ROLE {role}")

    stored = only_backup(run_opsctl.work / "backups")
    globals_sql = decompressed(stored.folder / "globals.sql.zst").decode()
    assert f"CREATE ROLE {role};" in globals_sql
    assert "CREATE ROLE rich_reader;" in globals_sql
    assert "PASSWORD" not in globals_sql
    assert "SCRAM-SHA-256" not in globals_sql


def test_two_backups_in_a_row_never_share_a_second(run_opsctl, database):
    """No two backups of one database share a second, so that their order is that of their ids."""
    ids = [run_opsctl("backup", "--json", url=database.url).json["result"]["backups"][0]["id"] for _ in range(3)]

    assert ids == sorted(ids)
    assert len({identifier.rpartition("-")[0] for identifier in ids}) == 3


def test_one_repository_failing_does_not_stop_the_others(run_opsctl, database):
    """The run ends with 3 and names the repository that has no copy; the other one has a whole backup."""
    (run_opsctl.work / "file").write_text("no folder")
    write_config(
        run_opsctl,
        f'[databases.{database.name}]\nurl = "{database.url}"\n'
        '[repositories.broken]\nurl = "file/below"\n[repositories.good]\nurl = "good"\n',
    )
    run = run_opsctl("backup", "--json")

    assert run.returncode == 3, run
    (backup,) = run.json["result"]["backups"]
    assert (run.json["ok"], run.json["error"], backup["status"]) == (False, None, "stored")
    by_name = {each["name"]: each for each in backup["repositories"]}
    assert by_name["good"] == {"name": "good", "status": "stored", "error": None}
    assert by_name["broken"]["status"] == "failed"
    assert "file/below" in by_name["broken"]["error"]
    assert (run_opsctl.work / "good" / database.name / backup["id"] / "manifest.json").is_file()
    assert '"repository": "broken"' in run.stderr
    assert "NOT stored in broken" in run_opsctl("backup").stdout


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_no_repository_left_is_13(run_opsctl, database, place):
    """When no repository can be written the run fails with 13, and says which."""
    (run_opsctl.work / "file").write_text("no folder")
    write_config(
        run_opsctl, f'[databases.{database.name}]\nurl = "{database.url}"\n[repositories.only]\nurl = "{place}"\n'
    )
    run = run_opsctl("backup", "--json")

    assert run.returncode == 13, run
    assert run.json["error"]["code"] == "repository_unreachable"
    assert place in run.json["error"]["message"]
    assert run.json["result"]["backups"][0]["status"] == "failed"


def test_several_databases_each_have_their_own_outcome(run_opsctl, database, saas):
    """One database failing ends the run with 3; the others are backed up, and pruned, all the same."""
    missing = replace(database, name=f"{database.name}_missing")
    write_config(
        run_opsctl,
        "".join(f'[databases.{each.name}]\nurl = "{each.url}"\n' for each in (database, missing, saas))
        + '[repositories.local]\nurl = "backups"\nretention = { keep_last = 1 }\n',
    )
    first = run_opsctl("backup", "--json")
    second = run_opsctl("backup", "--json")

    assert (first.returncode, second.returncode) == (3, 3), (first, second)
    outcomes = {each["database"]: each for each in second.json["result"]["backups"]}
    assert {name: each["status"] for name, each in outcomes.items()} == {
        database.name: "stored",
        missing.name: "failed",
        saas.name: "stored",
    }
    assert outcomes[missing.name]["error"]["code"] == "database_unreachable"
    assert outcomes[saas.name]["rows"] == 82040
    stored_first = {each["id"] for each in first.json["result"]["backups"] if each["id"]}
    assert {each["id"] for each in second.json["result"]["pruned"]} == stored_first


def test_all_databases_failing_ends_with_the_first_failure(run_opsctl, database):
    """Nothing was backed up: the exit code says why, not just that attention is needed."""
    missing = [replace(database, name=f"{database.name}_{each}") for each in ("a", "b")]
    write_config(run_opsctl, "".join(f'[databases.{each.name}]\nurl = "{each.url}"\n' for each in missing))
    run = run_opsctl("backup", "--json")

    assert run.returncode == 12, run
    assert [each["status"] for each in run.json["result"]["backups"]] == ["failed", "failed"]
    assert run.json["error"]["code"] == "database_unreachable"
    assert [each.name for each in (run_opsctl.work / "backups").rglob("*") if each.is_file()] == ["RESTORE.txt"]


def test_only_the_named_databases_are_backed_up(run_opsctl, database, saas):
    """``opsctl backup DB`` leaves the others alone; an unknown name is a configuration error with a suggestion."""
    write_config(run_opsctl, "".join(f'[databases.{each.name}]\nurl = "{each.url}"\n' for each in (database, saas)))
    run = run_opsctl("backup", saas.name, "--json")
    unknown = run_opsctl("backup", f"{saas.name}x", "--json")

    assert [each["database"] for each in run.json["result"]["backups"]] == [saas.name]
    assert unknown.returncode == 10
    assert unknown.json["error"]["hint"] == f"Did you mean '{saas.name}'?"


def test_configured_name_and_repositories_of_a_database(run_opsctl, database):
    """A backup is filed under the configured name, in the database's own repositories only."""
    write_config(
        run_opsctl,
        f'[databases.main]\nurl = "{database.url}"\nrepositories = ["b"]\n'
        '[repositories.a]\nurl = "a"\n[repositories.b]\nurl = "b"\n',
    )
    (backup,) = run_opsctl("backup", "--json").json["result"]["backups"]

    assert backup["database"] == "main"
    assert backup["id"].startswith("main-")
    assert [each["name"] for each in backup["repositories"]] == ["b"]
    assert (run_opsctl.work / "b/main" / backup["id"]).is_dir()
    assert not (run_opsctl.work / "a").exists()


def test_unreachable_server_is_12_and_leaves_nothing(run_opsctl):
    """No server: the message names address and reason, the hint what to check; no file was made."""
    run = run_opsctl("backup", "--json", url="postgresql://u@127.0.0.1:1/shop")

    assert run.returncode == 12
    assert "127.0.0.1:1" in run.json["error"]["message"]
    assert run.json["error"]["hint"]
    assert list(run_opsctl.work.iterdir()) == []


def test_locked_table_is_11_and_names_the_blocker(run_opsctl, database):
    """A lock that is not had in time names the session, its pid and its query; nothing of the backup is left."""
    database.execute("CREATE TABLE wanted (id int)")
    write_config(run_opsctl, f'[databases.db]\nurl = "{database.url}"\nlock_timeout_seconds = 0.3\n')
    with database.connect(autocommit=False, application_name="the blocker") as connection:
        connection.execute("LOCK TABLE wanted IN ACCESS EXCLUSIVE MODE")
        run = run_opsctl("backup", "--json")
        blocker = connection.info.backend_pid

    assert run.returncode == 11, run
    assert f"pid {blocker}" in run.json["error"]["message"]
    assert "the blocker" in run.json["error"]["message"]
    assert "LOCK TABLE wanted" in run.json["error"]["message"]
    left = [each for each in (run_opsctl.work / "backups").rglob("*") if each.name != "RESTORE.txt"]
    assert left == [run_opsctl.work / "backups" / "db"]


def test_backup_leaves_no_session_behind(run_opsctl, database):
    """When the run is over, so are its sessions: nothing holds a snapshot or a lock."""
    run_opsctl("backup", url=database.url)

    ((sessions,),) = database.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'opsctl%%' OR application_name = 'pg_dump'"
        " AND datname = current_database()"
    )
    assert sessions == 0


def test_compression_level_as_configured(run_opsctl, rich, only_backup):
    """The level is the configured one and is recorded; the frame carries its own checksum whatever the level."""
    write_config(run_opsctl, f'[databases.db]\nurl = "{rich.url}"\ncompression_level = 12\ncompression_threads = 1\n')
    run_opsctl("backup")

    stored = only_backup(run_opsctl.work / "backups")
    assert (stored.manifest["compression"], stored.manifest["compression_level"]) == ("zstd", 12)
    assert zstandard.get_frame_parameters(stored.dump.read_bytes()).has_checksum


def test_text_output_says_what_happened(run_opsctl, saas):
    """For people: the id, rows, tables and where it is stored, on stdout; the log line is on stderr."""
    run = run_opsctl("backup", url=saas.url)

    (line,) = run.stderr.splitlines()
    identifier = json.loads(line)["backup_id"]
    assert run.stdout.splitlines()[0] == f"Backed up {saas.name} as {identifier}"
    assert "82,040 rows in 4 tables" in run.stdout
    assert "stored in local" in run.stdout
