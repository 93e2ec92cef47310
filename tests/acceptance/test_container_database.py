"""A database in a container with no published port: found by its service, dumped and restored by its own programs."""

import os
import signal
from contextlib import contextmanager

import psycopg  # noqa: TID253
import pytest
from waiting import wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("docker")]

PASSWORD = "hun:t\\er' 22"
FORGED = "#!/bin/sh\n[ \"$1\" = --version ] && echo 'pg_dump (PostgreSQL) 15.18' && exit 0\nexit 9\n"


class Server:
    """PostgreSQL 15 as the first process of a container, in a network of its own."""

    def __init__(self, engine):
        self.engine = engine
        engine("network", "create", "shop")
        words = ("--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.service=db")
        engine(
            "run", "--detach", "--name", "shop_db_1", "--network", "shop", *words,
            "--env", f"POSTGRES_PASSWORD={PASSWORD}", "local/postgres:15",
        )  # fmt: skip
        wait_for(self.answers, "PostgreSQL answers")

    def connect(self, database="postgres"):
        address = self.engine.inspect("shop_db_1")["NetworkSettings"]["Networks"]["shop"]["IPAddress"]
        return psycopg.connect(
            host=address, user="postgres", password=PASSWORD, dbname=database, autocommit=True, connect_timeout=5
        )

    def answers(self):
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def execute(self, sql, database="saasdb"):
        with self.connect(database) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def processes(self):
        """The command lines of what runs in the container besides the server."""
        lines = self.engine("top", "shop_db_1", "-ww", "-eo", "pid,args").splitlines()[1:]
        commands = [line.split(maxsplit=1)[1] for line in lines]
        return [command for command in commands if not command.startswith("postgres")]


@pytest.fixture(scope="module")
def server(engine):
    made = Server(engine)
    yield made
    engine.remove("shop_db_1")
    engine("network", "rm", "shop")


@pytest.fixture
def saasdb(server, pytestconfig):
    """The demo's small SaaS."""
    script = (pytestconfig.rootpath / "opsctl/demo.sql").read_text()
    server.execute("create database saasdb", "postgres")
    server.execute(script)
    yield server
    for (name,) in server.execute("select datname from pg_database where datname like 'saasdb%'", "postgres"):
        server.execute(f'drop database "{name}" with (force)', "postgres")


@pytest.fixture
def opsctl(run_opsctl, engine, saasdb):
    """The program, with programs on PATH that answer like pg_dump and pg_restore 15 and fail when they are used."""
    (run_opsctl.work / "password").write_text(PASSWORD)
    forged = run_opsctl.work / "bin"
    forged.mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        (forged / name).write_text(FORGED)
        (forged / name).chmod(0o755)
    env = {"DOCKER_HOST": engine.host, "PATH": f"{forged}:{os.environ['PATH']}"}

    def configure(**settings):
        lines = [
            f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in settings.items()
        ]
        (run_opsctl.work / "opsctl.toml").write_text(
            '[databases.saasdb]\nurl = "postgresql://postgres@/saasdb"\npassword_file = "password"\n'
            'service = "db"\ntools = "service"\n' + "\n".join(lines)
        )

    def run(*arguments):
        return run_opsctl(*arguments, "--json", env=env)

    configure()
    run.configure, run.program, run.env = configure, run_opsctl, env
    return run


CONTENT = """select 'c', count(*), sum(hashtext(c::text)) from companies c
             union all select 'm', count(*), sum(hashtext(m::text)) from messages m"""


def test_backup_verify_restore_undo(opsctl, saasdb):
    """The whole way, by the server's own programs and without a port: the content comes back, and goes again."""
    taken = opsctl("backup")
    assert taken.returncode == 0, taken
    (backup,) = taken.json["result"]["backups"]
    assert backup["rows"] == 82_040
    manifest = opsctl("show", "latest").json["result"]["manifest"]
    assert manifest["pg_dump_version"] == manifest["server_version"].split()[0]
    assert [each["name"] for each in manifest["files"]] == ["dump.zst", "globals.sql.zst"]
    assert opsctl("verify").json["result"]["backups"][0]["evidence"] == "decoded"
    assert opsctl("list").json["result"]["backups"][0]["evidence"]["level"] == "decoded"
    before = saasdb.execute(CONTENT)
    saasdb.execute("delete from messages where id % 3 = 0")
    damaged = saasdb.execute(CONTENT)

    restored = opsctl("restore", "latest", "--yes", "saasdb")
    assert restored.returncode == 0, restored
    assert restored.json["result"]["evidence"] == "counted"
    assert saasdb.execute(CONTENT) == before
    assert opsctl("restore", "--undo", "--yes", "saasdb").returncode == 0
    assert saasdb.execute(CONTENT) == damaged
    wait_for(lambda: not saasdb.processes(), "nothing is left in the container")


def test_several_sessions_need_a_file_of_this_host(opsctl):
    """--jobs is refused by the plan, before anything is made."""
    assert opsctl("backup").returncode == 0
    run = opsctl("restore", "latest", "--jobs", "2", "--plan")

    assert run.returncode == 16
    assert "--jobs" in run.json["error"]["hint"]


@contextmanager
def dumping(opsctl, saasdb):
    """A backup that is in the middle of its dump: compressing takes its time."""
    saasdb.execute("create table big as select g, md5(g::text) || md5((-g)::text) t from generate_series(1, 600000) g")
    opsctl.configure(compression_level=12, compression_threads=1)
    process = opsctl.program.start("backup", "--json", env=opsctl.env)
    wait_for(lambda: [line for line in saasdb.processes() if "--snapshot" in line], "pg_dump runs in the container")
    yield process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_ended_backup_ends_its_dump_and_no_session(opsctl, saasdb, number, code):
    """Killed or asked to end: pg_dump in the container ends too, and the server takes it for no crash of its own.

    A server that is a container's first process inherits orphans; one that dies of a signal makes it end all sessions.
    """
    with saasdb.connect("saasdb") as session, dumping(opsctl, saasdb) as process:
        shown = "\n".join(saasdb.processes())
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        wait_for(lambda: not [line for line in saasdb.processes() if "pg_dump" in line], "pg_dump has ended")
        assert session.execute("select 1").fetchall() == [(1,)]

    assert PASSWORD not in shown
    if number == signal.SIGTERM:
        assert [path.name for path in (opsctl.program.work / "backups/saasdb").iterdir()] == []


def test_a_container_that_stops_during_a_dump(opsctl, saasdb):
    """No backup, nothing half made, and what happened is said; then the database is unreachable, with the reason."""
    with dumping(opsctl, saasdb) as process:
        saasdb.engine("stop", "--time", "1", "shop_db_1")
        stdout, _ = process.communicate(timeout=60)
    try:
        assert process.returncode in {1, 12}, stdout
        assert [path.name for path in (opsctl.program.work / "backups/saasdb").iterdir()] == []
        stopped = opsctl("backup")
        examined = opsctl("doctor", "db")
    finally:
        saasdb.engine("start", "shop_db_1")
        wait_for(saasdb.answers, "PostgreSQL answers")

    assert stopped.returncode == 12
    assert "shop_db_1 does not run (exited with exit code" in stopped.json["error"]["message"]
    assert examined.returncode == 2
    assert examined.json["result"]["verdict"]["cause"] == "db.connect"
    assert "opsctl restart db" in next(
        each["remedy"]["text"] for each in examined.json["result"]["checks"] if each["id"] == "db.connect"
    )


def test_no_container_and_no_engine_are_an_unreachable_database(opsctl, saasdb):
    opsctl.configure()
    nobody = opsctl.program("backup", "--json", env={**opsctl.env, "DOCKER_HOST": "unix:///tmp/nobody"})
    (opsctl.program.work / "opsctl.toml").write_text(
        '[databases.saasdb]\nurl = "postgresql://postgres@/saasdb"\nservice = "nodb"\n[services.nodb]\n'
    )
    missing = opsctl("backup")

    assert (nobody.returncode, missing.returncode) == (12, 12)
    assert "Docker does not answer" in nobody.json["error"]["message"]
    assert "no container of the service nodb" in missing.json["error"]["message"]


def test_the_programs_of_this_host_work_as_well(opsctl, saasdb):
    """Without tools = "service" only the address comes from the container; the host in the URL is a mere name."""
    (opsctl.program.work / "opsctl.toml").write_text(
        '[databases.saasdb]\nurl = "postgresql://postgres@db:5432/saasdb"\npassword_file = "password"\nservice = "db"\n'
    )
    run = opsctl.program("backup", "--json", env={**opsctl.env, "PATH": os.environ["PATH"]})

    assert run.returncode == 0, run
