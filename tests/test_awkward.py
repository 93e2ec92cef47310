"""One database with everything that is rare, on every major that is here: what comes back is what was there."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from opsctl.postgres.cluster import throwaway_cluster

pytestmark = pytest.mark.end_to_end

SCRIPTS = Path(__file__).with_name("awkward")
NEWER_MAJOR = 18


def make_awkward(database):
    """Everything in tests/awkward that this server can hold."""
    binaries = database.cluster.binaries
    scripts = ["any", "vector" if binaries.embedded else "contrib"]
    scripts += ["18"] if binaries.major >= NEWER_MAJOR else []
    for script in scripts:
        database.execute((SCRIPTS / f"{script}.sql").read_text())


def schema_of(database, pg_dump=None):
    """What ``pg_dump --schema-only`` writes: comments, grants and owners too, but not the key of this very run."""
    command = [pg_dump or database.cluster.binaries.path("pg_dump"), "--schema-only", f"--dbname={database.url}"]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    return [line for line in done.stdout.splitlines() if not re.match(r"\\(un)?restrict |-- Dumped from", line)]


def definitions_of(database):
    """What ``pg_dump --schema-only`` does not say: state of sequences, what is populated, how arrays begin."""
    sequences = "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2"
    views = "SELECT schemaname, matviewname, ispopulated FROM pg_matviews ORDER BY 1, 2"
    large = "SELECT oid::text, lomowner::regrole::text, lomacl::text[] FROM pg_largeobject_metadata ORDER BY 1"
    bounds = "SELECT id, array_dims(numbers), array_dims(bounds) FROM app.values ORDER BY 1"
    return [database.execute(query) for query in (sequences, views, large, bounds)]


def configure(run_opsctl, database, more=""):
    (run_opsctl.work / "opsctl.toml").write_text(
        f'[databases."{database.name}"]\nurl = "{database.url}"\nfacts = "content"\n{more}'
    )


def backed_up(run_opsctl, database):
    """A backup at level ``content`` of a database that makes no warning, decoded row by row."""
    configure(run_opsctl, database)
    run = run_opsctl("backup", "--json")
    assert run.returncode == 0, run
    (backup,) = run.json["result"]["backups"]
    assert backup["warnings"] == []
    verified = run_opsctl("verify", "--json")
    assert verified.returncode == 0, verified
    return backup


@pytest.mark.parametrize("major", [15, 16, 18])
def test_everything_comes_back(run_opsctl, cluster_of, new_database, facts_of, only_backup, major):
    """Beside the live database and in its place: schema, content, sequences and large objects as they were."""
    database = new_database(cluster_of(major), "awkward")
    make_awkward(database)
    facts, schema, definitions = facts_of(database), schema_of(database), definitions_of(database)
    backup = backed_up(run_opsctl, database)
    copy = replace(database, name=f"{database.name}_copy")
    beside = run_opsctl("restore", "latest", "--into", copy.name, "--json")
    database.execute("DROP SCHEMA app CASCADE")
    in_place = run_opsctl("restore", "latest", "--yes", database.name, "--jobs", "2", "--json")

    assert backup["rows"] == facts.rows
    dumped = only_backup(run_opsctl.work / "backups").manifest["facts"]
    assert {(each["schema"], each["name"], each["content_hash"]) for each in dumped["tables"]} == {
        (each.schema, each.name, each.content_hash) for each in facts.tables
    }
    for run, restored in ((beside, copy), (in_place, database)):
        assert run.returncode == 0, run
        assert run.json["result"]["evidence"] == "content"
        assert run.json["result"]["warnings"] == []
        assert facts_of(restored) == replace(facts, database=facts_of(restored).database)
        assert schema_of(restored) == schema
        assert definitions_of(restored) == definitions


@pytest.mark.parametrize("major", [15, 16])
def test_from_an_older_major_to_the_newest(run_opsctl, cluster_of, new_database, facts_of, major):
    """``restore --globals --to`` and then ``restore --to`` bring a database to a fresh server of a newer major."""
    database = new_database(cluster_of(major), "awkward")
    newest = cluster_of(NEWER_MAJOR).binaries
    make_awkward(database)
    if not database.cluster.binaries.embedded:
        for name in ("contrib", "ext ensions"):  # the newest server has no contrib modules
            database.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')
        for (name,) in database.execute("SELECT extname FROM pg_extension WHERE extname <> 'plpgsql'"):
            database.execute(f'DROP EXTENSION "{name}" CASCADE')
    facts = facts_of(database)
    backed_up(run_opsctl, database)
    with throwaway_cluster(newest) as fresh:
        moved = replace(database, cluster=fresh)
        before = run_opsctl("restore", "latest", "--to", moved.url, "--plan", "--json")
        roles = run_opsctl("restore", "latest", "--globals", "--to", moved.url, "--json")
        run = run_opsctl("restore", "latest", "--to", moved.url, "--json")

        assert before.returncode == 16
        assert "awkward_owner" in before.json["error"]["message"]
        assert roles.returncode == 0, roles
        assert run.returncode == 0, run
        assert run.json["result"]["evidence"] == "content"
        restored = facts_of(moved)
        assert restored.tables == facts.tables
        assert restored.large_objects_hash == facts.large_objects_hash
        assert restored.sequences == facts.sequences
        assert restored.owners == facts.owners
        pg_dump = newest.path("pg_dump")
        assert schema_of(moved, pg_dump) == schema_of(database, pg_dump)
        assert definitions_of(moved) == definitions_of(database)
