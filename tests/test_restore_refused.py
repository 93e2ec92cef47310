"""`opsctl restore` that does not happen: the plan, refusals, damage; and nothing is changed."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from servers import throwaway_server

pytestmark = pytest.mark.end_to_end


# The plan


def test_plan_says_what_would_happen_and_changes_nothing(run_opsctl, back_up, saas, databases_like):
    """``--plan`` exits 0 when it would work; rows the live database has more than the backup are shown."""
    identifier = back_up(saas)
    saas.execute("INSERT INTO companies (name) SELECT 'new ' || n FROM generate_series(1, 1234) n")
    saas.execute("CREATE TABLE since AS SELECT generate_series(1, 5000)")
    with saas.connect():
        run = run_opsctl("restore", "latest", "--plan", "--json")
        text = run_opsctl("restore", "latest", "--plan")

    assert (run.returncode, text.returncode) == (0, 0), run
    plan = run.json["result"]["plan"]
    assert (plan["backup_id"], plan["swaps"], plan["would_work"], plan["blockers"]) == (identifier, True, True, [])
    assert plan["sessions"] == 1
    assert plan["losses"] == [
        {"schema": "public", "name": "since", "live_rows": 5000, "backup_rows": 0, "in_backup": False},
        {"schema": "public", "name": "companies", "live_rows": 1274, "backup_rows": 40, "in_backup": True},
    ]
    assert plan["lost_rows"] == 6234
    assert "5,000 rows of public.since (5,000 now, none of its data is in the backup)" in text.stdout
    assert "1,234 rows of public.companies (1,274 now, 40 in the backup)" in text.stdout
    assert plan["previous_database"] in text.stdout or "__before_" in text.stdout
    assert databases_like(saas) == [saas.name]
    assert saas.execute("SELECT count(*) FROM companies") == [(1274,)]


def test_what_the_machine_lacks_is_known_before_anything_is_made(run_opsctl, stored, cluster, databases_like):
    """A locale that is not there, and no room for what several sessions read, are in the plan, with their hints."""
    facts = stored.manifest["facts"]
    stored.rewrite(facts={**facts, "database": {**facts["database"], "collate": "xx_XX.UTF-8"}})
    files = [
        {**file, "bytes": 1 << 60} if file["name"].startswith("dump") else file for file in stored.manifest["files"]
    ]
    url = cluster.url(stored.manifest["database"])
    no_locale = run_opsctl("restore", "latest", "--plan", "--json", url=url)
    stored.rewrite(files=files, facts=facts, database_bytes=1)
    no_room = run_opsctl("restore", "latest", "--plan", "--jobs", "2", "--json", url=url)

    (locale,) = no_locale.json["result"]["plan"]["obstacles"]
    assert (no_locale.returncode, "no locale" in locale["reason"], "locale-gen" in locale["hint"]) == (16, True, True)
    (room,) = no_room.json["result"]["plan"]["obstacles"]
    assert (no_room.returncode, "of free disk in" in room["reason"], "staging_path" in room["hint"]) == (16, True, True)


def test_rows_that_would_be_lost_are_shown_before_the_swap(run_opsctl, back_up, saas):
    """A restore that goes ahead has shown its plan too, on stderr. The next plan knows how long that one took."""
    back_up(saas)
    saas.execute("INSERT INTO companies (name) VALUES ('one more')")
    run = run_opsctl("restore", "latest", "--yes", saas.name)

    assert "1 row of public.companies" in run.stderr
    assert "1 row of public.companies" not in run.stdout
    assert "as in its restore" in run_opsctl("restore", "latest", "--plan").stdout


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


def test_unconfirmed_is_refused(run_opsctl, back_up, database, databases_like):
    """Without a terminal only the database's own name confirms; there is no blanket yes."""
    back_up(database)
    database.execute("CREATE TABLE since (id int)")
    for yes in ([], ["--yes", "postgres"], ["--yes", ""], ["--yes", "Y"]):
        run = run_opsctl("restore", "latest", *yes, "--json")
        assert run.returncode == 16, run
        assert run.json["error"]["code"] == "refused"
        assert f"--yes {database.name}" in run.json["error"]["hint"]
    assert databases_like(database) == [database.name]
    assert database.execute("SELECT count(*) FROM since") == [(0,)]


def test_into_a_database_that_exists_is_refused(run_opsctl, back_up, database, databases_like):
    """``--into`` never replaces anything: what holds data is refused, the live database itself a usage error."""
    back_up(database)
    existing = f"{database.name}_copy"
    replace(database, name="postgres").execute(f"CREATE DATABASE {existing}")
    replace(database, name=existing).execute("CREATE TABLE mine (id int)")
    for arguments in (["--plan"], [], ["--yes", existing]):
        run = run_opsctl("restore", "latest", "--into", existing, *arguments, "--json")
        assert run.returncode == 16, run
        assert "exists" in run.json["error"]["message"]
    assert run_opsctl("restore", "latest", "--into", database.name).returncode == 2
    assert databases_like(database) == [database.name, existing]


def test_into_a_name_that_the_server_would_cut_is_refused(run_opsctl, back_up, database, databases_like):
    """PostgreSQL cuts names at 63 bytes without a word: a longer one is refused, not restored elsewhere."""
    back_up(database)
    run = run_opsctl("restore", "latest", "--into", database.name + "é" * 32, "--json")

    assert run.returncode == 2, run
    assert "63" in run.json["error"]["message"]
    assert databases_like(database) == [database.name]


def test_missing_role_is_refused_by_name(run_opsctl, back_up, database, databases_like):
    """Roles that own objects must exist first: the plan names them and exits 16, the restore changes nothing."""
    role = f"role_{uuid.uuid4().hex[:8]}"
    database.execute(f"CREATE ROLE {role}; CREATE TABLE t (id int); ALTER TABLE t OWNER TO {role}")
    back_up(database)
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
    with throwaway_server(binaries, settings={"max_prepared_transactions": "2"}) as running:
        yield running


def test_prepared_transaction_is_refused(run_opsctl, back_up, with_prepared_transactions, database):
    """A prepared transaction would block the rename for ever: it is named before anything is loaded."""
    held = replace(database, cluster=with_prepared_transactions, name="postgres")
    held.execute("CREATE DATABASE shop")
    shop = replace(held, name="shop")
    back_up(shop)
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


# Failures leave nothing


def restored_nothing(database, databases_like, oid):
    assert databases_like(database) == [database.name]
    assert database.execute("SELECT oid FROM pg_database WHERE datname = current_database()") == oid


@pytest.mark.parametrize(
    ("damage", "jobs"), [("bit", 1), ("bit", 2), ("cut", 1), ("gone", 1), ("archive", 1), ("archive", 2)]
)
def test_damaged_backup_changes_nothing(run_opsctl, back_up, database, databases_like, only_backup, damage, jobs):
    """A damaged backup ends the restore; the live database stays, and no other one is left behind."""
    database.execute("CREATE TABLE t AS SELECT md5(n::text) FROM generate_series(1, 20000) n")
    back_up(database)
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

    assert run.returncode == 15, run
    assert run.json["error"]["code"] == "backup_damaged"
    restored_nothing(database, databases_like, oid)


@pytest.mark.parametrize("level", ["counts", "content"])
def test_copy_that_differs_from_the_facts_is_not_swapped_in(
    run_opsctl, back_up, database, databases_like, only_backup, level
):
    """Digests made to fit hide nothing: the copy is compared with the facts before it may replace anything."""
    database.execute("CREATE TABLE t AS SELECT 'row ' || n AS body FROM generate_series(1, 100) n")
    back_up(database, facts=level)
    oid = database.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
    stored = only_backup(run_opsctl.work / "backups")
    old, new = (b"row 77\n", b"row 7\\n") if level == "counts" else (b"row 77\n", b"row 78\n")
    stored.replace_dump(stored.plain_dump().replace(old, new))
    run = run_opsctl("restore", "latest", "--yes", database.name, "--json")

    assert run.returncode != 0, run
    assert "public.t" in run.json["error"]["message"]
    restored_nothing(database, databases_like, oid)
