"""The database is gone, the server is gone, or another one is the target: roles first, then the backup."""

import uuid
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import quote

import psycopg  # noqa: TID253
import pytest
from psycopg.sql import SQL, Identifier  # noqa: TID253
from servers import throwaway_server

pytestmark = pytest.mark.end_to_end

CANARY = "canary-pa55/word:%41"


@pytest.fixture(scope="module")
def cluster(binaries):
    """The old server, of this file's own: its roles need no cleaning up."""
    with throwaway_server(binaries) as running:
        yield running


@pytest.fixture(scope="module")
def fresh_server(binaries):
    """A server that knows nothing yet, with passwords on 127.0.0.1."""
    with throwaway_server(binaries, listen=True) as running:
        yield running


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture
def roles():
    """Four names that no other test uses: owner, group, reader and an awkward one."""
    mark = uuid.uuid4().hex[:6]
    return {name: f"{name}_{mark}" for name in ("owner", "staff", "reader")} | {"odd": f'o"dd; ROLE-{mark}'}


@pytest.fixture
def shop(run_opsctl, database, roles):
    """A database with roles, grants and settings, backed up; configured as ``shop``."""
    owner, staff, reader, odd = roles["owner"], roles["staff"], roles["reader"], quoted(roles["odd"])
    database.execute(
        f"""CREATE ROLE {staff}; CREATE ROLE {owner} LOGIN CREATEDB PASSWORD 'first' IN ROLE {staff};
            CREATE ROLE {reader} LOGIN CONNECTION LIMIT 3 VALID UNTIL '2040-01-01'; CREATE ROLE {odd};
            GRANT {reader} TO {odd}; ALTER ROLE {reader} SET work_mem = '7MB';
            COMMENT ON ROLE {reader} IS 'reads; only';
            ALTER DATABASE {database.name} OWNER TO {owner};
            CREATE TABLE orders AS SELECT n AS id FROM generate_series(1, 500) n; ALTER TABLE orders OWNER TO {owner};
            GRANT SELECT ON orders TO {reader}; GRANT INSERT ON orders TO {odd};
            REVOKE ALL ON DATABASE {database.name} FROM PUBLIC;
            GRANT CONNECT ON DATABASE {database.name} TO {reader} WITH GRANT OPTION;
            COMMENT ON DATABASE {database.name} IS 'the shop';
            ALTER DATABASE {database.name} CONNECTION LIMIT 21;
            ALTER DATABASE {database.name} SET search_path = public, "Other Schema";
            ALTER ROLE {reader} IN DATABASE {database.name} SET statement_timeout = '3s'"""
    )
    (run_opsctl.work / "opsctl.toml").write_text(f'[databases.shop]\nurl = "{database.url}"\nfacts = "content"\n')
    run = run_opsctl("backup", "--json")
    assert run.returncode == 0, run
    return database


def properties(database):
    """What hangs on the database itself, with names instead of oids."""
    (row,) = replace(database, name="postgres").execute(
        """SELECT datdba::regrole::text, datconnlimit, shobj_description(d.oid, 'pg_database'),
                  pg_encoding_to_char(encoding), datcollate,
                  array(SELECT format('%%s %%s %%s', grantee::regrole, privilege_type, is_grantable)
                        FROM aclexplode(datacl) ORDER BY 1),
                  array(SELECT format('%%s %%s', setrole::regrole, unnest(setconfig))
                        FROM pg_db_role_setting WHERE setdatabase = d.oid ORDER BY 1)
           FROM pg_database d WHERE datname = %s""",
        database.name,
    )
    return row


@contextmanager
def dropped_afterwards(cluster, database, names):
    """What a test makes on the fresh server goes again, so that it is fresh for the next one."""
    try:
        yield
    finally:
        with psycopg.connect(cluster.url(), autocommit=True) as connection:
            found = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [database])
            for (each,) in found.fetchall():
                connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(each)))
            for name in names:
                connection.execute(SQL("DROP ROLE IF EXISTS {}").format(Identifier(name)))


@pytest.fixture
def target(shop, fresh_server, roles):
    """The database of the shop as it would be on the fresh server: it does not exist there."""
    with dropped_afterwards(fresh_server, shop.name, roles.values()):
        yield replace(shop, cluster=fresh_server)


def roles_of(database, roles):
    """Attributes, memberships, settings and comments of these roles."""
    admin, wanted = replace(database, name="postgres"), list(roles.values())
    attributes = admin.execute(
        """SELECT rolname, rolcanlogin, rolcreatedb, rolconnlimit, rolvaliduntil::text, rolconfig,
                  shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = ANY(%s) ORDER BY 1""",
        wanted,
    )
    members = admin.execute(
        """SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members
           WHERE pg_get_userbyid(roleid) = ANY(%s) ORDER BY 1, 2""",
        wanted,
    )
    return attributes, members


# The live database is gone


@pytest.mark.acceptance
def test_dropped_database_comes_back_with_its_properties(run_opsctl, shop, facts_of):
    """Nothing is there to carry over from: owner, grants, comment, limit and settings come from the manifest."""
    expected, tables = properties(shop), facts_of(shop).tables
    replace(shop, name="postgres").execute(f"DROP DATABASE {shop.name}")
    plan = run_opsctl("restore", "latest", "--plan", "--json")
    run = run_opsctl("restore", "latest", "--json")

    assert plan.json["result"]["plan"]["mode"] == "create"
    assert run.returncode == 0, run
    assert run.json["result"]["warnings"] == []
    assert properties(shop) == expected
    assert facts_of(shop).tables == tables


# A fresh server


def test_roles_come_first(run_opsctl, shop, target, roles, facts_of):
    """``restore`` names the missing roles; ``--globals --plan`` shows, ``--globals`` creates, then it works."""
    url = target.url
    refused = run_opsctl("restore", "latest", "--to", url, "--json")
    assert refused.returncode == 16, refused
    assert all(roles[name] in refused.json["error"]["message"] for name in ("owner", "reader", "odd"))
    assert "--globals" in refused.json["error"]["hint"]
    shown = run_opsctl("restore", "latest", "--globals", "--plan", "--to", url, "--json")
    assert shown.returncode == 0, shown
    assert set(shown.json["result"]["missing"]) >= set(roles.values())
    assert roles_of(target, roles) == ([], [])
    created = run_opsctl("restore", "latest", "--globals", "--to", url, "--json")
    assert created.returncode == 0, created
    assert created.json["result"]["refused"] == []
    assert roles_of(target, roles) == roles_of(shop, roles)
    again = run_opsctl("restore", "latest", "--globals", "--to", url, "--json")
    assert again.json["result"]["missing"] == []
    run = run_opsctl("restore", "latest", "--to", url, "--json")

    assert run.returncode == 0, run
    assert facts_of(target).tables == facts_of(shop).tables
    assert properties(target) == properties(shop)


@pytest.mark.acceptance
def test_roles_that_exist_are_left_alone_and_shown(run_opsctl, shop, target, roles):
    """What is there keeps its attributes, password and memberships; what the backup says of it is shown."""
    admin = replace(target, name="postgres")
    admin.execute(f"CREATE ROLE {roles['owner']} NOLOGIN PASSWORD 'second'; CREATE ROLE {roles['staff']}")
    password = "SELECT rolpassword FROM pg_authid WHERE rolname = %s"
    before = admin.execute(password, roles["owner"])
    run = run_opsctl("restore", "latest", "--globals", "--to", target.url, "--json")

    assert run.returncode == 0, run
    attributes, members = roles_of(target, roles)
    by_name = {row[0]: row for row in attributes}
    assert (by_name[roles["owner"]][1], by_name[roles["owner"]][2]) == (False, False)
    assert admin.execute(password, roles["owner"]) == before
    assert (roles["staff"], roles["owner"]) not in members
    assert {roles["reader"], roles["odd"]} <= set(run.json["result"]["missing"])
    shown = "\n".join(run.json["result"]["left_alone"])
    assert f"ALTER ROLE {roles['owner']} WITH" in shown
    assert roles["reader"] not in "\n".join(each for each in run.json["result"]["left_alone"] if "ALTER" in each)


@pytest.mark.acceptance
def test_login_that_may_not_create_roles(run_opsctl, shop, target, roles):
    """What the server refuses is named, each statement with its reason, and the exit code is 3."""
    admin = replace(target, name="postgres")
    admin.execute("CREATE ROLE nobody_special LOGIN CREATEDB")
    try:
        url = target.url.replace("user=postgres", "user=nobody_special")
        run = run_opsctl("restore", "latest", "--globals", "--to", url, "--json")
        assert run.returncode == 3, run
        assert any(f"CREATE ROLE {roles['owner']}" in each for each in run.json["result"]["refused"])
        beside = run_opsctl("restore", "latest", "--to", url, "--no-owner", "--no-privileges", "--json")
        assert beside.returncode in {0, 3}, beside
        assert target.execute("SELECT count(*) FROM orders") == [(500,)]
    finally:
        with dropped_afterwards(target.cluster, target.name, ["nobody_special"]):
            pass


# --to URL


def test_password_of_the_url_is_a_secret(run_opsctl, shop, target, fresh_server, roles):
    """It reaches pg_restore and the server, and is in no output, neither as written nor decoded."""
    admin = replace(target, name="postgres")
    admin.execute(f"CREATE ROLE mover SUPERUSER LOGIN PASSWORD '{CANARY}'")
    try:
        url = f"postgresql://mover:{quote(CANARY, safe='')}@127.0.0.1:{fresh_server.port}/{shop.name}"
        wrong = url.replace("canary", "canary2")
        runs = [
            run_opsctl("restore", "latest", "--globals", "--to", url, "--json"),
            run_opsctl("restore", "latest", "--to", url, "--debug"),
            run_opsctl("restore", "latest", "--to", url, "--plan"),
            run_opsctl("restore", "latest", "--to", wrong, "--debug"),
            run_opsctl("restore", "latest", "--to", f"{url}?nonsense=1", "--json"),
        ]
        assert [run.returncode for run in runs] == [0, 0, 0, 12, 10], runs
        for run in runs:
            for secret in (CANARY, quote(CANARY, safe=""), "pa55"):
                assert secret not in run.stdout + run.stderr
    finally:
        with dropped_afterwards(fresh_server, shop.name, ["mover"]):
            pass


@pytest.mark.acceptance
def test_database_of_the_other_server_is_replaced_only_when_named(run_opsctl, shop, target, roles):
    """``--to`` a database that exists is a restore like any other: swapped, kept aside, confirmed by its name."""
    other = replace(target, name=f"{shop.name}_there")
    admin = replace(target, name="postgres")
    admin.execute(f"CREATE DATABASE {other.name}")
    other.execute("CREATE TABLE what_was_there (id int)")
    assert run_opsctl("restore", "latest", "--globals", "--to", other.url).returncode == 0
    unconfirmed = run_opsctl("restore", "latest", "--to", other.url)
    by_the_wrong_name = run_opsctl("restore", "latest", "--to", other.url, "--yes", "shop")
    assert (unconfirmed.returncode, by_the_wrong_name.returncode) == (16, 16)
    assert other.execute("SELECT count(*) FROM what_was_there") == [(0,)]
    run = run_opsctl("restore", "latest", "--to", other.url, "--yes", other.name, "--json")

    assert run.returncode == 0, run
    assert other.execute("SELECT count(*) FROM orders") == [(500,)]
    assert run.json["result"]["previous_database"].startswith(f"{other.name}__before_")
    assert shop.execute("SELECT count(*) FROM orders") == [(500,)]


@pytest.mark.acceptance
def test_hooks_and_standbys_belong_to_the_configured_server(run_opsctl, shop, target, tmp_path):
    """``--to`` another server holds back no clients of this one."""
    configuration = run_opsctl.work / "opsctl.toml"
    marker = tmp_path / "ran"
    configuration.write_text(configuration.read_text() + f"before_swap = 'touch {marker}'\n")
    other = replace(target, name=f"{shop.name}_there")
    replace(target, name="postgres").execute(f"CREATE DATABASE {other.name}")
    flags = ("--no-owner", "--no-privileges")
    run = run_opsctl("restore", "latest", "--to", other.url, "--yes", other.name, *flags)

    assert run.returncode == 0, run
    assert not marker.exists()


def test_only_the_repository_is_left(run_opsctl, shop, target):
    """On a new host with nothing but the repository: no database is configured, ``--to`` says where."""
    (run_opsctl.work / "opsctl.toml").write_text('[repositories.local]\nurl = "backups"\n')
    created = run_opsctl("restore", "latest", "--globals", "--to", target.url)
    run = run_opsctl("restore", "latest", "--to", target.url, "--json")

    assert created.returncode == 0, created
    assert run.returncode == 0, run
    assert target.execute("SELECT count(*) FROM orders") == [(500,)]
