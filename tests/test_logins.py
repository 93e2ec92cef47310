"""What a login may do: back up, restore and undo without superuser; and what the plan says when it may not."""

import os
import shlex
import shutil
import uuid
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import psycopg  # noqa: TID253
import pytest
from servers import throwaway_server

pytestmark = pytest.mark.end_to_end

SCHEMA = """
    CREATE TABLE customers (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
    INSERT INTO customers (name) SELECT 'customer ' || n FROM generate_series(1, 5000) n;
    CREATE SCHEMA billing;
    CREATE TABLE billing.invoices (id int PRIMARY KEY, customer int REFERENCES customers, cents bigint);
    INSERT INTO billing.invoices SELECT n, n, n * 100 FROM generate_series(1, 3000) n;
    CREATE VIEW totals AS SELECT sum(cents) AS cents FROM billing.invoices;
    CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT 2 * $1';
    CREATE INDEX ON billing.invoices (customer)"""
DAMAGE = "DELETE FROM billing.invoices WHERE id > 10; UPDATE customers SET name = 'lost'; DROP VIEW totals"


@pytest.fixture(scope="module")
def cluster(binaries):
    """A server of this file's own, with everything that may hold a database; its roles need no cleaning up."""
    settings = {"max_prepared_transactions": "4", "wal_level": "logical", "max_wal_senders": "4"}
    with throwaway_server(binaries, settings=settings) as running:
        yield running


@dataclass(frozen=True)
class Shop:
    """A database, and the login that looks after it."""

    database: object
    login: str

    @property
    def name(self):
        return self.database.name

    @property
    def url(self):
        return self.url_of(self.login)

    def url_of(self, role):
        return self.database.url.replace("user=postgres", f"user={role}")

    def named(self, name):
        return replace(self, database=replace(self.database, name=name))

    def execute(self, sql, *parameters):
        """As superuser."""
        return self.database.execute(sql, *parameters)

    def as_role(self, role, sql):
        with psycopg.connect(self.url_of(role), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def new_role(cluster, database):
    """``new_role("LOGIN CREATEDB")``: a role that nobody else has."""

    def make(options):
        name = f"role_{uuid.uuid4().hex[:8]}"
        database.execute(f"CREATE ROLE {name} {options}")
        return name

    return make


@pytest.fixture
def make_shop(database, new_role):
    """``make_shop("plain" | "managed" | "superuser" | "bound")``: a filled database and its login.

    ``bound`` is an owner that may not create databases. What a managed service gives is no superuser, but a member of
    the roles that own everything.
    """

    def make(kind):
        owner = new_role({"plain": "LOGIN CREATEDB"}.get(kind, "LOGIN"))
        login = owner
        shop = Shop(database, owner)
        database.execute(f"ALTER DATABASE {database.name} OWNER TO {owner}")
        shop.as_role(owner, SCHEMA)
        if kind == "managed":
            login, accounting = new_role("LOGIN CREATEDB CREATEROLE"), new_role("NOLOGIN")
            database.execute(f"GRANT {owner}, {accounting}, pg_monitor, pg_signal_backend TO {login}")
            database.execute(f"GRANT CREATE ON DATABASE {database.name} TO {accounting}")
            database.execute(f"ALTER SCHEMA billing OWNER TO {accounting}")
            database.execute(f"ALTER TABLE billing.invoices OWNER TO {accounting}")
            database.execute(f"GRANT USAGE ON SCHEMA billing TO {owner}; GRANT ALL ON billing.invoices TO {owner}")
        if kind == "superuser":
            login = "postgres"
        return Shop(database, login)

    return make


@pytest.fixture
def run(run_opsctl):
    """``run("restore", …, shop=shop)``: with the shop's login; the configuration records content hashes."""

    def start(*arguments, shop, login=None, **options):
        url = shop.url_of(login or shop.login)
        (run_opsctl.work / "opsctl.toml").write_text(
            f'[databases.shop]\nurl = "{url}"\nfacts = "content"\n[repositories.local]\nurl = "backups"\n'
        )
        return run_opsctl(*arguments, "--json", **options)

    return start


@pytest.fixture
def all_databases(database):
    def names():
        return database.execute("SELECT datname FROM pg_database ORDER BY 1")

    return names


def owners_and_grants(database):
    """Who owns what and who may do what, of every object a restore brings back."""
    return database.execute(
        """SELECT relname, relowner::regrole::text, relacl::text[]::text FROM pg_class
           WHERE relnamespace IN ('public'::regnamespace, to_regnamespace('billing')) AND relkind IN ('r', 'v')
           UNION ALL SELECT nspname, nspowner::regrole::text, nspacl::text FROM pg_namespace WHERE nspname = 'billing'
           UNION ALL SELECT 'database', datdba::regrole::text,
                            (SELECT array_agg(a::text ORDER BY a::text)
                             FROM unnest(coalesce(datacl, acldefault('d', datdba))) a)::text
                     FROM pg_database WHERE datname = current_database() ORDER BY 1"""
    )


def blockers(run):
    assert run.returncode == 16, run
    plan = run.json["result"]["plan"]
    assert plan["blockers"] == [each["reason"] for each in plan["obstacles"]] != []
    return "\n".join(f"{each['reason']} ({each['hint']})" for each in plan["obstacles"])


# What works


@pytest.mark.parametrize("kind", ["plain", "managed", "superuser"])
def test_login_backs_up_restores_and_undoes(run, make_shop, facts_of, kind):
    """No superuser is needed: an owner with CREATEDB, or a managed service's login, does everything with swap."""
    shop = make_shop(kind)
    assert run("backup", shop=shop).returncode == 0
    before, grants = facts_of(shop.database), owners_and_grants(shop.database)
    shop.execute(DAMAGE)
    damaged = facts_of(shop.database)
    (owner,) = shop.execute("SELECT datdba::regrole::text FROM pg_database WHERE datname = current_database()")[0]
    with closing(psycopg.connect(shop.url_of(owner))) as client:
        client.execute("SELECT 1")
        restored = run("restore", "latest", "--yes", "shop", shop=shop)
    assert restored.returncode == 0, restored
    assert restored.json["result"]["swapped"] is True
    assert restored.json["result"]["evidence"] == "content"
    assert facts_of(shop.database).tables == before.tables
    assert owners_and_grants(shop.database) == grants
    undone = run("restore", "--undo", "--yes", "shop", shop=shop)

    assert undone.returncode == 0, undone
    assert facts_of(shop.database).tables == damaged.tables


def test_without_owners_and_grants(run, make_shop, new_role, facts_of):
    """``--no-owner`` and ``--no-privileges`` make a backup restorable by a login that knows none of its roles."""
    shop, stranger, reader = make_shop("plain"), new_role("LOGIN CREATEDB"), new_role("NOLOGIN")
    shop.execute(f"GRANT SELECT ON customers TO {reader}")
    assert run("backup", shop=shop).returncode == 0
    shop.execute(f"REVOKE ALL ON customers FROM {reader}; DROP ROLE {reader}")
    copy = f"{shop.name}_copy"
    as_it_is = run("restore", "latest", "--into", copy, "--plan", shop=shop, login=stranger)
    assert reader in blockers(as_it_is)
    assert f"no member of {shop.login}" in blockers(as_it_is)
    only_owner = run("restore", "latest", "--into", copy, "--plan", "--no-owner", shop=shop, login=stranger)
    assert reader in blockers(only_owner)
    assert shop.login not in blockers(only_owner)
    flags = ("--no-owner", "--no-privileges")
    restored = run("restore", "latest", "--into", copy, *flags, shop=shop, login=stranger)

    assert restored.returncode == 0, restored
    assert facts_of(shop.named(copy).database).tables == facts_of(shop.database).tables
    made = owners_and_grants(shop.named(copy).database)
    assert {owner for _, owner, _ in made} == {stranger}
    assert {grants for name, _, grants in made if name != "database"} == {None}


def test_restore_as_a_role(run, make_shop, new_role):
    """``--role`` loads as that role: with ``--no-owner`` everything is its; a login that is no member is told so."""
    shop = make_shop("managed")
    (owner,) = shop.execute("SELECT datdba::regrole::text FROM pg_database WHERE datname = current_database()")[0]
    assert run("backup", shop=shop).returncode == 0
    other = new_role("NOLOGIN")
    refused = run("restore", "latest", "--plan", "--role", other, shop=shop)
    missing = run("restore", "latest", "--plan", "--role", "role_of_nobody", shop=shop)
    restored = run("restore", "latest", "--yes", "shop", "--role", owner, "--no-owner", shop=shop)

    assert f"no member of {other}" in blockers(refused)
    assert "role_of_nobody" in blockers(missing)
    assert restored.returncode == 0, restored
    assert {owner for _, owner, _ in owners_and_grants(shop.database)} == {owner}


# What the plan names


def make_untrusted_extension(shop):
    """An extension of this server that only a superuser may create; its name."""
    found = shop.execute(
        """SELECT name FROM pg_available_extension_versions
           WHERE superuser AND NOT trusted AND name IN ('vector', 'dblink', 'pageinspect') ORDER BY 1"""
    )
    if not found:
        return None
    shop.execute(f"CREATE EXTENSION {found[-1][0]}")
    return found[-1][0]


def test_plan_names_what_only_a_superuser_can_restore(run, make_shop, new_role, all_databases):
    """Each entry of the archive that this login cannot bring back is named, before anything is created."""
    shop, other = make_shop("plain"), new_role("NOLOGIN")
    extension = make_untrusted_extension(shop)
    shop.execute(
        f"""CREATE TABLE not_mine (id int); ALTER TABLE not_mine OWNER TO {other};
            CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
            CREATE EVENT TRIGGER watch_ddl ON ddl_command_end EXECUTE FUNCTION on_ddl();
            CREATE PUBLICATION everything FOR ALL TABLES;
            CREATE FUNCTION call_own() RETURNS language_handler LANGUAGE c
                AS '$libdir/plpgsql', 'plpgsql_call_handler';
            CREATE LANGUAGE own_language HANDLER call_own"""
    )
    assert run("backup", shop=shop, login="postgres").returncode == 0
    databases = all_databases()
    named = blockers(run("restore", "latest", "--plan", shop=shop))
    refused = run("restore", "latest", "--yes", "shop", shop=shop)

    assert f"no member of {other}" in named
    for entry in ("not_mine", "event trigger watch_ddl", "publication everything", "language own_language"):
        assert entry in named
    assert extension is None or f"extension {extension}" in named
    assert refused.returncode == 16, refused
    assert all_databases() == databases
    assert run("restore", "latest", "--plan", shop=shop, login="postgres").returncode == 0
    shop.execute("DROP EVENT TRIGGER watch_ddl")


def test_plan_names_what_holds_the_live_database(run, make_shop, all_databases):
    """Prepared transactions, slots, subscriptions and sessions that cannot be ended would break the swap."""
    shop = make_shop("plain")
    assert run("backup", shop=shop).returncode == 0
    databases = all_databases()
    shop.execute("SELECT pg_create_logical_replication_slot('slot_of_shop', 'pgoutput')")
    shop.execute(
        "CREATE SUBSCRIPTION feed CONNECTION 'host=127.0.0.1 port=1 dbname=x' PUBLICATION p"
        " WITH (connect = false, enabled = false, slot_name = NONE)"
    )
    with ExitStack() as stack:
        client = stack.enter_context(shop.database.connect(application_name="nightly report"))
        client.execute("SELECT 1")
        stack.callback(shop.execute, "SELECT pg_drop_replication_slot('slot_of_shop'); DROP SUBSCRIPTION feed")
        with shop.database.connect() as preparing:
            preparing.execute("BEGIN; CREATE TABLE t (id int); PREPARE TRANSACTION 'half done'")
        stack.callback(shop.execute, "ROLLBACK PREPARED 'half done'")
        named = blockers(run("restore", "latest", "--plan", shop=shop))
        refused = run("restore", "latest", "--yes", "shop", shop=shop)
        as_superuser = blockers(run("restore", "latest", "--plan", shop=shop, login="postgres"))
        beside = run("restore", "latest", "--into", f"{shop.name}_copy", "--plan", shop=shop)

        for word in ("half done", "slot_of_shop", "feed", f"pid {client.info.backend_pid}", "postgres"):
            assert word in named
        assert refused.returncode == 16, refused
        assert all_databases() == databases
        for word in ("half done", "slot_of_shop", "feed"):
            assert word in as_superuser
        assert "pid" not in as_superuser, "a superuser ends every session"
        assert beside.returncode == 0, beside


def test_only_the_owner_renames(run, make_shop, new_role):
    """A login that is no member of the owner is told who is."""
    shop, other = make_shop("plain"), new_role("LOGIN CREATEDB")
    assert run("backup", shop=shop).returncode == 0
    found = blockers(run("restore", "latest", "--plan", "--no-owner", shop=shop, login=other))

    assert f"only its owner, {shop.login}" in found


def test_roles_of_the_database_itself_are_needed_too(run, make_shop, new_role, all_databases):
    """A role that is only named in the database's own grants, or only owns the database, is missed in the plan."""
    shop, guest = make_shop("plain"), new_role("NOLOGIN")
    shop.execute(f"GRANT CREATE ON DATABASE {shop.name} TO {guest}")
    assert run("backup", shop=shop).returncode == 0
    shop.execute(f"REVOKE ALL ON DATABASE {shop.name} FROM {guest}; DROP ROLE {guest}")
    databases = all_databases()
    copy = f"{shop.name}_copy"
    refused = run("restore", "latest", "--into", copy, shop=shop)
    restored = run("restore", "latest", "--into", copy, "--no-privileges", shop=shop)

    assert guest in blockers(refused)
    assert all_databases() != databases
    assert restored.returncode == 0, restored


def test_owner_of_the_database_alone(run, make_shop, new_role):
    """Making a database for an owner the login is no member of would fail: said before, and solved by --no-owner."""
    shop, landlord = make_shop("plain"), new_role("NOLOGIN")
    shop.execute(f"ALTER DATABASE {shop.name} OWNER TO {landlord}; ALTER SCHEMA public OWNER TO {shop.login}")
    assert run("backup", shop=shop, login="postgres").returncode == 0
    copy = f"{shop.name}_copy"
    refused = run("restore", "latest", "--into", copy, shop=shop)
    restored = run("restore", "latest", "--into", copy, "--no-owner", shop=shop)

    assert landlord in blockers(refused)
    assert restored.returncode == 0, restored


# Manifests of backups that this server could not take


@pytest.fixture(scope="module")
def stored_once(tmp_path_factory):
    return {"folder": tmp_path_factory.mktemp("stored") / "backups"}


@pytest.fixture
def backup_of_shop(run, run_opsctl, make_shop, only_backup, stored_once):
    """A shop and its backup, which may be doctored: ``shop, stored``; the backup is taken once."""
    shop = make_shop("plain")
    if not stored_once["folder"].exists():
        assert run("backup", shop=shop).returncode == 0
        shutil.copytree(run_opsctl.work / "backups", stored_once["folder"])
    else:
        shutil.copytree(stored_once["folder"], run_opsctl.work / "backups")
    stored = only_backup(run_opsctl.work / "backups")
    facts = stored.manifest["facts"]
    for key in ("owners", "roles"):
        facts[key] = []
    stored.rewrite(facts={**facts, "database": {**facts["database"], "owner": shop.login, "acl": None}})
    return shop, stored


def with_extension(manifest, name):
    facts = manifest["facts"]
    extension = {"name": name, "version": "1.6", "schema": "public"}
    return {"facts": {**facts, "extensions": [*facts["extensions"], extension]}}


@pytest.mark.parametrize(
    ("change", "login", "words"),
    [
        (lambda old: with_extension(old, "not_there"), None, ["extension not_there 1.6 is not installed"]),
        (lambda old: with_extension(old, "pg_cron"), "postgres", ["pg_cron"]),
        (lambda old: with_extension(old, "timescaledb"), "postgres", ["timescaledb"]),
        (lambda old: {"database_bytes": 10**16}, "postgres", ["free, the copy needs about 9095 TiB"]),
        (lambda old: {"database_bytes": 2 << 30}, None, ["unknown", "2.0 GiB", "--accept-unknown-disk"]),
    ],
    ids=["missing extension", "pg_cron", "timescaledb", "disk too small", "disk unknown"],
)
def test_obstacle_is_named_by_the_plan(run, backup_of_shop, all_databases, change, login, words):
    """16, the cause in the message, and nothing created: neither by ``--plan`` nor by the restore itself."""
    shop, stored = backup_of_shop
    stored.rewrite(**change(stored.manifest))
    databases = all_databases()
    refused = run("restore", "latest", "--yes", "shop", shop=shop, login=login)

    assert all(word in blockers(refused) for word in words), refused
    assert all(word in refused.json["error"]["message"] for word in words[:1])
    assert all_databases() == databases


def test_archive_of_a_newer_postgresql(run, backup_of_shop, all_databases):
    """What no pg_restore here can read is said in the plan, before anything is created."""
    shop, stored = backup_of_shop
    stored.rewrite(pg_dump_version="99.1")
    databases = all_databases()
    refused = run("restore", "latest", "--plan", shop=shop)

    assert "pg_dump 99" in blockers(refused)
    assert all_databases() == databases


def test_unknown_disk_can_be_accepted(run, backup_of_shop):
    """A login that cannot see the data folder is told so; beyond 1 GiB it has to accept that."""
    shop, stored = backup_of_shop
    small = run("restore", "latest", "--plan", shop=shop)
    stored.rewrite(database_bytes=2 << 30)
    accepted = run("restore", "latest", "--plan", "--accept-unknown-disk", shop=shop)

    assert small.returncode == 0, small
    assert accepted.returncode == 0, accepted
    for plan in (small.json["result"]["plan"], accepted.json["result"]["plan"]):
        assert plan["free_bytes"] is None
        assert "free disk space of the server is unknown" in plan["warnings"][0]


def test_other_collation_version_is_remarked(run, make_shop, run_opsctl, only_backup):
    """Text may sort differently after an upgrade of the C library or ICU: said, but no obstacle."""
    shop = make_shop("superuser")
    if shop.execute("SELECT current_setting('server_version_num')::int")[0][0] < 170000:
        pytest.skip("this server has no locale with a version that is there everywhere")
    sorting = shop.named(f"{shop.name}_sorting")
    shop.execute(f"CREATE DATABASE {sorting.name} TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'")
    assert run("backup", shop=sorting).returncode == 0
    stored = only_backup(run_opsctl.work / "backups")
    facts = stored.manifest["facts"]
    same = run("restore", "latest", "--plan", shop=sorting)
    stored.rewrite(facts={**facts, "database": {**facts["database"], "collation_version": "0.9"}})
    other = run("restore", "latest", "--plan", shop=sorting)

    assert (same.returncode, other.returncode) == (0, 0), (same, other)
    assert not [each for each in same.json["result"]["plan"]["warnings"] if "collation" in each]
    (remark,) = [each for each in other.json["result"]["plan"]["warnings"] if "collation" in each]
    assert "0.9" in remark


# A login that may not create databases


def failing_restore(folder, binaries, body):
    """``pg_restore`` as a script that goes wrong."""
    folder.mkdir()
    script = folder / "pg_restore"
    real = shlex.quote(str(binaries.path("pg_restore")))
    loads_nothing = '[[ "$*" == *--dbname=* ]] || exec "$real" "$@"'
    script.write_text(f"#!/bin/bash\nreal={real}\n{loads_nothing}\nexec 3<&0\n{body}\n")
    script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


CUT = '"$real" "$@" < <(head -c 120000 <&3); exit 1'
KILLED = (
    '"$real" "$@" 0< <(head -c 120000 <&3; exec sleep 2 3<&-) & loading=$!; sleep 0.7; kill -9 $loading;'
    " wait $loading; exit 1"
)
each_failure = pytest.mark.parametrize(
    ("body", "ends"), [(CUT, (15, "backup_damaged")), (KILLED, (1, "restore_failed"))], ids=["cut", "killed"]
)


def test_alternative_is_named(run, make_shop, all_databases):
    """Without CREATEDB there is no staging database: the plan says so, and what works instead."""
    shop = make_shop("bound")
    assert run("backup", shop=shop).returncode == 0
    databases = all_databases()
    found = blockers(run("restore", "latest", "--yes", "shop", shop=shop))

    assert all(word in found for word in ("may not create databases", "CREATEDB", "--into", "empty", "--in-place"))
    assert all_databases() == databases


@pytest.fixture
def given(make_shop):
    """A shop whose login may not create databases, and an empty database that it was given."""
    shop = make_shop("bound")
    empty = shop.named(f"{shop.name}_given")
    shop.execute(f"CREATE DATABASE {empty.name} OWNER {shop.login}")
    return shop, empty


def test_into_an_empty_database_that_was_given(run, given, facts_of, all_databases):
    """``--into`` fills an existing empty database; a second time it is not empty any more and refused."""
    shop, empty = given
    assert run("backup", shop=shop).returncode == 0
    databases = all_databases()
    filled = run("restore", "latest", "--into", empty.name, shop=shop)
    again = run("restore", "latest", "--into", empty.name, shop=shop)

    assert filled.returncode == 0, filled
    assert filled.json["result"]["evidence"] == "content"
    assert facts_of(empty.database).tables == facts_of(shop.database).tables
    assert "not empty" in blockers(again)
    assert all_databases() == databases


@each_failure
def test_failing_load_leaves_the_given_database_empty(run, given, binaries, tmp_path, body, ends):
    """One transaction: as a whole, or nothing; whether pg_restore reports an error or is killed."""
    shop, empty = given
    assert run("backup", shop=shop).returncode == 0
    env = failing_restore(tmp_path / "bin", binaries, body)
    failed = run("restore", "latest", "--into", empty.name, shop=shop, env=env)

    assert (failed.returncode, failed.json["error"]["code"]) == ends, failed
    assert empty.execute("SELECT count(*) FROM pg_class WHERE oid >= 16384") == [(0,)]
    assert run("restore", "latest", "--into", empty.name, shop=shop).returncode == 0


def test_in_place_overwrites_in_one_transaction(run, make_shop, facts_of, all_databases):
    """``--in-place`` is for whoever has but one database: confirmed, without undo, and said to be so."""
    shop = make_shop("bound")
    assert run("backup", shop=shop).returncode == 0
    before, databases = facts_of(shop.database).tables, all_databases()
    shop.execute(DAMAGE)
    damaged = facts_of(shop.database).tables
    plan = run("restore", "latest", "--in-place", "--plan", shop=shop)
    unconfirmed = run("restore", "latest", "--in-place", shop=shop)
    assert facts_of(shop.database).tables == damaged
    restored = run("restore", "latest", "--in-place", "--yes", "shop", shop=shop)

    assert plan.returncode == 0, plan
    assert [each for each in plan.json["result"]["plan"]["warnings"] if "no undo" in each]
    assert unconfirmed.returncode == 16
    assert restored.returncode == 0, restored
    assert (restored.json["result"]["swapped"], restored.json["result"]["previous_database"]) == (False, None)
    assert facts_of(shop.database).tables == before
    assert shop.execute("SELECT cents > 0 FROM totals") == [(True,)]
    assert all_databases() == databases


@each_failure
def test_failing_load_in_place_changes_nothing(run, make_shop, facts_of, binaries, tmp_path, body, ends):
    """A load that dies half way leaves the live database as it was, to the last row."""
    shop = make_shop("bound")
    assert run("backup", shop=shop).returncode == 0
    shop.execute(DAMAGE)
    damaged = facts_of(shop.database).tables
    env = failing_restore(tmp_path / "bin", binaries, body)
    failed = run("restore", "latest", "--in-place", "--yes", "shop", shop=shop, env=env)

    assert (failed.returncode, failed.json["error"]["code"]) == ends, failed
    assert facts_of(shop.database).tables == damaged


def test_jobs_do_not_fit_one_transaction(run, make_shop):
    """``--in-place --jobs 2`` is refused: several sessions are no one transaction."""
    shop = make_shop("bound")
    assert run("backup", shop=shop).returncode == 0
    assert "--jobs" in blockers(run("restore", "latest", "--in-place", "--plan", "--jobs", "2", shop=shop))


# Properties of the database


def properties(shop):
    """Everything that hangs on the database itself, by effect: who granted it does not matter."""
    (row,) = shop.named("postgres").execute(
        """SELECT datdba::regrole::text, datconnlimit, shobj_description(d.oid, 'pg_database'),
                  array(SELECT DISTINCT format('%%s %%s %%s', grantee::regrole, privilege_type, is_grantable)
                        FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) ORDER BY 1),
                  array(SELECT format('%%s %%s', setrole::regrole, unnest(setconfig))
                        FROM pg_db_role_setting WHERE setdatabase = d.oid ORDER BY 1)
           FROM pg_database d WHERE datname = %s""",
        shop.name,
    )
    return row


@pytest.mark.parametrize("kind", ["plain", "managed"])
def test_properties_that_a_login_may_set_are_carried_over(run, make_shop, new_role, kind):
    """Owner, grants with their options, comment, limit, settings, lists and own settings, without a superuser."""
    shop = make_shop(kind)
    reader, writer = new_role("NOLOGIN"), new_role("NOLOGIN")
    (owner,) = properties(shop)[:1]
    assert run("backup", shop=shop).returncode == 0
    shop.as_role(shop.login, f"ALTER ROLE {shop.login} IN DATABASE {shop.name} SET lock_timeout = '9s'")
    shop.as_role(
        owner,
        f"""COMMENT ON DATABASE {shop.name} IS 'It''s the "shop"';
            REVOKE ALL ON DATABASE {shop.name} FROM PUBLIC;
            GRANT CONNECT ON DATABASE {shop.name} TO {reader} WITH GRANT OPTION;
            GRANT TEMPORARY, CREATE ON DATABASE {shop.name} TO {writer};
            ALTER DATABASE {shop.name} CONNECTION LIMIT 23;
            ALTER DATABASE {shop.name} SET work_mem = '5MB';
            ALTER DATABASE {shop.name} SET search_path = "$user", 'a, "b"', public;
            ALTER DATABASE {shop.name} SET statement_timeout = '1ms';
            ALTER DATABASE {shop.name} SET default_transaction_read_only = on""",
    )
    expected = properties(shop)
    restored = run("restore", "latest", "--yes", "shop", shop=shop)

    assert restored.returncode == 0, restored
    assert restored.json["result"]["warnings"] == []
    assert properties(shop) == expected


def test_what_a_login_may_not_set_is_named(run, make_shop, new_role, facts_of):
    """A superuser's setting and another role's cannot be carried over by the owner: restored, 3, each named."""
    shop, other = make_shop("plain"), new_role("NOLOGIN")
    assert run("backup", shop=shop).returncode == 0
    tables = facts_of(shop.database).tables
    shop.execute(f"ALTER DATABASE {shop.name} SET log_min_messages = 'error'; ALTER DATABASE {shop.name} SET jit = off")
    shop.execute(f"ALTER DATABASE {shop.name} SET my.own = 'it''s, free'")
    shop.execute(f"ALTER ROLE {other} IN DATABASE {shop.name} SET work_mem = '6MB'; {DAMAGE}")
    restored = run("restore", "latest", "--yes", "shop", shop=shop)

    assert restored.returncode == 3, restored
    assert facts_of(shop.database).tables == tables
    said = restored.json["result"]["warnings"]
    assert len(said) == 3
    assert [each for each in said if "log_min_messages" in each]
    assert [each for each in said if "my.own" in each]
    assert [each for each in said if f"work_mem of role {other}" in each]
    assert properties(shop)[-1] == ["- jit=off"]
    assert all(each in restored.stderr for each in ("log_min_messages", other))
