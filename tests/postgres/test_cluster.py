import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg  # noqa: TID253
import pytest

import opsctl
from opsctl.errors import OpsctlError
from opsctl.postgres.binaries import Binaries
from opsctl.postgres.cluster import Cluster, throwaway_cluster
from opsctl.postgres.cluster_files import remove_tree

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes to another user")


def ask(cluster: Cluster, sql: str, database: str = "postgres"):
    with psycopg.connect(cluster.url(database), autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie: nobody may be left to collect it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs after {seconds} seconds"
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path_factory):
    """A folder for a cluster that the server's own user can enter, unlike pytest's."""
    if os.geteuid() != 0:
        folder = tmp_path_factory.mktemp("place")
    else:
        folder = Path(f"/var/tmp/opsctl-test-{os.getpid()}-{time.monotonic_ns()}")  # noqa: S108
        folder.mkdir(mode=0o711)
    yield folder
    shutil.rmtree(folder)


def fake_server(folder: Path, *, initdb: str, postgres: str = "exit 1") -> Binaries:
    for name, text in (("initdb", initdb), ("postgres", postgres)):
        program = folder / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{text}\n')
        program.chmod(0o755)
    return Binaries(folder / "bin", 17, "17.1", embedded=False)


def test_it_answers(binaries):
    """The server is the version asked for, with UTF-8, UTC and no way in but its socket."""
    with throwaway_cluster(binaries) as cluster:
        (row,) = ask(
            cluster,
            "SELECT current_user, current_setting('server_encoding'), current_setting('TimeZone'),"
            " current_setting('listen_addresses'), current_setting('fsync'), current_setting('server_version')",
        )
        assert row[:5] == ("postgres", "UTF8", "UTC", "", "off")
        assert row[5].startswith(binaries.version)
        assert cluster.binaries == binaries
        assert cluster.socket_folder.stat().st_mode & 0o777 == 0o700


def test_url_carries_any_database_name(cluster):
    """Names with spaces, slashes, percent signs and other alphabets need no care by the caller."""
    name = "a b/c%20d?e=f&g#ü"
    ask(cluster, f'CREATE DATABASE "{name}"')
    try:
        assert ask(cluster, "SELECT current_database()", name) == [(name,)]
    finally:
        ask(cluster, f'DROP DATABASE "{name}"')


def test_settings_win(binaries):
    """The caller's settings override the fast ones; quotes and backslashes in values survive."""
    settings = {"fsync": "on", "wal_level": "logical", "application_name": "it's a \\ test"}
    with throwaway_cluster(binaries, settings=settings) as cluster:
        assert ask(cluster, "SHOW fsync") == [("on",)]
        assert ask(cluster, "SHOW wal_level") == [("logical",)]
        assert ask(cluster, "SELECT reset_val FROM pg_settings WHERE name = 'application_name'") == [
            ("it's a \\ test",)
        ]


def test_nothing_is_left(binaries, place):
    """After the block neither a process nor a file is left."""
    with throwaway_cluster(binaries, folder=place) as cluster:
        pid = cluster.pid
        assert list(place.iterdir()) == [cluster.folder]
    assert cluster.pid is None
    assert not is_running(pid)
    assert list(place.iterdir()) == []


def test_nothing_is_left_after_an_exception(binaries, place):
    """The exception comes through, and the server is gone although a client was connected."""
    connection = None
    with pytest.raises(ZeroDivisionError), throwaway_cluster(binaries, folder=place) as cluster:  # noqa: PT012
        pid = cluster.pid
        connection = psycopg.connect(cluster.url())
        _ = 1 / 0
    connection.close()
    assert not is_running(pid)
    assert list(place.iterdir()) == []


def test_socket_has_a_short_path(binaries, place):
    """A socket's path has at most 107 bytes: in a deep folder the socket lives elsewhere, and is removed too."""
    deep = place / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    for folder in (deep.parent, deep):
        folder.chmod(0o711)
    with throwaway_cluster(binaries, folder=deep) as cluster:
        assert not cluster.socket_folder.is_relative_to(deep)
        assert ask(cluster, "SELECT 1") == [(1,)]
    assert not cluster.socket_folder.exists()
    assert list(deep.iterdir()) == []


def test_listening_needs_the_password(binaries):
    """Other users of this machine reach 127.0.0.1, so it asks for a password."""
    with throwaway_cluster(binaries, listen=True) as cluster:
        with psycopg.connect(cluster.tcp_url()) as connection:
            assert connection.info.host == "127.0.0.1"
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(cluster.tcp_url().replace(cluster.password, "wrong"))
        assert ask(cluster, "SELECT 1") == [(1,)]


def test_the_callers_variables_stay_outside(binaries, monkeypatch):
    """PGDATA and PGPORT would move the server, secrets have no business in it."""
    for name, value in {"PGDATA": "/nowhere", "PGPORT": "1", "PGOPTIONS": "-c nonsense=1", "SECRET": "canary"}.items():
        monkeypatch.setenv(name, value)
    with throwaway_cluster(binaries) as cluster:
        variables = Path(f"/proc/{cluster.pid}/environ").read_bytes()
        monkeypatch.delenv("PGOPTIONS")
        assert ask(cluster, "SHOW port") == [(str(cluster.port),)]
    assert b"canary" not in variables
    assert b"nowhere" not in variables


def test_restart_keeps_the_data(binaries):
    """An ordinary restart: another process, the same rows."""
    with throwaway_cluster(binaries) as cluster:
        ask(cluster, "CREATE TABLE kept AS SELECT 7 AS n")
        before = cluster.pid
        cluster.restart()
        assert cluster.pid != before
        assert ask(cluster, "SELECT n FROM kept") == [(7,)]


def test_kill_ends_every_process_and_start_recovers(binaries):
    """SIGKILL leaves no backend behind, and a stale postmaster.pid does not pass for a running server."""
    with throwaway_cluster(binaries, settings={"synchronous_commit": "on"}) as cluster:
        ask(cluster, "CREATE TABLE kept AS SELECT 7 AS n")
        with psycopg.connect(cluster.url()) as connection:
            backend = connection.info.backend_pid
            server = cluster.pid
            cluster.kill()
            assert not is_running(backend)
            assert not is_running(server)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        cluster.start()
        assert ask(cluster, "SELECT n FROM kept") == [(7,)]


def test_server_dies_with_its_parent(binaries, place):
    """A program ended with kill -9 leaves no server running."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from opsctl.postgres.binaries import Binaries\n"
        "from opsctl.postgres.cluster import throwaway_cluster\n"
        "binaries = Binaries(Path(sys.argv[1]), 0, '', embedded=False)\n"
        "with throwaway_cluster(binaries, folder=Path(sys.argv[2])) as cluster:\n"
        "    print(cluster.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, binaries.folder, place],
        env={**os.environ, "PYTHONPATH": str(Path(opsctl.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        server = int(parent.stdout.readline())
        assert is_running(server)
        parent.send_signal(signal.SIGKILL)
    wait_until_gone(server)


def test_failed_start_names_the_reason(binaries, place):
    """The error shows what the server wrote before it gave up, and nothing is left of it."""
    with (
        pytest.raises(OpsctlError, match="did not start") as caught,
        throwaway_cluster(binaries, folder=place, settings={"shared_buffers": "nonsense"}),
    ):
        pass
    assert "shared_buffers" in caught.value.message
    assert str(binaries.folder) in caught.value.hint
    assert list(place.iterdir()) == []


def test_failed_setup_names_the_reason(tmp_path, place):
    """What initdb complains about is in the error."""
    broken = fake_server(tmp_path, initdb="echo 'initdb: error: no space left' >&2; exit 1")
    with (
        pytest.raises(OpsctlError, match=r"could not be set up:\n.*no space left"),
        throwaway_cluster(broken, folder=place),
    ):
        pass
    assert list(place.iterdir()) == []


def test_locale_the_system_lacks_is_done_without(tmp_path, place):
    """Where there is no C.UTF-8, C will do."""
    refusing = fake_server(
        tmp_path,
        initdb='for last; do :; done; echo "invalid locale name \\"$last\\"" >&2; exit 1',
    )
    with pytest.raises(OpsctlError, match='invalid locale name "C"'), throwaway_cluster(refusing, folder=place):
        pass


def test_server_that_never_answers_is_given_up(tmp_path, place):
    """A start has a time limit; the process is ended."""
    silent = fake_server(
        tmp_path, initdb=': > "$2/postgresql.conf"', postgres="echo still waiting >&2; echo $$ >&2; exec sleep 60"
    )
    with (
        pytest.raises(OpsctlError, match=r"did not answer within 0\.5 seconds") as caught,
        throwaway_cluster(silent, folder=place, timeout_seconds=0.5),
    ):
        pass
    assert "still waiting" in caught.value.message
    assert not is_running(int(caught.value.message.splitlines()[-1]))


def test_setup_that_never_ends_is_given_up(tmp_path, place):
    """So has initdb; that it took too long is what is said."""
    silent = fake_server(tmp_path, initdb="exec sleep 60")
    with (
        pytest.raises(OpsctlError, match=r"could not be set up within 0\.5 seconds\.$"),
        throwaway_cluster(silent, folder=place, timeout_seconds=0.5),
    ):
        pass
    assert list(place.iterdir()) == []


def test_files_come_and_go_while_they_are_removed(tmp_path):
    """A server that is still ending writes and removes files of the folder that goes."""
    folder = tmp_path / "home"
    folder.mkdir()
    loop = "echo; while : > $RANDOM.new; do rm -f *.new; : > a; : > b; rm -f a b; done"
    with subprocess.Popen(["bash", "-c", loop], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as busy:
        busy.stdout.readline()
        remove_tree(folder)
        assert not folder.exists()


def test_missing_folder_is_an_error_for_people(binaries, tmp_path):
    """No traceback for a folder that is not there."""
    missing = tmp_path / "missing"
    with pytest.raises(OpsctlError, match="missing"), throwaway_cluster(binaries, folder=missing):
        pass


@needs_root
def test_root_runs_it_as_another_user(binaries):
    """PostgreSQL refuses root: the server has an ordinary user, no groups, and cannot rewrite its log."""
    with throwaway_cluster(binaries, os_users=("no-such-user", "nobody")) as cluster:
        status = Path(f"/proc/{cluster.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert set(fields["Uid"].split()) == {str(cluster.data.stat().st_uid)}
        assert "0" not in fields["Uid"].split()
        assert fields["Groups"].strip() == ""
        assert cluster.log.stat().st_uid == 0


@needs_root
def test_root_without_such_a_user_is_told(binaries):
    """The error names the users looked for."""
    with (
        pytest.raises(OpsctlError, match="no-such-user or nor-this-one"),
        throwaway_cluster(binaries, os_users=("no-such-user", "nor-this-one")),
    ):
        pass


@needs_root
def test_root_may_keep_the_programs_to_itself(pytestconfig, binaries, tmp_path):
    """Programs in a folder closed to others, as in a virtual environment of root's, are copied for the server."""
    if not binaries.embedded:
        pytest.skip("only the embedded programs can be moved")
    package = binaries.folder.parents[1]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in (package.name, f"{package.name}.libs"):
        (closed / name).symlink_to(package.with_name(name))
    hidden = Binaries(
        closed / package.name / binaries.folder.parent.name / "bin", binaries.major, binaries.version, embedded=True
    )
    with throwaway_cluster(hidden) as cluster:
        assert ask(cluster, "SELECT 1") == [(1,)]
        program = Path(f"/proc/{cluster.pid}/exe").resolve()
        assert program.is_relative_to(cluster.folder)
        assert program.stat().st_uid == 0
    assert not cluster.folder.exists()
