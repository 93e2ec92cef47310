"""`opsctl drill`: what it proves, what it refuses to judge, and that nothing of it stays behind."""

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from opsctl.catalog import Backup, Evidence, StoredBackup
from opsctl.drill import Assertion, Drills
from opsctl.drill_records import DrillRecords
from opsctl.drill_servers import DrillServer, Scratch, Throwaway, throwaways
from opsctl.keys import Keys
from opsctl.manifest import parse_manifest
from opsctl.postgres.server import Server
from opsctl.postgres.tools import Tools
from opsctl.repository import Repository
from opsctl.storage.local import LocalStorage
from opsctl.verify import due

RICH_SQL = Path(__file__).with_name("rich_schema.sql")

pytestmark = pytest.mark.end_to_end


def only(run):
    (backup,) = run.json["result"]["backups"]
    return backup


def folder_of(record):
    return Path(json.loads(record.read_text())["folder"])


@pytest.fixture
def drills(tmp_path):
    """``drills(candidate, …)``: drills as a program that uses the library makes them."""

    def make(*candidates, search_path=(), **changes):
        tools = Tools(search_path=search_path, environment={"PATH": "/usr/bin:/bin", "LC_MESSAGES": "C"})
        drilled = Drills(lambda _: candidates, tools, Keys(), lambda: datetime.now(UTC), lambda *_: lambda _: None)
        return replace(drilled, **changes)

    return make


@pytest.fixture
def copy_of():
    """``copy_of(stored)``: a backup on this disk as its repository and its manifest."""

    def read(stored):
        data = (stored.folder / "manifest.json").read_bytes()
        return Repository("local", LocalStorage(stored.folder.parents[1])), parse_manifest(data, where="")

    return read


class Here:
    """A drill on the server the tests run on: no server has to be started."""

    description = "the tests' own server"

    def __init__(self, cluster, work_path, *, login=None, trusts=True):
        self._cluster = cluster
        self._work_path = work_path
        self._login = login
        self._trusts = trusts
        self._drilled = 0

    @contextmanager
    def open(self, manifest):
        self._drilled += 1
        name = f"drill_here_{self._drilled}"
        superuser, server = Server(self._cluster.url(name)), Server(self._cluster.url(name, user=self._login))
        yield DrillServer(server, superuser, self._trusts, self._work_path, lambda: None)
        with superuser.connect("postgres") as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {server.database}")


# What is proven


def test_pass_is_evidence_wherever_the_backup_is(run_opsctl, saas):
    """Every fact is compared and every assertion holds; the caller's PG* variables lead nowhere, nothing is left."""
    (run_opsctl.work / "opsctl.toml").write_text(
        f"""[databases.saas]
        url = "{saas.url}"
        facts = "content"
        [[databases.saas.assertions]]
        sql = "select count(*) > 1000 from messages"
        [[databases.saas.assertions]]
        sql = "select count(distinct email) from users"
        expect = {saas.execute("SELECT count(DISTINCT email) FROM users")[0][0]}
        [repositories.first]
        url = "one"
        [repositories.second]
        url = "two"
        """
    )
    assert run_opsctl("backup").returncode == 0
    elsewhere = {"PGHOST": "/nowhere", "PGHOSTADDR": "192.0.2.1", "PGOPTIONS": "-c nonsense=1", "PGDATABASE": "x"}
    run = run_opsctl("drill", "--json", env={**elsewhere, "PGSERVICE": "nonsense", "PGUSER": "nobody"})

    assert run.returncode == 0, run
    assert (only(run)["outcome"], only(run)["evidence"], only(run)["problems"]) == ("pass", "content", [])
    assert only(run)["restore_seconds"] > 0
    assert not any((run_opsctl.state / "drills").iterdir())
    for repository in ("one", "two"):
        (evidence,) = (run_opsctl.work / repository).glob("*/*/evidence/*-content-pass.json")
        details = json.loads(evidence.read_text())["details"]
        assert details["restore_seconds"] == only(run)["restore_seconds"]
        assert details["server"].startswith("PostgreSQL ")
        assert details["pg_restore_version"]
    (listed,) = run_opsctl("list", "--json").json["result"]["backups"]
    assert listed["evidence"]["level"] == "content"
    assert re.search(r"content \d+ s ", run_opsctl("list").stdout)


@pytest.mark.acceptance
def test_everything_an_ordinary_database_holds_across_majors(
    run_opsctl, cluster_of, new_database, copy_of, only_backup, drills, tmp_path
):
    """From 16 to 18: content, owners and objects are the same. What only a superuser loads, one does."""
    database = new_database(cluster_of(16), "rich")
    database.execute(RICH_SQL.read_text())
    (run_opsctl.work / "opsctl.toml").write_text(f'[databases.rich]\nurl = "{database.url}"\nfacts = "content"\n')
    assert run_opsctl("backup").returncode == 0
    copy = copy_of(only_backup(run_opsctl.work / "backups"))
    newer = cluster_of(18).binaries
    assert throwaways([newer, cluster_of(16).binaries], copy[1]) == [cluster_of(16).binaries, newer]
    (found,) = drills(Throwaway(newer, DrillRecords(tmp_path), allow_superuser=True)).verify([copy])

    assert (found.outcome, found.evidence, found.problems) == ("pass", "content", ())
    assert found.restored_on.startswith("PostgreSQL 18")
    assert "only a superuser can restore" in found.notes[0]


def test_assertions(stored, cluster, drills, copy_of, tmp_path):
    """Each gives the value it should, or the drill fails and names it: also one that cannot be asked any more."""
    asked = [
        Assertion("select count(*) from billing.invoices", 80),
        Assertion("select sum(net)::text || '' from billing.invoices", "5"),
        Assertion("select 1 = 2"),
        Assertion("select a from gone"),
        Assertion("delete from billing.invoices returning 1", 1),
    ]
    (found,) = drills(Here(cluster, tmp_path), assertions=asked).verify([copy_of(stored)])
    assert found.outcome == "fail"
    assert [each.sql for each in asked if not any(repr(each.sql) in problem for problem in found.problems)] == [
        asked[0].sql
    ]
    assert "gives False, not True" in found.problems[1]
    (evidence,) = stored.evidence
    assert evidence.name.endswith("-counted-fail.json")


# What is damaged


@pytest.fixture
def content_backup(run_opsctl, back_up, only_backup, rich):
    """A backup of everything, with the content of its rows in the facts."""
    back_up(rich, "content")
    return only_backup(run_opsctl.work / "backups")


def as_text(binaries, archive):
    """What pg_restore writes of an archive, without remarks and what is random; None when it cannot read it."""
    done = subprocess.run([binaries.path("pg_restore"), "-f", "-"], check=False, input=archive, capture_output=True)
    apart = (b"\\restrict", b"\\unrestrict", b"-- ")
    return None if done.returncode else [line for line in done.stdout.splitlines() if not line.startswith(apart)]


def hidden_flips(stored, binaries, places):
    """The backup with one bit changed at each place, every digest made to fit; and whether that changes anything."""
    plain = stored.plain_dump()
    before = as_text(binaries, plain)
    for place in places(len(plain)):
        changed = bytearray(plain)
        changed[place] ^= 1 << place % 7
        stored.replace_dump(bytes(changed))
        yield place, as_text(binaries, bytes(changed)) == before
    stored.replace_dump(plain)


def test_damage_that_the_digests_hide_is_found(content_backup, cluster, drills, copy_of, tmp_path):
    """With every digest made to fit, one changed bit of rows or definitions fails the load or the comparison."""
    drilled = drills(Here(cluster, tmp_path))
    harmless = 0
    for place, is_harmless in hidden_flips(content_backup, cluster.binaries, lambda size: range(40, size, size // 4)):
        (found,) = drilled.verify([copy_of(content_backup)])
        assert is_harmless or found.outcome == "fail", (place, found)
        harmless += is_harmless
    assert harmless < 4
    assert drilled.verify([copy_of(content_backup)])[0].outcome == "pass"


def test_a_damaged_copy_earns_no_evidence_from_an_intact_one(run_opsctl, stored, cluster, drills, copy_of, tmp_path):
    """Every copy is read whole; the drill of one proves those with the same bytes only."""
    other = shutil.copytree(run_opsctl.work / "backups", run_opsctl.work / "other")
    broken = replace(stored, folder=other / stored.folder.parent.name / stored.id)
    broken.dump.write_bytes(broken.dump.read_bytes()[:-9])
    found = drills(Here(cluster, tmp_path)).verify([copy_of(stored), copy_of(broken)])

    assert sorted((each.outcome, each.evidence) for each in found) == [("fail", None), ("pass", "counted")]
    assert [path.name.split("-", 1)[1] for path in stored.evidence] == ["counted-pass.json"]
    assert [path.name.split("-", 1)[1] for path in broken.evidence] == ["stored-fail.json"]


# What cannot be judged here


def test_what_a_server_lacks_says_nothing_about_the_backup(run_opsctl, stored):
    """An extension, a locale, a kind of value that is not here: 3, unknown, named; and no evidence of any kind."""
    facts = stored.manifest["facts"]
    more = {"extensions": [*facts["extensions"], {"name": "postgis", "version": "3.4", "schema": "public"}]}
    stored.rewrite(facts={**facts, **more, "requires": ["type xml", "collation xx_XX"]})
    run = run_opsctl("verify", "--drill", "--json")

    assert run.returncode == 3, run
    assert (only(run)["outcome"], only(run)["evidence"]) == ("unknown", "stored")
    problems = " ".join(only(run)["problems"])
    for cause in ("extension postgis 3.4 is not installed", "no type xml", "no collation xx_XX"):
        assert cause in problems
    assert stored.evidence == []
    assert not any((run_opsctl.state / "drills").iterdir())


def test_no_room_is_told_before_anything_is_made(stored, drills, copy_of, tmp_path, binaries):
    """Disk and memory are looked at first; so is whether any server is new enough."""
    copy = copy_of(stored)
    small = Throwaway(binaries, DrillRecords(tmp_path), max_disk_bytes=1 << 20)
    poor = Throwaway(binaries, DrillRecords(tmp_path), max_memory_bytes=1 << 20)
    (found,) = drills(small, poor).verify([copy])
    assert found.outcome == "unknown"
    assert ["of disk in" in problem for problem in found.problems] == [True, False]
    assert "of memory" in found.problems[1]
    assert not (tmp_path / "drills").exists()
    assert "there is no server of PostgreSQL" in drills().verify([copy])[0].problems[0]
    assert throwaways([replace(binaries, major=1)], copy[1]) == []


def test_scratch_server(run_opsctl, cluster_of, cluster, new_database, copy_of, only_backup, drills, tmp_path):
    """A lent server keeps its roles as they are: a missing one is named. It is given back as it was."""
    database = new_database(cluster_of(16))
    database.execute("CREATE ROLE only_there; CREATE TABLE t AS SELECT 1 AS a; GRANT SELECT ON t TO only_there")
    assert run_opsctl("backup", url=database.url).returncode == 0
    copy = copy_of(only_backup(run_opsctl.work / "backups"))
    before = Server(cluster.url())
    with before.connect() as connection:
        names = connection.execute("SELECT datname FROM pg_database").fetchall()
    scratch = Scratch(lambda name: Server(cluster.url(name)), DrillRecords(tmp_path), tmp_path)
    (found,) = drills(scratch).verify([copy])
    assert found.outcome == "unknown"
    assert "roles that the backup needs do not exist here: only_there" in found.problems[0]
    assert not any((tmp_path / "drills").iterdir())

    database.execute("REVOKE SELECT ON t FROM only_there; DROP ROLE only_there")
    shutil.rmtree(run_opsctl.work / "backups")
    assert run_opsctl("backup", url=database.url).returncode == 0
    copy = copy_of(only_backup(run_opsctl.work / "backups"))
    assert drills(scratch).verify([copy])[0].outcome == "pass"
    own = Scratch(lambda name: Server(database.cluster.url(name)), DrillRecords(tmp_path), tmp_path)
    assert "the very server" in drills(own).verify([copy])[0].problems[0]
    with before.connect() as connection:
        assert connection.execute("SELECT datname FROM pg_database").fetchall() == names


def test_code_of_a_backup_does_not_run_as_this_user(stored, drills, copy_of, tmp_path, cluster, database):
    """What only a superuser can load is not loaded where that superuser could act as us; the ways out are named."""
    database.execute("DO $$ BEGIN CREATE ROLE plain_login LOGIN CREATEDB; EXCEPTION WHEN duplicate_object THEN END $$")
    (found,) = drills(Here(cluster, tmp_path, login="plain_login", trusts=False)).verify([copy_of(stored)])
    assert found.outcome == "unknown"
    assert "set allow_superuser in [drill]" in found.problems[0]
    assert stored.evidence == []


# What stays behind


def left_over(doctor):
    (check,) = doctor.json["result"]["checks"]
    return check["status"], check["details"].get("leftovers")


def test_the_next_drill_removes_what_a_killed_one_left(run_opsctl, saas, back_up, only_backup):
    """SIGKILL leaves a folder and a record, and no process; doctor names it, the next drill removes it."""
    back_up(saas)
    records = run_opsctl.state / "drills"
    process = run_opsctl.start("drill")
    deadline = time.monotonic() + 60
    while not [pid for each in records.glob("*.json") for pid in folder_of(each).glob("*/data/postmaster.pid")]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert DrillRecords(run_opsctl.state).remove_leftovers(None) == []  # it is being held
    assert left_over(run_opsctl("doctor", "drill", "--json")) == ("ok", None)
    process.kill()
    process.wait()
    (record,) = records.iterdir()
    folder = folder_of(record)
    assert folder.exists()
    assert left_over(run_opsctl("doctor", "drill", "--json")) == ("warn", [f"folder {folder}"])
    stored = only_backup(run_opsctl.work / "backups")
    (stored.folder / "evidence").mkdir()
    (stored.folder / f"evidence/{datetime.now(UTC):%Y%m%dT%H%M%S}000000Z-counted-pass.json").write_text("{}")
    run = run_opsctl("drill", "--since-days", "1")

    assert run.returncode == 0, run
    assert record.stem in run.stderr
    assert not folder.exists()
    assert not any(records.iterdir())
    assert [each for each in Path("/proc").glob("[0-9]*/cwd") if str(folder) in os.path.realpath(each)] == []


# Whose turn it is


def test_every_backup_has_its_turn():
    """The longest unseen first, copy by copy; what was seen lately, or less closely, does not count."""
    now = datetime(2026, 5, 30, tzinfo=UTC)

    def backup(day, *copies):
        manifest = SimpleNamespace(id=f"shop-{day}", created_at=now - timedelta(days=day))
        seen = [tuple(Evidence(level, True, now - timedelta(days=ago)) for level, ago in copy) for copy in copies]
        return Backup(tuple(StoredBackup("local", manifest, False, each) for each in seen))

    never, long_ago, half, lately = (
        backup(1, ()),
        backup(2, (("content", 9), ("decoded", 1))),
        backup(3, (("counted", 1),), (("counted", 20),)),
        backup(4, (("restored", 2),)),
    )
    everything = [lately, half, long_ago, never]
    assert due(everything, "restored") == [never, half, long_ago, lately]
    assert due(everything, "restored", at_most=2) == [never, half]
    assert due(everything, "restored", before=now - timedelta(days=7)) == [never, half, long_ago]
    assert due(everything, "stored", before=now - timedelta(days=7)) == [never, half]
