"""One database with everything that is rare, on every major that is here: what comes back is what was there."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from servers import throwaway_server

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


def comparable(schema):
    """A schema as servers of different majors write it alike.

    Each server words the query of a view its own way, and MAINTAIN is a right that only the newer one can revoke.
    """
    text = re.sub(r"(?ms)^(CREATE (?:OR REPLACE |MATERIALIZED )?VIEW [^;]*? AS$).*?;$", r"\1", "\n".join(schema))
    return re.sub(r"REVOKE [A-Z,]+ ON TABLE app.base", "REVOKE ALL ON TABLE app.base", text).splitlines()


def definitions_of(database):
    """What ``pg_dump --schema-only`` does not say: state of sequences, what is populated, how arrays begin."""
    sequences = "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2"
    views = "SELECT schemaname, matviewname, ispopulated FROM pg_matviews ORDER BY 1, 2"
    large = "SELECT oid::text, lomowner::regrole::text, lomacl::text[] FROM pg_largeobject_metadata ORDER BY 1"
    bounds = "SELECT id, array_dims(numbers), array_dims(bounds) FROM app.values ORDER BY 1"
    results = "SELECT a.*, b.*, c.* FROM app.numbers a, app.checked b, app.totals_of_totals c ORDER BY 1, 2"
    return [database.execute(query) for query in (sequences, views, large, bounds, results)]


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


@pytest.mark.parametrize("major", [*(pytest.param(each, marks=pytest.mark.acceptance) for each in (15, 16)), 18])
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


@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")])
def test_statistics_that_cannot_be_gathered_fail_no_restore(run_opsctl, database, facts_of, jobs):
    """A partition on a server that does not answer: the copy is swapped in, and 3 says what lacks statistics."""
    database.execute(
        """CREATE FOREIGN DATA WRAPPER nobody; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nobody;
           CREATE TABLE plain AS SELECT n FROM generate_series(1, 9) n;
           CREATE TABLE mixed (n integer) PARTITION BY LIST (n);
           CREATE TABLE here PARTITION OF mixed FOR VALUES IN (1);
           CREATE FOREIGN TABLE there PARTITION OF mixed FOR VALUES IN (2) SERVER elsewhere;
           INSERT INTO mixed VALUES (1)"""
    )
    facts = facts_of(database)
    backed_up(run_opsctl, database)
    run = run_opsctl("restore", "latest", "--yes", database.name, "--json", *jobs)

    assert run.returncode == 3, run
    assert run.json["result"]["swapped"]
    (warning,) = run.json["result"]["warnings"]
    assert "public.mixed has no statistics" in warning
    assert facts_of(database).tables == facts.tables
    assert database.execute(
        "SELECT relname FROM pg_class WHERE reltuples > 0 AND relname IN ('plain', 'here') ORDER BY 1"
    ) == [
        ("here",),
        ("plain",),
    ]


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_value_too_large_for_its_text(run_opsctl, database, facts_of, only_backup):
    """A row whose text passes 1 GB cannot be hashed: its table is counted, its content unknown, the backup is good."""
    database.execute("CREATE TABLE huge (id int, body text); CREATE TABLE plain AS SELECT 1 AS id")
    database.execute("INSERT INTO huge SELECT 1, repeat('\"', 540000000)")
    configure(run_opsctl, database)
    backup = run_opsctl("backup", "--json", timeout=300)
    verified = run_opsctl("verify", "--json", timeout=300)
    restore = run_opsctl("restore", "latest", "--into", f"{database.name}_copy", "--json", timeout=300)

    for run in (backup, verified, restore):
        assert run.returncode == 0, run
    tables = {each["name"]: each for each in only_backup(run_opsctl.work / "backups").manifest["facts"]["tables"]}
    assert (tables["huge"]["rows"], tables["huge"]["content_hash"]) == (1, None)
    assert tables["plain"]["content_hash"] is not None
    copy = replace(database, name=f"{database.name}_copy")
    assert copy.execute("SELECT length(body), body = repeat('\"', 540000000) FROM huge") == [(540000000, True)]


@pytest.mark.acceptance
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
    with throwaway_server(newest) as fresh:
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
        assert comparable(schema_of(moved, pg_dump)) == comparable(schema_of(database, pg_dump))
        assert definitions_of(moved) == definitions_of(database)
