"""`before_swap`, `after_swap` and `replica_urls`: what else has to happen around a swap."""

import os
import shlex
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg  # noqa: TID253
import pytest
from servers import throwaway_server

from opsctl.postgres.cluster import Cluster

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def cluster(binaries):
    """A server that streams to standbys."""
    settings = {"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on", "wal_keep_size": "64MB"}
    with throwaway_server(binaries, settings=settings) as running:
        yield running


@dataclass(frozen=True)
class Hooks:
    """Two programs that write down that, how and when they were called."""

    folder: Path

    @property
    def log(self):
        return self.folder / "log"

    def command(self, name, *arguments, code=0, database=None):
        """A hook's command line; with ``database`` it also writes how many databases were put aside at that moment."""
        program = self.folder / name
        lines = ["#!/bin/sh", f"{{ echo {name}; for each; do printf '<%s>\\n' \"$each\"; done"]
        if database is not None:
            psql = shlex.join(
                [
                    str(database.cluster.binaries.path("psql")),
                    "-XAtc",
                    f"SELECT count(*) FROM pg_database WHERE starts_with(datname, '{database.name}__before')",
                    replace(database, name="postgres").url,
                ]
            )
            lines.append(psql)
        lines += [
            f"}} >> {shlex.quote(str(self.log))}",
            f"[ {code} = 0 ] || echo 'that went wrong' >&2",
            f"exit {code}",
        ]
        program.write_text("\n".join(lines) + "\n")
        program.chmod(0o755)
        return shlex.join([str(program), *arguments])

    @property
    def said(self):
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def hooks(tmp_path):
    folder = tmp_path / "hooks of the shop"
    folder.mkdir()
    return Hooks(folder)


def configure(run_opsctl, database, **settings):
    values = {"url": database.url, **settings}
    lines = [
        f"{key} = {value!r}" if isinstance(value, list) else f"{key} = '''{value}'''" for key, value in values.items()
    ]
    (run_opsctl.work / "opsctl.toml").write_text("\n".join(["[databases.db]", *lines, ""]))


@pytest.fixture
def versioned(run_opsctl, database):
    """Version 1 is backed up, version 2 is live."""
    database.execute("CREATE TABLE t AS SELECT 1 AS version")
    configure(run_opsctl, database)
    assert run_opsctl("backup").returncode == 0
    database.execute("UPDATE t SET version = 2")
    return database


def version(database):
    return database.execute("SELECT version FROM t")[0][0]


AWKWARD = ("two words", "$HOME", "`id`", ";", "*", "|", "it's")


def test_hooks_run_around_the_swap_without_a_shell(run_opsctl, versioned, hooks):
    """First one, swap, other one; arguments arrive as they are written, and no shell reads them. Undo does the same."""
    before = hooks.command("before", *AWKWARD, database=versioned)
    after = hooks.command("after", "resume", database=versioned)
    configure(run_opsctl, versioned, before_swap=before, after_swap=after)
    run = run_opsctl("restore", "latest", "--yes", "db", "--json")

    assert run.returncode == 0, run
    assert hooks.said == ["before", *(f"<{each}>" for each in AWKWARD), "0", "after", "<resume>", "1"]
    assert version(versioned) == 1
    hooks.log.unlink()
    undone = run_opsctl("restore", "--undo", "--yes", "db", "--json")
    assert undone.returncode == 0, undone
    assert [each for each in hooks.said if each in {"before", "after"}] == ["before", "after"]
    assert version(versioned) == 2


def test_failing_first_hook_stops_the_swap(run_opsctl, versioned, hooks, databases_like):
    """Clients could not be held back: not swapped, staging gone, and the second hook runs so that nothing stays so."""
    configure(run_opsctl, versioned, before_swap=hooks.command("before", code=7), after_swap=hooks.command("after"))
    run = run_opsctl("restore", "latest", "--yes", "db", "--json")

    assert run.returncode == 1, run
    message = run.json["error"]["message"]
    for word in ("exit code 7", "that went wrong", "The swap did not happen"):
        assert word in message
    assert hooks.said == ["before", "after"]
    assert version(versioned) == 2
    assert databases_like(versioned) == [versioned.name]


@pytest.mark.parametrize("way", ["restore", "undo"])
def test_failing_second_hook_needs_attention(run_opsctl, versioned, hooks, way):
    """The swap has happened; that a pooler may still be paused is a warning and exit code 3."""
    if way == "undo":
        assert run_opsctl("restore", "latest", "--yes", "db").returncode == 0
    configure(run_opsctl, versioned, after_swap=hooks.command("after", code=9))
    what = ["--undo"] if way == "undo" else ["latest"]
    run = run_opsctl("restore", *what, "--yes", "db", "--json")

    assert run.returncode == 3, run
    (warning,) = run.json["result"]["warnings"]
    assert "exit code 9" in warning
    assert "that went wrong" in warning
    assert run.json["result"]["swapped"] is True
    assert version(versioned) == (2 if way == "undo" else 1)
    assert "exit code 9" in run.stderr


@pytest.mark.parametrize("command", ["/nonexistent/hook", "'unclosed"])
def test_hook_that_cannot_be_run(run_opsctl, versioned, databases_like, command):
    """A hook that is not there, or no command line, ends like one that fails."""
    configure(run_opsctl, versioned, before_swap=command)
    run = run_opsctl("restore", "latest", "--yes", "db", "--json")

    assert run.returncode == 1, run
    assert "could not be run" in run.json["error"]["message"]
    assert version(versioned) == 2
    assert databases_like(versioned) == [versioned.name]


def test_without_a_swap_there_is_nothing_to_hold_back(run_opsctl, versioned, hooks):
    """A plan, a copy beside and a refusal disturb no clients."""
    configure(run_opsctl, versioned, before_swap=hooks.command("before"), after_swap=hooks.command("after"))
    assert run_opsctl("restore", "latest", "--plan").returncode == 0
    assert run_opsctl("restore", "latest", "--into", f"{versioned.name}_copy").returncode == 0
    assert run_opsctl("restore", "latest").returncode == 16

    assert hooks.said == []


# Standbys


class Standby(Cluster):
    """A streaming standby, made from a running cluster."""

    @classmethod
    def of(cls, primary, folder):
        sockets = folder / "socket"
        sockets.mkdir(mode=0o700)
        account = {"account": primary._account, "superuser": primary.user, "niceness": 0}
        return cls(primary.binaries, folder, sockets, **account, listen=False, timeout_seconds=60)

    def copy(self, primary):
        self._programs = primary._programs
        self._give_away(self.folder)
        self._give_away(self.socket_folder)
        command = [
            self._programs / "pg_basebackup",
            "--pgdata",
            self.data,
            "--write-recovery-conf",
            "--checkpoint=fast",
        ]
        command += ["--dbname", f"{primary.url()}&application_name=standby_one"]
        subprocess.run(command, check=True, capture_output=True, **self._as_account())
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{self.socket_folder}'\n")


@pytest.fixture
def standby(cluster):
    """A hot standby of the server; ``.url(database)``."""
    folder = Path(tempfile.mkdtemp(prefix="opsctl-s-", dir="/tmp"))  # a socket's path is short
    folder.chmod(0o711)
    copy = Standby.of(cluster, folder)
    try:
        copy.copy(cluster)
        copy.start()
        yield copy
    finally:
        copy.stop()
        shutil.rmtree(folder)


def on_standby(standby, database):
    return replace(database, cluster=standby)


def test_sessions_of_a_standby_are_ended(run_opsctl, versioned, standby):
    """With ``replica_urls`` nobody goes on reading the old database on a standby: its session ends after the swap."""
    copy = on_standby(standby, versioned)
    configure(run_opsctl, versioned, replica_urls=[copy.url])
    plan = run_opsctl("restore", "latest", "--plan", "--json")
    assert plan.returncode == 0, plan
    assert not [each for each in plan.json["result"]["plan"]["warnings"] if "standby" in each]
    with ExitStack() as stack:
        reader = psycopg.connect(copy.url, autocommit=True)
        stack.callback(reader.close)
        assert reader.execute("SELECT version FROM t").fetchone() == (2,)
        run = run_opsctl("restore", "latest", "--yes", "db", "--json")

        assert run.returncode == 0, run
        with pytest.raises(psycopg.OperationalError):
            reader.execute("SELECT version FROM t")
    assert version(copy) == 1


def test_standby_that_nobody_named(run_opsctl, versioned, standby):
    """Without ``replica_urls`` the plan names the standby whose sessions would go on reading the old database."""
    run = run_opsctl("restore", "latest", "--plan", "--json")

    assert run.returncode == 0, run
    (remark,) = [each for each in run.json["result"]["plan"]["warnings"] if "replica_urls" in each]
    assert "standby_one" in remark


@pytest.mark.acceptance
def test_standby_that_does_not_answer(run_opsctl, versioned, standby, tmp_path):
    """The swap is not undone because of a standby: it is named, and the exit code is 3."""
    copy = on_standby(standby, versioned)
    configure(run_opsctl, versioned, replica_urls=[copy.url])
    standby.stop()
    run = run_opsctl("restore", "latest", "--yes", "db", "--json")

    assert run.returncode == 3, run
    (warning,) = run.json["result"]["warnings"]
    assert str(standby.socket_folder) in warning
    assert version(versioned) == 1


@pytest.mark.acceptance
def test_standby_is_no_target(run_opsctl, versioned, standby, databases_like):
    """A standby takes no writes: refused, with the reason, and nothing was tried."""
    copy = on_standby(standby, versioned)
    for arguments in (["--to", copy.url], ["--to", copy.url, "--into", "beside"]):
        run = run_opsctl("restore", "latest", *arguments, "--plan", "--json")
        assert run.returncode == 16, run
        assert "standby" in run.json["error"]["message"]
    assert databases_like(versioned) == [versioned.name]
    assert os.path.exists(standby.data / "standby.signal")  # noqa: PTH110 - root alone may look
