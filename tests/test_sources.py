"""What a database may be backed up from: a standby, a role with timeouts, a whole server, a login without rights."""

import shutil
import signal
import subprocess
import time
import uuid
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import psycopg  # noqa: TID253
import pytest
import zstandard
from servers import throwaway_server

from opsctl.backup import BackupPlan, take_backup
from opsctl.errors import RestoreFailed
from opsctl.postgres.binaries import Binaries, choose_dump
from opsctl.postgres.server import Server
from opsctl.postgres.tools import Tools
from opsctl.repository import Repository
from opsctl.storage import open_storage

pytestmark = pytest.mark.end_to_end


def write_config(run_opsctl, text):
    (run_opsctl.work / "opsctl.toml").write_text(text)


def section(database, more="", url=None):
    return f'[databases."{database.name}"]\nurl = "{url or database.url}"\n{more}\n'


def only(run):
    (backup,) = run.json["result"]["backups"]
    return backup


def backed_up(run_opsctl, *arguments, code=0, **options):
    run = run_opsctl("backup", "--json", *arguments, **options)
    assert run.returncode == code, run
    return only(run)


def as_login(database, login):
    return database.url.replace("user=postgres", f"user={login}")


@contextmanager
def connected_as(database, login):
    with psycopg.connect(as_login(database, login), autocommit=True) as connection:
        yield connection


@pytest.fixture
def login(database):
    """A plain role of its own, gone at the end with everything it has in databases named like this one."""
    name = f"login_{uuid.uuid4().hex[:8]}"
    database.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    admin = replace(database, name="postgres")
    for (each,) in admin.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", database.name):
        admin.execute(f'ALTER DATABASE "{each}" ALLOW_CONNECTIONS true')
        replace(database, name=each).execute(f"REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}")
    admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


# Standbys


@pytest.fixture
def primary(binaries, tmp_path):
    with throwaway_server(binaries, settings={"wal_level": "replica", "max_wal_senders": "4"}) as running:
        yield running


@contextmanager
def standby_of(primary):
    """A hot standby that has replayed everything; the URL of a database on it."""
    data, sockets = primary.folder / "standby", primary.folder / "standby_socket"
    programs, account = primary._programs, primary._as_account()
    for folder in (data, sockets):
        folder.mkdir(mode=0o700)
        primary._give_away(folder)
    copy = ["--pgdata", data, "--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"]
    where = ["--host", primary.socket_folder, "--port", str(primary.port), "--username", "postgres"]
    subprocess.run([programs / "pg_basebackup", *copy, *where], check=True, capture_output=True, **account)
    process = subprocess.Popen(
        [programs / "postgres", "-D", data, "-c", f"unix_socket_directories={sockets}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **account,
    )
    try:
        deadline = time.monotonic() + 30
        while "ready" not in ((data / "postmaster.pid").read_text() if (data / "postmaster.pid").exists() else ""):
            assert process.poll() is None, "the standby did not start"
            assert time.monotonic() < deadline, "the standby is not ready"
            time.sleep(0.02)
        yield f"postgresql:///%s?host={sockets}&port={primary.port}&user=postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


@pytest.mark.acceptance
def test_standby_as_the_source(run_opsctl, primary, new_database, facts_of, only_backup):
    """A hot standby is dumped and counted like its primary; unlogged tables are empty there and have no facts."""
    database = new_database(primary, "shop")
    database.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id; CREATE SEQUENCE s; SELECT nextval('s')")
    database.execute("CREATE UNLOGGED TABLE cache AS SELECT 1 AS id")
    with standby_of(primary) as url:
        write_config(run_opsctl, section(database, 'facts = "content"', url % database.name))
        backup = backed_up(run_opsctl)
        verified = run_opsctl("verify", "--json")
        write_config(run_opsctl, section(database, 'facts = "content"'))
        restore = run_opsctl("restore", "latest", "--into", f"{database.name}_copy", "--json")
        refused = run_opsctl("restore", "latest", "--into", "elsewhere", "--to", url % database.name, "--json")

    assert (verified.returncode, restore.returncode) == (0, 0), (verified, restore)
    assert (backup["rows"], restore.json["result"]["evidence"]) == (1000, "content")
    tables = only_backup(run_opsctl.work / "backups").manifest["facts"]["tables"]
    assert [(each["name"], each["rows"]) for each in tables] == [("t", 1000)]
    restored = facts_of(replace(database, name=f"{database.name}_copy"))
    assert {each.name: each.rows for each in restored.tables} == {"cache": 0, "t": 1000}
    assert refused.returncode == 16
    assert "standby" in refused.json["error"]["message"]


# Settings of a role


@pytest.mark.acceptance
def test_timeouts_of_a_role_end_nothing(run_opsctl, cluster, database, login, facts_of):
    """A login whose sessions end after milliseconds backs up and restores all the same."""
    timeouts = {"statement_timeout": "50ms", "idle_in_transaction_session_timeout": "100ms", "lock_timeout": "10ms"}
    timeouts |= {"idle_session_timeout": "100ms"}
    timeouts |= {"transaction_timeout": "100ms"} if cluster.binaries.major >= 17 else {}
    database.execute(f"ALTER DATABASE {database.name} OWNER TO {login}; ALTER ROLE {login} CREATEDB")
    database.execute(f"ALTER SCHEMA public OWNER TO {login}")
    database.execute("CREATE TABLE t AS SELECT n, md5(n::text) AS body FROM generate_series(1, 300000) n")
    database.execute("CREATE TABLE small AS SELECT n FROM generate_series(1, 10) n; CREATE INDEX ON t (n, body)")
    database.execute("CREATE INDEX ON small (n); CREATE INDEX ON t (body)")
    database.execute(f"ALTER TABLE t OWNER TO {login}; ALTER TABLE small OWNER TO {login}")
    for name, value in timeouts.items():
        database.execute(f"ALTER ROLE {login} SET {name} = '{value}'")
    write_config(run_opsctl, section(database, 'facts = "content"', as_login(database, login)))
    facts = facts_of(database)
    backup = backed_up(run_opsctl)
    database.execute("DELETE FROM t WHERE n > 10")
    beside = run_opsctl("restore", "latest", "--into", f"{database.name}_copy", "--jobs", "2", "--json")
    in_place = run_opsctl("restore", "latest", "--yes", database.name, "--json")

    assert (beside.returncode, in_place.returncode) == (0, 0), (beside.stderr, in_place.stderr)
    assert backup["rows"] == 300_010
    assert facts_of(database).tables == facts.tables


# Tables whose data stays out


def with_logs(database):
    database.execute(
        """CREATE TABLE kept AS SELECT generate_series(1, 5) AS id;
           CREATE TABLE audit (id int, PRIMARY KEY (id));
           INSERT INTO audit SELECT generate_series(1, 10);
           CREATE VIEW last_audit AS SELECT max(id) FROM audit;
           CREATE SCHEMA logs;
           CREATE TABLE logs.log_web AS SELECT 1 AS id;
           CREATE TABLE logs."log Web" AS SELECT 2 AS id;
           CREATE TABLE logs.other AS SELECT 3 AS id;
           CREATE TABLE parts (id int, at date) PARTITION BY RANGE (at);
           CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')
               PARTITION BY LIST (id);
           CREATE TABLE parts_1_1 PARTITION OF parts_1 DEFAULT;
           CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
           INSERT INTO parts VALUES (1, '2026-01-05'), (2, '2030-01-01')"""
    )


@pytest.mark.parametrize(
    ("pattern", "without"),
    [
        ("audit", {"public.audit"}),
        pytest.param("public.audit", {"public.audit"}, marks=pytest.mark.acceptance),
        ("logs.log*", {"logs.log_web", "logs.log Web"}),
        pytest.param("log_web", {"logs.log_web"}, marks=pytest.mark.acceptance),
        pytest.param("log ?eb", {"logs.log Web"}, marks=pytest.mark.acceptance),
        ("parts", {"public.parts", "public.parts_1", "public.parts_1_1", "public.parts_rest"}),
        pytest.param("parts_1", {"public.parts_1", "public.parts_1_1"}, marks=pytest.mark.acceptance),
    ],
)
def test_excluded_tables_are_empty_tables(run_opsctl, database, facts_of, only_backup, pattern, without):
    """``exclude_tables`` leaves out rows, not tables: their views restore; the manifest and the plan name them."""
    with_logs(database)
    write_config(run_opsctl, section(database, f'facts = "content"\nexclude_tables = ["{pattern}"]'))
    facts = {f"{each.schema}.{each.name}": each for each in facts_of(database).tables}
    backup = backed_up(run_opsctl)
    manifest = only_backup(run_opsctl.work / "backups").manifest
    verified = run_opsctl("verify")
    plan = run_opsctl("restore", "latest", "--plan", "--json").json["result"]["plan"]
    restore = run_opsctl("restore", "latest", "--into", f"{database.name}_copy", "--json")

    assert (verified.returncode, restore.returncode) == (0, 0), (verified, restore)
    assert backup["warnings"] == []
    assert set(manifest["excluded_tables"]) == without
    assert {f"{each['schema']}.{each['name']}" for each in manifest["facts"]["tables"]} == set(facts) - without
    for name in without:
        assert f"the data of {name} is not in the backup" in plan["warnings"]
    copy = replace(database, name=f"{database.name}_copy")
    for name, table in {f"{each.schema}.{each.name}": each for each in facts_of(copy).tables}.items():
        assert table.rows == (0 if name in without else facts[name].rows)
    assert copy.execute("SELECT count(*) FROM last_audit") == [(1,)]


def test_pattern_that_means_no_table_warns(run_opsctl, database):
    """A name that fits nothing is said, and fails nothing: the table may come later."""
    with_logs(database)
    write_config(run_opsctl, section(database, 'exclude_tables = ["nothing_*", "audit"]'))
    backup = backed_up(run_opsctl)

    assert backup["warnings"] == ["exclude_tables: 'nothing_*' means no table"]
    assert backup["rows"] == 10


# A whole server


@pytest.fixture(scope="module")
def other_cluster(binaries):
    """A server of its own, whose databases are all that ``all = true`` finds."""
    with throwaway_server(binaries) as running:
        yield running


@pytest.fixture
def server_with_databases(other_cluster, new_database):
    """The maintenance database of a server with a shop, a blog, scratch databases, and what opsctl may have left."""
    admin = replace(new_database(other_cluster, "shop"), name="postgres")
    names = ["blog", "closed", "scratch_1", "blog__before_20260101T000000Z", "blog__opsctl_0123abcd", "template_own"]
    for number, name in enumerate(names):
        admin.execute(f'CREATE DATABASE "{name}"')
        replace(admin, name=name).execute(f"CREATE TABLE t AS SELECT generate_series(1, {number + 1}) AS id")
    admin.execute("ALTER DATABASE template_own IS_TEMPLATE true")
    admin.execute("CREATE ROLE keeper LOGIN IN ROLE pg_read_all_data; REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    yield admin
    admin.execute("ALTER DATABASE template_own IS_TEMPLATE false")
    for (name,) in admin.execute(
        "SELECT datname FROM pg_database WHERE datname ~ '^(blog|closed|scratch|template_own)'"
    ):
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    admin.execute("DROP ROLE keeper")


def test_all_databases_of_a_server(run_opsctl, server_with_databases):
    """``all = true`` takes every database but templates, excluded ones and opsctl's own; each has its own outcome."""
    login = as_login(server_with_databases, "keeper")
    write_config(run_opsctl, f'[databases.whole]\nurl = "{login}"\nall = true\nexclude = ["scratch*", "shop_*"]\n')
    run = run_opsctl("backup", "--json")

    assert run.returncode == 3, run
    outcomes = {each["database"]: each for each in run.json["result"]["backups"]}
    assert {name: each["status"] for name, each in outcomes.items()} == {
        "blog": "stored",
        "closed": "failed",
        "postgres": "stored",
    }
    assert outcomes["closed"]["error"]["code"] == "database_unreachable"
    assert "permission denied" in outcomes["closed"]["error"]["message"]
    assert outcomes["blog"]["rows"] == 1


@pytest.mark.acceptance
def test_one_of_all_databases_is_restored_by_its_id(run_opsctl, server_with_databases):
    """A backup knows which database of the server it is of; the others stay as they are."""
    admin = server_with_databases
    write_config(run_opsctl, f'[databases.whole]\nurl = "{admin.url}"\nall = true\nexclude = ["s*"]\n')
    run = run_opsctl("backup", "--json")
    assert run.returncode == 0, run
    ids = {each["database"]: each["id"] for each in run.json["result"]["backups"]}
    assert set(ids) == {"blog", "closed", "postgres"}
    blog, closed = replace(admin, name="blog"), replace(admin, name="closed")
    for database in (blog, closed):
        database.execute("DELETE FROM t")
    unconfirmed = run_opsctl("restore", ids["blog"], "--yes", "whole")
    restore = run_opsctl("restore", ids["blog"], "--yes", "blog", "--json")

    assert unconfirmed.returncode == 16
    assert restore.returncode == 0, restore
    assert restore.json["result"]["database"] == "blog"
    assert (blog.execute("SELECT count(*) FROM t"), closed.execute("SELECT count(*) FROM t")) == ([(1,)], [(0,)])
    (latest,) = run_opsctl("list", "closed", "--json").json["result"]["backups"]
    assert latest["id"] == ids["closed"]


def test_another_server_under_the_same_name(run_opsctl, database, other_cluster, new_database):
    """Two servers' backups never mix under one name by accident: refused, until ``--new-server`` says it is meant."""
    other = new_database(other_cluster, "moved")
    write_config(run_opsctl, f'[databases.main]\nurl = "{database.url}"\n')
    backed_up(run_opsctl)
    write_config(run_opsctl, f'[databases.main]\nurl = "{other.url}"\n')
    refused = run_opsctl("backup", "--json")
    assert refused.returncode == 16, refused
    assert "--new-server" in refused.json["error"]["hint"]
    assert len(list((run_opsctl.work / "backups" / "main").iterdir())) == 1

    backed_up(run_opsctl, "--new-server")
    backed_up(run_opsctl)


# pg_dump newer than the server


class OnlyThese(Tools):
    """The client programs of a host that has just these: the server's own major is not to be found."""

    def __init__(self, binaries: Binaries) -> None:
        super().__init__(search_path=[], environment={})
        self._binaries = binaries

    def for_dump(self, server_major):
        return choose_dump([self._binaries], server_major)


@pytest.mark.acceptance
def test_dumped_by_a_newer_pg_dump(run_opsctl, cluster_of, new_database, facts_of):
    """Its archive restores into a newer server; into one as old as the source it is refused before anything happens."""
    old, new = new_database(cluster_of(16), "old"), new_database(cluster_of(18), "new")
    old.execute("CREATE TABLE t AS SELECT generate_series(1, 9) AS id")
    tools = OnlyThese(new.cluster.binaries)
    plan = BackupPlan(
        server=Server(old.url),
        database=old.name,
        repositories=[Repository("local", open_storage(str(run_opsctl.work / "backups")))],
        tools=tools,
        state_path=run_opsctl.state,
    )
    taken = take_backup(plan, clock=lambda: datetime.now(UTC), start_progress=lambda _bytes: lambda _count: None)
    verified = run_opsctl("verify", url=old.url)
    refused = run_opsctl("restore", "latest", "--into", f"{old.name}_copy", "--json", url=old.url)
    moved = replace(new, name=f"{new.name}_copy")
    restore = run_opsctl("restore", "latest", "--to", moved.url, "--json", url=old.url)

    assert (taken.manifest.server_version.split(".")[0], taken.manifest.pg_dump_major) == ("16", 18)
    assert verified.returncode == 0, verified
    assert refused.returncode == 16, refused
    assert "pg_dump 18" in refused.json["error"]["message"]
    assert restore.returncode == 0, restore
    assert facts_of(moved).tables == facts_of(old).tables


# Rights


def test_table_that_may_not_be_read_is_named(run_opsctl, database, login):
    """Without the right to a table there is no backup: the table is named, and the role that helps."""
    database.execute("CREATE TABLE readable AS SELECT 1 AS id; CREATE TABLE closed AS SELECT 1 AS id")
    database.execute(f"GRANT SELECT ON readable TO {login}")
    run = run_opsctl("backup", "--json", url=as_login(database, login))
    database.execute(f"GRANT pg_read_all_data TO {login}")
    allowed = run_opsctl("backup", "--json", url=as_login(database, login))

    assert run.returncode == 1, run
    assert (run.json["error"]["code"], "closed" in run.json["error"]["message"]) == ("dump_failed", True)
    assert "pg_read_all_data" in run.json["error"]["hint"]
    assert allowed.returncode == 0, allowed
    assert only(allowed)["rows"] == 2


def test_large_object_that_may_not_be_read_is_named(run_opsctl, database, login):
    """pg_read_all_data reads no large objects of others: pg_dump's own words name the one."""
    database.execute(f"GRANT pg_read_all_data TO {login}; SELECT lo_from_bytea(4711, 'x')")
    run = run_opsctl("backup", "--json", url=as_login(database, login))

    assert run.returncode == 1, run
    assert "4711" in run.json["error"]["message"]
    assert [each.name for each in (run_opsctl.work / "backups").rglob("*") if each.is_file()] == ["RESTORE.txt"]


def globals_of(stored):
    data = (stored.folder / "globals.sql.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompressobj().decompress(data).decode()


def test_roles_without_and_with_passwords(run_opsctl, database, login, only_backup):
    """A plain login saves the roles without passwords, whatever is configured; a superuser saves hashes if told to."""
    database.execute(f"ALTER ROLE {login} PASSWORD 'planted-canary-secret'; GRANT pg_read_all_data TO {login}")
    write_config(run_opsctl, section(database, "role_passwords = true", as_login(database, login)))
    backed_up(run_opsctl)
    plain = globals_of(only_backup(run_opsctl.work / "backups"))
    shutil.rmtree(run_opsctl.work / "backups")
    write_config(run_opsctl, section(database, "role_passwords = true"))
    backed_up(run_opsctl)
    full = globals_of(only_backup(run_opsctl.work / "backups"))
    shutil.rmtree(run_opsctl.work / "backups")
    write_config(run_opsctl, section(database))
    backed_up(run_opsctl)
    default = globals_of(only_backup(run_opsctl.work / "backups"))

    for text in (plain, full, default):
        assert f"CREATE ROLE {login};" in text
        assert "planted-canary-secret" not in text
    assert ("SCRAM-SHA-256" in plain, "SCRAM-SHA-256" in full, "SCRAM-SHA-256" in default) == (False, True, False)


def test_a_plain_dump_that_comes_slowly_is_loaded(cluster, database, login):
    """Between two statements psql waits for the next one; what the login says of idle sessions does not end that."""
    database.execute(f"ALTER DATABASE {database.name} OWNER TO {login}; ALTER SCHEMA public OWNER TO {login}")
    database.execute(f"ALTER ROLE {login} SET idle_session_timeout = '100ms'")
    tools = Tools(search_path=[str(cluster.binaries.folder)], environment={})
    server = Server(as_login(database, login))
    with tools.run_script(
        tools.for_script(server.info.major), server, database.name, in_one_transaction=False
    ) as child:
        child.write(b"create table first ();\n")
        time.sleep(0.5)
        child.write(b"create table second ();\n")
        child.close_stdin()

        assert child.finish() == 0, child.failure(RestoreFailed, "")
    assert database.execute("select count(*) from pg_tables where tablename in ('first', 'second')") == [(2,)]


def test_rows_behind_row_security_are_counted(run_opsctl, database, login, only_backup):
    """Forced row security hides nothing from a superuser's backup; the owner it binds gets an error, never a part."""
    database.execute(f"ALTER DATABASE {database.name} OWNER TO {login}; ALTER SCHEMA public OWNER TO {login}")
    with connected_as(database, login) as connection:
        connection.execute("CREATE TABLE tenants AS SELECT n AS id FROM generate_series(1, 10) n")
        connection.execute("ALTER TABLE tenants ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY few ON tenants USING (id < 4)")
    write_config(run_opsctl, section(database, 'facts = "content"'))
    assert backed_up(run_opsctl)["rows"] == 10
    assert only_backup(run_opsctl.work / "backups").manifest["facts"]["tables"][0]["rows"] == 10
    write_config(run_opsctl, section(database, 'facts = "content"', as_login(database, login)))
    owner = run_opsctl("backup", "--json")
    restore = run_opsctl("restore", "latest", "--into", f"{database.name}_copy", "--to", database.url, "--json")

    assert owner.returncode == 1, owner
    assert "row-level security" in owner.json["error"]["message"]
    assert "tenants" in owner.json["error"]["message"]
    assert restore.returncode == 0, restore


def test_subscriptions_that_are_not_dumped_need_attention(run_opsctl, database, login, only_backup):
    """Without superuser rights pg_dump leaves subscriptions out with a warning: 3, and the manifest and plan say it."""
    database.execute("CREATE SUBSCRIPTION inbound CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false)")
    database.execute(f"GRANT pg_read_all_data TO {login}")
    write_config(run_opsctl, section(database, url=as_login(database, login)))
    try:
        backup = backed_up(run_opsctl, code=3)
    finally:
        database.execute("ALTER SUBSCRIPTION inbound SET (slot_name = NONE)")
        database.execute("DROP SUBSCRIPTION inbound")
    plan = run_opsctl("restore", "latest", "--into", f"{database.name}_copy", "--plan", "--json").json["result"]["plan"]

    assert backup["status"] == "stored"
    (warning,) = backup["warnings"]
    assert "subscriptions not dumped" in warning
    assert only_backup(run_opsctl.work / "backups").manifest["warnings"] == [warning]
    assert f"when the backup was taken: {warning}" in plan["warnings"]


# What is and is not in an archive


def test_configuration_of_an_extension_is_counted(run_opsctl, cluster_of, new_database, facts_of, only_backup):
    """Of an extension's tables those with configuration data are dumped, and only those are in the facts."""
    cluster = cluster_of(18)
    database = new_database(cluster, "extended")
    folder = cluster.folder / "extensions" / "extension"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ours.control").write_text("default_version = '1'\nrelocatable = false\nschema = ours\n")
    (folder / "ours--1.sql").write_text(
        """CREATE TABLE settings (name text, is_own boolean DEFAULT true);
           CREATE TABLE internal AS SELECT 1 AS id;
           CREATE SEQUENCE counter;
           INSERT INTO settings VALUES ('built in', false);
           SELECT pg_extension_config_dump('settings', 'WHERE is_own');"""
    )
    for each in (cluster.folder / "extensions", folder, *folder.iterdir()):
        each.chmod(0o755)
    database.execute(f"ALTER SYSTEM SET extension_control_path = '$system:{cluster.folder}/extensions'")
    database.execute("SELECT pg_reload_conf()")
    database.execute(
        "CREATE SCHEMA ours; CREATE EXTENSION ours; INSERT INTO ours.settings VALUES ('a', true), ('b', true)"
    )
    write_config(run_opsctl, section(database, 'facts = "content"'))
    backup = backed_up(run_opsctl)
    verified = run_opsctl("verify", "--json")
    copy = replace(database, name=f"{database.name}_copy")
    restore = run_opsctl("restore", "latest", "--into", copy.name, "--json")

    tables = only_backup(run_opsctl.work / "backups").manifest["facts"]["tables"]
    assert [(each["schema"], each["name"]) for each in tables] == [("ours", "settings")]
    assert verified.returncode == 0, verified
    assert restore.returncode == 0, restore
    query = "SELECT * FROM ours.settings ORDER BY name"
    assert copy.execute(query) == database.execute(query)
    assert backup["rows"] == 2
