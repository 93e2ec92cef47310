"""Dumps of pg_dump 15, 16 and 18, of every kind: restored, imported, cut, and hostile, on real servers."""

import gzip
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from opsctl.dumps.examine import examine
from opsctl.dumps.file import recognise
from opsctl.errors import BackupDamaged
from opsctl.postgres.tools import Tools

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

RICH_SQL = Path(__file__).parents[1] / "rich_schema.sql"
MAJORS = (15, 16, 18)
KINDS = ("plain", "gzip", "zstd", "create", "custom", "custom.gz", "tar", "directory", "cluster", "inserts")
LOSSY = "every_type"
"""pg_dump --inserts writes a negative zero that psql reads as zero."""


@pytest.fixture
def rich_of(cluster_of, new_database):
    """``rich_of(15)``: a database with everything in it, on a server of that major."""

    def make(major):
        database = new_database(cluster_of(major), "rich")
        database.execute(RICH_SQL.read_text())
        return database

    return make


def dump(database, kind, folder):
    """What somebody made by hand of a database: a file, or a folder."""
    programs = database.cluster.binaries
    path = folder / f"{kind}_{programs.major}_20251101_030000"
    options = {
        "inserts": ["--inserts", "--rows-per-insert=3"],
        "create": ["--create", "--clean", "--if-exists", "--verbose"],
        "custom": ["--format=custom"],
        "custom.gz": ["--format=custom", "--compress=0"],
        "tar": ["--format=tar"],
        "directory": ["--format=directory"],
    }
    if kind == "cluster":
        command = [programs.path("pg_dumpall"), f"--dbname={database.cluster.url()}", f"--file={path}"]
    else:
        command = [programs.path("pg_dump"), f"--dbname={database.url}", f"--file={path}", *options.get(kind, [])]
    subprocess.run(command, check=True, capture_output=True)
    if kind in {"gzip", "custom.gz"}:
        path.write_bytes(gzip.compress(path.read_bytes()))
    if kind == "zstd":
        path.write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))
    return path


def tables_of(facts, kind):
    return [table for table in facts.tables if kind != "inserts" or table.name != LOSSY]


@pytest.mark.parametrize(("major", "kinds"), [(15, ("plain", "directory")), (18, KINDS)])
def test_every_kind_comes_back_whole(rich_of, facts_of, run_opsctl, tmp_path, major, kinds):
    """Rows, content and sequences are what they were; what was there before is kept, and undo brings it back."""
    database = rich_of(major)
    expected = facts_of(database)
    for kind in kinds:
        path = dump(database, kind, tmp_path)
        database.execute("DROP SCHEMA billing CASCADE; TRUNCATE measurements; CREATE TABLE written_since (id int)")
        run = run_opsctl("restore", path, "--yes", database.name, "--json", url=database.url)

        assert run.returncode == 0, (kind, run)
        assert (run.json["result"]["evidence"], run.json["result"]["swapped"]) == ("counted", True)
        assert run.json["result"]["file"] == str(path)
        found = facts_of(database)
        assert tables_of(found, kind) == tables_of(expected, kind), kind
        assert found.sequences == expected.sequences, kind
        assert found.large_objects_hash == expected.large_objects_hash, kind
        assert found.owners == expected.owners, kind
    undo = run_opsctl("restore", "--undo", "--yes", database.name, url=database.url)
    assert undo.returncode == 0, undo
    assert database.execute("SELECT to_regclass('written_since') IS NOT NULL") == [(True,)]


def test_a_cut_dump_is_damaged_wherever_it_was_cut(rich_of, run_opsctl, tmp_path):
    """… also at the very end, and of a folder in any of its files: exit 15, and nothing was touched."""
    tools = Tools(search_path=[], environment={"PATH": "/usr/bin:/bin"})
    for major in MAJORS:
        database = rich_of(major)
        for kind in ("plain", "gzip", "zstd", "custom", "tar", "directory"):
            path = dump(database, kind, tmp_path)
            victim = max(path.iterdir(), key=lambda each: each.stat().st_size) if path.is_dir() else path
            whole = victim.read_bytes()
            for part in (0, 7, 300, len(whole) // 3, len(whole) // 2, len(whole) - 2048, len(whole) - 160):
                victim.write_bytes(whole[:part])
                with pytest.raises(BackupDamaged):
                    examine(recognise(path, tools), lambda _count: None)
            oid = database.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
            for arguments in (["restore", path, "--yes", database.name], ["import", path]) if major == 18 else ():
                run = run_opsctl(*arguments, "--json", url=database.url)
                assert run.returncode == 15, (kind, run)
            assert database.execute("SELECT oid FROM pg_database WHERE starts_with(datname, %s)", database.name) == oid
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not list((run_opsctl.work / "backups").glob("*/*"))


def test_a_hostile_dump_runs_nothing(rich_of, run_opsctl, tmp_path):
    """Commands of psql, of the server's shell and about other databases: in plain SQL, and inside of an archive."""
    database = rich_of(18)
    plain = dump(database, "plain", tmp_path)
    text = plain.read_text()
    trace = tmp_path / "trace"
    place = text.index("CREATE TABLE")
    for number, hostile in enumerate(
        (
            rf"\! touch {trace}",
            f"COPY (SELECT 1) TO PROGRAM 'touch {trace}';",
            f"DO $$ BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''touch {trace}'''; END $$;",
            f"ALTER DATABASE {database.name} RENAME TO gone; SELECT pg_sleep(0);",
            "CREATE ROLE evil SUPERUSER;",
        )
    ):
        path = tmp_path / f"hostile{number}.sql"
        path.write_text(f"{text[:place]}{hostile}\n{text[place:]}")
        run = run_opsctl("restore", path, "--into", "beside", "--json", url=database.url)
        assert run.returncode == 16, (hostile, run)
    # An archive's commands are text as well: a definition of the same length that does something else.
    archive = dump(database, "custom.gz", tmp_path)
    data = gzip.decompress(archive.read_bytes())
    command = next(line for line in text.splitlines() if line.startswith("CREATE SCHEMA billing")).encode()
    evil = b"DO $$begin end$$;".ljust(len(command))
    assert len(evil) == len(command)
    assert data.count(command) == 1
    (tmp_path / "hostile.dump").write_bytes(data.replace(command, evil))
    run = run_opsctl("restore", tmp_path / "hostile.dump", "--into", "beside", "--json", url=database.url)
    assert run.returncode == 16, run
    assert not trace.exists()
    assert database.execute("SELECT count(*) FROM pg_database WHERE datname = 'beside'") == [(0,)]
    assert database.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'evil'") == [(0,)]


@pytest.mark.parametrize(("major", "kinds"), [(15, ("gzip",)), (18, ("directory", "create", "inserts"))])
def test_an_imported_dump_is_a_backup_like_any_other(rich_of, facts_of, run_opsctl, tmp_path, major, kinds):
    """It is listed under its own date, verified, exported as it was, drilled, and restored; twice it is noticed."""
    database = rich_of(major)
    expected = facts_of(database)
    for kind in kinds:
        path = dump(database, kind, tmp_path)
        run = run_opsctl("import", path, "--json", url=database.url)
        assert run.returncode == 0, (kind, run)
        (entry,) = run.json["result"]["imports"]
        assert entry["status"] == "imported"
        assert entry["created_at"].startswith("2025-11-0")
        assert (entry["dated_by"], entry["rows"]) == ("name", expected.rows)
        again = run_opsctl("import", path, "--json", url=database.url).json["result"]["imports"][0]
        assert (again["status"], again["id"]) == ("present", entry["id"])
        verified = run_opsctl("verify", entry["id"], "--json", url=database.url)
        assert verified.returncode == 0, (kind, verified)
        assert verified.json["result"]["backups"][0]["evidence"] == "decoded"
        exported = run_opsctl("export", entry["id"], "-o", tmp_path / "exported", url=database.url)
        assert exported.returncode == 0, exported
        if kind in {"inserts", "create", "custom"}:
            assert (tmp_path / "exported").read_bytes() == path.read_bytes()
        drilled = run_opsctl("drill", entry["id"], "--json", url=database.url)
        assert drilled.returncode == 0, (kind, drilled)
        database.execute("TRUNCATE measurements")
        restored = run_opsctl("restore", entry["id"], "--yes", database.name, "--json", url=database.url)
        assert restored.returncode == 0, (kind, restored)
        assert tables_of(facts_of(database), kind) == tables_of(expected, kind)
    shown = run_opsctl("show", entry["id"], url=database.url)
    assert "Not known" in shown.stdout
    assert len(run_opsctl("list", "--json", url=database.url).json["result"]["backups"]) == len(kinds)


def test_a_plain_dump_of_18_goes_into_15(rich_of, facts_of, run_opsctl, tmp_path, cluster_of, new_database):
    """transaction_timeout, which the older server does not know, is left out; a custom one is refused by the plan."""
    newer, older = rich_of(18), rich_of(15)
    for each in (newer, older):
        each.execute("DROP PUBLICATION IF EXISTS changes")
    run = run_opsctl(
        "restore", dump(newer, "plain", tmp_path), "--into", f"{older.name}_beside", "--json", url=older.url
    )
    assert run.returncode in {0, 1}, run  # a newer server's definitions may be more than an older one understands
    if run.returncode:
        assert "transaction_timeout" not in run.json["error"]["message"]
    run = run_opsctl("restore", dump(newer, "custom", tmp_path), "--plan", "--json", url=older.url)
    assert run.returncode == 16
    assert os.fspath(tmp_path) in run.json["result"]["plan"]["backup_id"]


@pytest.mark.parametrize("kind", ["custom", "directory"])
def test_a_part_goes_beside_and_is_compared(rich_of, run_opsctl, tmp_path, new_database, kind):
    """A table with what it needs; then its rows alone into what --schema-only has made, behind their foreign keys."""
    database = rich_of(18)
    path = dump(database, kind, tmp_path)
    beside = f"{database.name}_part"
    run = run_opsctl("restore", path, "--into", beside, "--table", "billing.inv*", "--json", url=database.url)
    assert run.returncode == 0, run
    assert run.json["result"]["evidence"] == "counted"
    part = replace(database, name=beside)
    rows = "SELECT count(*) FROM billing.invoices"
    assert part.execute(rows) == database.execute(rows)
    assert part.execute("SELECT to_regclass('public.measurements') IS NULL") == [(True,)]
    assert part.execute("SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == [(2,)]

    empty = f"{database.name}_empty"
    run = run_opsctl("restore", path, "--into", empty, "--schema", "billing", "--schema-only", url=database.url)
    assert run.returncode == 0, run
    for expected in (0, 16):  # the second time they are not empty
        run = run_opsctl(
            "restore", path, "--into", empty, "--schema", "billing", "--data-only", "--json", url=database.url
        )
        assert run.returncode == expected, run
    assert replace(database, name=empty).execute(rows) == database.execute(rows)
