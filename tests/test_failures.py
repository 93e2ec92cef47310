"""What goes wrong around a backup, made for real: each ends with its exit code, one line, a hint, and nothing left."""

import json
import os
import shlex
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from servers import throwaway_server
from waiting import wait_for

from opsctl.errors import ConfigurationError
from opsctl.postgres.tools import Tools

MAX_CONNECTIONS = 12


def write_programs(folder, binaries, **bodies):
    """PostgreSQL's client programs as scripts: those in ``bodies`` misbehave, the others run the real ones."""
    folder.mkdir(exist_ok=True)
    for name in ("pg_dump", "pg_dumpall", "pg_restore"):
        real = shlex.quote(str(binaries.path(name)))
        body = bodies.get(name, 'exec "$real" "$@"')
        script = folder / name
        script.write_text(
            f'#!/bin/bash\nset -o pipefail\nreal={real}\n[ "$1" = --version ] && exec "$real" --version\n{body}\n'
        )
        script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def processes_of(run_opsctl):
    """The program and its children, by the HOME of this test that all of them have."""
    home = f"HOME={run_opsctl.home}\0".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if home in environment + b"\0":
                found.append(int(folder.name))
    return found


def assert_failed(run, exit_code, *words):
    """One line with ``words``, a hint, the exit code, in the document as in the last log line; no traceback."""
    assert run.returncode == exit_code, run
    document = run.json
    assert (document["ok"], document["exit_code"]) == (False, exit_code)
    error = document["error"]
    assert "\n" not in error["message"], error
    for word in words:
        assert word in error["message"], error
    assert error["hint"], error
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert lines[-1]["event"] == "run.failed"
    assert lines[-1]["message"] == error["message"]
    assert "Traceback" not in run.stderr
    return error


def assert_nothing_left(run_opsctl, backups=0):
    """No process, no half-written folder, and as many backups as before."""
    wait_for(lambda: not processes_of(run_opsctl), "every process has ended")
    assert not list(run_opsctl.work.rglob("*.partial"))
    manifests = list(run_opsctl.work.rglob("manifest.json"))
    assert len(manifests) == backups, manifests


def configure(run_opsctl, text):
    (run_opsctl.work / "opsctl.toml").write_text(text)


@pytest.fixture(scope="module")
def listening(binaries):
    """A server on 127.0.0.1 with passwords and few connections, which a test may fill or kill."""
    settings = {"max_connections": str(MAX_CONNECTIONS), "superuser_reserved_connections": "0"}
    with throwaway_server(binaries, listen=True, settings=settings) as running:
        yield running
        running.start()


@pytest.fixture
def listening_url(listening):
    listening.start()
    return listening.tcp_url()


# No connection


def test_wrong_password(run_opsctl, listening, listening_url):
    """A refused password is said to be one, without showing it."""
    run = run_opsctl("backup", "--json", url=listening_url.replace(listening.password, "wrong-canary"))
    error = assert_failed(run, 12, "password authentication failed", "127.0.0.1")
    assert "percent-encoded" in error["hint"]
    assert "wrong-canary" not in run.stdout + run.stderr
    assert_nothing_left(run_opsctl)


def test_no_password(run_opsctl, listening, listening_url):
    """Nobody is asked for a password: a missing one is an error that names the places for it."""
    run = run_opsctl("backup", "--json", url=listening_url.replace(f":{listening.password}", ""))
    assert "password_file" in assert_failed(run, 12, "no password supplied")["hint"]


@pytest.mark.parametrize(
    ("url", "words", "hint"),
    [
        ("postgresql://postgres:x@host.invalid/app", ["host.invalid"], "DNS"),
        ("postgresql://postgres:x@127.0.0.1:1/app", ["127.0.0.1:1", "Connection refused"], "running"),
        ("postgresql:///app?host=/nonexistent", ["/nonexistent", "No such file"], "running"),
    ],
    ids=["unknown host", "refused port", "no socket"],
)
def test_no_server(run_opsctl, url, words, hint):
    """Where nobody answers, the address and what to check are named."""
    error = assert_failed(run_opsctl("backup", "--json", url=url), 12, *words)
    assert hint in error["hint"]
    assert_nothing_left(run_opsctl)


def test_missing_database(run_opsctl, cluster):
    """A database that does not exist is named; its folder in the repository is not begun."""
    run = run_opsctl("backup", "--json", url=cluster.url("nowhere"))
    assert_failed(run, 12, "nowhere", "does not exist")
    assert_nothing_left(run_opsctl)


def test_missing_role(run_opsctl, cluster):
    """A login that does not exist is named."""
    url = cluster.url("postgres").replace("user=postgres", "user=nobody_here")
    assert_failed(run_opsctl("backup", "--json", url=url), 12, "nobody_here", "does not exist")
    assert_nothing_left(run_opsctl)


@pytest.mark.parametrize("free", [0, 1, 2], ids=lambda free: f"{free} free")
def test_too_many_clients(run_opsctl, listening, listening_url, free):
    """A full server is named as such, whether the first connection finds no place or a later one, or pg_dump."""
    from psycopg import connect

    with ExitStack() as held:
        for _ in range(MAX_CONNECTIONS - free):
            held.enter_context(connect(listening.url()))
        run = run_opsctl("backup", "--json", url=listening_url)
    assert run.returncode == (1 if free == 2 else 12), "the lock, the snapshot and pg_dump need a session each"
    assert_failed(run, run.returncode, "too many clients")
    assert_nothing_left(run_opsctl)


def test_server_dies_during_the_dump(run_opsctl, listening, listening_url, binaries, tmp_path):
    """A server that crashes while it is dumped leaves no backup, no partial folder and no process."""
    from psycopg import connect

    marker = tmp_path / "streaming"
    body = f'"$real" "$@" | {{ head -c 200000; touch {marker}; sleep 1; cat; }}'
    with connect(listening.url(), autocommit=True) as connection:
        connection.execute("drop table if exists big")
        connection.execute("create table big as select md5(n::text) as x from generate_series(1, 200000) n")
    process = run_opsctl.start(
        "backup", "--json", url=listening_url, env=write_programs(tmp_path / "bin", binaries, pg_dump=body)
    )
    wait_for(marker.exists, "the dump streams")
    listening.kill()
    stdout, stderr = process.communicate(timeout=30)
    error = json.loads(stdout)["error"]
    assert process.returncode in {1, 12}, (stdout, stderr)
    assert "\n" not in error["message"]
    assert error["hint"]
    assert "Traceback" not in stderr
    assert_nothing_left(run_opsctl)
    listening.start()
    assert run_opsctl("backup", url=listening_url).returncode == 0


# pg_dump


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'pg_dump: error: out of memory' >&2; exit 1", ["exit code 1", "out of memory"]),
        ('"$real" "$@" | head -c 2000; exit 1', ["exit code 1"]),
        ('"$real" "$@" | head -c 300000; exit 1', ["exit code 1"]),
        ('"$real" "$@" | head -c 300000; kill -9 $$', ["signal 9"]),
        ('"$real" "$@"; exit 3', ["exit code 3"]),
        ("head -c 300000 /dev/urandom; exit 1", ["exit code 1"]),
        ("head -c 300000 /dev/urandom", ["pg_restore"]),
        ("true", ["pg_restore"]),
    ],
    ids=[
        "at once",
        "in the contents",
        "in the data",
        "killed",
        "after everything",
        "writes noise",
        "noise and success",
        "nothing and success",
    ],
)
def test_pg_dump_fails(run_opsctl, saas, binaries, tmp_path, body, words):
    """Whatever pg_dump does, what it wrote becomes a backup only if it ended well and wrote an archive."""
    run = run_opsctl("backup", "--json", url=saas.url, env=write_programs(tmp_path / "bin", binaries, pg_dump=body))
    assert run.returncode == 1, run
    for word in words:
        assert word in run.json["error"]["message"]
    assert "\n" not in run.json["error"]["message"]
    assert_nothing_left(run_opsctl)


def test_truncated_dump_with_success_is_found_by_verify(run_opsctl, saas, binaries, tmp_path):
    """A dump cut in its data by a program that claims success is never proven: verify says it is damaged."""
    programs = write_programs(tmp_path / "bin", binaries, pg_dump='"$real" "$@" | head -c 3000000; exit 0')
    run = run_opsctl("backup", "--json", url=saas.url, env=programs)
    if run.returncode != 0:
        assert_nothing_left(run_opsctl)  # better still
        return
    assert run_opsctl("verify", "--json", url=saas.url).returncode == 15


def test_pg_dumpall_fails(run_opsctl, saas, binaries, tmp_path):
    """A login that may not read the roles still gets its data backed up; the exit code says that something is amiss."""
    body = "echo 'pg_dumpall: error: permission denied for table pg_authid' >&2; exit 1"
    run = run_opsctl("backup", "--json", url=saas.url, env=write_programs(tmp_path / "bin", binaries, pg_dumpall=body))
    assert run.returncode == 3
    assert "pg_dumpall" in run.json["result"]["backups"][0]["warnings"][0]
    assert "permission denied" in run.json["result"]["backups"][0]["warnings"][0]
    assert_nothing_left(run_opsctl, backups=1)
    assert run_opsctl("verify", url=saas.url).returncode == 0


@pytest.mark.parametrize(
    "body",
    ["exec sleep 600", "sleep 600", "trap '' TERM; sleep 600", '"$real" "$@" | { head -c 200000; sleep 600; }'],
    ids=["itself", "in a child", "deaf to SIGTERM", "in the data"],
)
def test_hanging_pg_dump_ends_with_opsctl(run_opsctl, saas, binaries, tmp_path, body):
    """SIGTERM ends a run whose pg_dump hangs, and everything pg_dump has started."""
    marker = tmp_path / "hangs"
    programs = write_programs(tmp_path / "bin", binaries, pg_dump=f"touch {marker}\n{body}")
    process = run_opsctl.start("backup", "--json", url=saas.url, env=programs)
    wait_for(marker.exists, "pg_dump was started")
    time.sleep(0.5)  # it can only be ended once it is known to have started
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 143, stderr
    assert json.loads(stdout)["error"]["code"] == "interrupted"
    assert [json.loads(line)["event"] for line in stderr.splitlines()][-1] == "run.failed"
    assert_nothing_left(run_opsctl)


def test_only_an_older_pg_dump(tmp_path):
    """pg_dump refuses newer servers: opsctl says so before it asks, and names both versions."""
    old = tmp_path / "pg_dump"
    old.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n")
    old.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"server is PostgreSQL 99, and the newest pg_dump here is") as caught:
        Tools(search_path=[str(tmp_path)], environment={}).for_dump(99)
    assert "postgresql-client" in str(caught.value.hint)


def test_archive_of_a_newer_pg_dump(tmp_path):
    """An archive no pg_restore here can read is said to be one."""
    with pytest.raises(ConfigurationError, match=r"written by pg_dump 99, and the newest pg_restore here is"):
        Tools(search_path=[str(tmp_path)], environment={}).for_restore(archive_major=99, server_major=18)


# Repositories


@contextmanager
def mounted(target: Path, *arguments):
    """A file system of its own below a test's folder; skips where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    target.mkdir()
    done = subprocess.run(["mount", *arguments, target], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this machine does not let root mount: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB; a backup of ``saas`` needs more."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as disk:
        yield disk


def test_full_disk(run_opsctl, saas, small_disk):
    """A disk that fills up is named, and gets its space back."""
    configure(run_opsctl, f'[databases.app]\nurl_env = "DATABASE_URL"\n[repositories.small]\nurl = "{small_disk}"\n')
    error = assert_failed(run_opsctl("backup", "--json", url=saas.url), 13, "No space left", str(small_disk))
    assert "Free space" in error["hint"]
    assert_nothing_left(run_opsctl)
    assert not list(small_disk.rglob("*.partial"))
    assert not list(small_disk.rglob("*.zst"))


def test_full_disk_stops_no_other_repository(run_opsctl, saas, small_disk):
    """One repository fills up, the other gets the whole backup: exit 3, and the failure is named."""
    configure(
        run_opsctl,
        '[databases.app]\nurl_env = "DATABASE_URL"\n'
        f'[repositories.small]\nurl = "{small_disk}"\n[repositories.large]\nurl = "large"\n',
    )
    run = run_opsctl("backup", "--json", url=saas.url)
    assert run.returncode == 3, run
    (backup,) = run.json["result"]["backups"]
    assert {each["name"]: each["status"] for each in backup["repositories"]} == {"small": "failed", "large": "stored"}
    assert not list(small_disk.rglob("*.partial"))
    assert run_opsctl("verify", url=saas.url).returncode == 0


def test_read_only_repository(run_opsctl, saas, tmp_path):
    """A file system mounted read-only is named as such; what is in it can still be listed and verified."""
    repository = run_opsctl.work / "backups"
    assert run_opsctl("backup", url=saas.url).returncode == 0
    view = tmp_path / "view"
    with mounted(view, "--bind", repository):
        subprocess.run(["mount", "-o", "remount,bind,ro", view], check=True)
        configure(run_opsctl, f'[databases.app]\nurl_env = "DATABASE_URL"\n[repositories.view]\nurl = "{view}"\n')
        assert_failed(run_opsctl("backup", "--json", url=saas.url), 13, "Read-only file system")
        assert len(run_opsctl("list", "--json", url=saas.url).json["result"]["backups"]) == 1
        run_opsctl("verify", url=saas.url)
    assert_nothing_left(run_opsctl, backups=1)


@pytest.mark.parametrize("url", ["file", "file/below"])
def test_repository_that_is_no_folder(run_opsctl, saas, url):
    """A repository whose path is a file, or leads through one, cannot be written and says so; no bug."""
    (run_opsctl.work / "file").write_text("I am a file.")
    configure(run_opsctl, f'[databases.app]\nurl_env = "DATABASE_URL"\n[repositories.odd]\nurl = "{url}"\n')
    assert_failed(run_opsctl("backup", "--json", url=saas.url), 13, str(run_opsctl.work / "file"))
    assert (run_opsctl.work / "file").read_text() == "I am a file."
    assert_nothing_left(run_opsctl)
    assert run_opsctl("list", "--json", url=saas.url).returncode == 13


def test_database_folder_that_is_a_file(run_opsctl, saas):
    """A file where the database's folder should be is the repository's fault too."""
    (run_opsctl.work / "backups").mkdir()
    (run_opsctl.work / "backups" / saas.name).write_text("I am a file.")
    assert_failed(run_opsctl("backup", "--json", url=saas.url), 13)
    assert_nothing_left(run_opsctl)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 999}', "\x00\xff"])
def test_damaged_manifest(run_opsctl, saas, text):
    """A backup whose manifest cannot be read is listed apart, never restored, and hinders no other."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    (manifest,) = run_opsctl.work.rglob("manifest.json")
    identifier = manifest.parent.name
    manifest.write_text(text, encoding="latin-1")
    listed = run_opsctl("list", "--json", url=saas.url).json["result"]
    assert listed["backups"] == []
    assert [each["id"] for each in listed["incomplete"]] == [identifier]
    assert_failed(run_opsctl("verify", "--all", "--json", url=saas.url), 15, identifier)
    assert_failed(run_opsctl("restore", identifier, "--yes", saas.name, "--json", url=saas.url), 15, identifier)
    assert_failed(run_opsctl("restore", "latest", "--yes", saas.name, "--json", url=saas.url), 14)


def test_damaged_manifest_hinders_no_backup(run_opsctl, saas):
    """The night after a manifest was damaged there is a new backup, and the damaged one is still there."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    (manifest,) = run_opsctl.work.rglob("manifest.json")
    manifest.write_text("{")
    assert run_opsctl("backup", url=saas.url).returncode == 0
    assert run_opsctl("verify", "--json", url=saas.url).returncode == 0
    assert manifest.exists()


def test_one_database_failing_stops_no_other(run_opsctl, saas, cluster):
    """Each database has its own outcome; the exit code says that one needs attention."""
    configure(
        run_opsctl,
        f'[databases.gone]\nurl = "{cluster.url("nowhere")}"\n[databases.app]\nurl = "{saas.url}"\n',
    )
    run = run_opsctl("backup", "--json")
    assert run.returncode == 3
    assert {each["database"]: each["status"] for each in run.json["result"]["backups"]} == {
        "gone": "failed",
        "app": "stored",
    }
    assert_nothing_left(run_opsctl, backups=1)


# Restore


def databases_like(database):
    found = database.execute("select datname from pg_database where starts_with(datname, %s) order by 1", database.name)
    return [name for (name,) in found]


@pytest.mark.parametrize(
    "body",
    [
        'case "$*" in *--exit-on-error*) echo "pg_restore: error: no luck" >&2; exit 1;; esac; exec "$real" "$@"',
        'case "$*" in *--exit-on-error*) head -c 500000 | "$real" "$@"; exit 1;; esac; exec "$real" "$@"',
        'case "$*" in *--exit-on-error*) kill -9 $$;; esac; exec "$real" "$@"',
        'case "$*" in *--exit-on-error*) cat >/dev/null; exit 0;; esac; exec "$real" "$@"',
    ],
    ids=["at once", "in the data", "killed", "does nothing and succeeds"],
)
def test_pg_restore_fails(run_opsctl, saas, binaries, tmp_path, body):
    """A restore that fails drops what it created; the live database is as it was."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    saas.execute("delete from messages")
    programs = write_programs(tmp_path / "bin", binaries, pg_restore=body)
    run = run_opsctl("restore", "latest", "--yes", saas.name, "--json", url=saas.url, env=programs)
    assert run.returncode in {1, 15}, run
    assert "\n" not in run.json["error"]["message"]
    assert databases_like(saas) == [saas.name]
    assert saas.execute("select count(*) from messages") == [(0,)]
    assert_nothing_left(run_opsctl, backups=1)


def test_damaged_dump_is_not_restored(run_opsctl, saas):
    """One flipped byte in the stored dump ends the restore before anything is swapped."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    (dump,) = run_opsctl.work.rglob("dump.zst")
    content = bytearray(dump.read_bytes())
    content[len(content) // 2] ^= 1
    dump.write_bytes(content)
    run = run_opsctl("restore", "latest", "--yes", saas.name, "--json", url=saas.url)
    assert_failed(run, 15, "dump.zst", "SHA-256")
    assert databases_like(saas) == [saas.name]


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_missing_bytes_are_not_restored(run_opsctl, saas, damage):
    """A dump that is cut off, or not there, is damage: exit 15, nothing created."""
    assert run_opsctl("backup", url=saas.url).returncode == 0
    (dump,) = run_opsctl.work.rglob("dump.zst")
    if damage == "gone":
        dump.unlink()
    else:
        os.truncate(dump, dump.stat().st_size // 2)
    assert_failed(run_opsctl("restore", "latest", "--into", f"{saas.name}_copy", "--json", url=saas.url), 15)
    assert databases_like(saas) == [saas.name]
    assert_failed(run_opsctl("verify", "--json", url=saas.url), 15)


# A password that breaks its URL

PIECES = ("zebra", "quagga")


@pytest.mark.parametrize("first", ["zebra", "2468"])
@pytest.mark.parametrize(
    "character", ["@", "/", "?", "#", "%", "%zz", " ", ":", "@/", "?x=", "?x/", "/x?", "/?", "[", "]"]
)
def test_unescaped_password_leaks_nowhere(run_opsctl, first, character):
    """An unescaped character makes libpq and urllib read a part of the password as host or port: none of it shows."""
    url = f"postgresql://someone:{first}{character}quagga@127.0.0.1:1/app"
    run = run_opsctl("backup", "--json", "--debug", url=url)
    assert run.returncode in {10, 12}, run
    assert "Traceback" not in run.json["error"]["message"]
    for piece in PIECES:
        assert piece not in run.stdout + run.stderr
    for path in [*run_opsctl.state.rglob("*"), *run_opsctl.work.rglob("*")]:
        assert not path.is_file() or not any(piece.encode() in path.read_bytes() for piece in PIECES)
    if run.returncode == 10:
        assert "percent-encoded" in run.json["error"]["message"] or run.json["error"]["hint"]


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg", "postgres"])
def test_url_of_sqlalchemy(run_opsctl, saas, scheme):
    """The application's own DATABASE_URL is good enough, with the driver SQLAlchemy wants in it."""
    assert run_opsctl("backup", url=saas.url.replace("postgresql", scheme, 1)).returncode == 0


def test_odd_password_percent_encoded(run_opsctl, listening, listening_url):
    """Any password works once it is percent-encoded, for psycopg and for pg_dump."""
    from psycopg import connect
    from psycopg.sql import SQL, Literal

    password = "p@ss:w\\ord/%?#&é '\""
    with connect(listening.url(), autocommit=True) as connection:
        connection.execute("drop role if exists odd")
        connection.execute(SQL("create role odd superuser login password {}").format(Literal(password)))
    url = listening_url.replace(f"postgres:{listening.password}", f"odd:{quote(password, safe='')}")
    assert run_opsctl("backup", url=url).returncode == 0
